"""`task_annotations`: options of tasks that settings say, over what the tasks say themselves.

Source: Celery's user guide, "Configuration and defaults", task_annotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from nbqueue.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from nbqueue.tasks import Task

_ANY: Final = "*"


def task_annotations(value: Any) -> Any:
    """Return annotations: a dict from tasks' names, or `*` for all, to options; an object with `annotate`; or a list.

    Raises:
        ImproperlyConfigured: they are something else.
    """
    for part in _parts(value):
        if isinstance(part, Mapping):
            wrong = [name for name, options in part.items() if not isinstance(options, Mapping)]
        else:
            wrong = [] if callable(getattr(part, "annotate", None)) else [part]
        if wrong:
            raise ImproperlyConfigured(
                "task_annotations must be a dict from names of tasks to dicts of options, an object with a method "
                f"annotate(task), or a list of such; not one with {wrong[0]!r}"
            )
    return value


def annotate(task: Task, annotations: Any) -> None:
    """Let a task have the options that annotations say of it.

    Raises:
        ImproperlyConfigured: an option doesn't exist, or can't have this value.
    """
    for options in _of(task, annotations):
        for name, value in options.items():
            if name.startswith("_") or not hasattr(type(task), name):
                raise ImproperlyConfigured(f"task_annotations: {task.name} has no option {name!r}")
            if callable(value) and callable(getattr(type(task), name)):
                value = value.__get__(task)  # noqa: PLW2901 - a function in place of a method gets the task
            try:
                setattr(task, name, value)
            except (TypeError, ValueError) as exc:
                raise ImproperlyConfigured(f"task_annotations: {task.name}: {exc}") from exc


def _of(task: Task, annotations: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the options for a task, those for all tasks first."""
    parts = list(_parts(annotations))
    for name in (_ANY, task.name):
        yield from (part[name] for part in parts if isinstance(part, Mapping) and name in part)
    for part in parts:
        if not isinstance(part, Mapping) and (found := part.annotate(task)):
            yield found


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        yield from value
    elif value is not None:
        yield value
