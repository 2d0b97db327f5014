"""Doing something to a module of others once a task imports it, and nothing as long as none does."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

Hook = Callable[[ModuleType], None]


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls hooks with modules that have just been imported.

    Args:
        hooks: by the names of modules; those that are imported already are given to theirs at once.
    """

    def __init__(self, hooks: dict[str, Hook]) -> None:
        self._hooks = hooks

    def install(self) -> None:
        """Begin."""
        sys.meta_path.insert(0, self)
        for name, hook in self._hooks.items():
            if (module := sys.modules.get(name)) is not None:
                hook(module)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module where it would be found without this, and see to it that its hook is called."""
        hook = self._hooks.get(name)
        if hook is None:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _call_after(spec, hook)
                return spec
        return None


def _call_after(spec: importlib.machinery.ModuleSpec, hook: Hook) -> None:
    loader = spec.loader
    run = getattr(loader, "exec_module", None)
    if run is None:
        return

    def run_and_hook(module: ModuleType) -> None:
        run(module)
        hook(module)

    with contextlib.suppress(AttributeError):  # a loader that is a class of C; none of those that matter
        loader.exec_module = run_and_hook  # type: ignore[union-attr, method-assign]
