"""nbqueue: a distributed task queue that is native to Jupyter.

In a notebook, `%load_ext nbqueue` and `%%task` on a cell, or `@task` on a function. Importing this package loads
no client of any server and connects to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbqueue._version import __version__, version_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbqueue import states
    from nbqueue.app import App
    from nbqueue.app import App as Celery
    from nbqueue.canvas import (
        Signature,
        chain,
        chord,
        chunks,
        group,
        maybe_signature,
        signature,
        subtask,
        xmap,
        xstarmap,
    )
    from nbqueue.current import attach, shared_task, task
    from nbqueue.current import proxy as current_app
    from nbqueue.execute import progress, track
    from nbqueue.executor import Executor
    from nbqueue.installed import bugreport
    from nbqueue.request import current_task
    from nbqueue.result import AsyncResult, EagerResult, GroupResult, ResultSet
    from nbqueue.tasks import Task
    from nbqueue.utils import uuid

__all__ = [
    "App",
    "AsyncResult",
    "Celery",
    "EagerResult",
    "Executor",
    "GroupResult",
    "ResultSet",
    "Signature",
    "Task",
    "__version__",
    "attach",
    "bugreport",
    "chain",
    "chord",
    "chunks",
    "current_app",
    "current_task",
    "group",
    "maybe_signature",
    "progress",
    "shared_task",
    "signature",
    "states",
    "subtask",
    "task",
    "track",
    "uuid",
    "version_info",
    "xmap",
    "xstarmap",
]

_PLACES = {
    "VERSION": "nbqueue._version:VERSION",
    "App": "nbqueue.app:App",
    "AsyncResult": "nbqueue.result:AsyncResult",
    "Celery": "nbqueue.app:App",
    "EagerResult": "nbqueue.result:EagerResult",
    "Executor": "nbqueue.executor:Executor",
    "GroupResult": "nbqueue.result:GroupResult",
    "ResultSet": "nbqueue.result:ResultSet",
    "Task": "nbqueue.tasks:Task",
    "Signature": "nbqueue.canvas:Signature",
    "attach": "nbqueue.current:attach",
    "bugreport": "nbqueue.installed:bugreport",
    "chain": "nbqueue.canvas:chain",
    "chord": "nbqueue.canvas:chord",
    "chunks": "nbqueue.canvas:chunks",
    "group": "nbqueue.canvas:group",
    "maybe_signature": "nbqueue.canvas:maybe_signature",
    "signature": "nbqueue.canvas:signature",
    "subtask": "nbqueue.canvas:subtask",
    "xmap": "nbqueue.canvas:xmap",
    "xstarmap": "nbqueue.canvas:xstarmap",
    "current_app": "nbqueue.current:proxy",
    "current_task": "nbqueue.request:current_task",
    "progress": "nbqueue.execute:progress",
    "shared_task": "nbqueue.current:shared_task",
    "states": "nbqueue.states:",
    "task": "nbqueue.current:task",
    "track": "nbqueue.execute:track",
    "uuid": "nbqueue.utils:uuid",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'nbqueue' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    loaded = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(ipython: Any) -> None:
    """Register `%%task` and its kin with IPython; called by `%load_ext nbqueue`."""
    extension: Callable[[Any], None] = importlib.import_module("nbqueue.notebook").load_ipython_extension
    extension(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Remove the magics again; called by `%unload_ext nbqueue`."""
    extension: Callable[[Any], None] = importlib.import_module("nbqueue.notebook").unload_ipython_extension
    extension(ipython)
