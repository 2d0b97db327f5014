"""`Panel`: what a worker does about a command, be it asked for by nbqueue's clients or by Celery's.

The supervisor answers by itself, so a worker whose children are busy, or hold the interpreter, answers as well.
Commands of the user's own run in threads: one that takes long must not keep leases from being renewed.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nbqueue import inspection
from nbqueue.control import ALIASES, Command, commands, matches, signal_name
from nbqueue.exceptions import (
    BackendUnavailable,
    ImproperlyConfigured,
    NBQueueError,
    WorkerShutdown,
    WorkerTerminate,
)
from nbqueue.limits import Limits, seconds
from nbqueue.messages import Control, Reply, sign_reply

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.worker import Worker

REPLY_TTL_S: Final = 60.0
SAMPLES_MOST: Final = 100
THREADS_MOST: Final = 8  # commands of the user's own that run at once

logger = logging.getLogger(__name__)
Tell = Callable[[Any], None]


@dataclass(frozen=True)
class State:
    """What a command of the user's own is given first: a worker as it was when the command came.

    Args:
        app: its app.
        hostname: its name.
    """

    app: App
    hostname: str
    _active: list[dict[str, Any]] = field(repr=False)
    _reserved: list[dict[str, Any]] = field(repr=False)

    def active(self) -> list[dict[str, Any]]:
        """Return the tasks that ran."""
        return self._active

    def reserved(self) -> list[dict[str, Any]]:
        """Return the tasks that were claimed, and had not begun."""
        return self._reserved


class Panel:
    """Follows commands for one worker.

    Args:
        worker: whose loop calls this.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MOST)
        self._threads = threading.BoundedSemaphore(THREADS_MOST)

    # ---- orders

    def obey(self, order: Control) -> None:
        """Follow a command if it is for this worker, and answer if somebody waits for it."""
        worker = self.worker
        if (order.workers and worker.name not in order.workers) or not worker.conf.worker_enable_remote_control:
            return
        try:
            if not matches(worker.name, order.pattern, order.matcher or "glob"):
                return
        except ValueError as exc:
            logger.warning("a command was left alone: %s", exc)
            return
        self.run(order.command, order.arguments, lambda answer: self._reply(order, answer))

    def run(self, name: str, arguments: Mapping[str, Any], tell: Tell, *, changes: bool = True) -> None:
        """Run a command, and tell what it answers; from another thread if it is one of the user's.

        Args:
            name: of the command, or an older one of Celery's.
            arguments: by name.
            tell: takes the answer, which is JSON.
            changes: whether it may change anything.
        """
        name = ALIASES.get(name, name)
        command = commands().get(name)
        if command is None and name != "hello":
            tell({"error": f"there is no command {name!r}; there are {', '.join(sorted(commands()))}"})
        elif command is not None and command.kind != "inspect" and name != "heartbeat" and not changes:
            tell(
                {"error": f"{name} is not for everyone: start this worker with --serve-celery, or use nbqueue control"}
            )
        elif command is not None and command.run is not None:
            self._run_own(command, command.run, arguments, tell)
        else:
            tell(self._answer(name, arguments))

    def serve(self, name: str, arguments: Mapping[str, Any], tell: Tell) -> None:
        """Run a command of Celery's, which nobody has signed: one that changes nothing, unless others are allowed."""
        changes = self.worker.conf.worker_serve_celery
        if changes and name in ("revoke", "terminate"):
            given = {**arguments, "terminate": True} if name == "terminate" else dict(arguments)
            self._in_thread(name, lambda: self._revoke_anywhere(**given), tell)
        else:
            self.run(name, arguments, tell, changes=changes)

    def _reply(self, order: Control, answer: Any) -> None:
        if not order.reply:
            return
        reply = Reply(to=order.nonce, worker=self.worker.name, at=time.time())
        body = msgspec.json.encode(answer, enc_hook=repr)
        self.worker.backend.reply(order.reply, sign_reply(reply, body, self.worker.signer), REPLY_TTL_S)

    def _answer(self, name: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return getattr(self, f"_{name}")(**arguments)
        except (TypeError, ValueError, NBQueueError) as exc:
            if isinstance(exc, BackendUnavailable):
                raise
            return {"error": f"{name}: {exc}"}

    def _run_own(self, command: Command, run: Callable[..., Any], arguments: Mapping[str, Any], tell: Tell) -> None:
        worker = self.worker
        state = State(worker.app, worker.name, inspection.active(worker), inspection.reserved(worker))
        self._in_thread(command.name, lambda: run(state, **arguments), tell)

    def _in_thread(self, name: str, run: Callable[[], Any], tell: Tell) -> None:
        if not self._threads.acquire(blocking=False):
            tell({"error": f"{THREADS_MOST} commands run already"})
            return

        def work() -> None:
            try:
                try:
                    answer = run()
                    msgspec.json.encode(answer, enc_hook=repr)
                except (WorkerShutdown, WorkerTerminate) as exc:
                    answer = {"ok": f"{self.worker.name} stops"}
                    stop = functools.partial(self.worker.stop, at_once=isinstance(exc, WorkerTerminate))
                    self.worker.call_soon(stop)
                except Exception as exc:
                    logger.exception("the command %s has failed", name)
                    answer = {"error": repr(exc)}
                tell(answer)
            except BackendUnavailable as exc:
                logger.warning("the answer to %s is lost: %s", name, exc)
            finally:
                self._threads.release()

        threading.Thread(target=work, name=f"nbqueue command {name}", daemon=True).start()

    def _revoke_anywhere(
        self, task_id: list[str] | str, terminate: bool = False, signal: str | int | None = None, **_: Any
    ) -> Any:
        """Revoke tasks whoever holds them, as our own clients do."""
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        self.worker.app.control.revoke(ids, terminate=terminate, signal=signal)
        return {"ok": f"tasks {', '.join(ids)} flagged as revoked"}

    # ---- commands that change nothing

    def _ping(self) -> Any:
        return {"ok": "pong"}

    def _hello(self, from_node: str = "", revoked: object = None) -> Any:
        return {"revoked": [], "clock": self.worker.clock}

    def _clock(self) -> Any:
        return {"clock": self.worker.clock}

    def _active(self, safe: bool | None = None) -> Any:
        return inspection.active(self.worker)

    def _reserved(self, safe: bool | None = None) -> Any:
        return inspection.reserved(self.worker)

    def _scheduled(self, safe: bool | None = None) -> Any:
        return inspection.scheduled(self.worker)

    def _revoked(self) -> Any:
        return inspection.revoked(self.worker, self.worker.revoked)

    def _registered(self, taskinfoitems: list[str] | None = None, builtins: bool = False) -> Any:
        return inspection.registered(self.worker, taskinfoitems or ())

    def _active_queues(self) -> Any:
        return inspection.active_queues(self.worker)

    def _stats(self) -> Any:
        return inspection.stats(self.worker, dict(self.worker.outcomes.totals), self.worker.clock)

    def _query_task(self, ids: list[str] | str) -> Any:
        return inspection.query_task(self.worker, ids)

    def _conf(self, with_defaults: bool = False) -> Any:
        return inspection.conf(self.worker, with_defaults=with_defaults)

    def _report(self) -> Any:
        from nbqueue.installed import report  # noqa: PLC0415 - loads what only starts servers, and few ask

        return {"ok": report(self.worker.app)}

    def _memsample(self) -> Any:
        self._samples.append((time.time(), inspection.memory(self.worker)))
        return inspection.memory_text([self._samples[-1]])

    def _memdump(self, samples: int = 10) -> Any:
        return inspection.memory_text(list(self._samples)[-max(1, samples) :])

    def _objgraph(self, **_: Any) -> Any:
        return {"error": "workers don't draw their objects; memsample says how much memory they use"}

    # ---- commands that change something

    def _revoke(self, task_id: list[str] | str, terminate: bool = False, signal: str | int | None = None) -> Any:
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        name = signal_name(signal)
        known = [id_ for id_ in ids if id_ in self.worker.work.by_id or id_ in self.worker.revoked]
        for id_ in ids:
            self.worker.cancel(id_, terminate, name)
        if not terminate:
            return {"ok": f"tasks {', '.join(ids)} flagged as revoked"}
        return {"ok": f"terminate: {', '.join(known) or 'tasks unknown'}"}

    def _terminate(self, task_id: list[str] | str, signal: str | int | None = None) -> Any:
        return self._revoke(task_id, terminate=True, signal=signal)

    def _rate_limit(self, task_name: str, rate_limit: float | str | None) -> Any:
        if task_name not in self.worker.app.tasks and task_name not in self.worker.outcomes.totals:
            return {"error": "unknown task"}
        try:
            self.worker.set_rate_limit(task_name, rate_limit or 0)
        except ImproperlyConfigured as exc:
            return {"error": f"Invalid rate limit string: {exc}"}
        return {"ok": "new rate limit set successfully"}

    def _time_limit(self, task_name: str, soft: float | None = None, hard: float | None = None) -> Any:
        if task_name not in self.worker.app.tasks and task_name not in self.worker.outcomes.totals:
            return {"error": "unknown task"}
        limits = Limits(seconds("hard", hard), seconds("soft", soft))
        if limits:
            self.worker.terms.told[task_name] = limits
        else:
            self.worker.terms.told.pop(task_name, None)
        logger.info("%s may take %s s, and is warned after %s s", task_name, hard, soft)
        return {"ok": "time limits set successfully"}

    def _add_consumer(self, queue: str, **_: Any) -> Any:
        self.worker.listen_to(queue)
        return {"ok": f"add consumer {queue}"}

    def _cancel_consumer(self, queue: str) -> Any:
        self.worker.listen_no_more(queue)
        return {"ok": f"no longer consuming from {queue}"}

    def _pool_grow(self, n: int = 1) -> Any:
        return self._resized(n, "grow")

    def _pool_shrink(self, n: int = 1) -> Any:
        return self._resized(-n, "shrink")

    def _resized(self, n: int, how: str) -> Any:
        size = self.worker.concurrency + n
        if not self.worker.resize(size):
            return {"error": f"a pool of {size} children can't be had"}
        return {"ok": f"pool will {how}"}

    def _pool_restart(self, modules: object = None, reload: bool = False, reloader: object = None) -> Any:
        if reload or modules:
            self.worker.reload()  # no module of a running process is reloaded; the worker begins anew instead
        else:
            self.worker.restart()
        return {"ok": "reload started"}

    def _autoscale(self, max: int | None = None, min: int | None = None) -> Any:
        self.worker.autoscale(max, min)
        scaler = self.worker.autoscaler
        assert scaler is not None, "it has just been asked for"
        return {"ok": f"autoscale now max={scaler.most} min={scaler.fewest}"}

    def _shutdown(self, msg: str = "") -> Any:
        logger.info("told to stop%s", f": {msg}" if msg else "")
        self.worker.stop()
        return {"ok": f"{self.worker.name}, pid {os.getpid()}, stops once its tasks have ended"}

    def _enable_events(self) -> Any:
        already = self.worker.herald is not None and self.worker.herald.tells
        self.worker.tell_of_tasks(events=True)
        return {"ok": f"task events {'already ' if already else ''}enabled"}

    def _disable_events(self) -> Any:
        already = self.worker.herald is None or not self.worker.herald.tells
        self.worker.tell_of_tasks(events=False)
        return {"ok": f"task events {'already ' if already else ''}disabled"}

    def _heartbeat(self) -> Any:
        self.worker.beat()
        return {"ok": "heartbeat sent"}
