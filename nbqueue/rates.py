"""Rates and locks: what a task waits for at a gate, though it is its turn."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from nbqueue.exceptions import ImproperlyConfigured

_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RATE: Final = re.compile(r"([0-9]*\.?[0-9]+)(?:/([smh]))?")
NO_RATE: Final = 0.0
MAX_LOCK_CHARACTERS: Final = 200


class Gates(NamedTuple):
    """What one task has to pass before it runs.

    Args:
        name: of what has the rate; empty where none is kept.
        rate: of its own, tasks a second.
        lock: empty for none.
    """

    name: str
    rate: float
    lock: str


def per_second(value: float | str | None) -> float:
    """Return a rate limit as tasks a second; 0.0 for none.

    >>> per_second("30/m"), per_second(5), per_second("2/s"), per_second(None)
    (0.5, 5.0, 2.0, 0.0)

    Raises:
        ImproperlyConfigured: it is neither a number nor a text such as "10/m".
    """
    if value is None or value == "":
        return NO_RATE
    found = _RATE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if found is None:
        raise ImproperlyConfigured(
            f'a rate limit is a number of tasks a second, or a text such as "100/s", "10/m" or "1/h", not {value!r}'
        )
    return float(found[1]) / _SECONDS[found[2] or "s"]


def lock_name(value: object) -> str:
    """Return the name of a lock; empty for none.

    Raises:
        ImproperlyConfigured: it is no short text.
    """
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or len(value) > MAX_LOCK_CHARACTERS:
        raise ImproperlyConfigured(f"lock must be a name of 1 to {MAX_LOCK_CHARACTERS} characters, not {value!r}")
    return value
