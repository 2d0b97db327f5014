"""A broker in this process's memory, for tests: kombu's own transport of that kind."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import kombu
from kombu.transport.memory import Transport

from nbqueue.deliveries import SENT, Delivery, Outgoing, QueueSize, Revocation, Settlement
from nbqueue.exceptions import ImproperlyConfigured


def in_memory() -> kombu.Connection:
    """Return a connection to kombu's queues in memory, which all of a process shares."""
    return kombu.Connection(transport=Transport)


class KombuBroker:
    """A transport of kombu's own, one message at a time. Delayed messages wait in a heap of this object.

    Args:
        connection: an open kombu connection.
        now: the clock that delays run on, Unix seconds.
    """

    def __init__(self, connection: kombu.Connection, url: str, now: Callable[[], float] = time.time) -> None:
        self.url = url
        self.connection = connection
        self._now = now
        self._channel = connection.channel()
        self._producer = kombu.Producer(self._channel, serializer=None)
        self._delayed: list[tuple[int, int, Outgoing]] = []
        self._claimed: dict[str, Any] = {}
        self._number = 0
        self._lock = threading.RLock()

    def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        """Put messages on their queues."""
        with self._lock:
            for message in messages:
                if message.due_ms:
                    self._number += 1
                    heapq.heappush(self._delayed, (message.due_ms, self._number, message))
                else:
                    self._send(message)
        return [SENT] * len(messages)

    def claim(self, limit: int, queues: Sequence[str]) -> tuple[list[Delivery], float | None]:
        """Claim up to `limit` messages; return them, and the seconds until a delayed one is due."""
        deliveries: list[Delivery] = []
        with self._lock:
            now_ms = self._now() * 1000
            while self._delayed and self._delayed[0][0] <= now_ms:
                self._send(heapq.heappop(self._delayed)[2])
            for queue in queues:
                self._declare(queue)
                while len(deliveries) < limit and (got := self._channel.basic_get(queue)) is not None:
                    headers = got.headers
                    self._number += 1
                    tag = str(self._number)  # kombu's own tag comes back with the message
                    self._claimed[tag] = got
                    deliveries.append(
                        Delivery(queue, "n", tag, headers["id"], headers["nbq"].encode(), bytes(got.body))
                    )
            due = max(0.0, (self._delayed[0][0] - now_ms) / 1000) if self._delayed else None
        return deliveries, due

    def settle(self, items: Sequence[Settlement]) -> list[int]:
        """Acknowledge; `LOST` for each that was no longer ours."""
        held: list[int] = []
        with self._lock:
            for item in items:
                got = self._claimed.pop(item.delivery.entry, None) if item.ends else None
                if got is not None:
                    self.publish(item.outbox)  # before the ack: a crash between the two sends it again
                    got.ack()
                held.append(got is not None or (not item.ends and item.delivery.entry in self._claimed))
        return held

    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Return messages to their queues at once."""
        back = 0
        with self._lock:
            for delivery in deliveries:
                if (got := self._claimed.pop(delivery.entry, None)) is not None:
                    got.requeue()
                    back += 1
        return back

    def revoke(self, items: Sequence[Revocation]) -> list[str]:
        """Refuse: a queue in memory has nowhere to keep the mark."""
        raise ImproperlyConfigured(f"{self.url} can't revoke; use Redis or RabbitMQ")

    def check_queue(self, queue: str) -> None:
        """Do nothing: a queue in memory may have any name."""

    def size(self, queue: str) -> QueueSize:
        """Return how many messages wait, are claimed, and are delayed."""
        with self._lock:
            self._declare(queue)
            claimed = sum(got.delivery_info["routing_key"] == queue for got in self._claimed.values())
            delayed = sum(message.queue == queue for *_, message in self._delayed)
            return QueueSize(self._channel._size(queue), claimed, delayed)  # noqa: SLF001 - kombu has no public one

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue; return how many."""
        with self._lock:
            self._declare(queue)
            kept = [item for item in self._delayed if item[2].queue != queue]
            dropped = len(self._delayed) - len(kept)
            self._delayed = kept
            heapq.heapify(self._delayed)
            return dropped + int(self._channel.queue_purge(queue))

    def close(self) -> None:
        """Give up the connection."""
        self.connection.release()

    def _declare(self, queue: str) -> None:
        kombu.Queue(queue, channel=self._channel).declare()

    def _send(self, message: Outgoing) -> None:
        self._declare(message.queue)
        self._producer.publish(
            message.body,
            routing_key=message.queue,
            headers={"id": message.id, "nbq": message.header},
            content_type="application/x-nbqueue",
            content_encoding="binary",
        )
