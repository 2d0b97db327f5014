"""How an app gets its tasks: from functions, from classes, from `@shared_task`, and from modules that it looks for.

Source: Celery 5.7, `celery.app.base`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from nbqueue import models
from nbqueue.current import Shared
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.tasks import Task, checked

if TYPE_CHECKING:
    from nbqueue.app import App

_IDLE: Final = frozenset({"shared", "lazy", "filter"})  # of Celery, about when a task is made
Packages = Iterable[str] | Callable[[], Iterable[str]] | None


def made(app: App, run: Callable[..., Any], options: Mapping[str, Any]) -> Task:
    """Return the task of a function, registered.

    Args:
        app: whose it is.
        run: the function.
        options: of `Task`; and `base`, a class of tasks; and those of `nbqueue.models`.

    Raises:
        TypeError: there is no such option, or this can't be a task.
    """
    given = {name: value for name, value in options.items() if name not in _IDLE}
    base = given.pop("base", None) or app.Task
    if not (isinstance(base, type) and issubclass(base, Task)):
        raise TypeError(f"base must be a class of tasks, derived from nbqueue.Task, not {base!r}")
    of_models: dict[str, Any] = {name: given.pop(name) for name in models.OPTIONS if name in given}
    if of_models.get("pydantic"):
        run = models.modelled(checked(run), of_models)
    task = base.of(app, run, **given)
    if isinstance(run, models.Modelled):
        run.name, run.app = task.name, app
    app.tasks[task.name] = task
    app.annotate(task)
    return task


def class_of(found: type[Task] | str | None) -> type[Task]:
    """Return a class of tasks, or the one at a place such as `proj.tasks:Ours`; `Task` for None.

    Raises:
        ImproperlyConfigured: there is none.
    """
    if isinstance(found, str):
        module, _, name = found.replace(":", ".").rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as exc:
            raise ImproperlyConfigured(f"task_cls: there is no {found!r}: {exc}") from exc
    if found is None:
        return Task
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ImproperlyConfigured(f"task_cls must be a class derived from nbqueue.Task, not {found!r}")
    return found


def registered(app: App, task: Task | type[Task], options: Mapping[str, Any]) -> Task:
    """Register an object of a class of tasks, or make one of the class.

    Raises:
        TypeError: it is something else, or its class has no method `run`.
    """
    found = task() if isinstance(task, type) else task
    if not isinstance(found, Task):
        raise TypeError(f"register_task takes a task, or a class derived from nbqueue.Task, not {task!r}")
    if "function" not in vars(found):
        own = {name: value for name, value in vars(found).items() if name in ("name", "by_value")}
        found.declare(app, None, {**own, **options})
    app.tasks[found.name] = found
    app.annotate(found)
    return found


def share(app: App, shared: Shared) -> Task:
    """Return the task that an app has of a function declared with `@shared_task`."""
    task = made(app, shared.run, shared.options)
    shared.tasks[app] = task
    return task


class Discovery:
    """Packages whose modules of tasks an app looks for, once that is asked of it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Packages, str | None]] = []

    def add(self, packages: Packages, related_name: str | None) -> None:
        """Look in these packages; see `App.autodiscover_tasks`."""
        self._waiting.append((packages, related_name))

    def run(self) -> list[str]:
        """Import what is there; return the modules' names.

        Raises:
            ImportError: a module is there, and can't be imported.
        """
        waiting, self._waiting = self._waiting, []
        found = []
        for packages, related_name in waiting:
            names = packages() if callable(packages) else _of_django() if packages is None else packages
            for package in [names] if isinstance(names, str) else names:
                name = f"{package}.{related_name}" if related_name else package
                if _is_there(package, name):
                    importlib.import_module(name)
                    found.append(name)
        return found


def _is_there(package: str, name: str) -> bool:
    importlib.import_module(package)
    return importlib.util.find_spec(name) is not None if hasattr(sys.modules[package], "__path__") else name == package


def _of_django() -> list[str]:
    """Return the packages of a Django project's applications."""
    apps = sys.modules.get("django.apps")
    if apps is None:
        raise ImproperlyConfigured(
            "autodiscover_tasks() without packages takes those of Django, which isn't loaded here; "
            'name yours: autodiscover_tasks(["proj"])'
        )
    return [config.name for config in apps.apps.get_app_configs()]
