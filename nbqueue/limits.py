"""What a task may use: seconds of time, as its call says, or its task, or its worker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

from nbqueue.exceptions import ImproperlyConfigured


class Limited(Protocol):
    """Is a task, or one call of it. 0: it says nothing."""

    @property
    def time_limit(self) -> float:
        """Return the seconds it may run."""

    @property
    def soft_time_limit(self) -> float:
        """Return the seconds after which it is warned."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may use; 0 is no limit.

    Args:
        time_limit: seconds, from its start in its child, after which the child is ended.
        soft_time_limit: seconds after which `SoftTimeLimitExceeded` is raised in it.
    """

    time_limit: float = 0.0
    soft_time_limit: float = 0.0

    def with_those_of(self, limited: Limited) -> Limits:
        """Return these limits where a task, or a call, has none of its own."""
        if not (limited.time_limit or limited.soft_time_limit):
            return self
        return Limits(limited.time_limit or self.time_limit, limited.soft_time_limit or self.soft_time_limit)


NO_LIMITS: Final = Limits()


def seconds(name: str, value: object) -> float:
    """Return a limit of time as it travels: 0.0 for none.

    Raises:
        ImproperlyConfigured: it is no number of seconds above 0.
    """
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ImproperlyConfigured(f"{name} must be a number of seconds above 0, not {value!r}")
    return float(value)
