"""What tests of a user's own project need: a worker, a server that ends with the tests, and an app that needs neither.

As fixtures of pytest they are in `nbqueue.testing.pytest_plugin`, which pytest finds by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbqueue.testing.apps import memory_app
    from nbqueue.testing.servers import PrivateServer
    from nbqueue.testing.workers import StartedWorker, start_worker

__all__ = ["PrivateServer", "StartedWorker", "memory_app", "start_worker"]

_PLACES = {
    "PrivateServer": "nbqueue.testing.servers",
    "StartedWorker": "nbqueue.testing.workers",
    "memory_app": "nbqueue.testing.apps",
    "start_worker": "nbqueue.testing.workers",
}


def __getattr__(name: str) -> Any:
    # pytest loads this in every run on a machine that has nbqueue: it is to cost nothing where it isn't used
    if name not in _PLACES:
        raise AttributeError(f"module 'nbqueue.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
