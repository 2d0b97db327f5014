"""Connections to RabbitMQ and what is sent over them."""

from __future__ import annotations

import time

import pytest

from nbqueue import amqp
from nbqueue.amqp import Publisher
from nbqueue.deliveries import Outgoing, stream_key
from nbqueue.exceptions import ImproperlyConfigured, SendFailed, SendUncertain
from tests.rabbit import RabbitServer

pytestmark = [pytest.mark.rabbitmq]
NOWHERE = "amqp://guest:guest@127.0.0.1:1//"


def message(queue: str, id_: str = "1") -> Outgoing:
    return Outgoing(queue, id_, "header", b"body")


def test_certificate_is_verified(rabbit_server: RabbitServer) -> None:
    url = f"amqps://guest:guest@127.0.0.1:{rabbit_server.tls_port}//"
    with pytest.raises(SendFailed, match="certificate verify failed"):
        Publisher(url, "test").send([message("encrypted")])
    publisher = Publisher(f"{url}?ssl_ca_certs={rabbit_server.certificate}", "test")
    publisher.send([message("encrypted", str(number)) for number in range(200)])
    assert publisher.count("encrypted", [0]) == publisher.purge("encrypted", [0]) == 200
    publisher.close()


def test_queues_are_quorum_queues_and_durable(rabbit_server: RabbitServer) -> None:
    publisher = Publisher(rabbit_server.url, "test")
    publisher.send([message("made")])
    publisher.close()
    with rabbit_server.connect() as connection, connection.channel() as channel:
        arguments = {"x-queue-type": "quorum"}
        assert channel.queue_declare(stream_key("made", "n"), durable=True, auto_delete=False, arguments=arguments)


def test_message_arrives_as_it_was_sent_whatever_its_size(rabbit_server: RabbitServer) -> None:
    publisher = Publisher(rabbit_server.url, "test")
    sent = [
        Outgoing("sizes", f"id ä {number}", '{"nonce":"x"}', bytes([number]) * size, attempt=number, worker_losses=2)
        for number, size in enumerate((0, 1, 131_063, 131_064, 131_065, 500_000), 2)
    ]
    publisher.send(sent)
    publisher.close()
    with rabbit_server.connect() as connection, connection.channel() as channel:
        for message in sent:
            got = channel.basic_get(stream_key("sizes", "n"), no_ack=True)
            assert got is not None
            assert (got.body or b"") == message.body  # py-amqp has a text for none
            expected = {"id": message.id, "nbq": message.header, "a": message.attempt, "c": 0, "w": 2}
            assert expected.items() <= got.properties["application_headers"].items()
            assert (got.properties["content_type"], got.properties["delivery_mode"]) == ("application/x-nbqueue", 2)


def test_name_that_is_too_long_is_refused(rabbit_server: RabbitServer) -> None:
    publisher = Publisher(rabbit_server.url, "test")
    with pytest.raises(ImproperlyConfigured, match="so long a name"):
        publisher.send([message("x" * 300)])
    publisher.close()


def test_send_says_whether_it_failed_or_nobody_knows(
    rabbit_server: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = message("unsure")
    with pytest.raises(SendFailed, match="can't be used"):
        Publisher(NOWHERE, "test").send([one])
    publisher = Publisher(rabbit_server.url, "test")
    publisher.send([one])
    with rabbit_server.connect() as connection:
        connection.channel().queue_delete(stream_key("unsure", "n"))
    with pytest.raises(SendFailed, match="there is no queue nbq:"):
        publisher.send([one])
    publisher.send([one])  # it was made anew
    assert publisher._connection is not None
    publisher._connection.transport._write = lambda _: None
    monkeypatch.setattr(amqp, "ANSWER_S", 0.1)
    sent_at = time.monotonic()
    with pytest.raises(SendUncertain, match="not confirmed"):
        publisher.send([one])
    assert time.monotonic() - sent_at < 5
    publisher.close()
