"""Claims on RabbitMQ: what comes back, what a copy may do, and what a crash between two steps leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import msgspec
import pytest
import redis

from nbqueue.amqp import Publisher
from nbqueue.amqp_consumer import AmqpConsumer
from nbqueue.attempts import LEASES, Attempts
from nbqueue.deliveries import (
    KEPT,
    LAST,
    QUARANTINE,
    RECORDS,
    SETTLED,
    Arrival,
    Delivery,
    Outgoing,
    Settlement,
    queue_key,
    stream_key,
)
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


def delayed(queue: str) -> str:
    return queue_key(queue, "delayed")


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


def test_worker_says_what_a_long_task_means_to_a_server_that_asks_no_consumer(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    consumer = make("one")
    caplog.clear()
    consumer._say_how_patient((3, 10))
    assert not caplog.messages, "what is to be said of this server was, when it was connected to"
    for version in ((3, 12), (3, 10)):
        consumer._said = False
        consumer._say_how_patient(version)
    (said,) = caplog.messages
    assert said.startswith("RabbitMQ 3.10 delivers again what takes longer than its consumer_timeout (30 minutes")


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


def test_lease_is_seen_lapsed_twice_before_it_counts_as_such(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    first, second = make("first"), make("second")
    (held,) = wait_until(lambda: claim(first, queue), 5, "the message")
    first._channel.close()
    second._patient_until = 0.0
    attempts.client.zadd(LEASES, {"first": 0})  # as after a sleep of the machine, from which all wake at once

    def looked() -> bool:
        assert claim(second, queue) == []
        return attempts.count(queue) == (1, 1)

    wait_until(looked, 5, "a look at it")
    assert first.renew("first", [held]) == ([True], {}), "in time before the next"
    assert attempts.client.exists("nbq:lapsed:1")
    wait_until(lambda: claim(second, queue) or not attempts.client.exists("nbq:lapsed:1"), 5, "the next")
    assert first.settle([Settlement(held, record("SUCCESS"), state="SUCCESS")]) == [True]


def test_true_copy_of_what_is_held_is_dropped_and_one_that_differs_waits(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    consumer = make("one")
    for body in (b"body", b"body", b"another", b"body"):
        send(Outgoing(queue, "1", "header", body))
    (held,) = wait_until(lambda: claim(consumer, queue), 5, "the message")

    def all_came() -> bool:
        assert claim(consumer, queue) == []
        return attempts.streams.counters().get("repeat") == 2 and attempts.count(queue) == (1, 1)

    wait_until(all_came, 5, "the others")
    consumer.settle([Settlement(held, record("SUCCESS"), state="SUCCESS")])
    (after,) = wait_until(lambda: claim(consumer, queue), 5, "the one that differs")
    assert after.body == b"another"


def test_what_comes_to_one_who_waits_is_taken_after_what_is_before_it(
    make: Make, send: Callable[[Outgoing], None], queue: str
) -> None:
    consumer = make("one")
    for level in (0, 3, 9):
        send(Outgoing(queue, f"known {level}", "header", b"body", priority=level))
    consumer._look_at = 0.0
    claim_all(consumer, queue, 3)
    assert consumer.wait(10, [queue], 1_000)
    for number, level in enumerate((0, 3, 9, 9, 3)):
        send(Outgoing(queue, f"{number} of {level}", "header", b"body", priority=level))

    def one_of_each() -> bool:
        consumer.news(10, [queue])
        return len(consumer._arrived) == 3

    wait_until(one_of_each, 5, "one of each")
    assert [delivery.id for delivery in claim(consumer, queue, 3)] == ["2 of 9", "3 of 9", "1 of 3"]


def test_connection_that_has_ended_has_no_socket(make: Make) -> None:
    consumer = make("one")
    assert consumer.fileno() >= 0
    assert consumer._connection is not None
    consumer._connection.collect()  # as when the server says that it goes
    with pytest.raises(ValueError, match="not connected"):
        consumer.fileno()


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
    assert consumer.settle([settlement]) == [KEPT]
    assert attempts.client.get(RECORDS + "1") == record("RETRY")
    consumer.publisher = publisher
    (again,) = wait_until(lambda: claim(consumer, queue), 5, "the message to be back")
    assert again.record == record("RETRY")
    assert consumer.settle([Settlement(again, b"")]) == [True]
    (after,) = wait_until(lambda: claim(consumer, queue), 5, "the next one")
    assert (after.header, after.body, after.attempt, after.lane) == (b"next header", b"\xff next body", 2, "3")
    assert not attempts.client.exists("nbq:outbox:1")


def test_retry_in_another_queue_is_sent_once_when_its_message_comes_back(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    other = f"{queue}.other"
    send(Outgoing(queue, "1", "header", b"body"))
    consumer = make("one")
    (delivery,) = wait_until(lambda: claim(consumer, queue), 5, "the message")
    publisher, consumer.publisher = consumer.publisher, Publisher(NOWHERE, "test")
    follow = Outgoing(other, "1", "next header", b"next body", attempt=2)
    settlement = Settlement(delivery, record("RETRY"), state="RETRY", outbox=(follow,))
    assert consumer.settle([settlement]) == [KEPT]
    consumer.publisher = publisher
    (again,) = wait_until(lambda: claim(consumer, queue), 5, "the message to be back")
    elsewhere = make("two")
    (after,) = wait_until(lambda: claim(elsewhere, other), 5, "the next one")
    elsewhere.give_back([after], "child")
    assert consumer.settle([Settlement(again, b"")]) == [True]
    (after,) = wait_until(lambda: claim(elsewhere, other), 5, "the next one again")
    assert (after.header, after.attempt, after.child_deaths) == (b"next header", 3, 1), "the repeat takes no count away"
    elsewhere.settle([Settlement(after, record("SUCCESS"), state="SUCCESS")])
    assert claim(consumer, queue) == claim(elsewhere, other) == []
    assert not attempts.client.exists("nbq:attempts:1")


HEADER = ("a", "b", "c")


def send_header(send: Callable[[Outgoing], None], queue: str) -> None:
    for id_ in HEADER:
        send(Outgoing(queue, id_, "header", b"body"))


def arrival_of(delivery: Delivery, queue: str, due_ms: int = 0) -> Settlement:
    """Return the end of a member of a join, which says what is to be sent if it is the last."""
    place = HEADER.index(delivery.id)
    after = Outgoing(queue, "body", f"after {delivery.id}", b"\xff gathered", due_ms, priority=2)
    arrival = Arrival("graph", place, 0, place, len(HEADER), (after,))
    return Settlement(delivery, record("SUCCESS"), state="SUCCESS", arrival=arrival)


def claim_all(consumer: AmqpConsumer, queue: str, number: int) -> list[Delivery]:
    found: list[Delivery] = []

    def all_came() -> bool:
        found.extend(claim(consumer, queue))
        return len(found) >= number

    wait_until(all_came, 10, "the messages")
    return sorted(found, key=lambda delivery: delivery.id)


def test_what_follows_a_join_is_sent_once_by_the_last_of_its_members(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send_header(send, queue)
    consumer = make("one")
    a, b, c = claim_all(consumer, queue, 3)
    assert consumer.settle([arrival_of(a, queue), arrival_of(c, queue)]) == [SETTLED, SETTLED]
    assert not attempts.client.exists("nbq:outbox:a", "nbq:outbox:c"), "neither was the last"
    assert consumer.settle([arrival_of(b, queue)]) == [LAST]
    (after,) = claim_all(consumer, queue, 1)
    assert (after.id, after.header, after.body, after.lane) == ("body", b"after b", b"\xff gathered", "2")
    assert not attempts.client.exists("nbq:outbox:b")
    assert attempts.client.getbit("nbq:ended:graph", 1) == 1


def test_join_of_which_several_members_end_in_one_step_is_followed_once(
    make: Make, send: Callable[[Outgoing], None], queue: str
) -> None:
    send_header(send, queue)
    consumer = make("one")
    assert consumer.settle([arrival_of(one, queue) for one in claim_all(consumer, queue, 3)]) == [
        SETTLED,
        SETTLED,
        LAST,
    ]
    (after,) = claim_all(consumer, queue, 1)
    assert after.header == b"after c"
    assert consumer.settle([Settlement(after, record("SUCCESS"), state="SUCCESS")]) == [True]
    assert claim(consumer, queue) == []


def test_member_that_goes_on_adds_to_its_join_once_and_what_it_adds_is_sent_after_a_crash(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send_header(send, queue)
    first = make("first")
    a, b, c = claim_all(first, queue, 3)
    first.publisher = Publisher(NOWHERE, "test")
    outbox = tuple(Outgoing(queue, id_, "header", b"body") for id_ in ("instead", "more"))
    adds = Arrival("graph", 0, 0, "a+0", more=("more",), goes_on=True)
    goes_on = Settlement(a, record("PENDING"), state="RETRY", outbox=outbox, arrival=adds)
    assert first.settle([goes_on, arrival_of(b, queue), arrival_of(c, queue)]) == [KEPT, SETTLED, SETTLED]
    first.close()
    second = make("second")
    found = {delivery.id: delivery for delivery in claim_all(second, queue, 3)}
    assert set(found) == {"a", "instead", "more"}
    # Its record may be gone, and it be run again: what it adds then isn't waited for twice.
    again = msgspec.structs.replace(goes_on, delivery=found["a"], outbox=())
    last = Outgoing(queue, "body", "header", b"gathered")
    own, added = (Arrival("graph", 0, 0, place, 3, (last,)) for place in (0, "a+0.0"))
    done = [
        Settlement(found[id_], record("SUCCESS"), state="SUCCESS", arrival=arrival)
        for id_, arrival in (("instead", own), ("more", added))
    ]
    assert second.settle([again, *done]) == [SETTLED, SETTLED, LAST]
    assert attempts.client.lrange("nbq:join:graph:0:more", 0, -1) == [b"more"]
    assert [delivery.id for delivery in claim_all(second, queue, 1)] == ["body"]


def test_what_follows_a_join_is_sent_by_whoever_gets_the_last_member_after_a_crash_between_record_and_publish(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send_header(send, queue)
    first = make("first")
    a, b, c = claim_all(first, queue, 3)
    first.publisher = Publisher(NOWHERE, "test")
    assert first.settle([arrival_of(a, queue), arrival_of(b, queue), arrival_of(c, queue)]) == [SETTLED, SETTLED, KEPT]
    assert attempts.client.exists("nbq:outbox:c"), "it is kept beside the record of the last"
    first.close()
    second = make("second")
    (again,) = claim_all(second, queue, 1)
    assert (again.id, again.record) == ("c", record("SUCCESS")), "the others had nothing to wait for"
    (after,) = claim_all(second, queue, 1)
    assert (after.id, after.body) == ("body", b"\xff gathered")
    assert not attempts.client.exists("nbq:outbox:c")


def test_what_follows_a_join_is_sent_though_the_record_of_the_last_member_has_expired_meanwhile(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send_header(send, queue)
    consumer = make("one")
    deliveries = claim_all(consumer, queue, 3)
    publisher, consumer.publisher = consumer.publisher, Publisher(NOWHERE, "test")
    consumer.settle([arrival_of(delivery, queue) for delivery in deliveries])
    attempts.client.delete(RECORDS + "c")
    consumer.publisher = publisher
    (again, after) = sorted(claim_all(consumer, queue, 2), key=lambda delivery: delivery.id != "c")
    assert (again.id, again.record, after.id) == ("c", b"", "body")
    assert consumer.settle([arrival_of(again, queue)]) == [True]
    assert claim(consumer, queue) == [], "that it runs again completes nothing twice"


def test_body_of_a_chord_that_is_sent_twice_runs_once(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send_header(send, queue)
    first = make("first")
    deliveries = claim_all(first, queue, 3)
    # What a crash after the publish leaves behind: the body is sent, and neither forgotten nor acknowledged.
    settlements = [arrival_of(delivery, queue) for delivery in deliveries]
    (*_, (_, follows)) = attempts.settle(settlements)
    first.publisher.send(follows)
    first.close()
    second = make("second")
    found = claim_all(second, queue, 4)
    assert [delivery.id for delivery in found] == ["a", "b", "body", "c"], "no copy of the body"
    (body,) = (delivery for delivery in found if delivery.id == "body")
    for delivery in found:
        done = record("SUCCESS") if delivery is body else b""
        assert second.settle([Settlement(delivery, done, state="SUCCESS" if done else "")]) == [True]
    # If it came while the body was held, it was put off.
    attempts.release([(queue, member.decode()) for member in attempts.client.zrange(delayed(queue), 0, -1)])
    (copy,) = claim_all(second, queue, 1)
    assert (copy.id, copy.record) == ("body", record("SUCCESS")), "it is known to have ended"


def test_body_with_a_countdown_is_put_off_by_the_last_member(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send_header(send, queue)
    consumer = make("one")
    deliveries = claim_all(consumer, queue, 3)
    due_ms = int(time.time() * 1000) + 60_000
    consumer.settle([arrival_of(delivery, queue, due_ms) for delivery in deliveries[:2]])
    assert attempts.count(queue) == (1, 0)
    consumer.settle([arrival_of(deliveries[2], queue, due_ms)])
    assert attempts.count(queue) == (0, 1)


def test_claim_whose_answer_was_lost_can_be_had_again(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    consumer = make("one")
    attempts.claim("one", 60, [Delivery(queue, "n", "one#0", "1", b"header", b"body")], patient=False)
    (delivery,) = wait_until(lambda: claim(consumer, queue), 10, "the message")
    assert (delivery.attempt, delivery.worker_losses) == (1, 0)


def test_what_could_not_be_judged_in_an_outage_is_let_go_and_free_for_others_after_it(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    first = make("first")
    claimed = wait_until(lambda: claim(first, queue), 5, "the message")
    first.stop_waiting()
    first.abandon(claimed)
    assert attempts.count(queue) == (1, 0), "Redis was not there to be told"
    first.open([queue])
    assert attempts.count(queue) == (0, 0)
    first.stop_waiting()
    second = make("second")
    (delivery,) = wait_until(lambda: claim(second, queue), 5, "the message to be another's")
    assert (delivery.attempt, delivery.worker_losses) == (1, 0)


def test_claim_whose_answer_was_lost_is_ended_when_its_message_goes_back(
    make: Make, send: Callable[[Outgoing], None], queue: str, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(Outgoing(queue, "1", "header", b"body"))
    consumer = make("one")
    really = attempts.claim

    def claim_and_lose(*args: Any, **options: Any) -> Any:
        really(*args, **options)
        raise redis.ConnectionError("gone")

    def lost() -> bool:
        consumer.tend()
        try:
            consumer.claim(10, [queue])
        except redis.ConnectionError:
            return True
        return False

    with monkeypatch.context() as patch:
        patch.setattr(attempts, "claim", claim_and_lose)
        wait_until(lost, 5, "a claim whose answer is lost")
    assert attempts.count(queue) == (1, 0)
    consumer.stop_waiting()
    consumer.open([queue])
    assert attempts.count(queue) == (0, 0)


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
