from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from nbqueue.broker import StreamsBroker
from nbqueue.deliveries import Delivery, Outgoing, QueueSize, Settlement, queue_key
from nbqueue.rates import Gates
from nbqueue.streams import Streams
from tests.helpers import RedisServer

QUEUES = ["q1", "q2"]


@pytest.fixture
def streams(redis_server: RedisServer) -> Iterator[Streams]:
    broker = StreamsBroker(redis_server.url)
    yield broker.streams
    broker.close()


def hurry(streams: Streams) -> None:
    """Let all timers be due, and all promises be over."""
    for queue in QUEUES:
        delayed = queue_key(queue, "delayed")
        for member in streams.client.zrange(delayed, 0, -1):
            streams.client.zadd(delayed, {member: 0})
    for name in streams.client.scan_iter("nbq:lock:*"):
        if not streams.client.hget(name, "p"):
            streams.client.hset(name, "u", 0)
    for name in streams.client.scan_iter("nbq:rate:*"):
        streams.client.hset(name, "next", 0)


class Fleet:
    """Workers at gates, as a server sees them; each step may lose one, or what it would have told.

    Args:
        streams: the server's.
        random: decides.
        tasks: gates by id.
    """

    def __init__(self, streams: Streams, random: random.Random, tasks: dict[str, Gates]) -> None:
        self.streams = streams
        self.random = random
        self.tasks = tasks
        self.held: dict[str, Delivery] = {}
        self.ended: list[str] = []

    def claim(self) -> None:
        found, _ = self.streams.claim(f"c{self.random.randrange(3)}", self.random.randint(1, 8), QUEUES)
        gated = [(d, self.tasks[d.id]) for d in found if self.tasks[d.id] != Gates("", 0.0, "")]
        free = [d for d in found if self.tasks[d.id] == Gates("", 0.0, "")]
        passed = self.streams.pass_gates(gated) if gated else []
        for delivery in (*free, *(d for (d, _), may_run in zip(gated, passed, strict=True) if may_run)):
            lock = self.tasks[delivery.id].lock
            assert not lock or lock not in {self.tasks[id_].lock for id_ in self.held}, "one at a time"
            assert delivery.id not in self.held
            self.held[delivery.id] = delivery

    def leave(self) -> None:
        if not self.held:
            return
        id_ = self.random.choice(list(self.held))
        delivery, lock = self.held.pop(id_), self.tasks[id_].lock
        how = self.random.random()
        if how < 0.7:
            assert self.streams.settle([Settlement(delivery, b"", state="SUCCESS")]) == [True]
            self.ended.append(id_)
        elif how < 0.85:
            assert self.streams.give_back([delivery]) == 1
        else:
            assert self.streams.reap([(delivery.queue, delivery.lane, delivery.entry)], 0) == 1
            return  # nobody tells of it
        if lock and self.random.random() < 0.8:
            self.streams.unlock([lock])


@pytest.mark.parametrize("seed", range(6))
def test_gates_lose_nothing_and_one_has_a_lock_at_a_time(streams: Streams, seed: int) -> None:
    chance = random.Random(seed)
    tasks = {
        f"t{n}": Gates(rate, 200.0 if rate else 0.0, chance.choice(["", "a", "b"]))
        for n in range(80)
        for rate in [chance.choice(["", "slow"])]
    }
    fleet = Fleet(streams, chance, tasks)
    left = list(tasks)
    for _ in range(6_000):
        if len(fleet.ended) == len(tasks):
            break
        step = chance.random()
        if left and step < 0.2:
            ids, left = left[:5], left[5:]
            streams.publish([Outgoing(chance.choice(QUEUES), id_, "header", b"body") for id_ in ids])
        elif step < 0.6:
            fleet.claim()
        elif step < 0.95:
            fleet.leave()
        else:
            hurry(streams)
    assert sorted(fleet.ended) == sorted(tasks)
    for queue in QUEUES:
        assert streams.size(queue) == QueueSize(0, 0, 0)
    hurry(streams)
    fleet.claim()
    assert not list(streams.client.scan_iter("nbq:{*}:gate:*"))


def test_rate_is_kept_by_all_who_ask(streams: Streams) -> None:
    gates = Gates("slow", 10.0, "")
    streams.publish([Outgoing("q1", f"t{n}", "header", b"body") for n in range(50)])
    found, _ = streams.claim("c", 50, ["q1"])
    passed = streams.pass_gates([(delivery, gates) for delivery in found])
    assert 1 <= sum(passed) <= 3, "what falls into a tenth of a second, and no more"
    assert streams.size("q1") == QueueSize(0, sum(passed), 50 - sum(passed))
    assert streams.delayed("q1", 10) == [], "a timer is no message"


def test_what_waits_at_a_gate_keeps_its_message_and_its_counters(streams: Streams) -> None:
    streams.publish([Outgoing("q1", name, f"header {name}", b"\x00body\xff", priority=3) for name in "ab"])
    found, _ = streams.claim("c", 5, ["q1"])
    streams.give_back(found, "child")
    found, _ = streams.claim("c", 5, ["q1"])
    assert streams.pass_gates([(delivery, Gates("", 0.0, "x")) for delivery in found]) == [True, False]
    streams.settle([Settlement(found[0], b"", state="SUCCESS")])
    streams.unlock(["x"])
    ((again,), _) = streams.claim("c", 5, ["q1"])
    assert (again.id, again.header, again.body) == (found[1].id, found[1].header, b"\x00body\xff")
    assert (again.attempt, again.child_deaths, again.worker_losses, again.lane) == (2, 1, 0, "r")
    assert streams.pass_gates([(again, Gates("", 0.0, "x"))]) == [True]


def test_rate_that_was_set_is_told_and_what_is_no_number_is_passed_over(streams: Streams) -> None:
    streams.set_rate("slow", 2.5)
    streams.set_rate("any", 0.0)
    streams.client.hset("nbq:rates", "odd", "garbage")
    assert streams.rates() == {"slow": 2.5, "any": 0.0}
    streams.set_rate("slow", None)
    assert streams.rates() == {"any": 0.0}


def test_lock_that_was_promised_is_not_for_who_comes_later(streams: Streams) -> None:
    gates = Gates("", 0.0, "x")
    streams.publish([Outgoing("q1", name, "header", b"body") for name in "ab"])
    (holder, waits), _ = streams.claim("c", 5, ["q1"])
    assert streams.pass_gates([(holder, gates), (waits, gates)]) == [True, False]
    streams.settle([Settlement(holder, b"", state="SUCCESS")])
    streams.unlock(["x"])
    streams.publish([Outgoing("q1", "c", "header", b"body")])
    (promised, late), _ = streams.claim("c", 5, ["q1"])
    assert (promised.id, late.id) == ("b", "c")
    assert streams.pass_gates([(late, gates)]) == [False]
    assert streams.pass_gates([(promised, gates)]) == [True]
