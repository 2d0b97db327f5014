"""Retries: whether a task is to run again, when, and with which arguments.

Lives in a child. A task that is to run again ends with a RETRY; its supervisor puts the message off and
acknowledges the old one in one step.
"""

from __future__ import annotations

import dataclasses
import inspect
import random
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from nbqueue import contents
from nbqueue.exceptions import Ignore, ImproperlyConfigured, MaxRetriesExceededError, PayloadTooLarge, Reject, Retry
from nbqueue.extras import IDLE, json_headers
from nbqueue.limits import check_order, limits_of_call
from nbqueue.messages import MAX_STEERING_BYTES, Changes, Steering, encode_steering
from nbqueue.rates import lock_name
from nbqueue.routing import priority as check_priority
from nbqueue.times import due_time, expiry_time

Exceptions = tuple[type[BaseException], ...]
_MOST_DOUBLINGS: Final = 60
_PLACES: Final = frozenset({"queue", "exchange", "routing_key"})
_LIMITS: Final = frozenset({"time_limit", "soft_time_limit", "memory_limit"})
_TEXTS: Final = {"shadow": "name", "reply_to": "reply_to", "argsrepr": "argsrepr", "kwargsrepr": "kwargsrepr"}
# What a retry may say otherwise than the call was sent with.
CHANGEABLE: Final = frozenset(
    {
        *(*_PLACES, *_LIMITS, *_TEXTS),
        *("priority", "expires", "headers", "ignore_result", "serializer", "compression", "lock"),
    }
)
# Of `apply_async`, about sending: a worker sends a retry until the broker has it.
_IDLE: Final = IDLE | {"retry", "retry_policy", "add_to_parent"}
_FOLLOWS: Final = (
    "what follows the call follows its retries; to add to that, raise "
    "self.replace(self.signature_from_request(link=...))"
)
_SAME: Final = "the same call runs again, under its id; send another with apply_async, and raise Ignore"
_FIXED: Final = {
    "link": _FOLLOWS,
    "link_error": _FOLLOWS,
    "task_id": _SAME,
    "root_id": _SAME,
    "parent_id": _SAME,
}


@dataclass(frozen=True)
class RetryOptions:
    """What a task says of its retries; the names and meanings are Celery's.

    Args:
        max_retries: how often it may be retried; None for as often as it likes.
        default_retry_delay: seconds until a retry that says nothing else.
        autoretry_for: errors that retry a task by themselves.
        dont_autoretry_for: of these, errors that don't.
        retry_kwargs: what such a retry passes on to `retry`.
        retry_backoff: seconds until the first such retry, doubled at each; True is 1, False leaves
            `default_retry_delay`.
        retry_backoff_max: seconds that the doubling ends at.
        retry_jitter: draw the delay at random between 0 and what the doubling gives.
    """

    max_retries: int | None = 3
    default_retry_delay: float = 180.0
    autoretry_for: Exceptions = ()
    dont_autoretry_for: Exceptions = ()
    retry_kwargs: Mapping[str, Any] = field(default_factory=dict)
    retry_backoff: float = 0.0
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True

    @classmethod
    def of(cls, **options: Any) -> RetryOptions:
        """Return these options, checked.

        Raises:
            ImproperlyConfigured: one of them can't be used.
        """
        for name in ("autoretry_for", "dont_autoretry_for"):
            if name in options:
                options[name] = exceptions(name, options[name])
        for name in ("default_retry_delay", "retry_backoff", "retry_backoff_max"):
            if name in options:
                options[name] = _number(name, options[name])
        limit = options.get("max_retries", 0)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ImproperlyConfigured(f"max_retries must be a whole number or None, not {limit!r}")
        return cls(**options)

    def automatic(self, exc: BaseException) -> bool:
        """Tell whether an error retries the task by itself."""
        never: Exceptions = (Ignore, Reject, MaxRetriesExceededError, *self.dont_autoretry_for)
        return isinstance(exc, self.autoretry_for) and not isinstance(exc, never)

    def backoff_s(self, retries: int) -> float:
        """Return the delay of an automatic retry after so many others, seconds."""
        longest = min(self.retry_backoff_max, self.retry_backoff * 2.0 ** min(retries, _MOST_DOUBLINGS))
        return random.uniform(0.0, longest) if self.retry_jitter else longest  # noqa: S311 - spreads retries


