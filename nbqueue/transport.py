"""kombu's transport on Redis Streams: what kombu's `Producer` and `Consumer` see of our queues.

The broker uses a channel's `streams` in batches; kombu's own API works on the same queues one message at a
time. Nothing is popped: a message is claimed, and kombu's ack settles it.

Source: `kombu.transport.virtual`, the base for transports without AMQP.
"""

from __future__ import annotations

import os
import socket
import uuid
from queue import Empty
from typing import Any

import redis
from kombu.transport import virtual

from nbqueue.deliveries import Delivery, Outgoing, Settlement
from nbqueue.messages import new_id
from nbqueue.routing import MAX_PRIORITY
from nbqueue.streams import Streams
from nbqueue.wire import connect


class QoS(virtual.QoS):
    """Keeps track of unacknowledged messages; at exit they are left to their lease, not restored by hand."""

    restore_at_shutdown = False


class Channel(virtual.Channel):
    """One consumer of the streams."""

    QoS = QoS
    body_encoding = None  # entries carry bytes as they are
    do_restore = False

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        options = connection.client.transport_options
        self.consumer = options.get("consumer") or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.streams = Streams(
            connect(options["url"], name=options.get("client_name", "nbq-client")), **options.get("streams", {})
        )
        self._claimed: dict[str, Delivery] = {}

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        body = message["body"]
        headers = message.get("headers") or {}
        properties = message.get("properties") or {}
        id_ = properties.get("correlation_id") or headers.get("id") or new_id()
        raw = body if isinstance(body, bytes) else str(body).encode()
        priority = min(MAX_PRIORITY, max(0, int(properties.get("priority") or 0)))
        self.streams.publish([Outgoing(queue, id_, headers.get("nbq", ""), raw, priority=priority)])

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        deliveries, _ = self.streams.claim(self.consumer, 1, [queue])
        if not deliveries:
            raise Empty
        delivery = deliveries[0]
        tag = f"{delivery.lane}:{delivery.entry}"
        self._claimed[tag] = delivery
        return {
            "body": delivery.body,
            "content-type": "application/x-nbqueue",
            "content-encoding": "binary",
            "headers": {"nbq": delivery.header.decode("utf-8", "replace"), "id": delivery.id},
            "properties": {
                "correlation_id": delivery.id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "delivery_tag": tag,
                "body_encoding": None,
            },
        }

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Settle one message."""
        if (delivery := self._claimed.pop(delivery_tag, None)) is not None:
            self.streams.settle([Settlement(delivery, b"")])
        super().basic_ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Settle one message, or give it back."""
        if (delivery := self._claimed.pop(delivery_tag, None)) is not None:
            if requeue:
                self.streams.give_back([delivery])
            else:
                self.streams.settle([Settlement(delivery, b"")])
        super().basic_reject(delivery_tag, requeue=False)

    def _new_queue(self, queue: str, **_: Any) -> None:
        self.streams.ensure_groups([queue])

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return True

    def _size(self, queue: str) -> int:
        return self.streams.size(queue).queued

    def _purge(self, queue: str) -> int:
        return self.streams.purge(queue)

    def close(self) -> None:
        """Give claimed messages back and close the connection."""
        if not self.closed and self._claimed:
            self.streams.give_back(list(self._claimed.values()))
            self._claimed.clear()
        super().close()
        self.streams.close()


class Transport(virtual.Transport):
    """The transport class that a kombu `Connection` is given; its URL goes in `transport_options`."""

    Channel = Channel
    driver_type = "redis"
    driver_name = "nbqueue streams"
    connection_errors = (*virtual.Transport.connection_errors, redis.ConnectionError, redis.TimeoutError, OSError)
    channel_errors = (*virtual.Transport.channel_errors, redis.ResponseError)

    def driver_version(self) -> str:
        """Return the version of the Redis client."""
        return str(redis.__version__)
