"""`Herald`: tells of a worker's tasks as they come, run and end: events for monitors, signals for receivers here.

A worker without either has none. What is told is what the supervisor knows: of arguments the text that came with the
call, or themselves where they are JSON, and of results the line that is shown of them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

from nbqueue import signals, states
from nbqueue._version import __version__
from nbqueue.deliveries import Delivery
from nbqueue.dispatch import Held
from nbqueue.emitter import Emitter
from nbqueue.exceptions import BadMessage, NotRegistered
from nbqueue.messages import Outcome, Steering, decode_again, decode_failure
from nbqueue.publishing import described
from nbqueue.serialization import peek_args
from nbqueue.times import iso

_NONE: Final[Mapping[str, Any]] = {}
FREQ_S: Final = 2.0  # as often as a worker has its heart beat
SOFTWARE: Final = {"sw_ident": "nbqueue", "sw_ver": __version__, "sw_sys": platform.system()}


class Herald:
    """Tells of the tasks of one worker.

    Args:
        name: of the worker.
        emitter: sends events; None: only signals are sent.
        tasks: events of tasks too, not only of the worker.
        registered: tasks by name; of some that says that it sends no events none are.
    """

    def __init__(
        self, name: str, emitter: Emitter | None, *, tasks: bool = True, registered: Mapping[str, Any] = _NONE
    ) -> None:
        self.name = name
        self.registered = registered
        self.emitter = emitter
        self.tasks = tasks
        self.processed = 0

    @property
    def tells(self) -> bool:
        """Tell whether events of tasks are sent."""
        return self.tasks and self.emitter is not None

    def received(self, held: Held) -> None:
        """Tell that a task was claimed."""
        s = held.steering
        if signals.task_received.receivers:
            signals.task_received.send(self.name, request=request_of(s, self.name))
        if self.tells:
            if (call := shown_call(held)) is not None:
                s = described(s, *call)
            self._emit(
                "task-received",
                s,
                name=s.task,
                args=s.argsrepr,
                kwargs=s.kwargsrepr,
                retries=s.retries,
                eta=iso(s.eta),
                expires=iso(s.expires),
                root_id=s.root or s.id,
                parent_id=s.parent or None,
            )

    def started(self, held: Held, at: float) -> None:
        """Tell that a task runs, since `at` (Unix seconds)."""
        if self.tells and not held.announced:
            held.announced = True
            self._emit("task-started", held.steering, timestamp=at)

    def ended(self, held: Held, state: str, body: bytes, error: str, outcome: Outcome | None) -> None:
        """Tell how a task has ended."""
        s = held.steering
        if outcome is not None:
            self.started(held, outcome.started_at)
        self.processed += 1
        if state == states.SUCCESS and outcome is not None:
            self._emit(
                "task-succeeded", s, result=outcome.summary, runtime=max(0.0, outcome.ended_at - outcome.started_at)
            )
        elif state == states.FAILURE:
            self._failed("task-failed", s, body)
            if error.startswith("NotRegistered:") and not s.code:
                exc = NotRegistered(error.partition(": ")[2])
                signals.task_unknown.send(self.name, message=None, exc=exc, name=s.task, id=s.id)
        elif state == states.REVOKED:
            self._revoked(s, terminated=held.revoked and outcome is not None, expired=False)
        elif state == states.REJECTED:
            self._emit("task-rejected", s, requeue=False)

    def retried(self, held: Held, outcome: Outcome) -> None:
        """Tell that a task will run again, as it has asked to, or as it lost its child."""
        if outcome.started_at:  # nobody knows when one began whose child is gone
            self.started(held, outcome.started_at)
        self._failed("task-retried", held.steering, decode_again(outcome.body).failure)

    def given_back(self, held: Held) -> None:
        """Tell that a task has put its message back."""
        self._emit("task-rejected", held.steering, requeue=True)

    def never_began(self, steering: Steering, state: str, error: str, body: bytes) -> None:
        """Tell how a task has ended that nobody has run."""
        if state == states.REVOKED:
            self._revoked(steering, terminated=False, expired=error == "expired")
        elif state == states.FAILURE:
            self._failed("task-failed", steering, body)

    def refused(self, delivery: Delivery, reason: str) -> None:
        """Tell that a message is none that anybody should run."""
        signals.task_rejected.send(self.name, message=delivery, exc=BadMessage("refused", reason))

    def worker(self, what: str, active: int) -> None:
        """Tell that the worker is `online`, goes `offline`, or that its heart beats.

        Args:
            what: `online`, `heartbeat` or `offline`.
            active: tasks that run.
        """
        if self.emitter is not None:
            load = [round(average, 2) for average in os.getloadavg()]
            more = {"active": active, "processed": self.processed, "loadavg": load}
            self.emitter.emit(f"worker-{what}", freq=FREQ_S, **SOFTWARE, **more)

    def _emit(self, type_: str, steering: Steering, **fields: Any) -> None:
        if self.emitter is None or not self.tasks or steering.unheard:
            return
        if getattr(self.registered.get(steering.task), "send_events", True):
            self.emitter.emit(type_, uuid=steering.id, **fields)

    def _failed(self, type_: str, steering: Steering, body: bytes) -> None:
        if not self.tells:
            return
        try:
            failure = decode_failure(body)
        except BadMessage:
            return
        self._emit(
            type_, steering, exception=f"{failure.type}({failure.message!r})"[:1024], traceback=failure.traceback
        )

    def _revoked(self, s: Steering, *, terminated: bool, expired: bool) -> None:
        signum = "SIGTERM" if terminated else None
        self._emit("task-revoked", s, terminated=terminated, signum=signum, expired=expired)
        if signals.task_revoked.receivers:
            request = request_of(s, self.name)
            signals.task_revoked.send(s.task, request=request, terminated=terminated, signum=signum, expired=expired)


def shown_call(held: Held) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the arguments that a task shows as they are: they are JSON, and its caller has said nothing of them."""
    s, task = held.steering, held.job.task
    return None if s.argsrepr or s.kwargsrepr or task.fed else peek_args(task.args, s.serializer)


def request_of(steering: Steering, worker: str) -> SimpleNamespace:
    """Return what receivers of signals get to see of a call, in the supervisor."""
    s = steering
    return SimpleNamespace(
        id=s.id,
        task_id=s.id,
        name=s.task,
        task_name=s.task,
        task=s.task,
        hostname=worker,
        argsrepr=s.argsrepr,
        kwargsrepr=s.kwargsrepr,
        eta=iso(s.eta),
        expires=iso(s.expires),
        retries=s.retries,
        delivery_info={"exchange": "", "routing_key": s.queue, "priority": s.priority},
    )