RETRY_OPTIONS: Final = tuple(option.name for option in dataclasses.fields(RetryOptions))
DEFAULTS: Final = RetryOptions()


def of_cell(max_retries: int) -> RetryOptions:
    """Return the options of a cell that any error runs again, so often."""
    return RetryOptions(max_retries, autoretry_for=(Exception,), retry_backoff=1.0, retry_jitter=False)


class Call(Protocol):
    """Is a call that runs in this process."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    retry_options: RetryOptions

    @property
    def task(self) -> str:
        """Return the task's name."""

    @property
    def retries(self) -> int:
        """Return how often it was retried."""

    @property
    def steering(self) -> Steering:
        """Return how it was sent."""

    @property
    def loaded(self) -> Any:
        """Return its function, `run`, with `bind`; None if it isn't known."""

    def callee(self) -> Any:
        """Return its task."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a task is to run again.

    Args:
        retry: says so.
        due: Unix seconds; 0.0: at once.
        max_retries: how often it may; None for as often as it likes.
        call: its arguments; None for the same.
        changes: what it says otherwise than it was sent with.
        compression: of the arguments, where they are packed anew.
    """

    retry: Retry
    due: float
    max_retries: int | None
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    changes: Changes | None = None
    compression: str = ""


def plan(
    call: Call,
    *,
    args: Iterable[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    exc: BaseException | None = None,
    eta: datetime | None = None,
    countdown: float | None = None,
    max_retries: int | None = None,
    **other: Any,
) -> Plan:
    """Return how a call is to run again; `other` are of `CHANGEABLE`.

    Raises:
        BaseException: `exc`, where no retries are left.
        MaxRetriesExceededError: none are left, and no `exc` was given.
        TypeError: an option can't be changed.
        ImproperlyConfigured: it can't be changed to that.
    """
    options = call.retry_options
    limit = options.max_retries if max_retries is None else max_retries
    if limit is not None and call.retries >= limit:
        if exc is not None:
            raise exc
        raise MaxRetriesExceededError(f"{call.task} has been retried {call.retries} times, as often as it may")
    if eta is None and countdown is None:
        countdown = options.default_retry_delay
    due = due_time(time.time(), countdown, eta)
    other = checked(other)
    changed = args is not None or kwargs is not None or "serializer" in other or "compression" in other
    reason = exc if exc is not None else sys.exc_info()[1]
    return Plan(
        Retry("", reason, eta or countdown),
        due,
        limit,
        _arguments(call, args, kwargs) if changed else None,
        _changes(call, due, other) if other else None,
        contents.compression(other.get("compression")),
    )


def _arguments(
    call: Call, args: Iterable[Any] | None, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a retry: those given take the place of the call's, however that had them."""
    names = _positional(call)
    if args is not None and kwargs is None:
        new = tuple(args)
        return new, {name: value for name, value in call.kwargs.items() if name not in names[: len(new)]}
    if args is None and kwargs is not None:
        had, by_name = list(call.args), dict(kwargs)
        for place, name in enumerate(names[: len(had)]):
            if name in by_name:
                had[place] = by_name.pop(name)
        return tuple(had), by_name
    return call.args if args is None else tuple(args), call.kwargs if kwargs is None else dict(kwargs)


def _positional(call: Call) -> list[str]:
    """Return the names of the parameters that a task takes by position, "" for those it takes in no other way."""
    if call.loaded is None:
        return []
    try:
        parameters = list(inspect.signature(call.loaded.run).parameters.values())[call.loaded.bind :]
    except (TypeError, ValueError):  # a callable that doesn't tell
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return ["" if one.kind is kinds[0] else one.name for one in parameters if one.kind in kinds]


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a retry that are to be changed: those that aren't None.

    Raises:
        TypeError: one can't be changed, or doesn't exist.
    """
    found = {name: value for name, value in options.items() if value is not None and name not in _IDLE}
    for name in found.keys() - CHANGEABLE:
        why = _FIXED.get(name, f"it has {', '.join(sorted(CHANGEABLE))}")
        raise TypeError(f"retry has no option {name}: {why}")
    return found


def _changes(call: Call, due: float, options: Mapping[str, Any]) -> Changes:
    """Return what a retry says otherwise than its call was sent with."""
    s = call.steering
    limits = limits_of_call(**{name: options[name] for name in options.keys() & _LIMITS})
    check_order(call.task, limits)
    texts = {}
    for name in options.keys() & (_TEXTS.keys() | {"lock"}):
        if not isinstance(options[name], str):
            raise TypeError(f"{name} must be a string, not {options[name]!r}")
        texts[_TEXTS.get(name, name)] = options[name]
    if "lock" in texts:
        lock_name(texts["lock"])
    ignored = options.get("ignore_result")
    if s.graph and ignored not in (None, s.ignore_result):
        raise TypeError("retry can't change ignore_result of a call of a canvas: what follows it may need its value")
    changes = Changes(
        queue=_queue(call, {name: options[name] for name in options.keys() & _PLACES}),
        priority=check_priority(options.get("priority")),
        expires=expiry_time(time.time(), options["expires"], due) if "expires" in options else None,
        time_limit=limits.time_limit or None,
        soft_time_limit=limits.soft_time_limit or None,
        memory_limit=limits.memory_limit or None,
        ignore_result=None if ignored is None else bool(ignored),
        serializer=contents.serializer(options["serializer"]) if "serializer" in options else None,
        headers=json_headers(options["headers"]) if "headers" in options else None,
        **texts,
    )
    if (size_bytes := len(encode_steering(changes.on(s)))) > MAX_STEERING_BYTES:
        raise PayloadTooLarge(
            f"Not retried: what the call of {s.shown_name[:80]} says of itself has {size_bytes:,} bytes, "
            f"{MAX_STEERING_BYTES:,} is the most; shorten headers, argsrepr or kwargsrepr"
        )
    return changes


def _queue(call: Call, place: Mapping[str, Any]) -> str | None:
    """Return the queue that a retry goes to; None for the same.

    Raises:
        ImproperlyConfigured: there is none, or several queues would get it.
    """
    if not place:
        return None
    app = call.callee().app
    queue: str = app.destination(call.task, priority=call.steering.priority, **place)[0]
    if not app.spread.is_one(app.conf, queue):
        raise ImproperlyConfigured(
            f"a retry is one message, and {queue!r} stands for several queues: send calls there with apply_async"
        )
    return queue


def planned_for(call: Call, exc: BaseException) -> Plan | None:
    """Return how a call that has ended with an error is to run again; None if it isn't.

    Raises:
        BaseException: that error, where it would be retried and no retries are left.
    """
    if isinstance(exc, Retry):  # raised by hand; `BoundTask.retry` leaves its plan with the call
        when = exc.when
        eta, countdown = (when, None) if isinstance(when, datetime) else (None, when)
        return plan(call, exc=exc.exc or exc, eta=eta, countdown=countdown)
    options = call.retry_options
    if not options.automatic(exc):
        return None
    arguments = dict(options.retry_kwargs)
    if options.retry_backoff:
        arguments["countdown"] = options.backoff_s(call.retries)
    return plan(call, exc=exc, **arguments)


def exceptions(name: str, value: object) -> Exceptions:
    """Return classes of exceptions: one, or several.

    Raises:
        ImproperlyConfigured: something else is among them.
    """
    found = (value,) if isinstance(value, type) else tuple(value) if isinstance(value, Iterable) else (value,)
    for kind in found:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ImproperlyConfigured(f"{name} must hold classes of exceptions, not {kind!r}")
    return found


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or not value >= 0:
        raise ImproperlyConfigured(f"{name} must be a number of seconds of at least 0, not {value!r}")
    return float(value)
