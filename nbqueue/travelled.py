"""What a task becomes inside code that has travelled: called it is its function, and all else is asked of the task.

A child loads what sends calls only once a task really sends one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from nbqueue.current import current_app


class Travelled:
    """A task that other code refers to, as that code finds it in a worker.

    Args:
        run: the function.
        name: of the task.
        bind: the function takes the task as its first argument.
        by_value: its code goes along with calls.
        options: what else the task was made with.
    """

    def __init__(
        self, run: Callable[..., Any], name: str, bind: bool, by_value: bool, options: Mapping[str, Any]
    ) -> None:
        functools.update_wrapper(self, run, updated=())
        self._given = (run, name, bind, by_value, options)
        self._task: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now."""
        run, _, bind, _, _ = self._given
        return run(self, *args, **kwargs) if bind else run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_given" not in self.__dict__:
            raise AttributeError(name)
        if self._task is None:
            run, task, bind, by_value, options = self._given
            self._task = current_app().task_for(task, run, bind=bind, by_value=by_value, **options)
        return getattr(self._task, name)

    def __reduce__(self) -> Any:
        return Travelled, self._given

    def __repr__(self) -> str:
        return f"<@task: {self._given[1]}>"
