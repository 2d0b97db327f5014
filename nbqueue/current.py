"""The current app: the only mutable state that a module of nbqueue holds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbqueue.app import App

_lock = threading.Lock()
_current: App | None = None


def set_current_app(app: App | None) -> None:
    """Make `app` the one that `@task`, signatures and handles use when none is named."""
    global _current  # noqa: PLW0603 - the one place where it is set
    with _lock:
        _current = app


def current_app() -> App:
    """Return the current app, making a default one at first use."""
    if _current is None:
        from nbqueue.app import App  # the façade imports this module; only a first use needs it here

        with _lock:
            missing = _current is None
        if missing:
            App(set_as_current=True)
    assert _current is not None
    return _current
