"""Every exception of nbqueue, as a tree; `except NBQueueError` catches them all.

    NBQueueError
    ├── ImproperlyConfigured            a setting, URL, key or file can't be used
    │   └── QueueNotFound               a queue isn't among `task_queues`, and none may be made; also a KeyError
    ├── SendFailed                      not sent; sending again is safe
    │   └── PayloadTooLarge             more than the broker should carry
    ├── SendUncertain                   the broker went away before it confirmed; sending again is safe too
    ├── BackendUnavailable              the backend can't be reached
    ├── BadMessage                      unsigned, altered, truncated or garbage: refused before it is parsed
    ├── NotPicklable                    something a task needs can't travel; names it
    ├── BlobNotStored                   there is no room for large data
    ├── AmbiguousLabel                  a label fits more than one task; names them
    ├── TaskError                       how a task ended, or why it can't
    │   ├── ContentDisallowed           arguments or a value are in a form that isn't accepted
    │   ├── NotRegistered               the worker knows no task of this name
    │   ├── UnknownTask                 nobody sent this id, or its record has expired
    │   ├── ResultExpired               the task ended, its result is no longer kept
    │   ├── TaskRevokedError            cancelled, or 'expired' before it started
    │   ├── WorkerLostError             its child or worker died while it ran
    │   ├── SoftTimeLimitExceeded       raised inside a task that runs past its soft limit; it may clean up
    │   ├── TimeLimitExceeded           its child was ended because it ran past its limit
    │   ├── MemoryLimitExceeded         its child was ended because it used more memory than it may
    │   ├── TaskPredicate               raised by a task to say what is to become of it
    │   │   ├── Retry                   to run again
    │   │   ├── Ignore                  to leave no result
    │   │   └── Reject                  to refuse its message, or give it back to its queue
    │   ├── MaxRetriesExceededError     a task is to run again, and has no retries left
    │   ├── LeaseLost                   this worker no longer owns the task (raised inside the task)
    │   ├── BlobMissing                 large data that the task or its result names is gone
    │   ├── ChordError                  a member of a chord's header has ended without a value; names it
    │   ├── IncompleteStream            of all that follows a task one has not ended
    │   ├── PythonMismatch              sent from another Python minor version
    │   └── RemoteError                 the task's own exception could not travel; carries its name and text
    └── TimeoutError                    a wait ran out of time; also a builtins.TimeoutError

    SystemExit
    ├── WorkerShutdown                  raised in a worker, as by a command of one's own: it stops, warm
    └── WorkerTerminate                 it stops at once

Names that Celery has for some of them: CeleryError (NBQueueError), OperationalError (SendFailed), BackendError
(BackendUnavailable), SecurityError and InvalidTaskError (BadMessage), SystemTerminate (WorkerTerminate).

Remote failures that are the task's own come back as themselves, with the remote traceback as their cause.
"""

from __future__ import annotations

import builtins
from datetime import datetime

__all__ = [
    "AmbiguousLabel",
    "BackendError",
    "BackendUnavailable",
    "BadMessage",
    "BlobMissing",
    "BlobNotStored",
    "CeleryError",
    "ChordError",
    "ContentDisallowed",
    "Ignore",
    "ImproperlyConfigured",
    "IncompleteStream",
    "InvalidTaskError",
    "LeaseLost",
    "MaxRetriesExceededError",
    "MemoryLimitExceeded",
    "NBQueueError",
    "NotPicklable",
    "NotRegistered",
    "OperationalError",
    "PayloadTooLarge",
    "PythonMismatch",
    "QueueNotFound",
    "Reject",
    "RemoteError",
    "ResultExpired",
    "Retry",
    "SecurityError",
    "SendFailed",
    "SendUncertain",
    "SoftTimeLimitExceeded",
    "SystemTerminate",
    "TaskError",
    "TaskPredicate",
    "TaskRevokedError",
    "TimeLimitExceeded",
    "TimeoutError",
    "UnknownTask",
    "WorkerLostError",
    "WorkerShutdown",
    "WorkerTerminate",
]


class NBQueueError(Exception):
    """Is the root of everything nbqueue raises on its own account."""


class ImproperlyConfigured(NBQueueError):
    """Says which setting, URL, key or file can't be used, and what to write instead."""


