"""What every broker promises."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nbqueue.broker import Broker, StreamsBroker
from nbqueue.brokers import open_broker
from nbqueue.deliveries import SENT, Delivery, Outgoing, QueueSize, Settlement
from tests.helpers import RedisServer, wait_until


@pytest.fixture(params=["streams", "memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Broker]:
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbit_server").url
    else:
        url = redis_server.url if request.param == "streams" else "memory://"
    opened = open_broker(url, backend_url=redis_server.url)
    for queue in ("a", "b"):
        opened.purge(queue)
    yield opened
    opened.close()


def message(id_: str, queue: str = "a", **more: object) -> Outgoing:
    return Outgoing(queue, id_, f"header of {id_}", b"\x00\xff body", **more)  # type: ignore[arg-type]


def claim(broker: Broker, limit: int = 10, queues: tuple[str, ...] = ("a", "b")) -> list[Delivery]:
    return broker.claim(limit, queues)[0]


def test_broker_delivers_header_and_body_byte_for_byte(broker: Broker) -> None:
    assert broker.publish([message("1")]) == [SENT]
    (delivery,) = claim(broker)
    assert (delivery.id, delivery.queue, delivery.header, delivery.body) == ("1", "a", b"header of 1", b"\x00\xff body")


def test_broker_delivers_in_order_up_to_the_limit(broker: Broker) -> None:
    broker.publish([message(str(n)) for n in range(5)])
    assert [d.id for d in claim(broker, 3)] == ["0", "1", "2"]
    assert [d.id for d in claim(broker, 3)] == ["3", "4"]


def test_broker_serves_the_first_queue_first(broker: Broker) -> None:
    broker.publish([message("late", "b"), message("soon", "a")])
    assert [d.id for d in claim(broker, 2)] == ["soon", "late"]


def test_broker_delivers_nothing_of_other_queues(broker: Broker) -> None:
    broker.publish([message("1", "b")])
    assert claim(broker, queues=("a",)) == []


def test_broker_delivers_once_while_a_claim_holds(broker: Broker) -> None:
    broker.publish([message("1")])
    claim(broker)
    assert claim(broker) == []
    assert broker.size("a") == QueueSize(0, 1, 0)


def test_broker_forgets_a_message_when_it_is_settled(broker: Broker) -> None:
    broker.publish([message("1")])
    (delivery,) = claim(broker)
    assert broker.settle([Settlement(delivery, b"")]) == [True]
    assert broker.size("a") == QueueSize(0, 0, 0)


def test_broker_refuses_to_settle_twice(broker: Broker) -> None:
    broker.publish([message("1")])
    (delivery,) = claim(broker)
    broker.settle([Settlement(delivery, b"")])
    assert broker.settle([Settlement(delivery, b"")]) == [False]


def test_broker_sends_the_outbox_of_what_it_settles(broker: Broker) -> None:
    broker.publish([message("1")])
    (delivery,) = claim(broker)
    due_ms = int(time.time() * 1000) + 60_000
    follow_ups = (message("now", "b"), message("later", "b", due_ms=due_ms))
    broker.settle([Settlement(delivery, b"", outbox=follow_ups)])
    (after,) = claim(broker)
    assert (after.id, after.header, after.body) == ("now", b"header of now", b"\x00\xff body")
    assert broker.size("b").delayed == 1


def test_broker_counts_on_when_a_message_follows_another_of_its_id(broker: Broker) -> None:
    broker.publish([message("1")])
    (delivery,) = claim(broker)
    for due_ms in (0, int(time.time() * 1000) + 200):
        again = message("1", due_ms=due_ms, attempt=delivery.attempt + 1, child_deaths=2, worker_losses=1)
        assert broker.settle([Settlement(delivery, b"", state="RETRY", outbox=(again,))]) == [True]
        (after,) = wait_until(lambda: claim(broker), 5, "the next of it")
        if not broker.url.startswith("memory"):
            assert (after.attempt, after.child_deaths, after.worker_losses) == (delivery.attempt + 1, 2, 1)
        delivery = after


def test_broker_sends_no_outbox_when_the_claim_was_lost(broker: Broker) -> None:
    broker.publish([message("1")])
    (delivery,) = claim(broker)
    broker.give_back([delivery])
    assert broker.settle([Settlement(delivery, b"", outbox=(message("2", "b"),))]) == [False]
    assert claim(broker, queues=("b",)) == []


def test_broker_delivers_again_when_a_message_is_given_back(broker: Broker) -> None:
    broker.publish([message("1"), message("2")])
    first, _ = claim(broker)
    assert broker.give_back([first]) == 1
    (again,) = wait_until(lambda: claim(broker), 5, "it to be back")
    assert (again.id, again.body) == ("1", first.body)
    assert broker.settle([Settlement(first, b"")]) == [False], "the old claim is void"
    assert broker.settle([Settlement(again, b"")]) == [True]


def test_broker_keeps_a_delayed_message_until_it_is_due(broker: Broker) -> None:
    broker.publish([message("later", due_ms=int(time.time() * 1000) + 300), message("now")])
    deliveries, due_s = broker.claim(10, ["a"])
    assert [d.id for d in deliveries] == ["now"]
    assert due_s is not None
    assert 0 < due_s <= 0.3
    assert broker.size("a").delayed == 1
    (delivery,) = wait_until(lambda: claim(broker), 2, "the delayed message")
    assert delivery.id == "later"


@pytest.fixture
def streams(redis_server: RedisServer) -> Iterator[StreamsBroker]:
    opened = open_broker(redis_server.url)
    assert isinstance(opened, StreamsBroker)
    yield opened
    opened.close()


def test_streams_deliver_by_priority_the_highest_first(streams: StreamsBroker) -> None:
    streams.publish([message(f"p{level}", priority=level) for level in (0, 5, 9, 1)])
    streams.publish([message("later", priority=5), message("other", "b", priority=9)])
    assert [d.id for d in claim(streams, 3)] == ["p9", "p5", "later"]
    assert [d.id for d in claim(streams)] == ["p1", "p0", "other"]


def test_streams_keep_a_priority_when_a_message_is_delayed_or_put_off(streams: StreamsBroker) -> None:
    streams.publish([message("put off", priority=7)])
    streams.streams.put_off(claim(streams), 1)
    due_ms = int(time.time() * 1000) + 1
    streams.publish([message("delayed", priority=8, due_ms=due_ms), message("plain")])
    wait_until(lambda: int(time.time() * 1000) > due_ms, 1, "them to be due")
    assert [(d.id, d.lane) for d in claim(streams)] == [("delayed", "8"), ("put off", "7"), ("plain", "n")]


def test_streams_count_and_purge_every_priority(streams: StreamsBroker) -> None:
    streams.publish([message(f"p{level}", priority=level) for level in range(10)])
    claim(streams, 2)
    assert streams.size("a") == QueueSize(8, 2, 0)
    assert streams.purge("a") == 8
    assert streams.size("a") == QueueSize(0, 2, 0)


def test_streams_find_lapsed_claims_of_every_priority(streams: StreamsBroker) -> None:
    streams.publish([message("high", priority=9), message("low")])
    claimed = claim(streams)
    places = streams.streams.lapsed(["a"], 0)
    assert sorted(lane for _, lane, _ in places) == sorted(d.lane for d in claimed) == ["9", "n"]
    assert streams.streams.reap(places, 0) == 2
    assert [(d.id, d.lane, d.worker_losses) for d in claim(streams)] == [("high", "r", 1), ("low", "r", 1)]


def test_broker_purges_what_waits_and_not_what_is_claimed(broker: Broker) -> None:
    broker.publish([message("claimed")])
    (delivery,) = claim(broker)
    broker.publish([message("waits"), message("delayed", due_ms=int(time.time() * 1000) + 60_000)])
    assert broker.purge("a") == 2
    assert broker.size("a") == QueueSize(0, 1, 0)
    assert broker.settle([Settlement(delivery, b"")]) == [True]
