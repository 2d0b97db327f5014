"""The broker on RabbitMQ: messages there, and what is known of them on Redis."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from nbqueue import amqp
from nbqueue.amqp import Publisher
from nbqueue.amqp_consumer import AmqpConsumer
from nbqueue.attempts import Attempts
from nbqueue.broker import ServerBroker
from nbqueue.config import mask
from nbqueue.deliveries import (
    LIVE,
    RECORDS,
    SENT,
    Delivery,
    Outgoing,
    QueueSize,
    Settlement,
    lane_of,
    stream_key,
)
from nbqueue.exceptions import BackendUnavailable, SendFailed
from nbqueue.streams import Streams, parts_of
from nbqueue.wire import connect


class AmqpBroker(ServerBroker):
    """RabbitMQ, with a Redis backend beside it.

    Args:
        url: `amqp://` or `amqps://`, or several of one cluster with semicolons between them.
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
        # Between two tries of the worker the lease of what runs is renewed.
        publisher = Publisher(self.url, self._name, longest_s=amqp.ANSWER_S)
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

    def settle(self, items: Sequence[Settlement]) -> list[int]:
        """Record, send the outbox and acknowledge; `LOST` for each that was no longer ours."""
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

    def forget_queue(self, queue: str) -> None:
        """Remove a queue that nobody listens to any more, with what waits in it. Nothing of it may be claimed."""
        with self._publishing() as publisher:
            publisher.delete(queue, self._levels(queue))
        super().forget_queue(queue)

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
