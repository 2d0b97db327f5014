"""Exchanges and routing keys: which queues a call goes to, by what `task_queues` binds to what.

An exchange is not a thing on a server here. Whoever sends a call looks up the queues that are bound to its exchange
for its routing key, and sends it there, so it means the same on Redis and on RabbitMQ. Queues and exchanges are known
by their attributes: kombu's serve, and kombu isn't loaded for it.

Source: the AMQP 0-9-1 model explained (RabbitMQ), Celery's user guide, "Routing Tasks".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from nbqueue.exceptions import ImproperlyConfigured

KINDS: Final = ("direct", "topic", "fanout")
_OWN: Final = ".dq"  # ends the names of queues that one worker alone listens to, as Celery's direct queues


class BoundQueue(str):
    """A queue's name, with what it is bound to. None stands for the defaults of the settings."""

    __slots__ = ("broadcast", "exchange", "kind", "routing_keys")

    exchange: str | None
    kind: str | None
    routing_keys: tuple[str, ...] | None
    broadcast: bool  # every worker that listens has a queue of its own

    def __new__(
        cls,
        name: str,
        exchange: str | None = None,
        kind: str | None = None,
        routing_keys: tuple[str, ...] | None = None,
        *,
        broadcast: bool = False,
    ) -> Self:
        """Return a queue's name.

        Args:
            name: of the queue.
            exchange: that it is bound to.
            kind: of the exchange.
            routing_keys: keys, or patterns if the exchange's kind is topic, that it is bound for.
            broadcast: every worker that listens gets a copy.
        """
        made = super().__new__(cls, name)
        made.exchange, made.kind, made.routing_keys, made.broadcast = exchange, kind, routing_keys, broadcast
        return made

    def __getnewargs_ex__(self) -> Any:
        return (str(self), self.exchange, self.kind, self.routing_keys), {"broadcast": self.broadcast}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a queue is bound to that doesn't say.

    Args:
        exchange: by its name.
        kind: of that.
        routing_key: that it is bound for.
    """

    exchange: str
    kind: str
    routing_key: str


def bound_queues(value: object) -> tuple[str, ...]:
    """Return the queues in `task_queues`: texts, kombu's queues, or a dict from names to what they are bound to.

    Raises:
        ImproperlyConfigured: it holds something else, or an exchange of another kind than `KINDS`.
    """
    if value is None:
        return ()
    if isinstance(value, Mapping):
        parts = [_from_dict(name, options) for name, options in value.items()]
    else:
        given = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
        parts = [_from_object(part) for part in given]
    return tuple(dict.fromkeys(parts))


def queues_for(
    queues: Sequence[str], defaults: Defaults, exchange: str | None, routing_key: str | None
) -> tuple[str, ...]:
    """Return the queues that are bound to an exchange for a routing key, each once; the default ones where None.

    Raises:
        ImproperlyConfigured: none is.
    """
    exchange = defaults.exchange if exchange is None else exchange
    routing_key = defaults.routing_key if routing_key is None else routing_key
    if exchange == "":  # AMQP's own default: each queue is bound to it by its name
        return (routing_key,)
    bound = [queue for queue in queues if _exchange_of(queue, defaults) == exchange]
    found = tuple(str(queue) for queue in bound if _takes(queue, defaults, routing_key))
    if not found:
        known = ", ".join(bound) if bound else "nothing"
        raise ImproperlyConfigured(
            f"no queue is bound to exchange {exchange!r} for routing key {routing_key!r}; task_queues binds {known} "
            "to that exchange"
        )
    return found


def exchange_of(queue: str, queues: Sequence[str], defaults: Defaults) -> str:
    """Return the exchange that a queue is bound to."""
    return next((_exchange_of(known, defaults) for known in queues if known == queue), queue)


def broadcasts(queues: Iterable[str]) -> frozenset[str]:
    """Return those queues of which every worker has its own."""
    return frozenset(str(queue) for queue in queues if isinstance(queue, BoundQueue) and queue.broadcast)


def own_queue(worker: str, broadcast: str = "") -> str:
    """Return a worker's own queue: of a broadcast, or the one for what is meant for it alone.

    >>> own_queue("w1@host"), own_queue("w1@host", "news")
    ('w1@host.dq', 'news/w1@host.dq')
    """
    return f"{broadcast}/{worker}{_OWN}" if broadcast else f"{worker}{_OWN}"


def is_own(queue: str, broadcast: str = "") -> bool:
    """Tell whether a queue is a worker's own, and if one is named, of that broadcast."""
    return queue.endswith(_OWN) and "@" in queue and (not broadcast or queue.startswith(f"{broadcast}/"))


