"""Pickles: code by value, arguments, values and exceptions. What is loaded here was verified before.

Source: pickle protocol 5; cloudpickle, for what a notebook defines.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import io
import linecache
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

import cloudpickle

from nbqueue import contents, exceptions, formats, modules
from nbqueue.contents import DEFAULT, PICKLES, SERIALIZERS
from nbqueue.exceptions import NotPicklable, RemoteError
from nbqueue.messages import Failure
from nbqueue.payloads import Packer, Read, no_blobs, parts

__all__ = [
    "PROTOCOL",
    "SERIALIZERS",
    "RemoteTraceback",
    "check_serializer",
    "digest",
    "dumps_args",
    "dumps_code",
    "dumps_exception",
    "dumps_value",
    "explain_unpicklable",
    "format_traceback",
    "load_exception",
    "loads",
    "loads_args",
    "loads_code",
    "loads_code_and_beside",
    "remember_sources",
    "sources_of",
]

PEEKED_BYTES: Final = 16_384  # arguments above this are not shown
PROTOCOL: Final = 5
_NO_FILE: Final = "<dynamic-code>"  # what cloudpickle 3.1.3 and later say instead of a file
_SIMPLE: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})


check_serializer = contents.serializer


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
    serializer: str = DEFAULT,
    packer: Packer | None = None,
    *,
    by_value: bool = False,
    imports: Iterable[str] = (),
    compression: str = "",
) -> bytes:
    """Return packed arguments.

    Args:
        args: positional ones.
        kwargs: those by name.
        serializer: one of `SERIALIZERS`.
        packer: takes what is large; without one everything is in what is returned.
        by_value: users' modules that the arguments refer to travel too.
        imports: names of modules that are wanted besides.
        compression: one of `contents.COMPRESSIONS`.

    Raises:
        NotPicklable: one of them can't travel; names it.
        ImproperlyConfigured: the serializer or compression needs a package that isn't here.
    """
    if serializer not in PICKLES:
        text = _said([args, kwargs], serializer, "the arguments")
        if serializer != "json" or compression:
            text = formats.wrap(serializer, compression, text)
        return packer.pack(text) if packer else text
    try:
        plain = serializer == "pickle" or (_plain(args) and _plain(kwargs))
        return _dumps((args, kwargs), packer, plain, by_value=by_value, imports=imports, compression=compression)
    except (exceptions.ImproperlyConfigured, exceptions.PayloadTooLarge):
        raise
    except Exception as exc:
        for name, value in [*((f"argument {n}", value) for n, value in enumerate(args, 1)), *kwargs.items()]:
            why = explain_unpicklable(name, value)
            if why:
                raise NotPicklable(f"Not sent: {why} can't travel: {exc}") from exc
        raise NotPicklable(f"Not sent: the arguments can't travel: {exc}") from exc


def loads_args(
    data: bytes, serializer: str = DEFAULT, read: Read = no_blobs, accept: frozenset[str] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that `dumps_args` packed; see `loads`."""
    if serializer == "json":
        text, _ = parts(data, read)
        if not formats.is_wrapped(text):
            contents.check("json", accept)
            args, kwargs = formats.decode("json", text)
            return tuple(args), dict(kwargs)
    args, kwargs = loads(data, read, accept)
    return tuple(args), dict(kwargs)


