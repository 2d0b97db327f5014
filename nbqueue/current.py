"""The current app, and what `@shared_task` has declared: with the receivers of signals the only state in modules."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.result import AsyncResult, MapResult

_lock = threading.Lock()
_current: App | None = None
_make: Callable[[], App] | None = None
_apps: weakref.WeakSet[App] = weakref.WeakSet()
_shared: dict[str, Shared] = {}


def set_current_app(app: App | None) -> None:
    """Make `app` the one that `@task`, signatures and handles use when none is named."""
    global _current  # noqa: PLW0603 - the one place where it is set
    with _lock:
        _current = app


def replace_current_app(app: App | None) -> App | None:
    """Make `app` the current one; return which was, without making one."""
    before = _current
    set_current_app(app)
    return before


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


def app_or_default(app: App | None = None) -> App:
    """Return the app that is given, or the current one."""
    return current_app() if app is None else app


def task(run: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a function a task of the current app; used as `@task` or `@task(queue="gpu")`.

    The app is looked up when the function is defined. See `nbqueue.tasks.Task` for the options.
    """
    return current_app().task(run, **options)


class Shared:
    """A function that is a task of every app there is; what it is asked as a task, it asks that of the current app.

    Args:
        run: the function.
        options: of the task.
    """

    def __init__(self, run: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.run = run
        self.options = options
        self.tasks: weakref.WeakKeyDictionary[App, Any] = weakref.WeakKeyDictionary()
        functools.update_wrapper(self, run, updated=())

    @property
    def task(self) -> Any:
        """Return the task that the current app has of it."""
        app = current_app()
        found = self.tasks.get(app)
        return app.share(self) if found is None else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now."""
        return self.task(*args, **kwargs) if self.options else self.run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.task, name)

    def __reduce__(self) -> Any:
        return self.task.__reduce__()

    def __repr__(self) -> str:
        return f"<@shared_task: {self.run.__module__}.{self.run.__qualname__}>"


def shared_task(run: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a function a task of every app, those to come too; used as `@shared_task` or `@shared_task(bind=True)`.

    For modules that don't know which app will use them; no app need exist when they are imported.
    """

    def declare(function: Callable[..., Any]) -> Shared:
        shared = Shared(function, options)
        with _lock:
            _shared[str(options.get("name") or f"{function.__module__}.{function.__qualname__}")] = shared
            apps = list(_apps)
        for app in apps:
            app.share(shared)
        return shared

    return declare if run is None else declare(run)


def join(app: App) -> list[Shared]:
    """Note that there is an app; return what `@shared_task` has declared so far."""
    with _lock:
        _apps.add(app)
        return list(_shared.values())


class CurrentApp:
    """Stands for the current app; called, it returns it."""

    def __call__(self) -> App:
        """Return the current app."""
        return current_app()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(current_app(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(current_app(), name, value)

    def __repr__(self) -> str:
        return repr(current_app())


proxy = CurrentApp()


def attach(label_or_id: str) -> AsyncResult | MapResult:
    """Return the handle on a task or map by its id, or on the newest task with a label.

    Raises:
        UnknownTask: neither is known.
        AmbiguousLabel: several tasks with this label are alive; names them.
    """
    return current_app().attach(label_or_id)
