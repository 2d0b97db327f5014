"""Pickles: code by value, arguments, values and exceptions. What is loaded here was verified before.

Source: pickle protocol 5; cloudpickle, for what a notebook defines.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import linecache
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import cloudpickle

from nbqueue import exceptions, modules
from nbqueue.exceptions import ImproperlyConfigured, NotPicklable, RemoteError
from nbqueue.messages import Failure
from nbqueue.payloads import Packer, Read, no_blobs, parts

SERIALIZERS: Final = ("cloudpickle", "pickle", "json")
PROTOCOL: Final = 5
_NO_FILE: Final = "<dynamic-code>"  # what cloudpickle 3.1.3 and later say instead of a file
_SIMPLE: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})


def check_serializer(name: str) -> str:
    """Return the name of a serializer, or raise naming those there are."""
    if name not in SERIALIZERS:
        raise ImproperlyConfigured(f"there is no serializer {name!r}; it is one of {', '.join(SERIALIZERS)}")
    return name


def digest(code: bytes) -> str:
    """Return the digest by which children know code: 32 hexadecimal characters."""
    return hashlib.sha256(code).hexdigest()[:32]


def dumps_code(run: Callable[..., Any], packer: Packer | None = None, beside: Any = None) -> bytes:
    """Return a function with all it needs of its notebook or module, and the source lines for tracebacks.

    Args:
        run: the function.
        beside: travels with it, and shares classes with it.

    Raises:
        NotPicklable: something it refers to can't travel.
    """
    try:
        return _dumps((run, sources_of(run), beside), packer, by_value=True)
    except Exception as exc:
        raise NotPicklable(f"Not sent: the code of {getattr(run, '__qualname__', run)} can't travel: {exc}") from exc


def loads_code(code: bytes, read: Read = no_blobs) -> Callable[..., Any]:
    """Return the function that `dumps_code` packed, its source lines at hand for tracebacks."""
    return loads_code_and_beside(code, read)[0]


def loads_code_and_beside(code: bytes, read: Read = no_blobs) -> tuple[Callable[..., Any], Any]:
    """Return the function that `dumps_code` packed, its source lines at hand, and what travelled beside it."""
    run, sources, beside = loads(code, read)
    remember_sources(sources)
    return run, beside


def sources_of(run: Callable[..., Any]) -> dict[str, str]:
    """Return the text of the cells that a function and the functions it uses come from, by file name."""
    sources: dict[str, str] = {}
    seen: set[int] = set()
    queue: list[Any] = [run]
    while queue and len(seen) < 1_000:
        function = queue.pop()
        code = getattr(function, "__code__", None)
        if not isinstance(code, CodeType) or id(code) in seen:
            continue
        seen.add(id(code))
        lines = linecache.getlines(code.co_filename)
        # Files that a worker has too need not travel; those of cells exist in the kernel's memory only.
        if lines and (code.co_filename.startswith("<") or "ipykernel_" in code.co_filename):
            sources[code.co_filename] = "".join(lines)
        names = getattr(function, "__globals__", {})
        queue += [names[name] for name in _names_in(code) if name in names]
        queue += [getattr(value, "run", None) for name in _names_in(code) if (value := names.get(name)) is not None]
    return sources


def remember_sources(sources: dict[str, str]) -> None:
    """Make source lines known to tracebacks."""
    for name, text in sources.items():
        # An mtime of None keeps linecache from looking for a file.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)


def dumps_args(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    serializer: str = "cloudpickle",
    packer: Packer | None = None,
    *,
    by_value: bool = False,
    imports: Iterable[str] = (),
) -> bytes:
    """Return packed arguments.

    Args:
        args: positional ones.
        kwargs: those by name.
        serializer: `cloudpickle`, `pickle` or `json`.
        packer: takes what is large; without one everything is in what is returned.
        by_value: users' modules that the arguments refer to travel too.
        imports: names of modules that are wanted besides.

    Raises:
        NotPicklable: one of them can't travel; names it.
    """
    if serializer == "json":
        text = _dumps_json([args, kwargs])
        return packer.pack(text) if packer else text
    try:
        plain = serializer == "pickle" or (_plain(args) and _plain(kwargs))
        return _dumps((args, kwargs), packer, plain=plain, by_value=by_value, imports=imports)
    except Exception as exc:
        for name, value in [*((f"argument {n}", value) for n, value in enumerate(args, 1)), *kwargs.items()]:
            why = explain_unpicklable(name, value)
            if why:
                raise NotPicklable(f"Not sent: {why} can't travel: {exc}") from exc
        raise NotPicklable(f"Not sent: the arguments can't travel: {exc}") from exc


def loads_args(
    data: bytes, serializer: str = "cloudpickle", read: Read = no_blobs
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that `dumps_args` packed."""
    if serializer == "json":
        text, _ = parts(data, read)
        args, kwargs = json.loads(bytes(text))
    else:
        args, kwargs = loads(data, read)
    return tuple(args), dict(kwargs)


