"""Claims on RabbitMQ: what comes back, what a copy may do, and what a crash between two steps leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import amqp
import pytest

from nbqueue.amqp import Publisher
from nbqueue.amqp_consumer import AmqpConsumer
from nbqueue.attempts import Attempts
from nbqueue.deliveries import QUARANTINE, RECORDS, Delivery, Outgoing, Settlement, stream_key
from nbqueue.exceptions import BackendUnavailable
from nbqueue.streams import Streams
from nbqueue.wire import connect
from tests.helpers import RedisServer, wait_until
from tests.rabbit import RabbitServer

pytestmark = [pytest.mark.rabbitmq]
NOWHERE = "amqp://guest:guest@127.0.0.1:1//"
LEASE_S = 1.0

Make = Callable[[str], AmqpConsumer]


@pytest.fixture
def attempts(redis_server: RedisServer) -> Iterator[Attempts]:
    streams = Streams(connect(redis_server.url, name="test"), records=RECORDS)
    yield Attempts(streams)
    streams.close()


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def send(rabbit_server: RabbitServer, attempts: Attempts) -> Iterator[Callable[[Outgoing], None]]:
    publisher = Publisher(rabbit_server.url, "test")

    def announce_and_send(message: Outgoing) -> None:
        attempts.announce([message])
        publisher.send([message])

    yield announce_and_send
    publisher.close()


@pytest.fixture
def make(rabbit_server: RabbitServer, attempts: Attempts, queue: str) -> Iterator[Make]:
    made = []

    def consumer(name: str) -> AmqpConsumer:
        publisher = Publisher(rabbit_server.url, name)
        one = AmqpConsumer(rabbit_server.url, attempts, publisher, name, lease_s=LEASE_S, client_name=name)
        one.open([queue])
        one.listen()
        made.append(one)
        return one

    yield consumer
    for one in made:
        one.close()


def claim(consumer: AmqpConsumer, queue: str, limit: int = 10) -> list[Delivery]:
    consumer.tend()
    return consumer.claim(limit, [queue]).deliveries


def record(state: str) -> bytes:
    return b'{"status":"%s"}' % state.encode()


def test_consumer_gets_no_more_than_there_is_room_for(make: Make, send: Callable[[Outgoing], None], queue: str) -> None:
    for number in range(5):
        send(Outgoing(queue, str(number), "header", b"body"))
    first, second = make("first"), make("second")
    assert [d.id for d in wait_until(lambda: claim(first, queue, 1), 5, "one")] == ["0"]
    assert claim(first, queue, 0) == []
    others = wait_until(lambda: claim(second, queue, 4), 5, "the others")
    while len(others) < 4:
        others += claim(second, queue, 4 - len(others))
    assert [d.id for d in others] == ["1", "2", "3", "4"]


def test_what_finds_no_room_goes_to_another_consumer(make: Make, send: Callable[[Outgoing], None], queue: str) -> None:
    for number in range(4):
        send(Outgoing(queue, str(number), "header", b"body"))
    first, second = make("first"), make("second")

    def arrived() -> bool:
        first.claim(0, [queue])
        return first.arrived

    wait_until(arrived, 5, "one to come")

    def come() -> list[Delivery]:
        first.tend()
        return claim(second, queue)

    assert wait_until(come, 5, "them to come to the other")


def test_copy_of_a_task_that_runs_elsewhere_waits_for_its_end(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    first, second = make("first"), make("second")
    (running,) = wait_until(lambda: claim(first, queue), 5, "the message")
    first._channel.close()  # as the server does when nobody acknowledges for half an hour

    def put_off() -> bool:
        assert claim(second, queue) == []
        return attempts.count(queue) == (1, 1)

    wait_until(put_off, 5, "the copy to be put off")
    assert first.settle([Settlement(running, record("SUCCESS"), state="SUCCESS")]) == [True], "it still counts"
    (copy,) = wait_until(lambda: claim(second, queue), 10, "the copy to come again")
    assert copy.record == record("SUCCESS"), "and is known to be one"


def test_claim_is_taken_over_when_its_lease_has_lapsed_and_its_outcome_is_dropped_then(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    first = make("first")
    (lost,) = wait_until(lambda: claim(first, queue), 5, "the message")
    assert lost.attempt == 1
    first._channel.close()
    second = make("second")
    (taken,) = wait_until(lambda: claim(second, queue), 10, "the lease to lapse")
    assert (taken.attempt, taken.child_deaths, taken.worker_losses) == (2, 0, 1)
    assert first.renew("first", [lost]) == ([False], {})
    assert first.settle([Settlement(lost, record("FAILURE"), state="FAILURE")]) == [False]
    assert attempts.client.get(RECORDS + "1") is None
    assert second.settle([Settlement(taken, record("SUCCESS"), state="SUCCESS")]) == [True]
    assert attempts.client.get(RECORDS + "1") == record("SUCCESS")


def test_charges_are_counted_on_redis_and_end_with_the_task(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send(Outgoing(queue, "1", "header", b"body", attempt=5, child_deaths=1))
    consumer = make("one")
    counted = []
    for charge in ("none", "child", "task"):
        (delivery,) = wait_until(lambda: claim(consumer, queue), 5, "the message")
        counted.append((delivery.attempt, delivery.child_deaths, delivery.worker_losses))
        assert consumer.give_back([delivery], charge) == 1
    (delivery,) = wait_until(lambda: claim(consumer, queue), 5, "the message")
    counted.append((delivery.attempt, delivery.child_deaths, delivery.worker_losses))
    assert counted == [(5, 1, 0), (5, 1, 0), (6, 2, 0), (7, 2, 0)]
    consumer.put_off([delivery], 1)
    (delivery,) = wait_until(lambda: claim(consumer, queue), 10, "it to come again")
    assert (delivery.attempt, delivery.child_deaths) == (7, 2), "nothing counts twice"
    consumer.settle([Settlement(delivery, record("SUCCESS"), state="SUCCESS")])
    assert not attempts.client.exists("nbq:attempts:1")


def test_retry_is_sent_when_its_message_comes_back_after_a_crash_between_record_and_publish(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    consumer = make("one")
    (delivery,) = wait_until(lambda: claim(consumer, queue), 5, "the message")
    publisher, consumer.publisher = consumer.publisher, Publisher(NOWHERE, "test")
    follow = Outgoing(queue, "1", "next header", b"\xff next body", priority=3, attempt=2)
    settlement = Settlement(delivery, record("RETRY"), state="RETRY", outbox=(follow,))
    assert consumer.settle([settlement]) == [True]
    assert attempts.client.get(RECORDS + "1") == record("RETRY")
    consumer.publisher = publisher
    (again,) = wait_until(lambda: claim(consumer, queue), 5, "the message to be back")
    assert again.record == record("RETRY")
    assert consumer.settle([Settlement(again, b"")]) == [True]
    (after,) = wait_until(lambda: claim(consumer, queue), 5, "the next one")
    assert (after.header, after.body, after.attempt, after.lane) == (b"next header", b"\xff next body", 2, "3")
    assert not attempts.client.exists("nbq:outbox:1")


def test_claim_whose_answer_was_lost_can_be_had_again(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    consumer = make("one")
    attempts.claim("one", 60, [Delivery(queue, "n", "one#0", "1", b"header", b"body")], patient=False)
    (delivery,) = wait_until(lambda: claim(consumer, queue), 10, "the message")
    assert (delivery.attempt, delivery.worker_losses) == (1, 0)


def test_held_message_is_taken_up_again_after_a_reconnect(
    make: Make, send: Callable[[Outgoing], None], queue: str, rabbit_server: RabbitServer
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    consumer = make("one")
    (delivery,) = wait_until(lambda: claim(consumer, queue), 5, "the message")
    consumer._connection.close()  # type: ignore[union-attr]
    with pytest.raises(BackendUnavailable):
        wait_until(lambda: claim(consumer, queue), 5, "it to notice")
    consumer.hang_up()
    consumer.open([queue])
    wait_until(lambda: claim(consumer, queue) or consumer._taken[delivery.entry].channel, 5, "the message to be back")
    assert consumer.settle([Settlement(delivery, record("SUCCESS"), state="SUCCESS")]) == [True]
    consumer.close()
    with rabbit_server.connect() as connection:
        assert connection.channel().queue_declare(stream_key(queue, "n"), passive=True).message_count == 0


def test_messages_that_somebody_else_wrote_harm_nobody(
    make: Make, queue: str, rabbit_server: RabbitServer, attempts: Attempts
) -> None:
    consumer = make("one")
    headers: list[dict[str, object]] = [{}, {"id": 5, "nbq": {"a": 1}}, {"id": "", "a": "x"}, {"id": "x", "a": -1}]
    with rabbit_server.connect() as connection, connection.channel() as channel:
        for one in headers:
            channel.basic_publish(amqp.Message("text", application_headers=one), "", stream_key(queue, "n"))
        channel.basic_publish(amqp.Message(b""), "", stream_key(queue, "n"))
        unreadable = amqp.Message(b"body", application_headers={"id": "id"})
        unreadable._serialize_properties = lambda: b"\x20\x00\x00\x00\x00\x0a\x02idS\x00\x00\x00\x02\xff\xfe"
        channel.basic_publish(unreadable, "", stream_key(queue, "n"))
    found: list[Delivery] = []

    def all_came() -> bool:
        found.extend(claim(consumer, queue))
        return len(found) == 6

    wait_until(all_came, 5, "all of them")
    assert sum(d.id.startswith("?") for d in found) == 5
    assert {d.attempt for d in found} == {1}
    consumer.quarantine([(delivery, "format: no header") for delivery in found])
    assert attempts.client.xlen(QUARANTINE) == 6
    assert attempts.count(queue) == (0, 0)
