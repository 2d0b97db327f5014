"""Signals: functions of the user's that are called when something happens, under Celery's names.

A signal is sent in the process where it happens: those of publishing where a call is sent, `task_prerun` and its kin
in the child that runs the task, `worker_ready`, `task_received`, `task_revoked` and such in the supervisor, where no
task's arguments are ever unpickled. One that nobody is connected to costs the look at an empty list.
"""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

__all__ = [
    "Signal",
    "after_setup_logger",
    "after_setup_task_logger",
    "after_task_publish",
    "beat_embedded_init",
    "beat_init",
    "before_task_publish",
    "celeryd_after_setup",
    "celeryd_init",
    "eventlet_pool_apply",
    "eventlet_pool_postshutdown",
    "eventlet_pool_preshutdown",
    "eventlet_pool_started",
    "heartbeat_sent",
    "import_modules",
    "setup_logging",
    "task_failure",
    "task_internal_error",
    "task_postrun",
    "task_prerun",
    "task_received",
    "task_rejected",
    "task_retry",
    "task_revoked",
    "task_success",
    "task_unknown",
    "user_preload_options",
    "worker_before_create_process",
    "worker_init",
    "worker_process_init",
    "worker_process_shutdown",
    "worker_ready",
    "worker_shutdown",
    "worker_shutting_down",
]

logger = logging.getLogger(__name__)


def anybody(signals: tuple[Signal, ...]) -> bool:
    """Tell whether one of these signals has a receiver."""
    return any(signal.receivers for signal in signals)


class _Receiver(NamedTuple):
    key: tuple[Hashable, Hashable]
    sender: Hashable  # None: any
    get: Callable[[], Callable[..., Any] | None]