def dumps_value(value: Any, packer: Packer | None = None) -> bytes:
    """Return a packed value."""
    return _dumps(value, packer, plain=_plain(value))


def loads(data: bytes, read: Read = no_blobs) -> Any:
    """Return the value that `dumps_value` packed."""
    main, buffers = parts(data, read)
    return pickle.loads(main, buffers=buffers)


def _dumps(
    value: Any, packer: Packer | None, *, plain: bool = False, by_value: bool = False, imports: Iterable[str] = ()
) -> bytes:
    sink = io.BytesIO()
    if packer is None:
        if plain:
            return pickle.dumps(value, PROTOCOL)
        _Pickler(sink).dump(value)
        return sink.getvalue()
    if plain and not imports:
        return packer.pack(pickle.dumps(value, PROTOCOL, buffer_callback=packer.keep))
    pickler = _Pickler(sink, packer, set(imports) if by_value else None)
    try:
        pickler.dump(value)
        return packer.pack(sink.getvalue(), _modules_named(pickler.names, packer))
    except BaseException:
        packer.discard()
        raise


def _modules_named(names: set[str] | None, packer: Packer) -> bytes:
    """Return users' modules of these names and what they import, packed; empty if none is a user's."""
    if not names:
        return b""
    key = frozenset(names)
    if key not in packer.modules:
        found = modules.sources(names)
        packer.modules[key] = modules.pack(found.values()) if found else b""
    return packer.modules[key]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler that leaves large buffers to a packer, and notes which users' modules it refers to.

    Args:
        sink: written to.
        packer: takes buffers; None leaves them where they are.
        names: of modules, added to; None where the worker is to have its own.
    """

    def __init__(self, sink: io.BytesIO, packer: Packer | None = None, names: set[str] | None = None) -> None:
        super().__init__(sink, protocol=PROTOCOL, buffer_callback=packer.keep if packer else None)
        self.names = names

    def reducer_override(self, obj: Any) -> Any:
        """Note what is a module, or of one, and keep the file names of code; everything else is cloudpickle's."""
        if isinstance(obj, CodeType):
            return _reduced_code(obj)
        if self.names is not None:
            if isinstance(obj, ModuleType):
                if modules.owned(obj):
                    self.names.add(obj.__name__)
                    return importlib.import_module, (obj.__name__,)
            elif isinstance(obj, FunctionType | type):
                module = sys.modules.get(obj.__module__ or "")
                if modules.owned(module):
                    self.names.add(obj.__module__)
                elif isinstance(obj, FunctionType):
                    self.names |= modules.imported_in(obj.__code__)
        return super().reducer_override(obj)


def _reduced_code(code: CodeType) -> tuple[Any, ...]:
    """Return what makes a code object again, with the name of its file: by it a traceback finds a cell's lines."""
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if part == _NO_FILE else part for part in parts)


