"""Retries: whether a task is to run again, when, and with which arguments.

Lives in a child. A task that is to run again ends with a RETRY; its supervisor puts the message off and
acknowledges the old one in one step.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from nbqueue.exceptions import Ignore, ImproperlyConfigured, MaxRetriesExceededError, Reject, Retry
from nbqueue.times import due_time

Exceptions = tuple[type[BaseException], ...]
_MOST_DOUBLINGS: Final = 60


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


@dataclass(frozen=True, slots=True)
class Plan:
    """How a task is to run again.

    Args:
        retry: says so.
        due: Unix seconds; 0.0: at once.
        max_retries: how often it may; None for as often as it likes.
        call: its arguments; None for the same.
    """

    retry: Retry
    due: float
    max_retries: int | None
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None


def plan(
    call: Call,
    *,
    args: Iterable[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    exc: BaseException | None = None,
    eta: datetime | None = None,
    countdown: float | None = None,
    max_retries: int | None = None,
) -> Plan:
    """Return how a call is to run again.

    Raises:
        BaseException: `exc`, where no retries are left.
        MaxRetriesExceededError: none are left, and no `exc` was given.
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
    changed = args is not None or kwargs is not None
    arguments = (
        call.args if args is None else tuple(args),
        call.kwargs if kwargs is None else dict(kwargs),
    )
    reason = exc if exc is not None else sys.exc_info()[1]
    return Plan(Retry("", reason, eta or countdown), due, limit, arguments if changed else None)


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