def topic_matches(pattern: str, routing_key: str) -> bool:
    """Tell whether a routing key fits a pattern: `*` is one word, `#` any number of them.

    >>> topic_matches("*.video.#", "new.video"), topic_matches("video.*", "video.new.mp4")
    (True, False)
    """
    words = routing_key.split(".")
    reached = {0}  # how many words the pattern so far may have taken
    for part in pattern.split("."):
        if not reached:
            return False
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
    return len(words) in reached


def _exchange_of(queue: str, defaults: Defaults) -> str:
    if not isinstance(queue, BoundQueue):
        return queue  # made by its name alone, so bound to an exchange of that name
    return queue.exchange or defaults.exchange


def _takes(queue: str, defaults: Defaults, routing_key: str) -> bool:
    if not isinstance(queue, BoundQueue):
        return routing_key == queue
    kind = queue.kind or defaults.kind
    if kind == "fanout":
        return True
    keys = queue.routing_keys or (defaults.routing_key,)
    return any(topic_matches(key, routing_key) if kind == "topic" else key == routing_key for key in keys)


def _from_dict(name: object, options: object) -> str:
    if not isinstance(name, str) or not name:
        raise ImproperlyConfigured(f"task_queues must go from names of queues, not from {name!r}")
    if not isinstance(options, Mapping):
        return BoundQueue(name, name, None, (name,)) if options is None else _from_object(options)
    key = options.get("routing_key", options.get("binding_key"))
    exchange, kind = _exchange(options.get("exchange"))
    kind = _checked_kind(name, options.get("exchange_type") or options.get("binding_type") or kind)
    if not (exchange or key or kind):
        return BoundQueue(name, name, None, (name,))
    return BoundQueue(name, exchange, kind, (str(key),) if key else None)


def _from_object(part: object) -> str:
    """Return what a text or kombu's queue says."""
    if isinstance(part, str) and part:
        return part
    name = getattr(part, "name", None)
    if not isinstance(name, str) or not name:
        raise ImproperlyConfigured(f"task_queues must hold names of queues, or queues as kombu's, not {part!r}")
    exchange, kind = _exchange(getattr(part, "exchange", None))
    if type(part).__name__ == "Broadcast":
        return BoundQueue(getattr(part, "alias", None) or exchange or name, exchange, "fanout", broadcast=True)
    bindings = tuple(getattr(part, "bindings", None) or ())
    exchanges = dict.fromkeys(_exchange(getattr(binding, "exchange", None)) for binding in bindings)
    if len(exchanges) > 1:
        shown = ", ".join(sorted(str(exchange) for exchange, _ in exchanges))
        raise ImproperlyConfigured(f"queue {name!r}: a queue is bound to one exchange, not to {shown}")
    exchange, kind = next(iter(exchanges), (exchange, kind)) if exchange is None else (exchange, kind)
    keys = [getattr(binding, "routing_key", None) for binding in bindings]
    keys.append(getattr(part, "routing_key", None))
    found = tuple(dict.fromkeys(str(key) for key in keys if key))
    return BoundQueue(name, exchange, _checked_kind(name, kind) if exchange else None, found or None)


def _exchange(value: Any) -> tuple[str | None, str | None]:
    """Return an exchange's name and kind; None for one that has no name."""
    if value is None or isinstance(value, str):
        return value or None, None
    name = getattr(value, "name", None)
    return (str(name), str(getattr(value, "type", None) or "direct")) if name else (None, None)


def _checked_kind(name: str, kind: str | None) -> str | None:
    if kind is not None and kind not in KINDS:
        raise ImproperlyConfigured(f"queue {name!r}: an exchange is {', '.join(KINDS)}, not {kind!r}")
    return kind
