from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest

from nbqueue.config import Settings
from nbqueue.deliveries import Delivery, Outgoing, Settlement
from nbqueue.leases import Leases
from nbqueue.streams import Streams
from nbqueue.wire import connect
from tests.helpers import RedisServer, wait_until

LEASE_S = 0.2
RENEWAL_S = 0.1


@pytest.fixture
def streams(redis_server: RedisServer) -> Iterator[Streams]:
    client = connect(redis_server.url, name="test")
    yield Streams(client)
    client.close()


def claimed(streams: Streams, consumer: str) -> Delivery:
    """Return a claim that its worker no longer renews, lapsed on the server's clock."""
    streams.publish([Outgoing("q", "task", "header", b"body")])
    (delivery,), _ = streams.claim(consumer, 1, ["q"])
    wait_until(lambda: streams.lapsed(["q"], int(LEASE_S * 1000)), 5, "the claim to lapse")
    return delivery


def test_lapsed_claim_is_taken_over_only_when_it_was_seen_twice(streams: Streams) -> None:
    old = claimed(streams, "dead")
    leases = Leases(streams, "alive", LEASE_S, RENEWAL_S)
    assert leases.sweep(["q"], (), now=100.0) == 0, "seen once"
    assert leases.sweep(["q"], (), now=100.0 + RENEWAL_S / 2) == 0, "too soon after"
    assert leases.sweep(["q"], (), now=100.0 + RENEWAL_S) == 1
    (again,), _ = streams.claim("alive", 1, ["q"])
    assert (again.id, again.attempt, again.worker_losses, again.child_deaths) == ("task", 2, 1, 0)
    assert streams.settle([Settlement(old, b"late")]) == [False], "the dead worker's claim is void"


class Played:
    """A server with one claim, of a worker that has gone; it also looked through the queue for the others."""

    PLACE = ("q", "n", "1-1")

    def __init__(self) -> None:
        self.now = 0.0
        self.claims = {self.PLACE: 0.0}  # when each was renewed
        self.sweeper = ("gone", 0.0)

    def renew(self, *_: object) -> tuple[list[bool], dict[str, bytes]]:
        return [], {}

    def sweeps(self, queues: Sequence[str], consumer: str, hold_ms: int) -> list[str]:
        who, since = self.sweeper
        if who != consumer and self.now - since < hold_ms / 1000:
            return []
        self.sweeper = (consumer, self.now)
        return list(queues)

    def lapsed(self, queues: Iterable[str], idle_ms: int) -> list[tuple[str, str, str]]:
        return [place for place, at in self.claims.items() if self.now - at >= idle_ms / 1000]

    def reap(self, items: Sequence[tuple[str, str, str]], idle_ms: int) -> int:
        return sum(self.claims.pop(place) is not None for place in items)


@pytest.mark.parametrize("offset_s", [n * 0.25 for n in range(12)])
def test_what_a_lost_worker_held_is_taken_over_within_20_s(offset_s: float) -> None:
    conf, server = Settings(), Played()
    leases = Leases(server, "other", conf.worker_lease, conf.worker_renewal)
    while server.claims and server.now < 60.0:
        server.now = offset_s = offset_s + conf.worker_renewal + 0.1  # a loop that is busy is a little late
        leases.sweep(["q"], (), server.now)
    assert conf.worker_lease < server.now < 19.0


def test_claim_that_is_renewed_between_two_looks_is_left_alone(streams: Streams) -> None:
    delivery = claimed(streams, "late")
    leases = Leases(streams, "alive", LEASE_S, RENEWAL_S)
    leases.sweep(["q"], (), now=100.0)
    held, _ = Leases(streams, "late", LEASE_S, RENEWAL_S).renew([delivery], "", "")
    assert held == [True]
    assert leases.sweep(["q"], (), now=100.0 + RENEWAL_S) == 0


