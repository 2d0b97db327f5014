"""What every backend promises."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from nbqueue.backends.base import GAP, Backend, Label, Told
from nbqueue.backends.memory import MemoryBackend
from nbqueue.backends.redis import OUTPUT_MAXLEN, RedisBackend
from nbqueue.deliveries import KEEPER_TROUBLE
from nbqueue.exceptions import BackendUnavailable
from tests.helpers import RedisServer, wait_until


@pytest.fixture(params=["redis", "memory"])
def backend(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Backend]:
    opened: Backend = RedisBackend(redis_server.url) if request.param == "redis" else MemoryBackend()
    yield opened
    opened.close()


def test_backend_keeps_records_by_id(backend: Backend) -> None:
    backend.store({"1": b"one", "2": b"two"}, ttl_s=60)
    assert backend.load(["2", "none", "1"]) == [b"two", None, b"one"]


def test_backend_drops_a_record_when_its_time_is_over(backend: Backend) -> None:
    backend.store({"1": b"one"}, ttl_s=0.05)
    wait_until(lambda: backend.load(["1"]) == [None], 2, "the record to expire")


def test_backend_forgets_records_and_outputs(backend: Backend) -> None:
    backend.store({"1": b"one"}, ttl_s=60)
    backend.tell([Told("s", "1", b'{"nbq":"x"}')])
    backend.forget(["1"])
    assert backend.load(["1"]) == [None]
    assert backend.outputs("1") == []


def test_backend_keeps_what_a_map_shares(backend: Backend) -> None:
    assert backend.load_group("g") is None
    backend.store_group("g", b"shared", ttl_s=60)
    assert backend.load_group("g") == b"shared"


def test_backend_forgets_what_a_map_shares_and_records_of_members(backend: Backend) -> None:
    backend.store_group("g", b"shared", ttl_s=60)
    backend.store({"g-0": b"one", "g-1": b"two"}, ttl_s=60)
    backend.forget_group("g", ["g-0"])
    assert backend.load_group("g") is None
    assert backend.load(["g-0", "g-1"]) == [None, b"two"]


def test_backend_brings_facts_to_their_session_in_order(backend: Backend) -> None:
    backend.tell([Told("s", "1", b'"a"'), Told("other", "2", b'"x"')])
    backend.tell([Told("s", "1", b'"b"', keep=False)])
    news = backend.read({"s": ""}, block_s=0.01)
    assert [(session, text) for session, _, text in news] == [("s", b'["a"]'), ("s", b'["b"]')]


def test_backend_ends_a_read_that_waits_when_it_is_told_to(backend: Backend) -> None:
    def read() -> None:
        with contextlib.suppress(BackendUnavailable):
            backend.read({"s": ""}, block_s=5.0)

    began = time.monotonic()
    thread = threading.Thread(target=read)
    thread.start()

    def ended() -> bool:
        backend.stop_reading()  # again, as it may not have begun to wait
        return not thread.is_alive()

    wait_until(ended, 5, "the read to end")
    assert time.monotonic() - began < 2


def test_backend_brings_only_what_is_new_after_a_cursor(backend: Backend) -> None:
    backend.tell([Told("s", "1", b'"a"')])
    cursor = backend.last("s")
    assert backend.read({"s": cursor}, block_s=0.01) == []
    backend.tell([Told("s", "1", b'"b"')])
    assert [text for *_, text in backend.read({"s": cursor}, block_s=0.01)] == [b'["b"]']


def test_backend_keeps_late_outputs_behind_early_ones_and_forgets_both(backend: Backend) -> None:
    backend.tell([Told("s", "1", b'"late"', late=True)])
    backend.tell([Told("s", "1", b'"early"')])
    kept = backend.outputs("1")
    assert sorted(kept) == [b'["early"]', b'["late"]']
    backend.forget(["1"])
    assert backend.outputs("1") == []


def test_backend_keeps_early_outputs_and_says_where_others_are_missing(redis_server: RedisServer) -> None:
    backend = RedisBackend(redis_server.url)
    backend.tell([Told("", "1", b'"early"')])
    for number in range(OUTPUT_MAXLEN + 500):
        backend.tell([Told("", "1", b"%d" % number, late=True)])
    first, gap, *late = backend.outputs("1")
    assert (first, gap) == (b'["early"]', GAP)
    assert late[-1] == b"[%d]" % (OUTPUT_MAXLEN + 499)
    assert len(late) < OUTPUT_MAXLEN + 200
    backend.close()


def test_backend_keeps_outputs_for_replay_but_not_what_is_passing(backend: Backend) -> None:
    backend.tell([Told("s", "1", b'"kept"'), Told("s", "1", b'"passing"', keep=False)])
    assert backend.outputs("1") == [b'["kept"]']


def test_backend_finds_tasks_by_label_newest_first(backend: Backend) -> None:
    backend.label(Label("old", "train", "", 1.0))
    backend.label(Label("new", "train", "", 2.0))
    assert backend.labelled("train") == ["new", "old"]
    assert backend.labelled("other") == []


def test_backend_finds_the_newest_task_of_an_identity(backend: Backend) -> None:
    assert backend.identified("cell") is None
    for id_ in ("old", "new"):
        backend.label(Label(id_, "", "cell", time.time()))
    assert backend.identified("cell") == "new"


def test_backend_forgets_an_identity_unless_it_is_a_newer_tasks(backend: Backend) -> None:
    backend.label(Label("new", "train", "cell", time.time()))
    backend.unidentify("cell", "old")
    assert backend.identified("cell") == "new"
    backend.unidentify("cell", "new")
    assert backend.identified("cell") is None


def test_backend_passes_orders_on(backend: Backend) -> None:
    backend.order("first")
    cursor = backend.last_order()
    backend.order("second")
    assert [text for _, text in backend.orders("")] == [b"first", b"second"]
    assert [text for _, text in backend.orders(cursor)] == [b"second"]


def test_backend_passes_answers_on_to_whoever_waits_for_them(backend: Backend) -> None:
    assert backend.replies("one", 0.01) == []
    for text in (b"a", b"b"):
        backend.reply("one", text, 60)
    backend.reply("other", b"c", 60)
    assert backend.replies("one", 5) == [b"a", b"b"]
    assert backend.replies("one", 0.01) == []
    later = threading.Timer(0.1, lambda: backend.reply("one", b"d", 60))
    later.start()
    assert backend.replies("one", 5) == [b"d"]
    later.join()
    assert backend.replies("other", 5) == [b"c"]


def test_wait_shows_what_the_keeper_says_of_a_worker_that_does_not_start(redis_server: RedisServer) -> None:
    backend = RedisBackend(redis_server.url)
    assert backend.trouble() == ""
    backend.client.set(KEEPER_TROUBLE, '{"at": 1.0, "text": "it ended:\\n  ImportError: no module"}')
    assert backend.trouble() == "ImportError: no module"
    backend.client.set(KEEPER_TROUBLE, "garbage")
    assert backend.trouble() == ""
    backend.close()


def test_backend_keeps_blobs_in_parts_and_tells_which_are_whole(backend: Backend) -> None:
    until = backend.now() + 60
    backend.store_blob("a", 0, [b"one", b"two"], until)
    assert backend.keep_blobs({"a": 9, "b": 1}, 0.0) == set()
    backend.store_blob("a", 2, [b"six"], until)
    backend.seal_blob("a", 9, until)
    assert backend.keep_blobs({"a": 9, "b": 1}, 0.0) == {"a"}
    assert backend.keep_blobs({"a": 8}, 0.0) == set()
    assert backend.load_blob("a", 1, 3) == [b"two", b"six", None]
    assert backend.load_blob("b", 0, 1) == [None]


def test_backend_drops_blobs_in_time_unless_they_are_kept(backend: Backend) -> None:
    now = backend.now()
    for digest in ("a", "b"):
        backend.store_blob(digest, 0, [b"x"], now + 0.3)
        backend.seal_blob(digest, 1, now + 0.3)
    assert backend.keep_blobs({"a": 1}, now + 60) == {"a"}
    assert backend.keep_blobs({"a": 1}, now + 0.1) == {"a"}  # never shortened
    wait_until(lambda: backend.keep_blobs({"a": 1, "b": 1}, 0.0) == {"a"}, 5, "one blob to go")


def test_backend_makes_room_with_blobs_that_would_go_soonest(backend: Backend) -> None:
    now = backend.now()
    for place, digest in enumerate("cab"):
        backend.store_blob(digest, 0, [b"xx"], now + 60 + place)
        backend.seal_blob(digest, 2, now + 60 + place)
    backend.keep_blobs({"c": 2}, now + 90)
    assert backend.clean_blobs(6) == 0
    assert backend.clean_blobs(3) == 4
    assert backend.keep_blobs({"a": 2, "b": 2, "c": 2}, 0.0) == {"c"}
