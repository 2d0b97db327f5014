"""`nbqueue.direct`: a worker's end of the socket to its owner, on a real server."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from nbqueue.deliveries import SETTLED, Delivery, Outgoing, Settlement
from nbqueue.direct import DirectConsumer
from nbqueue.duplex import Cancel, Cancelled, Duplex, Ended, Refused, Said, SentCalls
from nbqueue.exceptions import WorkerTerminate
from nbqueue.messages import Steering, encode_steering
from nbqueue.states import FAILURE, RETRY, STARTED, SUCCESS
from nbqueue.streams import Streams
from nbqueue.wire import connect
from tests.helpers import RedisServer


class Ends:
    """Both ends of a socket: an owner's, and a worker's consumer."""

    def __init__(self, server: RedisServer) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(5.0)
        self.owner = Duplex(ours, owner=True)
        self.streams = Streams(connect(server.url, name="test"))
        self.begun: set[str] = set()
        backend: Any = None
        self.consumer = DirectConsumer(theirs, self.streams, backend, lambda id_: id_ not in self.begun)

    def send(self, number: int, *, group: str = "g", losses: int = 0, code: bytes = b"code") -> None:
        """Send calls whose arguments are their numbers."""
        steering = Steering(id=group, nonce="n", task="t", queue="own", sent_at=1.0, code="digest", size=number)
        self.owner.send(SentCalls(encode_steering(steering), code, [b"%d" % n for n in range(number)], losses))

    def claimed(self, limit: int = 100) -> list[Delivery]:
        """Return what the worker claims next."""
        return self.consumer.news(limit, ["own"]).deliveries

    def close(self) -> None:
        """Close everything."""
        self.owner.close()
        self.consumer.close()
        self.streams.close()


@pytest.fixture
def ends(redis_server: RedisServer) -> Iterator[Ends]:
    made = Ends(redis_server)
    yield made
    made.close()


def test_calls_are_claimed_in_their_order_as_far_as_there_is_room(ends: Ends) -> None:
    ends.send(5, losses=2)
    first = ends.consumer.news(2, ["own"])
    assert [delivery.body for delivery in first.deliveries] == [b"0", b"1"]
    assert not first.drained
    assert ends.consumer.arrived
    rest = ends.consumer.claim(10, ["own"])
    assert [(d.id, d.index, d.attempt, d.worker_losses) for d in rest.deliveries] == [
        (f"g-{n}", n, 3, 2) for n in (2, 3, 4)
    ]
    assert rest.drained
    assert not ends.consumer.arrived


def test_code_comes_once_and_is_there_for_later_calls(ends: Ends) -> None:
    ends.send(1)
    ends.send(1, group="h", code=b"")
    first, second = ends.claimed()
    assert first.shared is not None
    assert second.shared is not None
    assert (first.shared.code, second.shared.code) == (b"code", b"code")
    assert second.shared.steering.id == "h"


def test_what_is_given_back_is_claimed_first_and_charged(ends: Ends) -> None:
    ends.send(4)
    held = ends.claimed(3)
    assert ends.consumer.give_back(held[:2], "child") == 2
    ends.consumer.abandon([held[2]])
    again = ends.consumer.claim(10, ["own"]).deliveries
    assert [d.body for d in again] == [b"2", b"0", b"1", b"3"]
    assert [(d.attempt, d.child_deaths, d.worker_losses) for d in again[:2]] == [(1, 0, 0), (2, 1, 0)]
    assert [d.attempt for d in ends.consumer.claim(10, ["own"]).deliveries] == []


def test_what_is_put_off_comes_when_it_is_due(ends: Ends) -> None:
    ends.send(1)
    ends.consumer.put_off(ends.claimed(), 150)
    batch = ends.consumer.claim(10, ["own"])
    assert batch.deliveries == []
    assert batch.next_due_s is not None
    assert 0.0 < batch.next_due_s <= 0.15
    assert not ends.consumer.wait(10, ["own"], 500), "the owner doesn't tell when it is due"
    time.sleep(batch.next_due_s + 0.01)
    assert [d.id for d in ends.consumer.claim(10, ["own"]).deliveries] == ["g-0"]
    assert ends.consumer.wait(10, ["own"], 500)


def test_owner_is_told_how_calls_ended(ends: Ends) -> None:
    ends.send(3)
    ends.send(1, group="h")
    calls = ends.claimed()
    states = (SUCCESS, FAILURE, SUCCESS, SUCCESS)
    items = [
        Settlement(delivery, b"%d" % n, "", delivery.id.partition("-")[0], state)
        for n, (delivery, state) in enumerate(zip(calls, states, strict=True))
    ]
    items.insert(0, Settlement(calls[0], b"began", "", "g", STARTED, ends=False))
    assert ends.consumer.settle(items) == [SETTLED] * 5
    assert ends.owner.receive() == [Ended("g", [0, 2], [b"0", b"2"]), Ended("h", [0], [b"3"]), Said([b"began", b"1"])]


def test_retry_stays_here_whatever_queue_it_names(ends: Ends) -> None:
    ends.send(1)
    (call,) = ends.claimed()
    again = Outgoing("other", call.id, "header", b"body", attempt=2, child_deaths=1)
    ends.consumer.settle([Settlement(call, b"record", "", "g", RETRY, outbox=(again,))])
    (retried,) = ends.consumer.claim(10, ["own"]).deliveries
    assert (retried.queue, retried.header, retried.body) == ("other", b"header", b"body")
    assert (retried.attempt, retried.child_deaths) == (2, 1)
    assert retried.shared is call.shared


def test_cancellation_takes_what_has_not_begun(ends: Ends) -> None:
    ends.send(5)
    held = ends.claimed(2)
    ends.begun.add(held[0].id)
    ends.consumer.put_off([msgspec.structs.replace(held[1], id="g-9")], 10_000)
    ends.owner.send(Cancel(3, ["g-0", "g-1", "g-2", "g-9"]))
    assert [d.id for d in ends.claimed()] == ["g-3", "g-4"]
    (said,) = ends.owner.receive()
    assert isinstance(said, Cancelled)
    assert (said.number, sorted(said.ids)) == (3, ["g-1", "g-2", "g-9"])
    assert ends.consumer.claim(10, ["own"]).next_due_s is None


def test_owner_is_told_what_can_not_be_run(ends: Ends) -> None:
    ends.send(1)
    ends.consumer.quarantine([(ends.claimed()[0], "no reason")])
    assert ends.owner.receive() == [Refused("g-0", "no reason")]


def test_end_of_the_owner_ends_the_worker_once(ends: Ends) -> None:
    ends.owner.close()
    with pytest.raises(WorkerTerminate):
        ends.claimed()
    assert ends.claimed() == []


def test_worker_shows_itself_at_the_server_and_leaves_no_queue(ends: Ends) -> None:
    ends.consumer.open(["own"])
    ends.send(1)
    calls = ends.claimed()
    assert ends.consumer.renew("c", calls, "w@host", '{"nbq":"x"}') == ([True], {})
    assert ends.streams.client.hexists("nbq:workers", "w@host")
    ends.consumer.leave("w@host", ["own"])
    assert ends.streams.client.hlen("nbq:workers") == 0
    assert ends.streams.client.keys("nbq:{own}*") == []
