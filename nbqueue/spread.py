"""Calls that go to several queues at once: those bound to one exchange, and the workers' own ones of a broadcast.

Each queue gets a copy, which is a task of its own: an id stands for one message here. The handle is that of the first.
"""

from __future__ import annotations

from collections.abc import Iterable

from nbqueue.bindings import BoundQueue, Defaults, broadcasts, exchange_of, is_own, queues_for
from nbqueue.config import Settings
from nbqueue.exceptions import SendFailed
from nbqueue.routing import Route

Parts = tuple[tuple[str, bool], ...]  # queues, and whether each is a broadcast


class Spread:
    """Knows, for one app, which names stand for several queues."""

    def __init__(self) -> None:
        self._several: dict[str, tuple[str, ...]] = {}  # queues by the name that stands for them
        self._of: object = ()
        self._broadcasts: frozenset[str] = frozenset()

    def __contains__(self, queue: str) -> bool:
        return queue in self._several

    def bound(self, conf: Settings, route: Route, exchange: str | None, routing_key: str | None) -> str:
        """Return the queue that is bound to an exchange for a routing key, or a name that stands for several.

        Args:
            conf: of the app.
            route: says what the call doesn't.
            exchange: of the call.
            routing_key: of the call.

        Raises:
            ImproperlyConfigured: none is bound so.
        """
        defaults = _defaults(conf)
        if exchange is None:
            exchange = route.exchange
            if exchange is None and route.queue is not None:
                exchange = exchange_of(route.queue, conf.task_queues, defaults)
        found = queues_for(
            conf.task_queues, defaults, exchange, route.routing_key if routing_key is None else routing_key
        )
        if len(found) == 1:
            return found[0]
        name = " + ".join(found)
        self._several[name] = found
        return name

    def is_one(self, conf: Settings, queue: str) -> bool:
        """Tell whether a name stands for one queue, which is nearly always so."""
        if self._of is not conf.task_queues:
            self._of, self._broadcasts = conf.task_queues, broadcasts(conf.task_queues)
        return queue not in self._broadcasts and queue not in self._several

    def parts(self, conf: Settings, queue: str) -> Parts:
        """Return what a name stands for that doesn't stand for one queue; nothing for one that does."""
        if self.is_one(conf, queue):
            return ()
        return tuple((part, part in self._broadcasts) for part in self._several.get(queue, (queue,)))


def copies_of(parts: Parts, listened: Iterable[str], name: str) -> list[str]:
    """Return the queues that each get a copy of a call.

    Args:
        parts: what its queue's name stands for.
        listened: queues that living workers listen to.
        name: of that, for the error.

    Raises:
        SendFailed: it is a broadcast, and no worker listens.
    """
    everyone = set(listened)
    found: dict[str, None] = {}
    for part, broadcast in parts:
        own = sorted(queue for queue in everyone if is_own(queue, part)) if broadcast else [part]
        found.update(dict.fromkeys(own))
    if not found:
        raise SendFailed(f"not sent: no worker listens to the broadcast {name!r}")
    return list(found)


def bindings_of(conf: Settings, queue: str) -> list[tuple[str, str, str]]:
    """Return what a queue is bound to: exchange, its kind, and routing key, for each of its keys."""
    known = next((one for one in conf.task_queues if one == queue), None)
    if not isinstance(known, BoundQueue):
        return [("", "direct", queue)]
    defaults = _defaults(conf)
    exchange, kind = known.exchange or defaults.exchange, known.kind or defaults.kind
    return [(exchange, kind, key) for key in known.routing_keys or (defaults.routing_key,)]


def _defaults(conf: Settings) -> Defaults:
    return Defaults(
        conf.task_default_exchange or conf.task_default_queue,
        conf.task_default_exchange_type,
        conf.task_default_routing_key or conf.task_default_queue,
    )
