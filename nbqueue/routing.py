"""Where a call goes: its queue and priority, from the call, its task or `task_routes`, in this order.

A queue may also be named by what it is bound to, an exchange and a routing key: see `nbqueue.bindings`.

Source: Celery's user guide, "Routing Tasks".
"""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nbqueue.exceptions import ImproperlyConfigured, QueueNotFound

MAX_PRIORITY: Final = 9
_NAMED: Final = ("queue", "exchange", "routing_key")
# Of AMQP, in routes written for Celery.
_WITHOUT_MEANING: Final = frozenset({"exchange_type", "delivery_mode"})


@dataclass(frozen=True, slots=True)
class Call:
    """What a route may depend on. `options` are those given for this call."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes, as far as a route says. A queue that it names comes before an exchange."""

    queue: str | None = None
    priority: int | None = None
    exchange: str | None = None
    routing_key: str | None = None


Router = Callable[[Call], Route | None]


def routers(value: object) -> tuple[Router, ...]:
    """Return what `task_routes` holds: a dict from names or patterns to routes, a function, or a list of them.

    A pattern is a glob or a compiled regular expression. A route is the name of a queue, or a dict with `queue`,
    `exchange`, `routing_key` or `priority`. A function gets name, args, kwargs and options, and returns a route, or
    None to leave the call to the next; it may be named as `module.function`. An object, or the class
    of one, may have a method `route_for_task` instead, which gets name, args and kwargs.

    Raises:
        ImproperlyConfigured: it holds something else.
    """
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return (_table(list(value.items())),)
    if hasattr(value, "route_for_task"):
        of_object = (value() if isinstance(value, type) else value).route_for_task
        return (_function(lambda name, args, kwargs, _: of_object(name, args, kwargs)),)
    if callable(value):
        return (_function(value),)
    if isinstance(value, str):
        return routers(_imported(value))
    if not isinstance(value, Sequence):
        raise ImproperlyConfigured(f"task_routes must be a dict, a function or a list of them, not {value!r}")
    found: list[Router] = []
    for part in value:
        is_pair = isinstance(part, list | tuple) and len(part) == 2 and isinstance(part[0], str | re.Pattern)
        found += [_table([tuple(part)])] if is_pair else routers(part)
    return tuple(found)


def find_route(routes: Iterable[Router], call: Call) -> Route:
    """Return the first route that there is for a call."""
    for router in routes:
        if (route := router(call)) is not None:
            return route
    return Route()


def priority(value: object) -> int | None:
    """Return a priority.

    Raises:
        ImproperlyConfigured: it is no whole number from 0 to 9.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PRIORITY):
        raise ImproperlyConfigured(f"priority must be a whole number from 0 to 9, the soonest, not {value!r}")
    return value


def check_queue(queue: str, known: Sequence[str]) -> None:
    """Refuse a queue that isn't known, for `task_create_missing_queues = False`.

    Raises:
        QueueNotFound: it isn't.
    """
    if queue not in known:
        raise QueueNotFound(
            f"there is no queue {queue!r} among task_queues ({', '.join(known)}), and task_create_missing_queues is off"
        )


def _table(pairs: Sequence[tuple[Any, Any]]) -> Router:
    exact: dict[str, Route] = {}
    patterns: list[tuple[re.Pattern[str], Route]] = []
    for name, target in pairs:
        route = _route(target)
        if isinstance(name, re.Pattern):
            patterns.append((name, route))
        elif not isinstance(name, str):
            raise ImproperlyConfigured(f"task_routes must go from names or patterns, not from {name!r}")
        elif any(sign in name for sign in "*?["):
            patterns.append((re.compile(fnmatch.translate(name)), route))
        else:
            exact[name] = route

    def router(call: Call) -> Route | None:
        found = exact.get(call.name)
        return found or next((route for pattern, route in patterns if pattern.match(call.name)), None)

    return router


def _function(function: Callable[..., Any]) -> Router:
    def router(call: Call) -> Route | None:
        target = function(call.name, call.args, call.kwargs, call.options)
        return _route(target) if target else None

    return router


def _route(target: object) -> Route:
    if isinstance(target, str) and target:
        return Route(target)
    if not isinstance(target, Mapping) and (name := name_of(target)):
        return Route(name)
    if isinstance(target, Mapping):
        known = {"queue", "priority", "exchange", "routing_key"}
        wrong = sorted(str(key) for key in target.keys() - known - _WITHOUT_MEANING)
        named = [name_of(target.get(key)) for key in _NAMED]
        if not wrong and all(
            target.get(key) is None or name is not None for key, name in zip(_NAMED, named, strict=True)
        ):
            return Route(named[0] or None, priority(target.get("priority")), named[1], named[2])
    raise ImproperlyConfigured(
        f"a route is the name of a queue or a dict with queue, exchange, routing_key or priority, not {target!r}"
    )


def named(what: str, value: object) -> str:
    """Return the name of a queue or exchange that a call is given.

    Raises:
        ImproperlyConfigured: it is no text, and has no name.
    """
    if not (name := name_of(value)):
        raise ImproperlyConfigured(f"{what} must be a name, or have one as kombu's, not {value!r}")
    return name


def name_of(value: object) -> str | None:
    """Return a text, or the name of a queue or exchange as kombu's; None for anything else."""
    found = value if isinstance(value, str) else getattr(value, "name", None)
    return found if isinstance(found, str) else None


def _imported(path: str) -> object:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None) if module else None
    except ImportError as exc:
        raise ImproperlyConfigured(f"task_routes: {path}: {exc}") from exc
    if not callable(found) and not hasattr(found, "route_for_task"):
        raise ImproperlyConfigured(f"task_routes: {path} is no function")
    return found
