"""Calls in a pipeline: sent while the next are made, confirmed at the end of the block."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from nbqueue import pipeline as pipelines
from nbqueue.deliveries import LIVE, SENT, Outgoing
from nbqueue.exceptions import SendFailed, SendUncertain, UnknownTask
from nbqueue.pipeline import Pipeline
from nbqueue.watched import WatchedTask
from tests.helpers import wait_until
from tests.workers import Site


class Broker:
    """Stands for a broker that is slow, or away."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_answer = threading.Event()
        self.error: Exception | None = None
        self.live: set[str] = set()
        self.unwatched: list[str] = []

    def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        self.batches.append([message.id for message in messages])
        assert self.may_answer.wait(10)
        if self.error is not None:
            raise self.error
        return [LIVE if message.id in self.live else SENT for message in messages]

    def pipeline(self) -> Pipeline:
        return Pipeline(self.publish, lambda watched: self.unwatched.append(watched.id))


def call(pipeline: Pipeline, id_: str, body: bytes = b"") -> WatchedTask:
    watched = WatchedTask(id_)
    pipeline.add(Outgoing("q", id_, "header", body), watched)
    return watched


def call_and_fail(broker: Broker, id_: str) -> None:
    with broker.pipeline() as pipeline:
        call(pipeline, id_)
        raise ZeroDivisionError


def test_calls_return_before_the_broker_answers_and_the_block_after() -> None:
    broker = Broker()
    with broker.pipeline() as pipeline:
        for number in range(50):
            call(pipeline, str(number))
        wait_until(lambda: broker.batches, 5, "the first to be sent")
        broker.may_answer.set()
    sent = [id_ for batch in broker.batches for id_ in batch]
    assert sent == [str(number) for number in range(50)]
    assert len(broker.batches) < 50, "what gathers goes together"


def test_caller_waits_when_very_much_has_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "MOST_BYTES", 100)
    broker, added = Broker(), threading.Event()

    def send_three() -> None:
        with broker.pipeline() as pipeline:
            for number in range(3):
                call(pipeline, str(number), bytes(60))
            added.set()

    thread = threading.Thread(target=send_three)
    thread.start()
    wait_until(lambda: broker.batches, 5, "the first to be sent")
    assert not added.wait(0.05)
    broker.may_answer.set()
    thread.join(10)
    assert added.is_set()


def test_block_raises_at_its_end_when_calls_were_not_sent() -> None:
    broker = Broker()
    broker.may_answer.set()
    broker.error = SendFailed("the broker can't be reached")
    pipeline = broker.pipeline()
    lost = call(pipeline, "one")
    wait_until(lambda: lost.ended, 5, "the failure")
    broker.error = None
    kept = call(pipeline, "two")
    with pytest.raises(SendFailed, match="1 of the block's calls were not confirmed, the first of them one: the"):
        pipeline.__exit__(None, None, None)
    assert isinstance(lost.trouble, UnknownTask)
    assert not kept.ended
    assert broker.unwatched == ["one"]


def test_block_says_that_it_does_not_know_when_the_broker_did_not_answer() -> None:
    broker = Broker()
    broker.may_answer.set()
    broker.error = SendUncertain("no answer")
    with pytest.raises(SendUncertain), broker.pipeline() as pipeline:
        call(pipeline, "one")


def test_id_that_lives_is_named() -> None:
    broker = Broker()
    broker.may_answer.set()
    broker.live = {"b"}
    pipeline = broker.pipeline()
    for id_ in "abc":
        call(pipeline, id_)
    with pytest.raises(SendFailed, match="a task b is queued or running already"):
        pipeline.__exit__(None, None, None)
    assert broker.unwatched == ["b"]


def test_error_of_the_block_comes_first_and_what_was_called_before_is_sent() -> None:
    broker = Broker()
    broker.may_answer.set()
    with pytest.raises(ZeroDivisionError):
        call_and_fail(broker, "one")
    assert broker.batches == [["one"]]
    broker.error = SendFailed("away")
    with pytest.raises(ZeroDivisionError) as raised:
        call_and_fail(broker, "two")
    assert "1 of the block's calls were not confirmed" in raised.value.__notes__[0]


def test_thread_ends_with_the_block() -> None:
    broker = Broker()
    broker.may_answer.set()
    with broker.pipeline() as pipeline:
        call(pipeline, "one")
    wait_until(lambda: "nbqueue pipeline" not in {thread.name for thread in threading.enumerate()}, 5, "its end")
    with pytest.raises(SendFailed, match="has ended"):
        call(pipeline, "late")


def test_calls_of_a_block_run_and_can_be_waited_for(shared_site: Site) -> None:
    app = shared_site.app
    double = app.task(lambda n: 2 * n, name="tests.double")
    with app.pipeline():
        results = [double.delay(n) for n in range(200)]
        assert results[0].get(timeout=20) == 0
        with app.pipeline():
            results.append(double.apply_async((200,)))
    # what is confirmed is with the server, whoever asks
    assert None not in app.backend.load([result.id for result in results])
    assert [result.get(timeout=20) for result in results] == [2 * n for n in range(201)]
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(double.delay(1).get(timeout=20)))
    with app.pipeline():
        thread.start()  # whose calls are its own affair
        thread.join(20)
    assert others == [2]
