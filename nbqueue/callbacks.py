"""The hooks of a task: what it has said is to be done before it runs, and once it has ended. Called where it runs.

They are called in this order: `before_start`; the task; one of `on_success`, `on_failure` and `on_retry`;
`after_return`, unless the task is to run again. All of them run before anybody is told of the end. One that raises
changes nothing of it, but for `before_start`, whose errors are the task's.

Source: Celery 5.7, "Handlers" of its user guide.
"""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Any, Final

from nbqueue import states
from nbqueue.request import Request
from nbqueue.retries import Plan

HOOKS: Final = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


class ErrorInfo:
    """What a hook is told of an error; its text is the traceback."""

    def __init__(self, exc: BaseException) -> None:
        self.exception = exc
        self.type = type(exc)
        self.tb: TracebackType | None = exc.__traceback__

    @property
    def traceback(self) -> str:
        """Return the traceback as text."""
        return "".join(traceback.format_exception(self.exception))

    @property
    def exc_info(self) -> tuple[type[BaseException], BaseException, TracebackType | None]:
        """Return what `sys.exc_info` gave."""
        return self.type, self.exception, self.tb

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ErrorInfo: {self.exception!r}>"


def before(request: Request) -> None:
    """Call what is to be called before a task runs: as everything here, for a task with hooks."""
    _task(request).before_start(request.id, request.args, request.kwargs)


def succeeded(request: Request, value: Any) -> None:
    """Call what is to be called after a task has returned."""
    _call(request, "on_success", value, request.id, request.args, request.kwargs)
    _call(request, "after_return", states.SUCCESS, value, request.id, request.args, request.kwargs, None)


def failed(request: Request, exc: BaseException) -> None:
    """Call what is to be called after a task has failed."""
    about = request.id, request.args, request.kwargs, ErrorInfo(exc)
    _call(request, "on_failure", exc, *about)
    _call(request, "after_return", states.FAILURE, exc, *about)


def retried(request: Request, plan: Plan) -> None:
    """Call what is to be called when a task is to run again."""
    retry = plan.retry
    about = request.id, request.args, request.kwargs, ErrorInfo(retry)
    _call(request, "on_retry", retry.exc or retry, *about)


def _task(request: Request) -> Any:
    return request.loaded.task if request.loaded is not None else None


def _call(request: Request, name: str, *args: Any) -> None:
    try:
        getattr(_task(request), name)(*args)
    except Exception as exc:  # noqa: BLE001 - users' code may raise anything, and the task has ended already
        sys.stderr.write(f"{name} of task {request.task} has failed, which changes nothing of how the task ended:\n")
        sys.stderr.write("".join(traceback.format_exception(exc)))
