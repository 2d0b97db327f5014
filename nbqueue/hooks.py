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
        instead: as well, for modules that are not to be run: each gets an empty one to fill.
    """

    def __init__(self, hooks: dict[str, Hook], instead: dict[str, Hook] | None = None) -> None:
        self._hooks = hooks
        self._instead = instead or {}

    def install(self) -> None:
        """Begin."""
        sys.meta_path.insert(0, self)
        for name, hook in (self._hooks | self._instead).items():
            if (module := sys.modules.get(name)) is not None:
                hook(module)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module where it would be found without this, and see to it that its hook is called."""
        hook = self._hooks.get(name)
        if hook is None:
            instead = self._instead.get(name)
            return None if instead is None else importlib.machinery.ModuleSpec(name, _Filler(instead))
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _call_after(spec, hook)
                return spec
        return None


class _Filler(importlib.abc.Loader):
    """Makes a module that a hook fills."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        self._hook(module)


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
