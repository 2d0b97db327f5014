"""What a worker stores: in which order, once, and after an outage."""

from __future__ import annotations

import itertools
import os
import select
import selectors
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from nbqueue import App, signals, states
from nbqueue.announcer import Announcer
from nbqueue.backends.base import Told
from nbqueue.broker import StreamsBroker
from nbqueue.deliveries import Settlement
from nbqueue.dispatch import Dispatcher, Held
from nbqueue.ledger import MAX_TOLD_BYTES, Ledger
from nbqueue.messages import (
    Again,
    ChildTask,
    Failure,
    Outcome,
    Steering,
    encode_again,
    encode_failure,
    encode_steering,
)
from nbqueue.pool import Job, Pool
from nbqueue.reports import Reporter
from nbqueue.signing import create_key_file
from tests.helpers import RedisServer

_numbers = itertools.count(1)


class Desk:
    """A ledger with tasks that are claimed and held, without children."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        key = server.directory / "key"
        if not key.exists():
            create_key_file(key)
        self.app = App("demo", broker=server.url, key_file=key, set_as_current=False)
        broker = self.app.broker
        assert isinstance(broker, StreamsBroker)
        self.broker = broker
        self.work = Dispatcher(Pool(1, selectors.DefaultSelector(), environment=os.environ))
        self.consumer = broker.open_consumer("c", 10.0)
        self.ledger = Ledger(self.consumer, self.app.backend, self.work)
        self.reports = Reporter("w@test", self.app.signer)

    def hold(self) -> Held:
        """Send a task, claim it, and hold it."""
        sent = self.app.send_task("demo.add", (1, 2))
        (delivery,) = self.broker.claim(1, ["nbqueue"])[0]
        seq = next(_numbers)
        s = Steering(id=sent.id, nonce="n", task="demo.add", queue="nbqueue", sent_at=time.time())
        task = ChildTask(seq, 1, s.id, s.task, "", -1, encode_steering(s), b"")
        held = Held(seq, delivery, s, Job(seq, task, b""))
        self.work.add(held)
        return held

    def end(self, held: Held, state: str = states.REVOKED) -> None:
        self.ledger.settle(self.reports.ended(held, state, b"", ""), held)

    def state(self, held: Held) -> str:
        with self.app.__class__("demo", broker=self.server.url, key_file=self.server.directory / "key") as app:
            return app.AsyncResult(held.steering.id).state


@pytest.fixture
def desk(private_redis: RedisServer) -> Iterator[Desk]:
    made = Desk(private_redis)
    yield made
    made.app.close()


def test_task_is_held_until_its_end_is_stored(desk: Desk) -> None:
    held = desk.hold()
    desk.end(held)
    assert desk.ledger.pending
    assert not desk.ledger.is_open(held)
    assert desk.work.held == {held.seq: held}
    assert desk.ledger.flush() is False
    assert (desk.work.held, desk.ledger.pending) == ({}, False)
    assert desk.state(held) == states.REVOKED


def test_first_that_closes_a_task_counts(desk: Desk) -> None:
    ended, returned = desk.hold(), desk.hold()
    desk.end(ended)
    desk.ledger.give_back([ended, returned], "child")
    desk.end(returned)
    assert desk.ledger.flush() is True
    assert desk.state(ended) == states.REVOKED
    assert desk.state(returned) == states.PENDING
    (again,) = desk.broker.claim(10, ["nbqueue"])[0]
    assert (again.id, again.child_deaths, again.attempt) == (returned.steering.id, 1, 2)


def test_nothing_but_returns_is_left_when_nothing_runs_or_has_ended(desk: Desk) -> None:
    seen = [desk.ledger.only_returns]
    returned, running = desk.hold(), desk.hold()
    desk.ledger.give_back([returned])
    seen.append(desk.ledger.only_returns)
    desk.ledger.give_back([running])
    seen.append(desk.ledger.only_returns)
    desk.ledger.flush()
    desk.end(desk.hold())
    seen.append(desk.ledger.only_returns)
    assert seen == [True, False, True, False]


def test_start_does_not_close_a_task(desk: Desk) -> None:
    held = desk.hold()
    desk.ledger.settle(desk.reports.started(held, 1.0, 1), held)
    assert desk.ledger.is_open(held)
    desk.ledger.flush()
    assert held.seq in desk.work.held
    assert desk.state(held) == states.STARTED


def test_nothing_is_lost_or_charged_twice_when_the_server_goes_away(desk: Desk) -> None:
    ended, dead, other = desk.hold(), desk.hold(), desk.hold()
    desk.end(ended)
    desk.ledger.give_back([dead], "child")
    desk.ledger.give_back([other])
    desk.server.kill()
    with pytest.raises(redis.RedisError):
        desk.ledger.flush()
    assert len(desk.work.held) == 3
    desk.server.start()
    assert desk.ledger.flush() is True
    assert desk.work.held == {}
    assert desk.state(ended) == states.REVOKED
    back = desk.broker.claim(10, ["nbqueue"])[0]
    assert {d.id: d.child_deaths for d in back} == {dead.steering.id: 1, other.steering.id: 0}


def test_what_follows_is_told_as_sent_only_where_it_was(desk: Desk) -> None:
    desk.reports.announcer = Announcer(desk.app.signer, None)
    told: list[tuple[str, str]] = []

    def receive(signal: signals.Signal, headers: dict[str, Any], **_: Any) -> None:
        told.append((signal.name, headers["id"]))

    sent, lost = desk.hold(), desk.hold()
    for signal in signals.OF_CLIENT:
        signal.connect(receive)
    try:
        again = encode_again(Again(encode_failure(Failure("Retry", "", "")), time.time()))
        for held in (sent, lost):
            outcome = Outcome(held.seq, states.RETRY, again, time.time(), time.time())
            desk.ledger.settle(desk.reports.retried(held, outcome), held)
        desk.broker.give_back([lost.delivery])
        desk.ledger.flush()
    finally:
        for signal in signals.OF_CLIENT:
            signal.disconnect(receive)
    before, after = "before_task_publish", "after_task_publish"
    assert told == [(before, sent.steering.id), (before, lost.steering.id), (after, sent.steering.id)]


def test_settlement_of_a_message_that_is_not_held_is_stored_too(desk: Desk) -> None:
    desk.app.send_task("demo.add", (1, 2))
    (delivery,) = desk.broker.claim(1, ["nbqueue"])[0]
    desk.ledger.settle(Settlement(delivery, b""))
    desk.ledger.flush()
    assert desk.broker.size("nbqueue").claimed == 0


def test_what_tasks_say_is_bounded_in_bytes_while_nothing_can_be_stored(desk: Desk) -> None:
    for number in range(100):
        desk.ledger.tell(Told("s", str(number), b"x" * 1_000_000))
    desk.ledger.flush()
    kept = [number for number in range(100) if desk.app.backend.outputs(str(number))]
    assert kept == list(range(MAX_TOLD_BYTES // 1_000_000))
    desk.ledger.tell(Told("s", "later", b"x"))
    desk.ledger.flush()
    assert desk.app.backend.outputs("later")


def test_ends_are_stored_while_the_worker_goes_on(desk: Desk) -> None:
    desk.consumer.listen()
    assert desk.consumer.settling is not None
    first, second = desk.hold(), desk.hold()
    desk.end(first)
    desk.ledger.flush()
    desk.end(second)
    desk.ledger.flush()
    assert (desk.ledger.pending, desk.ledger.due) == (True, False), "one answer at a time"
    select.select([desk.consumer.settling], [], [], 10)
    assert not desk.ledger.answered()
    assert (first.seq in desk.work.held, second.seq in desk.work.held) == (False, True)
    desk.ledger.flush()
    select.select([desk.consumer.settling], [], [], 10)
    desk.ledger.answered()
    assert (desk.ledger.pending, desk.ledger.due) == (False, False)
    assert [desk.state(held) for held in (first, second)] == [states.REVOKED] * 2
    desk.consumer.close()


def test_ends_whose_answer_is_lost_are_stored_again_and_once(desk: Desk) -> None:
    desk.consumer.listen()
    held = desk.hold()
    desk.end(held)
    desk.ledger.flush()
    desk.consumer.hang_up()
    desk.ledger.interrupted()
    desk.consumer.listen()
    desk.ledger.flush()
    found = [desk.ledger.doubtful]  # nothing is claimed until it is known that the server takes what is stored
    assert desk.consumer.settling is not None
    select.select([desk.consumer.settling], [], [], 10)
    desk.ledger.answered()
    assert [*found, desk.ledger.doubtful, desk.ledger.pending] == [True, False, False]
    assert desk.state(held) == states.REVOKED
    desk.consumer.close()


def test_ends_are_stored_by_a_server_that_has_forgotten_the_script(desk: Desk) -> None:
    desk.consumer.listen()
    assert desk.consumer.settling is not None
    held = desk.hold()
    desk.end(held)
    desk.broker.streams.client.script_flush()
    desk.ledger.flush()
    select.select([desk.consumer.settling], [], [], 10)
    desk.ledger.answered()
    assert desk.state(held) == states.REVOKED
    desk.consumer.close()
