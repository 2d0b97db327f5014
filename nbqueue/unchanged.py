"""Whether a function's pickle still holds: what it refers to, looked at again before each call.

To pickle a function by value takes a hundred times as long as to see that it still refers to the same objects. That is
enough where none of these can change in place: numbers, texts, tuples of them, modules and what can be imported from
them, other functions of the notebook. A function that refers to anything else is pickled for each call.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from operator import is_
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, ModuleType, NoneType
from typing import Any, Final, cast

from nbqueue import modules

_ATOMS: Final = frozenset({int, float, complex, str, bytes, bool, NoneType, EllipsisType, range})
_GLOBAL: Final = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"})
_MISSING: Final = object()


class Snapshot:
    """What a function was made of at one time.

    Args:
        run: the function.
        wrapper: a class whose objects stand for the function that is their `function`.

    Raises:
        Changeable: it refers to something that can change unseen.
    """

    def __init__(self, run: Callable[..., Any], wrapper: type[Any]) -> None:
        self._wrapper = wrapper
        self._functions: list[tuple[FunctionType, tuple[object, ...], dict[str, Any]]] = []
        self._names: list[tuple[dict[str, Any], str, object]] = []
        self._cells: list[tuple[Any, object]] = []
        self._modules = 0  # how many were loaded, if that matters: a package brings those of its own that are
        self._seen: set[int] = set()
        self._value(run)
        if not self._functions:
            raise Changeable(f"{run!r} is no plain function")

    def holds(self) -> bool:
        """Tell whether the function is still made of the same."""
        missing = _MISSING
        for function, parts, notes in self._functions:
            if not all(map(is_, _parts(function), parts)):
                return False
            if function.__dict__ or function.__annotations__ != notes:
                return False
        for names, name, value in self._names:
            if names.get(name, missing) is not value:
                return False
        for cell, value in self._cells:
            if _content(cell) is not value:
                return False
        return not self._modules or len(sys.modules) == self._modules

    def _value(self, value: object) -> None:
        if isinstance(value, self._wrapper):
            if type(value) is not self._wrapper:
                raise Changeable(repr(type(value)))
            self._names += [(vars(value), name, vars(value)[name]) for name in ("function", "given")]
            value = value.function
        kind = type(value)
        if kind in _ATOMS or kind is BuiltinFunctionType:
            return
        if kind is tuple or kind is frozenset:
            for part in cast("tuple[object, ...]", value):
                self._value(part)
        elif isinstance(value, ModuleType):
            if modules.owned(value) or value.__name__ == "__main__":
                raise Changeable(value.__name__)
            self._modules = len(sys.modules)
        elif _is_importable(value):
            return
        elif isinstance(value, FunctionType):
            self._function(value)
        else:
            raise Changeable(repr(kind))

    def _function(self, function: FunctionType) -> None:
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        module = sys.modules.get(function.__module__ or "")
        if modules.owned(module) or function.__dict__ or function.__kwdefaults__:
            raise Changeable(function.__qualname__)
        if not all(modules.is_foreign(name) for name in modules.imported_in(function.__code__)):
            raise Changeable(f"{function.__qualname__} imports what may be a user's own")
        self._functions.append((function, _parts(function), dict(function.__annotations__)))
        for value in (*(function.__defaults__ or ()), *function.__annotations__.values()):
            self._value(value)
        for cell in function.__closure__ or ():
            self._cells.append((cell, content := _content(cell)))
            self._value(content if content is not _MISSING else None)
        for name in sorted(_globals_of(function.__code__)):
            value = function.__globals__.get(name, _MISSING)
            self._names.append((function.__globals__, name, value))
            if value is not _MISSING:  # a builtin, or nothing yet
                self._value(value)


class Changeable(Exception):
    """Something can change in place, so that nobody can tell whether it has."""


def _parts(function: FunctionType) -> tuple[object, ...]:
    """Return what can be replaced of a function."""
    return function.__code__, function.__defaults__, function.__kwdefaults__, function.__closure__, function.__doc__


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty yet
        return _MISSING


def _globals_of(code: CodeType) -> set[str]:
    """Return the global names that code uses, also those of functions in it."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _globals_of(constant)
    return names


def _is_importable(value: object) -> bool:
    """Tell whether a class or function is pickled as a name in a module that isn't a user's own."""
    if not isinstance(value, FunctionType | type):
        return False
    module = sys.modules.get(value.__module__ or "")
    if module is None or module.__name__ == "__main__" or modules.owned(module):
        return False
    found: object = module
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value
