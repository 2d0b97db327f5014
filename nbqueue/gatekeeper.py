"""`Gatekeeper`: has tasks wait at the server whose rate or lock doesn't let them run yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from nbqueue.consumer import Consumer
from nbqueue.intake import Accepted
from nbqueue.rates import Gates
from nbqueue.streams import Streams
from nbqueue.terms import Terms

logger = logging.getLogger(__name__)


class Gatekeeper:
    """Stands between what a worker has judged and what it holds.

    Args:
        consumer: where tasks wait.
        terms: say what gates a task has.
        streams: of the server that knows the rates which were set while workers run.
    """

    def __init__(self, consumer: Consumer, terms: Terms, streams: Streams) -> None:
        self.consumer = consumer
        self.terms = terms
        self.streams = streams
        self.waiting: list[tuple[Accepted, Gates]] = []  # to be asked for

    def stops(self, task: Accepted) -> bool:
        """Tell whether a task has gates; it is let through by `pass_on`, or waits."""
        gates = self.terms.gates_of(task.steering)
        if gates is None:
            return False
        self.waiting.append((task, gates))
        return True

    def pass_on(self, hold: Callable[[Accepted, str], None]) -> bool:
        """Have tasks held that may run, each with its lock; return whether others have to wait.

        What raises leaves them in `waiting`: nobody knows whether they are claimed still.
        """
        if not self.waiting:
            return False
        passed = self.consumer.pass_gates([(task.delivery, gates) for task, gates in self.waiting])
        waiting, self.waiting = self.waiting, []
        for (task, gates), may_run in zip(waiting, passed, strict=True):
            if may_run:
                hold(task, gates.lock)
        return not all(passed)

    def give_up(self) -> Sequence[Accepted]:
        """Return those of whom nothing is known, as the server went away."""
        waiting, self.waiting = self.waiting, []
        return [task for task, _ in waiting]

    def look(self) -> None:
        """See what rates were set for all workers."""
        self.terms.told_rates = self.streams.rates()