def peek_args(data: bytes, serializer: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return arguments that can be read without opening a pickle, for those who may not; None if these can't.

    >>> peek_args(dumps_args((1, ["a"]), {"b": None}, "json"), "json"), peek_args(dumps_args((1,), {}), "pickle")
    (((1, ['a']), {'b': None}), None)
    """
    if serializer != "json" or len(data) > PEEKED_BYTES or formats.is_wrapped(data):
        return None
    try:
        args, kwargs = formats.decode("json", data)
        return tuple(args), dict(kwargs)
    except Exception:  # noqa: BLE001 - its child says what is wrong with it
        return None


def dumps_value(value: Any, packer: Packer | None = None, serializer: str = DEFAULT, compression: str = "") -> bytes:
    """Return a packed value; arguments as `dumps_args`."""
    if serializer not in PICKLES:
        text = formats.wrap(serializer, compression, _said(value, serializer, "the value"))
        return packer.pack(text) if packer else text
    return _dumps(value, packer, _plain(value), compression=compression)


def loads(data: bytes, read: Read = no_blobs, accept: frozenset[str] | None = None) -> Any:
    """Return the value that `dumps_value` packed.

    Args:
        data: verified.
        read: returns a blob's content.
        accept: serializers that are accepted; all if None.

    Raises:
        ContentDisallowed: it is in another form; it has not been loaded.
    """
    main, buffers = parts(data, read)
    if main[:1] == formats.MARK:
        serializer, _ = formats.named(main)
        contents.check(serializer, accept)
        return formats.decode(serializer, formats.unwrap(main))
    if accept is not None and DEFAULT not in accept:
        contents.check(DEFAULT, accept)
    return pickle.loads(main, buffers=buffers)


def _dumps(
    value: Any,
    packer: Packer | None,
    plain: bool = False,
    *,
    by_value: bool = False,
    imports: Iterable[str] = (),
    compression: str = "",
) -> bytes:
    sink = io.BytesIO()
    if packer is None:
        if plain:
            main = pickle.dumps(value, PROTOCOL)
        else:
            _Pickler(sink).dump(value)
            main = sink.getvalue()
        return formats.wrap(DEFAULT, compression, main) if compression else main
    # What is compressed is so as a whole, with its buffers.
    keep = None if compression else packer.keep
    if plain and not imports:
        main = pickle.dumps(value, PROTOCOL, buffer_callback=keep)
        return packer.pack(formats.wrap(DEFAULT, compression, main) if compression else main)
    pickler = _Pickler(sink, keep, set(imports) if by_value else None)
    try:
        pickler.dump(value)
        main = formats.wrap(DEFAULT, compression, sink.getvalue()) if compression else sink.getvalue()
        return packer.pack(main, _modules_named(pickler.names, packer))
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
        keep: takes buffers, or leaves them where they are, as all do if None.
        names: of modules, added to; None where the worker is to have its own.
    """

    def __init__(
        self, sink: io.BytesIO, keep: Callable[[Any], bool] | None = None, names: set[str] | None = None
    ) -> None:
        super().__init__(sink, protocol=PROTOCOL, buffer_callback=keep)
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


def dumps_exception(exc: BaseException, trace: str, *, pickled: bool = True) -> Failure:
    """Return an exception as a failure: as text, and pickled if it may be and survives the way there and back."""
    packed = b""
    if pickled:
        try:
            packed = bytes(cloudpickle.dumps(exc, protocol=PROTOCOL))
            if type(pickle.loads(packed)) is not type(exc):
                packed = b""
        except Exception:  # noqa: BLE001 - users' classes may raise anything, and the text is enough
            packed = b""
    try:
        message = str(exc)
    except Exception:  # noqa: BLE001 - as above
        message = "(its text can't be had)"
    return Failure(type(exc).__qualname__, message[:20_000], trace[:200_000], packed)


class RemoteTraceback(Exception):
    """Carries the traceback of another process as text; the cause of the exception that `get()` raises."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    @property
    def tb(self) -> str:
        """Return the text, as `concurrent.futures` calls it."""
        return self.text

    def __str__(self) -> str:
        return f"\n{self.text}"


def load_exception(failure: Failure, accept: frozenset[str] | None = None) -> BaseException:
    """Return the exception of a failure: the original if it can be had, else one that carries its name and text.

    Args:
        failure: verified.
        accept: serializers that are accepted; all if None. Where no pickles are, one of Python's own is made anew.
    """
    exc: BaseException | None = None
    pickles = accept is None or DEFAULT in accept
    if failure.pickled and pickles:
        try:
            loaded = pickle.loads(failure.pickled)
        except Exception:  # noqa: BLE001 - its class may not exist here
            loaded = None
        if isinstance(loaded, BaseException):
            exc = loaded
    elif failure.type in exceptions.__all__:
        own = getattr(exceptions, failure.type)
        made = issubclass(own, exceptions.NBQueueError) and own not in (exceptions.BadMessage, exceptions.RemoteError)
        exc = own(failure.message) if made else None
    elif not pickles:
        exc = _builtin_exception(failure)
    if exc is None:
        exc = RemoteError(failure.type, failure.message, failure.traceback)
    exc.__cause__ = RemoteTraceback(failure.traceback)
    return exc


def _builtin_exception(failure: Failure) -> BaseException | None:
    kind = getattr(builtins, failure.type, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        return None
    try:
        return kind(failure.message)
    except Exception:  # noqa: BLE001 - some take more than a text
        return None


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


def _said(value: Any, serializer: str, what: str) -> bytes:
    try:
        return formats.encode(serializer, value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise NotPicklable(f"Not sent: {what} can't be said in {serializer}: {exc}") from exc


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
