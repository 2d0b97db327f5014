from __future__ import annotations

from collections.abc import Iterator

import kombu
import pytest

from nbqueue.transport import Transport
from tests.helpers import RedisServer


@pytest.fixture
def connection(redis_server: RedisServer) -> Iterator[kombu.Connection]:
    with kombu.Connection(transport=Transport, transport_options={"url": redis_server.url}) as opened:
        yield opened


def send(connection: kombu.Connection, body: bytes = b"\x00\xffbody") -> None:
    producer = kombu.Producer(connection.channel(), serializer=None)
    producer.publish(
        body,
        routing_key="q",
        headers={"nbq": "signed text"},
        correlation_id="the-id",
        content_type="application/x-nbqueue",
        content_encoding="binary",
        declare=[kombu.Queue("q")],
    )


def test_transport_carries_a_message_of_kombus_producer_to_its_consumer(connection: kombu.Connection) -> None:
    send(connection)
    got: list[kombu.Message] = []
    consumer = kombu.Consumer(
        connection.channel(),
        queues=[kombu.Queue("q")],
        on_message=got.append,
        accept=["application/x-nbqueue"],
    )
    with consumer:
        connection.drain_events(timeout=5)
    (message,) = got
    assert (message.headers["nbq"], message.headers["id"], bytes(message.body)) == (
        "signed text",
        "the-id",
        b"\x00\xffbody",
    )
    message.ack()
    assert connection.channel().streams.size("q").claimed == 0


def test_transport_gives_a_rejected_message_back(connection: kombu.Connection) -> None:
    send(connection)
    channel = connection.channel()
    first = channel.basic_get("q")
    assert first is not None
    assert channel.basic_get("q") is None, "a claim holds"
    first.requeue()
    again = channel.basic_get("q")
    assert again is not None
    again.reject()
    assert channel.basic_get("q") is None
    channel.close()


def test_transport_gives_back_what_is_unacknowledged_when_a_channel_closes(connection: kombu.Connection) -> None:
    send(connection)
    channel = connection.channel()
    assert channel.basic_get("q") is not None
    channel.close()
    other = connection.channel()
    message = other.basic_get("q")
    assert message is not None
    message.ack()


def test_transport_counts_and_purges_a_queue(connection: kombu.Connection) -> None:
    send(connection)
    send(connection, b"another")
    queue = kombu.Queue("q")(connection.channel())
    assert queue.queue_declare().message_count == 2
    assert queue.purge() == 2
