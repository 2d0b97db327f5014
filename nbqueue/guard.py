"""`Guard`: ends tasks that run past their limits.

It only looks at tasks that have a limit and run, at most one a child. The clock is the machine's monotonic one, which
a supervisor and its children share, and starts when the task starts in its child.
"""

from __future__ import annotations

from dataclasses import dataclass

from nbqueue.dispatch import Dispatcher, Held
from nbqueue.limits import Limits


@dataclass(slots=True)
class _Running:
    held: Held
    began_at: float
    warned: bool = False

    @property
    def limits(self) -> Limits:
        return self.held.limits

    def due_at(self) -> float | None:
        """Return when the next of its limits is reached; None if there is none left."""
        left = [self.limits.time_limit] + ([] if self.warned else [self.limits.soft_time_limit])
        ends = [self.began_at + limit for limit in left if limit]
        return min(ends) if ends and not self.held.fault else None


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
        self._running[held.seq] = _Running(held, at)

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
                self._overran(running, now)

    def _overran(self, running: _Running, now: float) -> None:
        limits, held = running.limits, running.held
        if limits.time_limit and now - running.began_at >= limits.time_limit:
            self.work.end(held, "TimeLimitExceeded", f"ran past its limit of {limits.time_limit:g} s")
        else:
            running.warned = True
            self.work.warn(held)