class Signal:
    """One kind of thing that happens.

    Args:
        name: of the signal.
        providing_args: names of what receivers are given besides `signal` and `sender`.
    """

    def __init__(self, name: str = "", providing_args: frozenset[str] | set[str] = frozenset()) -> None:
        self.name = name
        self.providing_args = frozenset(providing_args)
        self.receivers: list[_Receiver] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Signal {self.name}>"

    def connect(
        self,
        receiver: Callable[..., Any] | None = None,
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Hashable = None,
    ) -> Any:
        """Have a function called when this happens; also a decorator, with options and without.

        Args:
            receiver: takes keyword arguments: `signal`, `sender`, and whatever comes with the signal.
            sender: only what this one sends: a task or its name, a worker's name; None for all.
            weak: forget the receiver when nothing else refers to it.
            dispatch_uid: connected once under this key, however often it is tried.

        Raises:
            ValueError: the receiver takes no keyword arguments of other names.
        """
        if receiver is None:
            return lambda fn: self.connect(fn, sender, weak, dispatch_uid)
        if not callable(receiver):
            raise TypeError(f"a receiver of {self.name} is a function, not {receiver!r}")
        if not _takes_any(receiver):
            raise ValueError(f"a receiver of {self.name} takes keyword arguments: end its parameters with **kwargs")
        key = _key(receiver, sender, dispatch_uid)
        with self._lock:
            if all(one.key != key for one in self.receivers):
                made = _Receiver(key, _sender_key(sender), self._reference(receiver, weak=weak))
                self.receivers = [*self.receivers, made]  # replaced as a whole: others may be sending
        return receiver

    def disconnect(
        self,
        receiver: Callable[..., Any] | None = None,
        sender: Any = None,
        weak: bool | None = None,
        dispatch_uid: Hashable = None,
    ) -> bool:
        """Call a receiver no more; tell whether it was connected. Named as it was connected."""
        del weak
        key = _key(receiver, sender, dispatch_uid)
        with self._lock:
            kept = [one for one in self.receivers if one.key != key]
            found, self.receivers = len(kept) < len(self.receivers), kept
        return found

    def has_listeners(self, sender: Any = None) -> bool:
        """Tell whether anybody would be called."""
        return bool(self._called(sender))

    def send(self, sender: Any = None, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Call the receivers; return each with what it returned, or the error that it raised, which is logged."""
        if not self.receivers:
            return []
        answers: list[tuple[Callable[..., Any], Any]] = []
        for receiver in self._called(sender):
            try:
                answer = receiver(signal=self, sender=sender, **named)
            except Exception as exc:
                logger.exception("a receiver of %s, %r, has raised", self.name, receiver)
                answer = exc
            answers.append((receiver, answer))
        return answers

    send_robust = send

    def _called(self, sender: Any) -> list[Callable[..., Any]]:
        key = _sender_key(sender)
        found = (one.get() for one in self.receivers if one.sender is None or one.sender == key)
        return [receiver for receiver in found if receiver is not None]

    def _reference(self, receiver: Callable[..., Any], *, weak: bool) -> Callable[[], Callable[..., Any] | None]:
        if not weak:
            return lambda: receiver
        kind = weakref.WeakMethod if inspect.ismethod(receiver) else weakref.ref
        return kind(receiver, self._forget)

    def _forget(self, gone: Any) -> None:
        # Without the lock: the collector may call this in the middle of `connect`. What is left then does nothing.
        self.receivers = [one for one in self.receivers if one.get is not gone]


def _key(receiver: Any, sender: Any, dispatch_uid: Hashable) -> tuple[Hashable, Hashable]:
    if dispatch_uid is not None:
        return (dispatch_uid, _sender_key(sender))
    bound = inspect.ismethod(receiver)
    return ((id(receiver.__self__), id(receiver.__func__)) if bound else id(receiver), _sender_key(sender))


def _sender_key(sender: Any) -> Hashable:
    """Return what senders are told apart by: a name, or for what has none the object itself."""
    if sender is None or isinstance(sender, str):
        return sender
    name = getattr(sender, "name", None)
    return name if isinstance(name, str) and name else id(sender)


def _takes_any(receiver: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


# In the process that sends a call: a client, a beat, or the supervisor whose task it follows; the sender is the
# task's name.
before_task_publish: Final = Signal(
    "before_task_publish", {"body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"}
)
after_task_publish: Final = Signal("after_task_publish", {"body", "exchange", "routing_key", "headers"})

OF_CLIENT: Final = (before_task_publish, after_task_publish)

# In the supervisor; the sender is the worker's name, or the task where it is known there.
task_received: Final = Signal("task_received", {"request"})
task_revoked: Final = Signal("task_revoked", {"request", "terminated", "signum", "expired"})
task_rejected: Final = Signal("task_rejected", {"message", "exc"})
task_unknown: Final = Signal("task_unknown", {"message", "exc", "name", "id"})
OF_SUPERVISOR: Final = (task_received, task_revoked, task_rejected, task_unknown)

# In the child that runs the task; the sender is the task.
task_prerun: Final = Signal("task_prerun", {"task_id", "task", "args", "kwargs"})
task_postrun: Final = Signal("task_postrun", {"task_id", "task", "args", "kwargs", "retval", "state"})
task_success: Final = Signal("task_success", {"result", "runtime"})
task_retry: Final = Signal("task_retry", {"request", "reason", "einfo"})
task_failure: Final = Signal("task_failure", {"task_id", "exception", "args", "kwargs", "traceback", "einfo"})
task_internal_error: Final = Signal(
    "task_internal_error", {"task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"}
)

OF_TASK: Final = (task_prerun, task_postrun, task_success, task_retry, task_failure, task_internal_error)

# In the supervisor, in the order in which they come.
celeryd_init: Final = Signal("celeryd_init", {"instance", "conf", "options"})
celeryd_after_setup: Final = Signal("celeryd_after_setup", {"instance", "conf"})
import_modules: Final = Signal("import_modules")
worker_init: Final = Signal("worker_init")
worker_before_create_process: Final = Signal("worker_before_create_process")
worker_ready: Final = Signal("worker_ready")
heartbeat_sent: Final = Signal("heartbeat_sent")
worker_shutting_down: Final = Signal("worker_shutting_down", {"sig", "how", "exitcode"})
worker_shutdown: Final = Signal("worker_shutdown")

# In each child, when it begins and before it ends in good order.
worker_process_init: Final = Signal("worker_process_init")
worker_process_shutdown: Final = Signal("worker_process_shutdown", {"pid", "exitcode"})

# Where the command line sets up logging.
setup_logging: Final = Signal("setup_logging", {"loglevel", "logfile", "format", "colorize"})
after_setup_logger: Final = Signal("after_setup_logger", {"logger", "loglevel", "logfile", "format", "colorize"})
after_setup_task_logger: Final = Signal(
    "after_setup_task_logger", {"logger", "loglevel", "logfile", "format", "colorize"}
)

# In the beat, and in a worker that has one of its own.
beat_init: Final = Signal("beat_init")
beat_embedded_init: Final = Signal("beat_embedded_init")

# On the command line, once options are read.
user_preload_options: Final = Signal("user_preload_options", {"app", "options"})

# Never sent: there is no pool of eventlet's. Programs that run under Celery too connect to them.
eventlet_pool_started: Final = Signal("eventlet_pool_started")
eventlet_pool_preshutdown: Final = Signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown: Final = Signal("eventlet_pool_postshutdown")
eventlet_pool_apply: Final = Signal("eventlet_pool_apply", {"target", "args", "kwargs"})
