"""`Terms`: under what a worker runs a call, as the call says, or else its task by name, or else the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nbqueue.acks import Acks
from nbqueue.limits import Limited, Limits
from nbqueue.messages import Steering
from nbqueue.rates import NO_RATE, Gates


class Retried(Protocol):
    """Says how a task is retried."""

    @property
    def max_retries(self) -> int | None:
        """Return how often it may be."""

    @property
    def default_retry_delay(self) -> float:
        """Return the seconds until it is."""


class Registered(Limited, Protocol):
    """Is a task by name."""

    @property
    def acks(self) -> Acks | None:
        """Return what it says of its message."""

    @property
    def retry_options(self) -> Retried:
        """Return how it is retried."""

    @property
    def rate(self) -> float:
        """Return how many may begin a second; 0.0: it says nothing."""

    @property
    def lock(self) -> str | None:
        """Return its lock."""


class Terms:
    """Those of one worker.

    Args:
        tasks: by name, of its project.
        limits: of what says nothing itself.
        acks: likewise, complete.
        rate: likewise.
        rates: whether rates are kept.
    """

    def __init__(
        self, tasks: Mapping[str, Registered], limits: Limits, acks: Acks, rate: float = NO_RATE, *, rates: bool = True
    ) -> None:
        self.tasks = tasks
        self.limits = limits
        self.default_acks = acks
        self.rate = rate
        self.rates = rates
        self.told_rates: dict[str, float] = {}  # by the name of a task, in all workers; 0.0: no limit
        self.told: dict[str, Limits] = {}  # by the name of a task, since somebody has said so from elsewhere

    def limits_of(self, steering: Steering) -> Limits:
        """Return what a call may use."""
        registered = None if steering.code else self.tasks.get(steering.task)
        limits = self.limits if registered is None else self.limits.with_those_of(registered)
        if not self.told or (told := self.told.get(steering.task)) is None:
            return limits.with_those_of(steering)
        # A call that brings its code brings what its task was declared with; of others it is the caller's own word.
        first, last = (steering, told) if steering.code else (told, steering)
        return limits.with_those_of(first).with_those_of(last)

    def acks_of(self, steering: Steering) -> Acks:
        """Return when the message of a call is acknowledged."""
        registered = None if steering.code else self.tasks.get(steering.task)
        acks = self.default_acks
        if registered is not None and registered.acks is not None:
            acks = registered.acks.or_else(acks)
        acks = acks if steering.acks is None else steering.acks.or_else(acks)
        if not acks.retry or registered is None:
            return acks
        options = registered.retry_options
        return acks.retried_as(options.max_retries, options.default_retry_delay)

    def gates_of(self, steering: Steering) -> Gates | None:
        """Return what a call has to pass before it runs; None, as most have nothing."""
        rate, lock, name = steering.rate_limit, steering.lock, steering.task
        if not steering.code and (registered := self.tasks.get(name)) is not None:
            rate, lock = rate or registered.rate, lock or registered.lock or ""
        rate = rate or self.rate
        if self.told_rates:
            rate = self.told_rates.get(name, rate)
        if not self.rates:
            rate = NO_RATE
        if not rate and not lock:
            return None
        return Gates(name if rate else "", rate, lock)
