"""`Reception`: what becomes of the messages that a worker has claimed, until a child has them or they have ended."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

import redis

from nbqueue.consumer import Consumer
from nbqueue.deliveries import Delivery, Settlement
from nbqueue.dispatch import Dispatcher, Held
from nbqueue.exceptions import BackendUnavailable, NBQueueError
from nbqueue.gatekeeper import Gatekeeper
from nbqueue.grafts import in_header
from nbqueue.intake import Accepted, Ended, Intake, NotMine, Refused, Repeat
from nbqueue.messages import ChildTask
from nbqueue.outcomes import Outcomes
from nbqueue.pool import Job
from nbqueue.terms import Terms

PUT_OFF_MS: Final = 5_000

logger = logging.getLogger(__name__)
# A server that answers but refuses (its memory or disk is full, it is a replica now) is as good as away: a worker
# outlasts it, and its tasks run on.
OUTAGE: Final = (redis.RedisError, BackendUnavailable)


class Reception:
    """Takes messages for one worker.

    Args:
        intake: judges them.
        consumer: where they were claimed.
        gates: what may not run yet.
        terms: what tasks say, or are said, of limits and messages.
        work: takes what is to run.
        outcomes: takes what ends at once.
    """

    def __init__(
        self,
        intake: Intake,
        consumer: Consumer,
        gates: Gatekeeper,
        terms: Terms,
        work: Dispatcher,
        outcomes: Outcomes,
    ) -> None:
        self.intake = intake
        self.consumer = consumer
        self.gates = gates
        self.terms = terms
        self.work = work
        self.outcomes = outcomes
        self.ledger = outcomes.ledger
        self.reports = outcomes.reports
        self.transfers = outcomes.transfers
        self._seq = 0

    def take(self, deliveries: Iterable[Delivery]) -> bool:
        """Judge what was claimed, and hand out what is to run; tell whether there may be more to claim at once.

        Raises:
            BackendUnavailable: what a message needs could not be read; all of them are left to be taken again.
            redis.RedisError: likewise.
        """
        more = False
        undecided = deque(deliveries)
        put_off: list[Delivery] = []
        refused: list[tuple[Delivery, str]] = []
        try:
            repeats = self._judge(undecided, put_off, refused)
            if self.gates.pass_on(self._hold):
                more = True  # there is room again, and the next may be due sooner
            self.work.hand_out()
            self.ledger.give_back(self.work.surplus())
            if put_off:
                self.consumer.put_off(put_off, PUT_OFF_MS)
            if refused:
                self.consumer.quarantine(refused)
        except OUTAGE:
            gated = [task.delivery for task in self.gates.give_up()]
            self.consumer.abandon([*undecided, *put_off, *gated, *(delivery for delivery, _ in refused)])
            raise
        if repeats:
            self.consumer.count("repeat", repeats)
        return more

    def _judge(self, undecided: deque[Delivery], put_off: list[Delivery], refused: list[tuple[Delivery, str]]) -> int:
        """Judge deliveries, each of which is then no longer undecided; return how many were only repeats."""
        now = time.time()
        repeats = 0
        while undecided:
            delivery = undecided[0]
            match self.intake.judge(delivery, now):
                case Accepted() as task:
                    if not self.gates.stops(task):
                        self._hold(task)
                case Ended(steering=steering, state=state, error=error, body=body, dead=dead) as end:
                    if self.outcomes.herald is not None:
                        self.outcomes.herald.never_began(steering, state, error, body)
                    settlement = self.reports.never_began(delivery, steering, state, body, error, dead=dead)
                    node, propagated, told = steering.node, end.propagated, end.told
                    self.ledger.settle(
                        self.reports.followed(
                            settlement, end.drawn, node, body, error, propagated=propagated, told=told
                        )
                    )
                case Repeat():
                    self.ledger.settle(Settlement(delivery, b""))
                    repeats += 1
                case NotMine(reason=reason):
                    logger.warning("a message was left to other workers: %s", reason)
                    put_off.append(delivery)
                case Refused(reason=reason):
                    logger.warning("a message was refused: %s", reason)
                    if self.outcomes.herald is not None:
                        self.outcomes.herald.refused(delivery, reason)
                    refused.append((delivery, reason))
            undecided.popleft()
        return repeats

    def _hold(self, task: Accepted, lock: str = "") -> None:
        """Take charge of a task that is to run."""
        self._seq += 1
        s = task.steering
        limits = self.terms.limits_of(s)
        child_task = ChildTask(
            self._seq,
            task.delivery.attempt,
            s.id,
            s.task,
            s.code,
            s.index,
            task.steering_text,
            task.args,
            retries=s.retries - s.base,
            limited=bool(limits),
            time_limit=limits.time_limit,
            soft_time_limit=limits.soft_time_limit,
            fed=task.fed,
            in_header=in_header(task.drawn, s.node),
            replaced=0 if task.drawn is None else task.drawn.graph.replaced,
        )
        held = Held(
            self._seq,
            task.delivery,
            s,
            Job(self._seq, child_task, task.code),
            limits=limits,
            acks=self.terms.acks_of(s),
            lock=lock,
            alone=task.alone,
            drawn=task.drawn,
            changes=task.changes,
        )
        if self.outcomes.herald is not None:
            self.outcomes.herald.received(held)
        self.work.add(held, waits=bool(task.blobs))
        if task.blobs and self.transfers.fetch(task.blobs, lambda error: self._fetched(held, error)):
            self.work.resume(held)

    def _fetched(self, held: Held, error: NBQueueError | None) -> None:
        """Go on with a task whose large data has come, or can't be had."""
        if self.work.held.get(held.seq) is not held or held.lost or held.revoked:
            return
        if error is None:
            self.work.resume(held)
            self.work.hand_out()
        else:
            self.outcomes.fail(held, type(error).__name__, f"{error} (worker {self.reports.worker})")