def test_process_that_stood_still_waits_a_lease_before_it_looks(streams: Streams) -> None:
    claimed(streams, "dead")
    leases = Leases(streams, "alive", LEASE_S, RENEWAL_S)
    leases.sweep(["q"], (), now=100.0)
    leases.awake(100.0)
    assert not leases.awake(200.0)
    assert leases.awake(200.0 + LEASE_S / 4)
    assert leases.sweep(["q"], (), now=200.0 + LEASE_S / 2) == 0
    assert leases.sweep(["q"], (), now=201.0) == 0, "what it saw before proves nothing"
    assert leases.sweep(["q"], (), now=201.0 + RENEWAL_S) == 1


def test_own_claims_are_never_taken_over(streams: Streams) -> None:
    delivery = claimed(streams, "mine")
    leases = Leases(streams, "mine", LEASE_S, RENEWAL_S)
    for now in (100.0, 101.0, 102.0):
        assert leases.sweep(["q"], [delivery], now) == 0


def test_claim_given_back_is_no_longer_renewed(streams: Streams) -> None:
    delivery = claimed(streams, "worker")
    streams.give_back([delivery])
    held, _ = Leases(streams, "worker", LEASE_S, RENEWAL_S).renew([delivery], "", "")
    assert held == [False]


def test_one_worker_looks_through_the_claims_of_a_queue_and_others_leave_it_to_it(streams: Streams) -> None:
    claimed(streams, "dead")
    first, second = (Leases(streams, name, LEASE_S, renewal_s=5.0) for name in ("first", "second"))
    assert first.sweep(["q"], (), now=100.0) == 0, "seen once"
    for now in (100.0, 105.0):
        assert second.sweep(["q"], (), now) == 0
    assert first.sweep(["q"], (), now=105.0) == 1


def test_claims_are_looked_through_by_another_worker_when_the_one_that_did_is_gone(streams: Streams) -> None:
    claimed(streams, "dead")
    gone, other = (Leases(streams, name, LEASE_S, RENEWAL_S) for name in ("gone", "other"))
    gone.sweep(["q"], (), now=100.0)
    wait_until(lambda: streams.sweeps(["q"], "other", 10_000), 5, "the first to have missed its looks")
    assert other.sweep(["q"], (), now=100.0) == 0, "what the first saw is not its own sight"
    assert other.sweep(["q"], (), now=100.0 + RENEWAL_S) == 1


def test_worker_that_has_long_been_busy_sees_priorities_that_were_used_since(streams: Streams) -> None:
    busy = Leases(Streams(streams.client), "busy", LEASE_S, RENEWAL_S)
    streams.publish([Outgoing("q", "urgent", "header", b"body", priority=9)])
    streams.claim("dead", 1, ["q"])
    wait_until(lambda: streams.lapsed(["q"], int(LEASE_S * 1000)), 5, "the claim to lapse")
    busy.sweep(["q"], (), now=100.0)
    assert busy.sweep(["q"], (), now=100.0 + RENEWAL_S) == 1


def test_who_looks_through_a_queue_counts_for_all_how_many_listen(streams: Streams) -> None:
    streams.publish([Outgoing("q", "task", "header", b"body")])
    for number in range(3):
        streams.claim(f"c{number}", 1, ["q"])
    Leases(streams, "sweeper", LEASE_S, 5.0).sweep(["q"], (), now=100.0)
    others = Streams(streams.client)
    Leases(others, "other", LEASE_S, 5.0).sweep(["q"], (), now=100.0)
    assert others.listeners == {"q": 3}


def test_consumer_that_asks_no_more_is_not_counted(streams: Streams) -> None:
    streams.publish([Outgoing("q", "task", "header", b"body")])
    streams.claim("gone", 1, ["q"])
    leases = Leases(streams, "sweeper", LEASE_S, 5.0)

    def counted() -> bool:
        leases.sweep(["q"], (), now=100.0)
        return streams.listeners == {"q": 0}

    wait_until(counted, 10, "it not to be counted")
