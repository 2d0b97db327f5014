"""Reading Celery's events, of workers of nbqueue and of Celery: what `app.events.Receiver` is. Loads kombu."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import kombu
from kombu.connection import maybe_channel
from kombu.mixins import ConsumerMixin

from nbqueue.config import Settings
from nbqueue.emitter import utcoffset
from nbqueue.messages import new_id

if TYPE_CHECKING:
    from nbqueue.app import App

QUEUE_TTL_S: Final = 5.0
QUEUE_EXPIRES_S: Final = 60.0


def get_exchange(connection: Any, name: str = Settings.event_exchange) -> Any:
    """Return the exchange of events, which is of another type on Redis."""
    redis = connection.transport.driver_type == "redis"
    return kombu.Exchange(name, type="fanout" if redis else "topic")


class EventReceiver(ConsumerMixin):
    """Calls handlers with events.

    Args:
        channel: a `kombu.Connection`, as `app.connection()` returns it, or one of its channels.
        handlers: by types of events; `"*"` is for those that no other takes.
        routing_key: of events; on Redis and where several go in one message, all of them come.
        node_id: of the queue; a new one if None.
        app: whose workers are asked to show themselves.
        queue_prefix: of its name.
        accept: content types.
        queue_ttl: seconds that an event waits to be read.
        queue_expires: seconds after which a queue that nobody reads goes.
    """

    def __init__(
        self,
        channel: Any,
        handlers: Mapping[str, Callable[[dict[str, Any]], object]] | None = None,
        routing_key: str = "#",
        node_id: str | None = None,
        app: App | None = None,
        queue_prefix: str | None = None,
        accept: Any = None,
        queue_ttl: float | None = None,
        queue_expires: float | None = None,
    ) -> None:
        self.app = app
        self.channel = maybe_channel(channel)
        self.handlers = dict(handlers or {})
        self.routing_key = routing_key
        self.node_id = node_id or new_id()
        conf = Settings if app is None else app.conf
        self.exchange = get_exchange(self.connection, conf.event_exchange)
        self.queue = kombu.Queue(
            f"{queue_prefix or conf.event_queue_prefix}.{self.node_id}",
            exchange=self.exchange,
            routing_key=routing_key,
            auto_delete=True,
            durable=False,
            message_ttl=QUEUE_TTL_S if queue_ttl is None else queue_ttl,
            expires=QUEUE_EXPIRES_S if queue_expires is None else queue_expires,
        )
        self.accept = set(accept or {"json"})
        self.clock = 0

    @property
    def connection(self) -> Any:
        """Return the connection that it reads from."""
        return self.channel.connection.client if self.channel else None

    def capture(self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True) -> None:
        """Read events until `should_stop` is set.

        Args:
            limit: of messages, each of which may hold several events.
            timeout: seconds without any, after which `TimeoutError` is raised.
            wakeup: ask the workers to show themselves.
        """
        for _ in self.itercapture(limit, timeout, wakeup):
            pass

    def itercapture(
        self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True
    ) -> Iterator[object]:
        """Read events, and yield after each message; see `capture`."""
        yield from self.consume(limit=limit, timeout=timeout, wakeup=wakeup)

    def process(self, type: str, event: dict[str, Any]) -> None:
        """Call the handler of a type of events with one of them."""
        handler = self.handlers.get(type) or self.handlers.get("*")
        if handler is not None:
            handler(event)

    def event_from_message(self, body: dict[str, Any], localize: bool = True) -> tuple[str, dict[str, Any]]:
        """Return the type of an event and the event, with when it came, its clock, and its time as on this machine."""
        kind = str(body["type"])
        said = body.get("clock")
        # A client's clock knows nothing of the workers'.
        if kind == "task-sent" or not isinstance(said, int):
            body["clock"] = self.clock
        else:
            self.clock = max(self.clock, said) + 1
        offset, at = body.get("utcoffset"), body.get("timestamp")
        if localize and isinstance(offset, int | float) and isinstance(at, int | float):
            body["timestamp"] = at - (offset - utcoffset()) * 3600
        body["local_received"] = time.time()
        return kind, body

    def wakeup_workers(self, channel: object = None) -> None:
        """Ask the workers to show themselves."""
        del channel
        if self.app is not None:
            self.app.control.broadcast("heartbeat")

    # what kombu calls

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
        """Return what reads the queue."""
        del channel
        return [consumer(queues=[self.queue], callbacks=[self._receive], no_ack=True, accept=self.accept)]

    def on_consume_ready(self, connection: Any, channel: Any, consumers: Any, wakeup: bool = True, **_: Any) -> None:
        """Wake the workers, now that nothing they say is missed."""
        del connection, consumers
        if wakeup:
            self.wakeup_workers(channel)

    def _receive(self, body: Any, message: object) -> None:
        del message
        for event in body if isinstance(body, list) else [body]:
            # anybody may write there
            if isinstance(event, dict) and "type" in event:
                self.process(*self.event_from_message(event))


class EventDispatcher:
    """Sends events of one's own over a connection of one's own.

    Args:
        connection: a `kombu.Connection`.
        hostname: whom they are from.
        enabled: False: nothing is sent until `enable`.
        channel: instead of the connection.
        groups: of types (what comes before their dash); others are not sent; all of them if None.
        app: whose settings say where they go.
    """

    def __init__(
        self,
        connection: Any = None,
        hostname: str | None = None,
        enabled: bool = True,
        channel: Any = None,
        groups: Any = None,
        app: App | None = None,
    ) -> None:
        self.channel = channel or maybe_channel(connection)
        self.hostname = hostname or f"{socket.gethostname()}"
        self.enabled = enabled
        self.groups = set(groups or ())
        self.clock = 0
        conf = Settings if app is None else app.conf
        exchange = get_exchange(self.channel.connection.client, conf.event_exchange)
        self._producer = kombu.Producer(self.channel, exchange=exchange, serializer="json", auto_declare=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def enable(self) -> None:
        """Send events from now on."""
        self.enabled = True

    def disable(self) -> None:
        """Send no more events."""
        self.enabled = False

    def send(self, type: str, **fields: Any) -> None:
        """Send an event: its type, with the group before the dash, and fields that are JSON."""
        group = type.partition("-")[0]
        if not self.enabled or (self.groups and group not in self.groups):
            return
        self.clock += 1
        event = {
            "hostname": self.hostname,
            "utcoffset": utcoffset(),
            "clock": self.clock,
            "timestamp": time.time(),
            **fields,
            "type": type,
        }
        self._producer.publish(
            event, routing_key=type.replace("-", "."), headers={"hostname": self.hostname}, delivery_mode=1
        )

    def close(self) -> None:
        """Send no more events; the connection is its maker's."""
        self.enabled = False
