"""`Outcomes`: what becomes of a task once its child has said how it ended, or is no more."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from nbqueue import grafts, states
from nbqueue.acks import EARLY, FIRST_LOSS, RETRIED_ALL
from nbqueue.deliveries import Settlement
from nbqueue.dispatch import Dispatcher, Held
from nbqueue.exceptions import BadMessage, NBQueueError
from nbqueue.intake import failure_of
from nbqueue.ledger import Ledger
from nbqueue.messages import REPLACED, Again, ChildEvent, Outcome, decode_failure, encode_again
from nbqueue.pool import Died
from nbqueue.reports import Reporter, blobs_of, cause_of_death
from nbqueue.transfers import Transfers

if TYPE_CHECKING:
    from nbqueue.herald import Herald

NAMES_KEPT: Final = 10_000

logger = logging.getLogger(__name__)


class Outcomes:
    """Judges for one worker, and leaves what follows to its ledger.

    Args:
        work: who runs what.
        reports: writes what is stored.
        ledger: stores it.
        transfers: brings large results away.
        max_child_deaths: a task that has ended its child so often is given up.
    """

    def __init__(
        self, work: Dispatcher, reports: Reporter, ledger: Ledger, transfers: Transfers, max_child_deaths: int
    ) -> None:
        self.work = work
        self.reports = reports
        self.ledger = ledger
        self.transfers = transfers
        self.max_child_deaths = max_child_deaths
        self.totals: Counter[str] = Counter()  # tasks that children have run, by name
        self.herald: Herald | None = None  # tells those who watch, if anybody does
        self.own_event: Callable[[Held, bytes], object] | None = None  # takes an event of a task's own

    def said(self, event: ChildEvent) -> None:
        """Pass on what a task said."""
        held = self.work.held.get(event.seq)
        if held is None or held.lost:
            return
        if event.kind == "event" and self.own_event is not None:
            self.own_event(held, event.data)
        if event.kind != "state":
            self.ledger.tell(self.reports.said(held, event))
        elif self.ledger.is_open(held):
            with contextlib.suppress(BadMessage):  # its child alone can have garbled it
                self.ledger.settle(self.reports.stated(held, event), held)

    def finished(self, outcome: Outcome) -> None:
        """Take the outcome of a task."""
        held = self.work.held.get(outcome.seq)
        if held is None:
            return
        self.work.finished(held, outcome.ended_at - outcome.started_at)
        self.totals[held.steering.task] += 1
        if len(self.totals) > NAMES_KEPT:
            self.totals.clear()
        if held.lost:
            self.work.drop(held)
            return
        state, error, body = outcome.state, outcome.error, outcome.body
        if (held.revoked and state != states.SUCCESS) or (held.unwanted and state in (states.RETRY, REPLACED)):
            state, error, body = states.REVOKED, "cancelled", b""
        if self.transfers.send(blobs_of(state, body, outcome.also), lambda failed: self._sent(held, outcome, failed)):
            self._settle(held, outcome, state, error, body)

    def died(self, died: Died, *, out_of_memory: bool) -> None:
        """Take the end of a child: what it was at is charged with it, or had to end this way."""
        cause = cause_of_death(died.cause, out_of_memory=out_of_memory)
        said = f"; it said: {died.said}" if died.said else ""
        logger.log(logging.INFO if died.worn else logging.WARNING, "child %d: %s%s", died.child, cause, said)
        held = self.work.held.get(died.started) if died.started is not None else None
        self.work.child_ended(died.child, died.unstarted)
        if held is None:
            return
        deaths = held.delivery.child_deaths + 1
        if held.lost:
            self.work.drop(held)
        elif held.revoked:
            self.end(held, states.REVOKED, b"", "cancelled")
        elif held.fault is not None:
            self._ended_by_force(held, *held.fault, deaths)
        elif died.shared and held.acks.late:
            # It ran in a thread: nobody knows which of them was the end of all.
            self.ledger.give_back([held], "none" if died.ended_by_us else "worker")
        elif held.acks.retry:
            self._retry_lost(held, f"Its child ended: {cause} on {self.reports.worker}", said, deaths)
        elif not (held.acks.late and held.acks.again):
            why = FIRST_LOSS if held.acks.late else EARLY
            self.fail(held, "WorkerLostError", f"Its child ended: {cause} on {self.reports.worker}; {why}{said}")
        elif deaths >= self.max_child_deaths:
            text = f"Given up: it ended its child {deaths} times. Last: {cause} on {self.reports.worker}{said}"
            self.fail(held, "WorkerLostError", text, dead=True)
        else:
            self.ledger.give_back([held], "child")

    def end(
        self, held: Held, state: str, body: bytes, error: str, outcome: Outcome | None = None, *, dead: bool = False
    ) -> None:
        """End a task; `dead` keeps its message."""
        settlement = self.reports.ended(held, state, body, error, outcome, dead=dead)
        settlement = self.reports.followed(settlement, held.drawn, held.steering.node, body, error)
        if self.herald is not None and self.ledger.is_open(held):
            self.herald.ended(held, state, body, error, outcome)
        if outcome is not None and outcome.also and state == states.SUCCESS:
            settlement = self._with_added(settlement, held, outcome)
        self.ledger.settle(settlement, held)

    def fail(self, held: Held, error: str, text: str, outcome: Outcome | None = None, *, dead: bool = False) -> None:
        """End a task with an error that it has not raised; `error` is a class of `exceptions`."""
        line, body = failure_of(error, text)
        self.end(held, states.FAILURE, body, line, outcome, dead=dead)

    def stopped(self, held: Held) -> None:
        """End a running task by force whose worker doesn't wait for it: it runs again elsewhere, unless it must not."""
        if held.acks.late:
            self.ledger.give_back([held])
            self.work.pool.kill(held.child)
        else:
            self.work.end(held, "WorkerLostError", f"Its worker {self.reports.worker} was stopped; {EARLY}")

    def _ended_by_force(self, held: Held, error: str, text: str, deaths: int) -> None:
        """Take the end of a child that had to end: at a limit, or with its worker."""
        acks = held.acks
        out_of_time = error == "TimeLimitExceeded" and acks.late and not acks.on_timeout
        if out_of_time and deaths < self.max_child_deaths:
            self.ledger.give_back([held], "child")
        else:
            self.fail(held, error, text, dead=out_of_time or (acks.late is True and not acks.on_failure))

    def _retry_lost(self, held: Held, text: str, said: str, deaths: int) -> None:
        """Retry a task whose child is no more, as it would have asked for it itself."""
        acks, retries = held.acks, held.steering.retries - held.steering.base
        if held.unwanted:
            self.end(held, states.REVOKED, b"", "cancelled")
        elif acks.max_retries is not None and retries >= acks.max_retries:
            self.fail(held, "WorkerLostError", f"{text}; {RETRIED_ALL.format(retries)}{said}")
        elif acks.max_retries is None and deaths >= self.max_child_deaths:
            self.fail(
                held, "WorkerLostError", f"Given up: it ended its child {deaths} times. Last: {text}{said}", dead=True
            )
        else:
            now = time.time()
            line, body = failure_of("WorkerLostError", f"{text}{said}")
            again = Again(body, now + acks.retry_delay, -1 if acks.max_retries is None else acks.max_retries)
            outcome = Outcome(held.seq, states.RETRY, encode_again(again), 0.0, now, line[:500])
            if self.herald is not None and self.ledger.is_open(held):
                self.herald.retried(held, outcome)
            self.ledger.settle(self.reports.retried(held, outcome, deaths=1), held)

    def _replace(self, held: Held, outcome: Outcome) -> None:
        """Let a canvas take a task's place."""
        if held.delivery.shared is not None:
            text = "a call of an executor can't be replaced by a canvas; send the task with apply_async()"
            self.fail(held, "ImproperlyConfigured", text, outcome)
            return
        try:
            grafted = grafts.in_place_of(held, outcome.body, time.time(), self.reports.signer)
        except BadMessage as exc:
            self.fail(held, "RemoteError", f"what is to take its place can't be sent: {exc}", outcome)
            return
        self.ledger.keep(grafted.id, grafted.text)
        settlement = self.reports.replaced(held, outcome, grafted)
        if outcome.also:
            settlement = msgspec.structs.replace(settlement, arrival=grafts.going_on(held))
            settlement = self._with_added(settlement, held, outcome)
        self.ledger.settle(settlement, held)

    def _with_added(self, settlement: Settlement, held: Held, outcome: Outcome) -> Settlement:
        """Return the end of a task with the canvases that it adds to its header."""
        canvases = []
        for number, body in enumerate(outcome.also):
            try:
                grafted = grafts.beside(held, body, number, time.time(), self.reports.signer)
            except BadMessage as exc:
                logger.warning("task %s adds what can't be sent: %s", held.steering.id, exc)
                continue
            self.ledger.keep(grafted.id, grafted.text)
            canvases.append(grafted)
        return self.reports.added(settlement, canvases)

    def _sent(self, held: Held, outcome: Outcome, failed: NBQueueError | None) -> None:
        """End a task whose large result is where others find it, or is lost."""
        if self.work.held.get(held.seq) is not held:
            return
        if held.lost:
            self.work.drop(held)
        elif failed is None:
            self._settle(held, outcome, outcome.state, "", outcome.body)
        else:
            self.fail(held, type(failed).__name__, f"{failed} (worker {self.reports.worker})", outcome)

    def _settle(self, held: Held, outcome: Outcome, state: str, error: str, body: bytes) -> None:
        """Do what an outcome asks for: end the task, run it again, or return it to its queue."""
        if state == states.RETRY:
            if self.herald is not None:
                self.herald.retried(held, outcome)
            self.ledger.settle(self.reports.retried(held, outcome), held)
        elif state == REPLACED:
            self._replace(held, outcome)
        elif state == states.REJECTED and body:
            if self.herald is not None:
                self.herald.given_back(held)
            self.ledger.give_back([held], "task")
        else:
            if state == states.FAILURE:
                _log_failure(held, outcome, body)
            kept = state == states.REJECTED or (state == states.FAILURE and not held.acks.on_failure and held.acks.late)
            self.end(held, state, body, error, outcome, dead=bool(kept))


def _log_failure(held: Held, outcome: Outcome, body: bytes) -> None:
    """Log that a task has raised: with its traceback, unless it was expected, or is one of a map's many."""
    s = held.steering
    brief = outcome.expected or bool(s.group)
    level = logging.INFO if brief else logging.ERROR
    if logger.isEnabledFor(level):
        how = "expected" if outcome.expected else "unexpected"
        trace = ""
        with contextlib.suppress(BadMessage):
            trace = "" if brief else "\n" + decode_failure(body).traceback.rstrip()
        logger.log(level, "task %s[%s] raised %s: %s%s", s.task, s.id, how, outcome.error, trace)
