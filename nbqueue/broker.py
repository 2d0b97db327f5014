"""The broker: moves messages through named queues, in batches.

`StreamsBroker` is Redis; `amqp_broker.AmqpBroker` is RabbitMQ, over kombu; `memory_broker.MemoryBroker` is kombu's own
transport for tests. `brokers.open_broker` turns a URL into one of them.
"""

from __future__ import annotations

import abc
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import redis

from nbqueue.config import mask
from nbqueue.consumer import Consumer, StreamsConsumer
from nbqueue.deliveries import Delivery, Kept, Outgoing, QueueSize, Revocation, Settlement
from nbqueue.exceptions import BackendUnavailable, SendFailed, SendUncertain
from nbqueue.streams import Streams
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

    def settle(self, items: Sequence[Settlement]) -> list[int]:
        """Acknowledge and send the outbox; `LOST` for each that was no longer ours, and then nothing is sent."""

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

    def set_rate(self, name: str, rate: float | None) -> None:
        """Set how many tasks of a name may begin a second in all workers; 0.0: any number, None: as they say."""
        self.streams.set_rate(name, rate, elsewhere=self.url != self.redis_url)

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
    def settle(self, items: Sequence[Settlement]) -> list[int]:
        """Acknowledge, record and send the outbox; `LOST` for each that was no longer ours."""

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

    def forget_queue(self, queue: str) -> None:
        """Remove a queue that nobody listens to any more, with what waits in it. Nothing of it may be claimed."""
        with self._translated():
            self.streams.forget_queue(queue)

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
    """Redis Streams. kombu's API sees the same queues through `transport.Transport`.

    Args:
        url: of the server.
        name: what it shows of the connection.
        streams: arguments of `Streams`.
    """

    def __init__(self, url: str, *, name: str = "nbq-client", **streams: Any) -> None:
        super().__init__(url, url)
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._name = name
        self._arguments = streams
        self._lock = threading.Lock()
        self._streams: Streams | None = None

    @property
    def streams(self) -> Streams:
        """Return the queues as batches see them, connected when they are first used."""
        if (found := self._streams) is not None:
            return found
        with self._lock:
            if self._streams is None:
                self._streams = Streams(connect(self.url, name=self._name), **self._arguments)
            return self._streams

    def open_consumer(self, name: str, lease_s: float) -> StreamsConsumer:
        """Return what a worker needs of its queues."""
        return StreamsConsumer(self.streams, name, self.url, self._name)

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

    def settle(self, items: Sequence[Settlement]) -> list[int]:
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
            streams, self._streams = self._streams, None
        if streams is not None:
            streams.close()