def dumps_exception(exc: BaseException, trace: str) -> Failure:
    """Return an exception as a failure: as text, and pickled if it survives the way there and back."""
    try:
        pickled = bytes(cloudpickle.dumps(exc, protocol=PROTOCOL))
        if type(pickle.loads(pickled)) is not type(exc):
            pickled = b""
    except Exception:  # noqa: BLE001 - users' classes may raise anything, and the text is enough
        pickled = b""
    try:
        message = str(exc)
    except Exception:  # noqa: BLE001 - as above
        message = "(its text can't be had)"
    return Failure(type(exc).__qualname__, message[:20_000], trace[:200_000], pickled)


class RemoteTraceback(Exception):
    """Carries the traceback of another process as text; the cause of the exception that `get()` raises."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def load_exception(failure: Failure) -> BaseException:
    """Return the exception of a failure: the original if it can be had, else one that carries its name and text."""
    exc: BaseException | None = None
    if failure.pickled:
        try:
            loaded = pickle.loads(failure.pickled)
        except Exception:  # noqa: BLE001 - its class may not exist here
            loaded = None
        if isinstance(loaded, BaseException):
            exc = loaded
    elif failure.type in exceptions.__all__:
        own = getattr(exceptions, failure.type)
        exc = own(failure.message) if failure.type not in ("BadMessage", "RemoteError") else None
    if exc is None:
        exc = RemoteError(failure.type, failure.message, failure.traceback)
    exc.__cause__ = RemoteTraceback(failure.traceback)
    return exc


def explain_unpicklable(name: str, value: Any) -> str:
    """Return what in a value can't be pickled, as `conn.socket (of conn)`; empty if all of it can.

    Args:
        name: what the value is called.
        value: looked at down to five levels.
    """
    path = _culprit(name, value, 5, set())
    if not path:
        return ""
    return f"{path} (of {name})" if path != name else name


def _culprit(path: str, value: Any, depth: int, seen: set[int]) -> str:
    if id(value) in seen or _travels(value):
        return ""
    seen.add(id(value))
    if depth:
        for step, part in _parts(value):
            if found := _culprit(path + step, part, depth - 1, seen):
                return found
    return path


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"[{key!r}]", part) for key, part in list(value.items())[:1000]]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{index}]", part) for index, part in enumerate(list(value)[:1000])]
    closure = getattr(value, "__closure__", None)
    if closure:
        names = value.__code__.co_freevars
        return [(f".{name}", cell.cell_contents) for name, cell in zip(names, closure, strict=True)]
    if isinstance(value, ModuleType | type):
        return []
    try:
        return [(f".{key}", part) for key, part in vars(value).items()]
    except TypeError:
        return []


def _travels(value: Any) -> bool:
    try:
        cloudpickle.Pickler(io.BytesIO(), protocol=PROTOCOL).dump(value)
    except Exception:  # noqa: BLE001 - that is the question
        return False
    return True


def _plain(value: Any, depth: int = 3) -> bool:
    """Tell whether a value is made of built-in types alone, which plain pickle packs ten times faster."""
    kind = type(value)
    if kind in _SIMPLE:
        return True
    if not depth or kind not in (tuple, list, dict) or len(value) > 100:
        return False
    if kind is dict:
        return all(type(key) in _SIMPLE and _plain(part, depth - 1) for key, part in value.items())
    return all(_plain(part, depth - 1) for part in value)


def _dumps_json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError) as exc:
        raise NotPicklable(f"Not sent: the arguments are no JSON: {exc}") from exc


def _names_in(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names_in(constant)
    return names


def format_traceback(exc: BaseException, own: tuple[str, ...]) -> str:
    """Return a traceback as text, without the frames of the files named, which are machinery.

    Args:
        exc: the exception.
        own: endings of file names.
    """
    report = traceback.TracebackException.from_exception(exc, limit=200)
    part: traceback.TracebackException | None = report
    while part is not None:
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if not f.filename.endswith(own)])
        part = part.__cause__ or part.__context__
    return "".join(report.format())
