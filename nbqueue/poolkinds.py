"""What a worker's tasks run in, by Celery's names."""

from __future__ import annotations

import difflib
from typing import Any, Final

from nbqueue.exceptions import ImproperlyConfigured

PREFORK: Final = "prefork"
THREADS: Final = "threads"
SOLO: Final = "solo"
_KINDS: Final = {
    PREFORK: PREFORK,
    "processes": PREFORK,
    "celery.concurrency.prefork:TaskPool": PREFORK,
    THREADS: THREADS,
    "thread": THREADS,
    "celery.concurrency.thread:TaskPool": THREADS,
    SOLO: SOLO,
    "celery.concurrency.solo:TaskPool": SOLO,
}
_GREEN: Final = frozenset({"eventlet", "gevent"})


def pool_kind(value: Any) -> str:
    """Return `prefork`, `threads` or `solo`.

    Raises:
        ImproperlyConfigured: there is no such pool here.
    """
    if isinstance(value, str) and value in _KINDS:
        return _KINDS[value]
    names = "prefork, threads and solo"
    if value in _GREEN:
        raise ImproperlyConfigured(
            f"there is no pool {value!r} here: nothing is patched; tasks that wait much go well with the pool threads"
        )
    near = difflib.get_close_matches(str(value), (PREFORK, THREADS, SOLO), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {names}"
    raise ImproperlyConfigured(f"there is no pool {value!r}; {hint}")


def processes(kind: str, size: int) -> int:
    """Return how many processes a pool of so many children has, which share the machine's cores."""
    return size if kind == PREFORK else 1