class QueueNotFound(ImproperlyConfigured, KeyError):
    """Says that a queue isn't among `task_queues` where `task_create_missing_queues` is off."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class SendFailed(NBQueueError):
    """Says that a task was not sent; the same call may be made again."""


class PayloadTooLarge(SendFailed):
    """Says that code, arguments or result are larger than a message may be."""


class SendUncertain(NBQueueError):
    """Says that the broker went away before it confirmed; the same id sent again runs once."""


class BackendUnavailable(NBQueueError):
    """Says that the backend did not answer, or refused."""


class BadMessage(NBQueueError):
    """Says why bytes from the broker or backend were refused.

    `reason` is one word for counters: `format`, `version`, `key`, `signature`, `fields`, `place`, `replay`,
    or `code`: what it names is missing.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class NotPicklable(NBQueueError):
    """Names what can't travel to a worker, and the variable it hangs on."""


class BlobNotStored(NBQueueError):
    """Says how large the data is that there is no room for, and where."""


class AmbiguousLabel(NBQueueError):
    """Names the tasks that a label fits."""


class TaskError(NBQueueError):
    """Is the root of the ways a task can end without a value."""


class NotRegistered(TaskError, KeyError):
    """Says that no task of this name is registered where it was looked for."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class UnknownTask(TaskError):
    """Says that nobody sent this id, or that nothing is known of it any more."""


class ResultExpired(TaskError):
    """Says that the task ended and its result is no longer kept."""


class TaskRevokedError(TaskError):
    """Says that the task was cancelled, or that it expired before a worker started it."""


class WorkerLostError(TaskError):
    """Says which process died under the task, and how."""


class SoftTimeLimitExceeded(TaskError):
    """Says, inside the task, that it ran past its soft limit; the hard one may follow."""


class TimeLimitExceeded(TaskError):
    """Says that the task was ended by force, since it ran past its limit."""


class MemoryLimitExceeded(TaskError):
    """Says that the task was ended by force, since it used more memory than it may."""


class TaskPredicate(TaskError):
    """Is the root of what a task raises to say what is to become of it."""


class Retry(TaskPredicate):
    """Says that a task is to run again; `self.retry()` raises it, and a task may raise it itself.

    Args:
        message: what to tell.
        exc: why; the error that the record of the task shows meanwhile.
        when: seconds from now, or the instant, at which it may run again.
    """

    def __init__(
        self, message: str = "", exc: BaseException | None = None, when: float | datetime | None = None
    ) -> None:
        super().__init__(message, exc, when)
        self.message = message
        self.exc = exc
        self.when = when

    def __str__(self) -> str:
        if self.message:
            return self.message
        when = f"at {self.when.isoformat()}" if isinstance(self.when, datetime) else f"in {self.when or 0:g} s"
        return f"Retry {when}" + ("" if self.exc is None else f": {type(self.exc).__name__}: {self.exc}")


class MaxRetriesExceededError(TaskError):
    """Says that a task asked for one more retry than it has."""


class Ignore(TaskPredicate):
    """Ends a task without a result; whoever waits for it gets this."""


class Reject(TaskPredicate):
    """Refuses the message of a task, which is kept among the dead letters; or gives it back to its queue.

    Args:
        reason: why.
        requeue: give it back, to be run again at once, by whichever worker.
    """

    def __init__(self, reason: object = "", requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue

    def __str__(self) -> str:
        return str(self.reason or "rejected")


class LeaseLost(TaskError):
    """Says that another worker owns the task now."""


class BlobMissing(TaskError):
    """Says that large data, which the task or its result names, is nowhere any more."""


class IncompleteStream(TaskError):
    """Of all that follows a task, one has not ended."""


class ChordError(TaskError):
    """Says which member of a chord's header has ended without a value, and how; the body did not run."""


class ContentDisallowed(TaskError):
    """Says that arguments, code or a value are in a form that isn't accepted; they were not loaded."""


class PythonMismatch(TaskError):
    """Says that code from one Python minor version reached a worker of another."""


class RemoteError(TaskError):
    """Stands for an exception whose class can't be had here: its type, message and traceback as text."""

    def __init__(self, type_name: str, message: str = "", remote_traceback: str = "") -> None:
        super().__init__(type_name, message, remote_traceback)
        self.type_name = type_name
        self.message = message
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class TimeoutError(NBQueueError, builtins.TimeoutError):  # noqa: A001 - Celery's name
    """Says that a wait ran out of time; the task itself goes on."""


class WorkerShutdown(SystemExit):
    """Has the worker stop once its tasks have ended; raised in it by a receiver of a signal or a command."""


class WorkerTerminate(SystemExit):
    """Has the worker stop at once; what runs is run again by another."""


# Celery's names for what is the same here.
CeleryError = NBQueueError
OperationalError = SendFailed
BackendError = BackendUnavailable
SecurityError = InvalidTaskError = BadMessage
SystemTerminate = WorkerTerminate
