"""A digest of a cell's code and inputs that is the same in another kernel, where pickles differ.

Pickles hold ids that each kernel draws anew for what a notebook defines, and sets in an order that each draws anew.
So code counts by what it does, sets by their elements, and everything else by its pickle.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pickle import PickleBuffer
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, ParamSpec, TypeVar

import cloudpickle

from nbqueue import serialization
from nbqueue.modules import owned

# Of a class: what the interpreter keeps there, or makes anew of the rest.
_NOT_ITS_OWN: Final = frozenset(
    {"__dict__", "__weakref__", "__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__"}
    | {"__annotate__", "__annotate_func__", "__annotations_cache__", "__abstractmethods__", "_abc_impl"}
    | {"__dataclass_fields__", "__dataclass_params__", "__subclasshook__", "__class_getitem__", "__hash__"}
    | {"_member_map_", "_value2member_map_", "_unhashable_values_", "_hashable_values_", "__new_member__"}
)


def fingerprint(cell: str, variables: Mapping[str, Any], outputs: Sequence[str] = (), *modules: bytes) -> str:
    """Return the digest of a cell; 64 hexadecimal characters.

    Args:
        cell: its source.
        variables: what it reads.
        outputs: the names it brings back.
        modules: users' modules it uses, packed.
    """
    reader = _Reader()
    parts = [cell.encode(), ",".join(outputs).encode(), _joined(modules)]
    for name, value in sorted(variables.items()):
        parts += [name.encode(), reader.value(value)]
    return _joined(parts).hex()


class _Reader:
    """Reads values to digests. What it has met is counted, not read again: functions call themselves."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []  # else an id could be given out twice

    def value(self, value: Any) -> bytes:
        """Return the digest of any value that can travel."""
        sink = _Sink()
        _Pickler(self, sink).dump(value)
        return sink.digest()

    def special(self, value: Any) -> bytes | None:
        """Return the digest of what a pickle doesn't hold the same way each time; None for all else."""
        if isinstance(value, FunctionType):
            return self._once(value, self._function) if _travels_by_value(value) else None
        if isinstance(value, type):
            return self._once(value, self._class) if _travels_by_value(value) else None
        if type(value) in (set, frozenset):
            return self._set(value)
        if isinstance(value, ModuleType):
            return _joined([b"module", value.__name__.encode()])
        if isinstance(value, TypeVar | ParamSpec):
            return _joined([b"type", value.__name__.encode()])
        return None

    def _once(self, value: Any, read: Any) -> bytes:
        number = self._met.get(id(value))
        if number is not None:
            return f"met {number}".encode()
        self._met[id(value)] = len(self._met)
        self._kept.append(value)
        digest: bytes = read(value)
        return digest

    def _set(self, value: Iterable[Any]) -> bytes:
        elements = list(value)
        if len({type(element) for element in elements}) == 1 and type(elements[0]) in (int, str, bytes):
            return _joined([b"set", self.value(sorted(elements))])
        return _joined([b"set", *sorted(self.value(element) for element in elements)])

    def _function(self, function: FunctionType) -> bytes:
        names = function.__globals__
        used = [(name, names[name]) for name in sorted(_names_of(function.__code__)) if name in names]
        closed = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        own = (function.__defaults__, function.__kwdefaults__, closed)
        parts = [b"function", self._code(function.__code__), *[self._attribute(part) for part in own]]
        for name, value in used:
            parts += [name.encode(), self._attribute(value)]
        return _joined(parts)

    def _code(self, code: CodeType) -> bytes:
        constants = [self._code(part) if isinstance(part, CodeType) else self.value(part) for part in code.co_consts]
        names = [repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)).encode()]
        return _joined([b"code", code.co_code, *names, *constants])

    def _class(self, made: type) -> bytes:
        parts = [b"class", made.__qualname__.encode(), type(made).__qualname__.encode()]
        parts += [self._attribute(base) for base in made.__bases__]
        for name, value in sorted(vars(made).items()):
            if name not in _NOT_ITS_OWN:
                parts += [name.encode(), self._attribute(value)]
        return _joined(parts)

    def _attribute(self, value: Any) -> bytes:
        if isinstance(value, staticmethod | classmethod):
            return self._attribute(value.__func__)
        if isinstance(value, property):
            return _joined([self._attribute(part) for part in (value.fget, value.fset, value.fdel)])
        try:
            return self.value(value)
        except Exception:  # noqa: BLE001 - members that can't travel are made anew with the class; their type counts
            return type(value).__qualname__.encode()


class _Sink:
    """Takes a pickle as it is written, without keeping it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return len(data)

    def buffer(self, buffer: PickleBuffer) -> None:
        with buffer.raw() as raw:
            self._hash.update(raw)

    def digest(self) -> bytes:
        return self._hash.digest()


class _Pickler(cloudpickle.Pickler):
    """A pickler that leaves to a reader what pickles differently in another kernel."""

    def __init__(self, reader: _Reader, sink: _Sink) -> None:
        super().__init__(sink, protocol=serialization.PROTOCOL, buffer_callback=sink.buffer)
        self._reader = reader

    def persistent_id(self, value: Any) -> bytes | None:
        return self._reader.special(value)


def _travels_by_value(value: Any) -> bool:
    """Tell whether a function or class is the notebook's or a user's file's, not an installed package's."""
    name = getattr(value, "__module__", None)
    module = sys.modules.get(name or "")
    if name == "__main__" or module is None or "<locals>" in value.__qualname__:
        return True
    return owned(module)


def _names_of(code: CodeType) -> set[str]:
    parts = [part for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*(_names_of(part) for part in parts))


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _joined(parts: Iterable[bytes]) -> bytes:
    """Return one digest of several, so that moving a byte from one to the next makes another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
