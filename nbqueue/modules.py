"""Users' own modules on their way: found by what code refers to, carried as source, imported by workers from there.

A module is a user's own if it is a plain file that no installer put where it is: beside the notebook, on `sys.path`,
in an editable install. What workers get is the text on the disk at the time of sending, so that an edit is in force
with the next task, also in workers that run already.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

import msgspec

_OWN: Final = str(Path(__file__).parent)
_INSTALLED: Final = ("site-packages", "dist-packages")
_MAX_MODULES: Final = 2_000
_PARSE_TRIES: Final = 5
_parsing: Final = threading.Lock()
_BEGUN: Final = time.time()  # whatever is imported here was read later


class Module(msgspec.Struct, array_like=True, frozen=True):
    """One module as it travels. `package` tells whether it may have modules below it."""

    name: str
    file: str
    package: bool
    source: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Module]).decode


def pack(modules: Iterable[Module]) -> bytes:
    """Return modules as bytes, the same for the same modules."""
    return _encode(sorted(modules, key=lambda module: module.name))


def unpack(data: bytes | memoryview) -> list[Module]:
    """Return the modules that `pack` packed."""
    return _decode(data)


# ---- where they come from


def owned(module: ModuleType | None) -> bool:
    """Tell whether a module is a user's own."""
    file = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "")
    return name != "__main__" and isinstance(file, str) and _owned_file(file)


def sources(names: Iterable[str]) -> dict[str, Module]:
    """Return the users' own among the modules of these names, with all of their own that these import, by name."""
    found: dict[str, Module] = {}
    looked_at: set[str] = set()
    pending = list(names)
    while pending and len(found) < _MAX_MODULES:
        name = pending.pop()
        if name in looked_at:
            continue
        looked_at.add(name)
        if parent := name.rpartition(".")[0]:
            pending.append(parent)
            _locate(name.partition(".")[0])  # first, so that nothing is looked for in what is somebody else's
        place = _locate(name)
        if place is None:
            continue
        file, package = place
        text, imports = _read(file, name, package, Path(file).stat().st_mtime_ns) if file else ("", ())
        found[name] = Module(name, file, package, text)
        pending += imports
    return found


def imported_by(source: str) -> set[str]:
    """Return the names of modules that a cell's plain Python may import."""
    return set(_imports(_parsed(source), "", package=False))


_foreign: Final[set[str]] = set(sys.stdlib_module_names)  # packages known to be somebody else's: none is looked into


@lru_cache(maxsize=4096)
def imported_in(code: CodeType) -> frozenset[str]:
    """Return the names of modules that a function may import when it runs."""
    found: set[str] = set()
    constants: list[object] = []
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            constants.append(step.argval)
        elif step.opname == "IMPORT_NAME":
            found.add(step.argval)
            if constants and isinstance(constants[-1], tuple):
                found |= {f"{step.argval}.{name}" for name in constants[-1] if isinstance(name, str) and name != "*"}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= imported_in(constant)
    return frozenset(found)


def is_foreign(name: str) -> bool:
    """Tell whether a module is known to be somebody else's: of Python itself, or installed."""
    return name.partition(".")[0] in _foreign or name.partition(".")[0] in sys.stdlib_module_names


def _locate(name: str) -> tuple[str, bool] | None:
    """Return the file of a user's own module, and whether it is a package; None for any other."""
    top = name.partition(".")[0]
    if top in _foreign:
        return None
    place = _place(name)
    if place is None and name == top and (top in sys.modules or _find(top) is not None):
        _foreign.add(top)
    return place


def _place(name: str) -> tuple[str, bool] | None:
    loaded = sys.modules.get(name)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        if file is None and hasattr(loaded, "__path__"):  # a package without a file of its own
            return ("", True) if any(_owned_folder(folder) for folder in loaded.__path__) else None
        return (str(file), hasattr(loaded, "__path__")) if owned(loaded) and Path(str(file)).is_file() else None
    spec = _find(name)
    if spec is None or (spec.loader is None and not spec.submodule_search_locations):
        return None
    package = spec.submodule_search_locations is not None
    if spec.origin is None or spec.origin == "namespace":
        return ("", True) if any(_owned_folder(folder) for folder in spec.submodule_search_locations or ()) else None
    return (spec.origin, package) if _owned_file(spec.origin) else None


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    """Look for a module without importing the packages it is in, as `importlib.util.find_spec` would."""
    path: Sequence[str] | None = None
    if parent := name.rpartition(".")[0]:
        loaded = sys.modules.get(parent)
        if loaded is not None:
            path = list(getattr(loaded, "__path__", ()))
        else:
            above = _find(parent)
            path = list(above.submodule_search_locations or ()) if above else []
        if not path:
            return None
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):  # finders of others may raise anything
            if (spec := finder.find_spec(name, path)) is not None:
                return spec
    return None


