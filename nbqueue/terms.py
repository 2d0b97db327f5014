"""`Terms`: under what a worker runs a call, as the call says, or else its task by name, or else the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nbqueue.acks import Acks
from nbqueue.limits import Limited, Limits
from nbqueue.messages import Steering


class Registered(Limited, Protocol):
    """Is a task by name."""

    @property
    def acks(self) -> Acks | None:
        """Return what it says of its message."""


class Terms:
    """Those of one worker.

    Args:
        tasks: by name, of its project.
        limits: of what says nothing itself.
        acks: likewise, complete.
    """

    def __init__(self, tasks: Mapping[str, Registered], limits: Limits, acks: Acks) -> None:
        self.tasks = tasks
        self.limits = limits
        self.default_acks = acks
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
        return acks if steering.acks is None else steering.acks.or_else(acks)
