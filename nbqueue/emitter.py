"""`Emitter`: sends Celery's events to whoever watches, from a thread of its own.

An event is a dict that anybody may read and nobody has signed: it is for monitors, and nothing here believes one. They
go where Celery's go, in kombu's own form: on Redis by PUBLISH, without loading kombu; on RabbitMQ on a topic exchange.
Those that come within a moment go in one message, as Celery's do. While the server is away the newest are kept.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from nbqueue.config import AMQP_SCHEMES, mask, scheme_of
from nbqueue.stock import envelope, fanout_topic
from nbqueue.wire import connect

KEPT: Final = 10_000  # events that wait, as while the server is away
AT_ONCE: Final = 100  # in one message
GATHER_S: Final = 0.05
PAUSE_S: Final = 2.0  # after a server could not be reached
LAST_S: Final = 2.0  # for what is left at the end

logger = logging.getLogger(__name__)
Event = dict[str, Any]


class Sender(Protocol):
    """Sends messages to one server; whatever it raises, it is closed then and another one made."""

    def send(self, messages: Sequence[tuple[str, bytes]], hostname: str) -> None:
        """Send JSON under routing keys."""

    def close(self) -> None:
        """Give up the connection."""


class Emitter:
    """Takes events from any thread. The thread that sends them starts with the first.

    Args:
        url: of the broker.
        hostname: of the worker, or of the client.
        client_name: what the server shows of the connection.
        exchange: where events go.
    """

    def __init__(self, url: str, hostname: str, client_name: str, exchange: str) -> None:
        self.url = url
        self.hostname = hostname
        self.exchange = exchange
        self.clock = 0
        self._client_name = client_name
        self._begin()

    def _begin(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def emit(self, type: str, /, **fields: Any) -> None:
        """Take an event: it goes out within a moment, or is lost if there are too many while the server is away."""
        if self._pid != os.getpid():
            self._begin()  # a fork has no threads, and must not send what its parent does
        with self._lock:
            self.clock += 1
            event = {
                "hostname": self.hostname,
                "utcoffset": utcoffset(),
                "pid": self._pid,
                "clock": self.clock,
                "timestamp": time.time(),
                **fields,
                "type": type,
            }
            self._events.append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nbqueue events", daemon=True)
                self._thread.start()
        self._news.set()

    def close(self) -> None:
        """Send what is left, for two seconds at most, and give up the connection."""
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(LAST_S)

    def _run(self) -> None:
        sender: Sender | None = None
        while self._events or not self._closing.is_set():
            self._news.wait()
            self._closing.wait(GATHER_S)
            self._news.clear()
            try:
                sender = sender or self._sender()
                while self._events:
                    taken = [self._events.popleft() for _ in range(min(len(self._events), 10 * AT_ONCE))]
                    try:
                        sender.send(messages_of(taken), self.hostname)
                    except BaseException:
                        self._events.extendleft(reversed(taken[: KEPT - len(self._events)]))
                        raise
            except Exception as exc:  # noqa: BLE001 - two libraries have very many ways to say that a server is away
                logger.debug("events can't be sent to %s: %s", mask(self.url), exc)
                if sender is not None:
                    sender.close()
                sender = None
                if self._closing.wait(PAUSE_S):
                    return
                self._news.set()
        if sender is not None:
            sender.close()

    def _sender(self) -> Sender:
        if scheme_of(self.url) in AMQP_SCHEMES:
            from nbqueue.amqp_events import AmqpSender  # noqa: PLC0415 - loads kombu

            return AmqpSender(self.url, self._client_name, self.exchange)
        return _RedisSender(self.url, self._client_name, self.exchange)


def utcoffset() -> int:
    """Return the hours from local time to UTC, as events tell it."""
    return (time.altzone if time.localtime().tm_isdst > 0 else time.timezone) // 3600


def messages_of(events: Sequence[Event]) -> list[tuple[str, bytes]]:
    """Return events as messages, each with its routing key: several of tasks go together.

    >>> messages_of([{"type": "worker-online"}])
    [('worker.online', b'{"type": "worker-online"}')]
    >>> [key for key, _ in messages_of([{"type": "task-sent"}, {"type": "task-started"}])]
    ['task.multi']
    """
    messages: list[tuple[str, bytes]] = []
    run: list[Event] = []

    def flush() -> None:
        if run:
            key = run[0]["type"].replace("-", ".") if len(run) == 1 else "task.multi"
            messages.append((key, _encode(run[0] if len(run) == 1 else run)))
            run.clear()

    for event in events:
        if event["type"].startswith("task-"):
            run.append(event)
            if len(run) >= AT_ONCE:
                flush()
        else:
            flush()
            messages.append((event["type"].replace("-", "."), _encode(event)))
    flush()
    return messages


def _encode(value: Any) -> bytes:
    return json.dumps(value, default=repr).encode()


class _RedisSender:
    """PUBLISHes as kombu does for a fanout exchange."""

    def __init__(self, url: str, client_name: str, exchange: str) -> None:
        self._exchange = exchange
        self._client = connect(url, name=client_name)
        self._database = int(self._client.connection_pool.connection_kwargs.get("db") or 0)

    def send(self, messages: Sequence[tuple[str, bytes]], hostname: str) -> None:
        """Send JSON under routing keys."""
        with self._client.pipeline(transaction=False) as pipe:
            for key, body in messages:
                message = envelope(body, self._exchange, key, {"hostname": hostname})
                pipe.publish(fanout_topic(self._exchange, key, self._database), message)
            pipe.execute()

    def close(self) -> None:
        """Give up the connection."""
        self._client.close()