@lru_cache(maxsize=4096)
def _owned_file(file: str) -> bool:
    return file.endswith(".py") and _owned_folder(str(Path(file).parent)) and "ipykernel_" not in file


@lru_cache(maxsize=4096)
def _owned_folder(folder: str) -> bool:
    path = str(Path(folder).resolve())
    if any(part in _INSTALLED for part in Path(path).parts):
        return False
    python = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), _OWN}
    return not any(Path(path).is_relative_to(Path(place).resolve()) for place in python if place)


def _parsed(source: str) -> ast.Module:
    """Return the syntax tree of a text, from any thread.

    CPython counts how deep it is in a tree for all threads together, and fails where one of them is switched to in the
    middle of another's: `SystemError: AST constructor recursion depth mismatch`.
    """
    for _ in range(_PARSE_TRIES - 1):
        with contextlib.suppress(SystemError), _parsing:
            return ast.parse(source)
    with _parsing:
        return ast.parse(source)


@lru_cache(maxsize=1024)
def _read(file: str, name: str, package: bool, changed_ns: int) -> tuple[str, tuple[str, ...]]:
    """Return a module's text, and the names of what it imports; read anew when the file has changed."""
    del changed_ns
    with contextlib.suppress(OSError, SyntaxError, UnicodeError):
        text = importlib.util.decode_source(Path(file).read_bytes())
        return text, tuple(_imports(_parsed(text), name, package=package))
    return "", ()


def _imports(tree: ast.AST, name: str, *, package: bool) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = name if package else name.rpartition(".")[0]
                above = home.rsplit(".", node.level - 1)[0] if node.level > 1 else home
                base = f"{above}.{base}" if base else above
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


# ---- where they go to


class Importer(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from the sources that came with the running task, before any other of the same name."""

    def __init__(self) -> None:
        self._modules: dict[str, Module] = {}
        self._loaded: dict[str, Module] = {}

    @property
    def active(self) -> bool:
        """Tell whether modules are offered."""
        return bool(self._modules)

    def use(self, modules: Mapping[str, Module]) -> bool:
        """Offer these modules and no others; tell whether one that was imported had to be dropped for it."""
        if modules == self._modules:
            return False
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        self._modules = dict(modules)
        stale = [name for name, module in self._loaded.items() if modules.get(name) != module]
        stale += [name for name in modules if name in sys.modules and not self._same(name)]
        if not stale:
            return False
        # Those that import what has changed hold the old: all of them are imported anew.
        for name in {*stale, *self._loaded}:
            sys.modules.pop(name, None)
        self._loaded.clear()
        importlib.invalidate_caches()
        return True

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where to import a module from, if it came along."""
        del path, target
        module = self._modules.get(name)
        if module is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=module.file or None, is_package=module.package)
        spec.has_location = bool(module.file)
        if module.package and module.file:
            # What lies beside it, data and modules that nothing named, is found if this is the same machine.
            spec.submodule_search_locations = [str(Path(module.file).parent)]
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's source."""
        carried = self._modules[module.__name__]
        self._loaded[carried.name] = carried
        exec(compile(carried.source, carried.file or f"<{carried.name}>", "exec", dont_inherit=True), vars(module))  # noqa: S102

    def get_source(self, fullname: str) -> str | None:
        """Return a module's source, for tracebacks."""
        module = self._loaded.get(fullname) or self._modules.get(fullname)
        return module.source if module else None

    def is_package(self, fullname: str) -> bool:
        """Tell whether a module is a package."""
        return self._modules[fullname].package

    def _same(self, name: str) -> bool:
        """Tell whether a module that was imported here has the source that came along."""
        if name in self._loaded:
            return True
        loaded = sys.modules[name]
        file = getattr(loaded, "__file__", None)
        if not file:
            return not self._modules[name].source
        with contextlib.suppress(OSError, SyntaxError, UnicodeError):
            path = Path(file)
            changed = path.stat().st_mtime > _BEGUN  # perhaps after it was imported
            return not changed and importlib.util.decode_source(path.read_bytes()) == self._modules[name].source
        return False
