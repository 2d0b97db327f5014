"""The listening thread on a backend in memory."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from nbqueue import states, watcher
from nbqueue.backends.base import Told
from nbqueue.backends.memory import MemoryBackend
from nbqueue.exceptions import BackendUnavailable, UnknownTask
from nbqueue.messages import Facts, Output, Steering, sign_event, sign_group, sign_record
from nbqueue.signing import Signer
from nbqueue.watched import WatchedMap, WatchedTask
from nbqueue.watcher import Offer, Watcher, known_offers, live_offers
from tests.hand import take
from tests.helpers import wait_until
from tests.workers import Site

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> MemoryBackend:
    monkeypatch.setattr(watcher, "CHECK_S", 0.05)
    monkeypatch.setattr(watcher, "BLOCK_S", 0.05)
    monkeypatch.setattr(watcher, "EXPLAIN_S", 0.0)
    return MemoryBackend()


@pytest.fixture
def listening(backend: MemoryBackend) -> Iterator[Watcher]:
    made = Watcher(backend, Signer(KEY), "session")
    yield made
    made.close()


def facts(id_: str, state: str = states.SUCCESS, **more: Any) -> Facts:
    fields: dict[str, Any] = {"kind": "record", "id": id_, "at": time.time(), "session": "session", "attempt": 1}
    return Facts(**{**fields, "state": state, **more})


def record(id_: str, state: str = states.SUCCESS, key: bytes = KEY, **more: Any) -> bytes:
    return sign_record(facts(id_, state, **more), b"", Signer(key))


def said(id_: str, text: str) -> bytes:
    return sign_event(
        facts(id_, kind="output", state=""), msgspec.json.encode(Output("stream", "stdout", text)), Signer(KEY)
    )


def lines(task: WatchedTask) -> str:
    return "".join(text for *_, text in task.status.log.chunks)


def test_task_ends_when_its_session_is_told(backend: MemoryBackend, listening: Watcher) -> None:
    task = listening.watch(WatchedTask("a"))
    backend.tell([Told("session", "a", record("a"))])
    assert task.wait(5)


def test_fact_that_is_not_signed_with_our_key_is_not_believed(
    backend: MemoryBackend, listening: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    task = listening.watch(WatchedTask("a"))
    with caplog.at_level(logging.WARNING):
        backend.tell([Told("session", "a", record("a", states.SUCCESS, key=OTHER_KEY))])
        wait_until(lambda: "refused" in caplog.text, 5, "the refusal")
    assert not task.ended
    backend.tell([Told("session", "a", record("a"))])
    assert task.wait(5)


def test_record_of_another_task_under_this_id_is_not_believed(backend: MemoryBackend, listening: Watcher) -> None:
    task = listening.watch(WatchedTask("a"))
    backend.store({"a": record("b")}, 60)
    assert not task.wait(0.3)


def test_news_that_was_lost_is_found_in_the_record(backend: MemoryBackend, listening: Watcher) -> None:
    task = listening.watch(WatchedTask("a"))
    backend.store({"a": record("a")}, 60)  # and no session is told
    assert task.wait(5)


def test_what_a_task_said_last_is_not_lost_when_its_record_is_read_first() -> None:
    class Overtaken(MemoryBackend):
        """Has a task end just before its record is asked for."""

        def load(self, ids: Sequence[str]) -> list[bytes | None]:
            if not super().load(ids)[0]:
                self.store({"a": record("a")}, 60)
                self.tell([Told("session", "a", said("a", "last words")), Told("session", "a", record("a"))])
            return super().load(ids)

    watcher = Watcher(Overtaken(), Signer(KEY), "session")
    try:
        task = watcher.watch(WatchedTask("a"))
        assert task.wait(5)
        assert lines(task) == "last words"
    finally:
        watcher.close()


def test_task_of_which_nothing_is_kept_is_unknown(backend: MemoryBackend, listening: Watcher) -> None:
    task = listening.attach("nobody's")
    assert isinstance(task.trouble, UnknownTask)


def test_task_whose_record_has_gone_while_it_was_waited_for_is_unknown(
    backend: MemoryBackend, listening: Watcher
) -> None:
    task = listening.watch(WatchedTask("a"))
    assert task.wait(5)
    assert isinstance(task.trouble, UnknownTask)


def test_attached_task_has_all_it_said_once_and_in_order(backend: MemoryBackend, listening: Watcher) -> None:
    backend.store({"a": record("a", states.STARTED, session="old")}, 60)
    backend.tell([Told("old", "a", said("a", "one\n")), Told("old", "a", said("a", "two\n"))])
    task = listening.attach("a")
    assert lines(task) == "one\ntwo\n"
    backend.tell([Told("old", "a", said("a", "three\n")), Told("old", "a", record("a", session="old"))])
    assert task.wait(5)
    assert lines(task) == "one\ntwo\nthree\n"
    assert listening.attach("a") is not task  # it has ended and is no longer followed
    assert lines(listening.attach("a")) == "one\ntwo\nthree\n"


def test_attaching_twice_is_one_watch(backend: MemoryBackend, listening: Watcher) -> None:
    backend.store({"a": record("a", states.STARTED)}, 60)
    assert listening.attach("a") is listening.attach("a")


def test_call_of_a_canvas_that_ends_while_it_is_attached_to_is_not_missed(
    backend: MemoryBackend, listening: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "CHECK_S", 60.0)
    listening.watch(WatchedTask("other"))
    wait_until(lambda: listening._next_check > time.monotonic() + 30, 5, "the look that would find it")
    look = backend.load_graph

    def end_meanwhile(graph: str) -> bytes | None:
        backend.store({"g-1": record("g-1")}, 60)
        backend.tell([Told("session", "g-1", record("g-1"))])
        wait_until(lambda: listening._cursors["session"] == "1", 5, "the fact to be read")
        return look(graph) or b"a graph"

    monkeypatch.setattr(backend, "load_graph", end_meanwhile)
    assert listening.attach("g-1").wait(5)


def test_map_takes_its_members_and_finds_what_was_lost(backend: MemoryBackend, listening: Watcher) -> None:
    steering = Steering(id="g", nonce="n", task="f", queue="q", sent_at=1.0, size=3, session="session")
    backend.store_group("g", sign_group(steering, b"", Signer(KEY)), 60)
    group = WatchedMap(steering)
    listening.watch_map(group)
    backend.tell([Told("session", f"g-{n}", record(f"g-{n}", group="g", index=n)) for n in (0, 2)])
    wait_until(lambda: group.arrived == [0, 2], 5, "two members")
    backend.store({"g-1": record("g-1", group="g", index=1)}, 60)
    member = listening.attach("g-1")
    assert member.wait(5)


def test_backend_that_goes_away_is_said_and_its_return_is_noticed(backend: MemoryBackend, listening: Watcher) -> None:
    task = listening.watch(WatchedTask("a"))
    read, backend.read = backend.read, _unavailable  # type: ignore[method-assign]
    wait_until(lambda: task.unreachable_since is not None, 5, "the outage to be noticed")
    backend.read = read  # type: ignore[method-assign]
    backend.tell([Told("session", "a", record("a"))])
    assert task.wait(10)
    assert task.unreachable_since is None


def _unavailable(*_: object, **__: object) -> Any:
    raise BackendUnavailable("away")


def test_waiting_for_a_queue_that_nobody_serves_says_so(backend: MemoryBackend, listening: Watcher) -> None:
    backend.store({"a": record("a", states.PENDING, queue="gpu")}, 60)
    task = listening.attach("a")
    task.subscribe(lambda: None)
    wait_until(lambda: "No worker listens to queue gpu" in task.status.note, 5, "the note")


def test_thread_ends_when_it_is_closed(backend: MemoryBackend) -> None:
    made = Watcher(backend, Signer(KEY), "s")
    made.watch(WatchedTask("a"))
    thread = made._thread
    assert thread is not None
    made.close()
    wait_until(lambda: not thread.is_alive(), 5, "the thread to end")


def advert(offer: Offer, at: float, key: bytes = KEY) -> bytes:
    return json.dumps({"at": at, "nbq": Signer(key).sign("worker", msgspec.json.encode(offer))}).encode()


def test_offers_are_those_of_workers_that_live_and_of_our_key(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MemoryBackend()
    now = time.time()
    adverts = {
        "lives": advert(Offer("lives", "h", 1, "k", ("q",)), now - 1),
        "gone": advert(Offer("gone", "h", 1, "k", ("q",)), now - 3_600),
        "other": advert(Offer("other", "h", 1, "x", ("q",), all_queues=True), now, OTHER_KEY),
        "garbage": b"{",
    }
    monkeypatch.setattr(backend, "adverts", lambda: adverts)
    live = {offer.name: offer for offer in live_offers(backend, Signer(KEY), now)}
    assert sorted(live) == ["lives", "other"]
    assert (live["other"].queues, live["other"].all_queues) == ((), False)  # what it says is not believed
    assert {offer.name for offer, _ in known_offers(backend, Signer(KEY))} == {"lives", "gone", "other"}


def test_wait_says_that_the_message_of_its_task_is_gone(idle_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbqueue.watcher.CHECK_S", 0.1)
    monkeypatch.setattr("nbqueue.watcher.BLOCK_S", 0.05)
    monkeypatch.setattr("nbqueue.watcher.EXPLAIN_S", 0.0)
    app = idle_site.app
    gone = app.send_task("tests.project.add", (1, 2), queue="elsewhere")
    take(idle_site, queue="elsewhere")
    idle_site.worker("-Q", "elsewhere")
    with gone.watched.subscribing():
        wait_until(lambda: "Send it again" in gone.watched.note, 20, "the reason")
    delayed = app.send_task("tests.project.add", (1, 2), queue="elsewhere", countdown=600.0)
    with gone.watched.subscribing(), delayed.watched.subscribing():
        wait_until(lambda: not gone.watched.note, 20, "the queue to be looked at again")
        assert not delayed.watched.note
