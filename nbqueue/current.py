"""The current app: the only mutable state that a module of nbqueue holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.result import AsyncResult, GroupResult

_lock = threading.Lock()
_current: App | None = None
_make: Callable[[], App] | None = None


def set_current_app(app: App | None) -> None:
    """Make `app` the one that `@task`, signatures and handles use when none is named."""
    global _current  # noqa: PLW0603 - the one place where it is set
    with _lock:
        _current = app


def set_app_maker(make: Callable[[], App]) -> None:
    """Let the first use of the current app, if there is none by then, make it so."""
    global _make  # noqa: PLW0603 - as above
    _make = make


def current_app() -> App:
    """Return the current app, making a default one at first use."""
    if _current is None:
        from nbqueue.app import App  # the façade imports this module; only a first use needs it here

        with _lock:
            missing = _current is None
        if missing and _make is not None:
            set_current_app(_make())
        elif missing:
            App(set_as_current=True, by_value=True)
    assert _current is not None
    return _current


def task(run: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a function a task of the current app; used as `@task` or `@task(queue="gpu")`.

    The app is looked up when the function is defined. See `nbqueue.tasks.Task` for the options.
    """
    return current_app().task(run, **options)


shared_task = task


def attach(label_or_id: str) -> AsyncResult | GroupResult:
    """Return the handle on a task or map by its id, or on the newest task with a label.

    Raises:
        UnknownTask: neither is known.
        AmbiguousLabel: several tasks with this label are alive; names them.
    """
    return current_app().attach(label_or_id)
