"""The broker: moves messages through named queues over kombu, in batches where the transport can.

`StreamsBroker` is Redis, through our own transport; `KombuBroker` is any transport of kombu's own that needs
no server of ours, today `memory://`. One function, `open_broker`, turns a URL into one of them.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import kombu
import redis
from kombu.transport.memory import Transport as MemoryTransport

from nbqueue.config import REDIS_SCHEMES, mask, scheme_of
from nbqueue.deliveries import SENT, Delivery, Kept, Outgoing, QueueSize, Revocation, Settlement
from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured, SendFailed, SendUncertain
from nbqueue.streams import Streams
from nbqueue.transport import Transport


class Broker(Protocol):
    """Moves messages. `settle`, `give_back` and the rest act on deliveries that this broker claimed."""

    url: str

    def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        """Put messages on their queues; when it returns, the broker has them.

        Raises:
            SendFailed: the broker can't be reached, or refuses; nothing was sent.
            SendUncertain: it went away before it answered.
        """

    def claim(self, limit: int, queues: Sequence[str]) -> tuple[list[Delivery], float | None]:
        """Claim up to `limit` messages; return them, and the seconds until a delayed one is due."""

    def settle(self, items: Sequence[Settlement]) -> list[bool]:
        """Acknowledge and send the outbox; False for each that was no longer ours, and then nothing is sent."""

    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Return messages to their queues at once; return how many were still ours."""

    def revoke(self, items: Sequence[Revocation]) -> list[str]:
        """Revoke tasks; say of each `revoked` (nobody held it), `held`, `ended` or `unknown`.

        Raises:
            BackendUnavailable: the broker can't be reached, or refuses.
        """

    def size(self, queue: str) -> QueueSize:
        """Return how many messages wait, are claimed, and are delayed."""

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue; return how many."""

    def close(self) -> None:
        """Give up connections."""


class StreamsBroker:
    """Redis Streams. `streams` has what only workers need: blocking reads, renewal, reaping."""

    def __init__(self, url: str, *, name: str = "nbq-client", **streams: Any) -> None:
        self.url = url
        self.connection = kombu.Connection(
            transport=Transport, transport_options={"url": url, "client_name": name, "streams": streams}
        )
        self._lock = threading.Lock()
        self._channel: Any = None

    @property
    def channel(self) -> Any:
        """Return the kombu channel, opened at first use."""
        with self._lock:
            if self._channel is None:
                self._channel = self.connection.channel()
            return self._channel

    @property
    def streams(self) -> Streams:
        """Return the queues as batches see them."""
        streams: Streams = self.channel.streams
        return streams

    @property
    def consumer(self) -> str:
        """Return the name under which this process claims."""
        return str(self.channel.consumer)

    def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        """Put messages on their queues; when it returns, the broker has them."""
        try:
            return self.streams.publish(messages)
        except redis.TimeoutError as exc:
            raise SendUncertain(f"no answer from {mask(self.url)}; the same id may be sent again: {exc}") from exc
        except redis.ConnectionError as exc:
            raise SendFailed(f"{mask(self.url)} can't be reached: {exc}") from exc
        except redis.RedisError as exc:
            raise SendFailed(f"{mask(self.url)} refuses messages: {exc}") from exc

    def claim(self, limit: int, queues: Sequence[str]) -> tuple[list[Delivery], float | None]:
        """Claim up to `limit` messages; return them, and the seconds until a delayed one is due."""
        return self.streams.claim(self.consumer, limit, queues)

    def settle(self, items: Sequence[Settlement]) -> list[bool]:
        """Acknowledge, and write the records where the backend is this server too."""
        return self.streams.settle(items)

    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Return messages to their queues at once."""
        return self.streams.give_back(deliveries, charge)

    def revoke(self, items: Sequence[Revocation]) -> list[str]:
        """Revoke tasks; say of each `revoked` (nobody held it), `held`, `ended` or `unknown`."""
        with self._translated():
            return self.streams.revoke(items)

    def size(self, queue: str) -> QueueSize:
        """Return how many messages wait, are claimed, and are delayed."""
        with self._translated():
            return self.streams.size(queue)

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue; return how many."""
        with self._translated():
            return self.streams.purge(queue)

    def dead_letters(self) -> list[tuple[str, bytes]]:
        """Return the id of each dead letter and the record that says why it is one, the newest last."""
        with self._translated():
            return self.streams.dead_letters()

    def drop_dead(self, ids: Sequence[str]) -> int:
        """Drop dead letters; return how many there were."""
        with self._translated():
            return self.streams.drop_dead(ids)

    def kept(self, ids: Sequence[str]) -> list[Kept | None]:
        """Return the messages of tasks that failed or were given up."""
        with self._translated():
            return self.streams.kept(ids)

    def send_kept(self, messages: Sequence[tuple[Outgoing, str]]) -> list[str]:
        """Send messages, each with the id of its map, in place of kept ones; say `sent`, `unknown` or `live`."""
        with self._translated():
            return self.streams.send_kept(messages)

    def release(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """Put delayed messages, by queue and id, where workers take them now; tell which of them were there."""
        with self._translated():
            return self.streams.release(items)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as exc:
            raise BackendUnavailable(f"{mask(self.url)} can't be used: {exc}") from exc

    def close(self) -> None:
        """Give up connections."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
        self.connection.release()


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

    def settle(self, items: Sequence[Settlement]) -> list[bool]:
        """Acknowledge; False for each that was no longer ours."""
        held = []
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
        raise ImproperlyConfigured(f"{self.url} can't revoke; use a Redis broker")

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


def open_broker(url: str, *, name: str = "nbq-client", **streams: Any) -> StreamsBroker | KombuBroker:
    """Return the broker of a URL; nothing is connected yet.

    Args:
        url: `redis://`, `rediss://`, `redis+socket://`, `unix://` or `memory://`.
        name: what the server shows of this connection.
        streams: for Redis, arguments of `Streams`.
    """
    if scheme_of(url) in REDIS_SCHEMES:
        return StreamsBroker(url, name=name, **streams)
    return KombuBroker(kombu.Connection(transport=MemoryTransport), url)
