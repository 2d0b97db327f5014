"""Events on RabbitMQ: a topic exchange, as Celery's own workers declare it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import amqp

from nbqueue.amqp import ERRORS, connect


class AmqpSender:
    """Sends over a connection of its own, unconfirmed: events may be lost.

    Args:
        url: of the server.
        client_name: what it shows of the connection.
        exchange: where events go.
    """

    def __init__(self, url: str, client_name: str, exchange: str) -> None:
        self._exchange = exchange
        self._connection = connect(url, name=client_name)
        self._channel = self._connection.channel()
        self._channel.exchange_declare(exchange, "topic", durable=True, auto_delete=False)

    def send(self, messages: Sequence[tuple[str, bytes]], hostname: str) -> None:
        """Send JSON under routing keys."""
        self._connection.pump()  # a server that went away meanwhile has said so
        for key, body in messages:
            message = amqp.Message(
                body,
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=1,
                application_headers={"hostname": hostname},
            )
            self._channel.basic_publish(message, exchange=self._exchange, routing_key=key)

    def close(self) -> None:
        """Give up the connection."""
        with contextlib.suppress(*ERRORS):
            self._connection.close()
