"""What a task may use: seconds of time and bytes of memory, as its call says, or its task, or its worker."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Protocol

from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.times import UNSET


class Limited(Protocol):
    """Is a task, or one call of it. 0: it says nothing."""

    @property
    def time_limit(self) -> float:
        """Return the seconds it may run."""

    @property
    def soft_time_limit(self) -> float:
        """Return the seconds after which it is warned."""

    @property
    def memory_limit(self) -> int:
        """Return the bytes it may use."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may use; 0 is no limit.

    Args:
        time_limit: seconds, from its start in its child, after which the child is ended.
        soft_time_limit: seconds after which `SoftTimeLimitExceeded` is raised in it.
        memory_limit: bytes of memory of its child, above which that is ended.
    """

    time_limit: float = UNSET
    soft_time_limit: float = UNSET
    memory_limit: int = 0

    def __bool__(self) -> bool:
        return bool(self.time_limit or self.soft_time_limit or self.memory_limit)

    def with_those_of(self, limited: Limited) -> Limits:
        """Return these limits where a task, or a call, has none of its own."""
        if not (limited.time_limit or limited.soft_time_limit or limited.memory_limit):
            return self
        return Limits(
            limited.time_limit or self.time_limit,
            limited.soft_time_limit or self.soft_time_limit,
            limited.memory_limit or self.memory_limit,
        )


NO_LIMITS: Final = Limits()


def seconds(name: str, value: object) -> float:
    """Return a limit of time as it travels: 0.0 for none.

    Raises:
        ImproperlyConfigured: it is no number of seconds above 0.
    """
    if value is None:
        return UNSET
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ImproperlyConfigured(f"{name} must be a number of seconds above 0, not {value!r}")
    return float(value)


_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(I?)B?\s*", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def size_bytes(name: str, value: object) -> int:
    """Return a limit of memory as it travels: 0 for none.

    >>> size_bytes("memory_limit", "1.5 GB"), size_bytes("memory_limit", "2 KiB"), size_bytes("memory_limit", None)
    (1500000000, 2048, 0)

    Raises:
        ImproperlyConfigured: it is neither a number of bytes above 0 nor a text such as "2 GB".
    """
    if value is None:
        return 0
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].upper()])
    else:
        size = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if size <= 0:
        raise ImproperlyConfigured(f'{name} must be a number of bytes above 0 or a text such as "2 GB", not {value!r}')
    return size


def limits_of_call(
    time_limit: float | None = None, soft_time_limit: float | None = None, memory_limit: int | str | None = None
) -> Limits:
    """Return the limits that options say, checked.

    Raises:
        ImproperlyConfigured: one of them can't be used.
    """
    if time_limit is None and soft_time_limit is None and memory_limit is None:
        return NO_LIMITS
    return Limits(
        seconds("time_limit", time_limit),
        seconds("soft_time_limit", soft_time_limit),
        size_bytes("memory_limit", memory_limit),
    )


def check_order(name: str, limits: Limits) -> None:
    """Refuse a soft limit above the hard one.

    Args:
        name: of the task.
        limits: its own, as far as they are said.

    Raises:
        ValueError: it is above.
    """
    if limits.soft_time_limit > limits.time_limit > 0:
        raise ValueError(
            f"{name} has a soft_time_limit of {limits.soft_time_limit:g} s, above its time_limit of "
            f"{limits.time_limit:g} s: it would be ended before it is told"
        )


def shown_size(size: float) -> str:
    """Return a number of bytes as people read it.

    >>> shown_size(2_130_000_000), shown_size(2e9), shown_size(15_200)
    ('2.13 GB', '2 GB', '15.2 KB')
    """
    power = max(power for power in range(5) if not power or size >= 1000**power)
    unit = next(unit for unit, number in _POWERS.items() if number == power)
    return f"{size / 1000**power:.3g} {unit}B"
