"""`Guard`: ends tasks that go beyond their limits.

It only looks at tasks that have a limit and run, at most one a child, and at their memory every quarter of a second.
The clock is the machine's monotonic one, which a supervisor and its children share, and starts when the task starts
in its child. Memory is that of the child, not of processes which it has started itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from nbqueue.dispatch import Dispatcher, Held
from nbqueue.forkserver import ChildSettings
from nbqueue.limits import Limits, shown_size
from nbqueue.memory import rss_bytes

SAMPLE_S: Final = 0.25  # between two looks at how much memory a task uses

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    held: Held
    began_at: float
    sampled_at: float
    warned: bool = False
    shared: bool = False  # with others, in its process: nobody knows which of them uses its memory

    @property
    def limits(self) -> Limits:
        return self.held.limits

    def due_at(self) -> float | None:
        """Return when it is to be looked at again; None if there is no need to."""
        if self.held.fault:
            return None
        left = [self.limits.time_limit] + ([] if self.warned else [self.limits.soft_time_limit])
        looks = [self.began_at + limit for limit in left if limit]
        if self.limits.memory_limit and not self.shared:
            looks.append(self.sampled_at + SAMPLE_S)
        return min(looks, default=None)


class Guard:
    """Watches the running tasks of one worker.

    Args:
        work: who runs what.
    """

    def __init__(self, work: Dispatcher) -> None:
        self.work = work
        self._running: dict[int, _Running] = {}

    def began(self, held: Held, at: float) -> None:
        """Take note that a task with a limit has begun, at `at` of the monotonic clock."""
        self._running[held.seq] = _Running(held, at, at, shared=self.work.pool.settings.threads)

    def wait_s(self, now: float) -> float | None:
        """Return how long nothing is due for; None if nothing will be."""
        due = [at for running in self._running.values() if (at := running.due_at()) is not None]
        return max(0.0, min(due) - now) if due else None

    def look(self, now: float) -> None:
        """Warn or end what has reached a limit."""
        for seq, running in list(self._running.items()):
            if not self.work.runs(running.held):
                del self._running[seq]
            elif (due := running.due_at()) is not None and now >= due:
                self._check(running, now)

    def _check(self, running: _Running, now: float) -> None:
        limits, held, ran_s = running.limits, running.held, now - running.began_at
        if limits.time_limit and ran_s >= limits.time_limit:
            self.work.end(held, "TimeLimitExceeded", f"ran past its limit of {limits.time_limit:g} s")
            return
        if limits.soft_time_limit and not running.warned and ran_s >= limits.soft_time_limit:
            running.warned = True
            self.work.warn(held)
        if limits.memory_limit and not running.shared and now - running.sampled_at >= SAMPLE_S:
            running.sampled_at = now
            used = rss_bytes(self.work.pool.children[held.child].pid)
            if used > limits.memory_limit:
                text = f"used {shown_size(used)}, its limit is {shown_size(limits.memory_limit)}"
                self.work.end(held, "MemoryLimitExceeded", text)


def warn_of_threads(settings: ChildSettings, limits: Limits) -> None:
    """Say which limits of a worker its threads can't keep."""
    if settings.threads and (settings.max_tasks or settings.max_memory_kib or limits.memory_limit):
        logger.warning("threads share a process: limits of memory are not kept, nor are children replaced by wear")
