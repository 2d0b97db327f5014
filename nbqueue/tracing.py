"""Signals of a task, sent where it runs: in its child, or in this process where calls run eagerly.

In this order: `task_prerun`; the task with its hooks; one of `task_success`, `task_failure` and `task_retry`;
`task_postrun`. All of them before anybody is told of the end, as hooks are. Each is asked for only where a receiver is.
"""

from __future__ import annotations

from typing import Any

from nbqueue import signals, states
from nbqueue.callbacks import ErrorInfo
from nbqueue.exceptions import NotRegistered
from nbqueue.request import Request
from nbqueue.retries import Plan


def begins(request: Request) -> None:
    """Tell that a task is about to run."""
    if signals.task_prerun.receivers:
        task, args, kwargs = request.callee(), request.args, request.kwargs
        signals.task_prerun.send(task, task_id=request.id, task=task, args=args, kwargs=kwargs)


def succeeded(request: Request, value: Any, runtime: float = 0.0) -> None:
    """Tell that a task has returned."""
    if signals.task_success.receivers:
        signals.task_success.send(request.callee(), result=value, runtime=runtime)
    _ended(request, states.SUCCESS, value)


def failed(request: Request, exc: BaseException) -> None:
    """Tell that a task has failed, or could not even begin."""
    about: dict[str, Any] = {"task_id": request.id, "exception": exc, "args": request.args, "kwargs": request.kwargs}
    if not request.begun:
        if signals.task_internal_error.receivers and not isinstance(exc, NotRegistered):
            error = ErrorInfo(exc)
            about |= {"request": request, "traceback": exc.__traceback__, "einfo": error}
            signals.task_internal_error.send(request.callee(), **about)
        return
    if signals.task_failure.receivers:
        signals.task_failure.send(request.callee(), **about, traceback=exc.__traceback__, einfo=ErrorInfo(exc))
    _ended(request, states.FAILURE, exc)


def retried(request: Request, plan: Plan) -> None:
    """Tell that a task is to run again."""
    retry = plan.retry
    if signals.task_retry.receivers:
        signals.task_retry.send(request.callee(), request=request, reason=retry.exc or retry, einfo=ErrorInfo(retry))
    _ended(request, states.RETRY, retry)


def left(request: Request, state: str, exc: BaseException) -> None:
    """Tell that a task has chosen its own end: ignored or rejected."""
    _ended(request, state, exc)


def _ended(request: Request, state: str, value: Any) -> None:
    if signals.task_postrun.receivers and request.begun:
        task, args, kwargs = request.callee(), request.args, request.kwargs
        about = {"task_id": request.id, "task": task, "args": args, "kwargs": kwargs}
        signals.task_postrun.send(task, **about, retval=value, state=state)
