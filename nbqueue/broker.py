"""The broker: moves messages through named queues over kombu, in batches where the transport can.

`StreamsBroker` is Redis, through our own transport; `AmqpBroker` is RabbitMQ; `KombuBroker` is any transport of
kombu's own that needs no server of ours, today `memory://`. One function, `open_broker`, turns a URL into one of them.
"""

from __future__ import annotations

import abc
import contextlib
import heapq
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import kombu
import redis
from kombu.transport.memory import Transport as MemoryTransport

from nbqueue import amqp
from nbqueue.amqp import Publisher
from nbqueue.amqp_consumer import AmqpConsumer
from nbqueue.attempts import Attempts
from nbqueue.config import AMQP_SCHEMES, REDIS_SCHEMES, mask, redis_beside, scheme_of
from nbqueue.consumer import Consumer, StreamsConsumer
from nbqueue.deliveries import (
    LIVE,
    RECORDS,
    SENT,
    Delivery,
    Kept,
    Outgoing,
    QueueSize,
    Revocation,
    Settlement,
    lane_of,
    stream_key,
)
from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured, SendFailed, SendUncertain
from nbqueue.streams import Streams, parts_of
from nbqueue.transport import Transport
from nbqueue.wire import connect


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

    def check_queue(self, queue: str) -> None:
        """Raise `ImproperlyConfigured` if no queue can have this name, before a worker would have to send there."""

    def size(self, queue: str) -> QueueSize:
        """Return how many messages wait, are claimed, and are delayed."""

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue; return how many."""

    def close(self) -> None:
        """Give up connections."""


class ServerBroker(abc.ABC):
    """A broker on servers, for workers in any process. What is known of tasks beside their messages is on Redis.

    Args:
        url: of the server that has the queues.
        redis_url: of the server that has the rest.
    """

    def __init__(self, url: str, redis_url: str) -> None:
        self.url = url
        self.redis_url = redis_url

    @property
    @abc.abstractmethod
    def streams(self) -> Streams:
        """Return what is kept on Redis."""

    @abc.abstractmethod
    def open_consumer(self, name: str, lease_s: float) -> Consumer:
        """Return what a worker needs of its queues.

        Args:
            name: under which it claims.
            lease_s: how long its claims hold without renewal.
        """

    @abc.abstractmethod
    def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        """Put messages on their queues; when it returns, the broker has them."""

    @abc.abstractmethod
    def claim(self, limit: int, queues: Sequence[str]) -> tuple[list[Delivery], float | None]:
        """Claim up to `limit` messages; return them, and the seconds until a delayed one is due."""

    @abc.abstractmethod
    def settle(self, items: Sequence[Settlement]) -> list[bool]:
        """Acknowledge, record and send the outbox; False for each that was no longer ours."""

    @abc.abstractmethod
    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Return messages to their queues at once; return how many were still ours."""

    @abc.abstractmethod
    def size(self, queue: str) -> QueueSize:
        """Return how many messages wait, are claimed, and are delayed."""

    @abc.abstractmethod
    def purge(self, queue: str) -> int:
        """Drop what waits in a queue; return how many."""

    @abc.abstractmethod
    def send_kept(self, messages: Sequence[tuple[Outgoing, str]]) -> list[str]:
        """Send messages, each with the id of its map, in place of kept ones; say `sent`, `unknown` or `live`."""

    @abc.abstractmethod
    def release(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """Let workers take delayed messages, by queue and id, now; tell which of them were there."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up connections."""

    def check_queue(self, queue: str) -> None:  # noqa: B027 - most servers take any name
        """Raise `ImproperlyConfigured` if no queue can have this name."""

    def revoke(self, items: Sequence[Revocation]) -> list[str]:
        """Revoke tasks; say of each `revoked` (nobody held it), `held`, `ended` or `unknown`."""
        with self._translated():
            return self.streams.revoke(items)

    def queues(self) -> set[str]:
        """Return the names of all queues that anything was ever sent to."""
        with self._translated():
            return self.streams.queues()

    def counters(self) -> dict[str, int]:
        """Return how often something was refused or dropped, by reason."""
        with self._translated():
            return self.streams.counters()

    def dead_letters(self) -> list[tuple[str, bytes]]:
        """Return the id of each dead letter and the record that says why it is one, the newest last."""
        with self._translated():
            return self.streams.dead_letters()

    def count_dead(self) -> int:
        """Return how many dead letters there are."""
        with self._translated():
            return self.streams.count_dead()

    def drop_dead(self, ids: Sequence[str]) -> int:
        """Drop dead letters; return how many there were."""
        with self._translated():
            return self.streams.drop_dead(ids)

    def kept(self, ids: Sequence[str]) -> list[Kept | None]:
        """Return the messages of tasks that failed or were given up."""
        with self._translated():
            return self.streams.kept(ids)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as exc:
            raise BackendUnavailable(f"{mask(self.redis_url)} can't be used: {exc}") from exc


class StreamsBroker(ServerBroker):
    """Redis Streams, through our own kombu transport."""

    def __init__(self, url: str, *, name: str = "nbq-client", **streams: Any) -> None:
        super().__init__(url, url)
        self._name = name
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

    def open_consumer(self, name: str, lease_s: float) -> StreamsConsumer:
        """Return what a worker needs of its queues."""
        return StreamsConsumer(self.streams, name, self.url, self._name)

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

    def size(self, queue: str) -> QueueSize:
        """Return how many messages wait, are claimed, and are delayed."""
        with self._translated():
            return self.streams.size(queue)

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue; return how many."""
        with self._translated():
            return self.streams.purge(queue)

    def send_kept(self, messages: Sequence[tuple[Outgoing, str]]) -> list[str]:
        """Send messages, each with the id of its map, in place of kept ones; say `sent`, `unknown` or `live`."""
        with self._translated():
            return self.streams.send_kept(messages)

    def release(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """Put delayed messages, by queue and id, where workers take them now; tell which of them were there."""
        with self._translated():
            return self.streams.release(items)

    def close(self) -> None:
        """Give up connections."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
        self.connection.release()


class AmqpBroker(ServerBroker):
    """RabbitMQ, with a Redis backend beside it.

    Args:
        url: `amqp://` or `amqps://`.
        redis_url: of the backend.
        name: what the servers show of the connections.
        streams: arguments of `Streams`.
    """

    def __init__(self, url: str, redis_url: str, *, name: str = "nbq-client", **streams: Any) -> None:
        super().__init__(url, redis_url)
        self._name = name
        self._streams = Streams(connect(redis_url, name=name), **{**streams, "records": RECORDS})
        self._attempts = Attempts(self._streams)
        self._publisher = Publisher(url, name)
        self._consumer: AmqpConsumer | None = None
        self._lock = threading.RLock()  # on the publisher's connection

    @property
    def streams(self) -> Streams:
        """Return what is kept on Redis; its queues are not used."""
        return self._streams

    def open_consumer(self, name: str, lease_s: float) -> AmqpConsumer:
        """Return what a worker needs of its queues."""
        publisher = Publisher(self.url, self._name)
        return AmqpConsumer(self.url, self._attempts, publisher, name, lease_s=lease_s, client_name=self._name)

    def check_queue(self, queue: str) -> None:
        """Raise `ImproperlyConfigured` if no queue can have this name."""
        amqp.check_name(stream_key(queue, lane_of(0)))

    def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        """Put messages on their queues; when it returns, the broker has them."""
        verdicts: list[int] = []
        with self._lock:
            for part in parts_of(messages):
                verdicts += self._publish_part(part)
        return verdicts

    def _publish_part(self, messages: Sequence[Outgoing]) -> list[int]:
        try:
            verdicts = self._attempts.announce(messages)
        except redis.RedisError as exc:
            raise SendFailed(f"{mask(self.redis_url)} can't be used: {exc}") from exc
        try:
            # A repeat too: all that is known is that it was to be sent. A copy that came before is recognised.
            self._publisher.send(
                [m for m, verdict in zip(messages, verdicts, strict=True) if verdict != LIVE and not m.due_ms]
            )
        except SendFailed:
            new = [m for m, verdict in zip(messages, verdicts, strict=True) if verdict == SENT]
            with contextlib.suppress(redis.RedisError):
                self._attempts.withdraw(new)
            raise
        if (last := messages[-1]).group and not last.due_ms:
            with contextlib.suppress(redis.RedisError):  # only tells those who wait how much was sent
                self._attempts.mark_sent(last.group, last.index + 1)
        return verdicts

    def claim(self, limit: int, queues: Sequence[str]) -> tuple[list[Delivery], float | None]:
        """Claim up to `limit` messages."""
        with self._translated():
            if self._consumer is None:
                name = f"{self._name}:{uuid.uuid4().hex[:8]}"
                publisher = Publisher(self.url, self._name)
                self._consumer = AmqpConsumer(
                    *(self.url, self._attempts, publisher, name), lease_s=60.0, client_name=self._name, steady=False
                )
                self._consumer.open(queues)
            batch = self._consumer.claim(limit, queues)
            return batch.deliveries, batch.next_due_s

    def settle(self, items: Sequence[Settlement]) -> list[bool]:
        """Record, send the outbox and acknowledge; False for each that was no longer ours."""
        assert self._consumer is not None, "nothing was claimed"
        with self._translated():
            return self._consumer.settle(items)

    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Return messages to their queues at once."""
        assert self._consumer is not None, "nothing was claimed"
        with self._translated():
            return self._consumer.give_back(deliveries, charge)

    def size(self, queue: str) -> QueueSize:
        """Return how many messages wait, are claimed, and are delayed. What is on its way to a worker isn't counted."""
        with self._publishing() as publisher:
            claimed, delayed = self._attempts.count(queue)
            return QueueSize(publisher.count(queue, self._levels(queue)), claimed, delayed)

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue; return how many."""
        with self._publishing() as publisher:
            return publisher.purge(queue, self._levels(queue)) + self._attempts.purge(queue)

    def send_kept(self, messages: Sequence[tuple[Outgoing, str]]) -> list[str]:
        """Send messages, each with the id of its map, in place of kept ones; say `sent`, `unknown` or `live`."""
        with self._translated():
            return self._attempts.send_kept(messages)

    def release(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """Let delayed messages, by queue and id, be due now; tell which of them were there."""
        with self._translated():
            return self._attempts.release(items)

    def close(self) -> None:
        """Give up connections."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
            self._publisher.close()
            self._streams.close()

    def _levels(self, queue: str) -> list[int]:
        return self._attempts.levels([queue])[queue]

    @contextmanager
    def _publishing(self) -> Iterator[Publisher]:
        with self._lock, self._translated():
            try:
                self._publisher.open()
                yield self._publisher
            except amqp.ERRORS as exc:
                self._publisher.drop()
                raise BackendUnavailable(f"{mask(self.url)} can't be used: {exc}") from exc


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


def open_broker(
    url: str, *, backend_url: str | None = None, name: str = "nbq-client", **streams: Any
) -> ServerBroker | KombuBroker:
    """Return the broker of a URL; nothing is connected yet.

    Args:
        url: `redis://`, `rediss://`, `redis+socket://`, `unix://`, `amqp://`, `amqps://` or `memory://`.
        backend_url: for RabbitMQ, the Redis that keeps the rest.
        name: what the server shows of this connection.
        streams: arguments of `Streams`.

    Raises:
        ImproperlyConfigured: RabbitMQ has no Redis beside it.
    """
    scheme = scheme_of(url)
    if scheme in REDIS_SCHEMES:
        return StreamsBroker(url, name=name, **streams)
    if scheme in AMQP_SCHEMES:
        return AmqpBroker(url, redis_beside(url, backend_url), name=name, **streams)
    return KombuBroker(kombu.Connection(transport=MemoryTransport), url)
