from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from nbqueue import modules
from nbqueue.modules import Importer, Module, imported_by, imported_in, owned, pack, sources, unpack

Write = Callable[..., Path]


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Yield what writes modules into a folder beside the notebook; what was imported of them is forgotten after."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(name: str, source: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def importer() -> Iterator[Importer]:
    """Yield an importer, and take it and what it imported away after."""
    made = Importer()
    before = set(sys.modules)
    yield made
    made.use({})
    if made in sys.meta_path:
        sys.meta_path.remove(made)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_modules_are_found_with_all_of_their_own_that_they_import(beside: Write) -> None:
    beside("one.py", "import json, numpy, two\nfrom pack.inner import part\n")
    beside("two.py", "def f():\n    import three\n")
    beside("three.py", "X = 1")
    beside("four.py", "")
    beside("pack/__init__.py", "from . import inner")
    beside("pack/inner/__init__.py", "from .part import value\nfrom ..other import x")
    beside("pack/inner/part.py", "value = 1")
    beside("pack/other.py", "x = 1")
    beside("pack/unused.py", "")
    found = sources(["one"])
    assert sorted(found) == ["one", "pack", "pack.inner", "pack.inner.part", "pack.other", "three", "two"]
    assert [name for name, module in found.items() if module.package] == ["pack.inner", "pack"] or all(
        found[name].package for name in ("pack", "pack.inner")
    )
    assert not sys.modules.keys() & found.keys()  # nothing was imported for it


def test_modules_of_others_stay_where_they_are(beside: Write) -> None:
    assert sources(["numpy", "numpy.linalg", "json", "os.path", "nbqueue.app", "no_such_module", "pytest"]) == {}
    import numpy as np

    assert not owned(np)
    assert not owned(modules)
    assert not owned(None)
    assert not owned(ModuleType("made"))


def test_package_without_a_file_of_its_own_travels_too(beside: Write) -> None:
    beside("space/part.py", "X = 5")
    assert sorted(sources(["space.part"])) == ["space", "space.part"]
    module = importlib.import_module("space.part")
    assert owned(module)
    assert sorted(sources(["space.part"])) == ["space", "space.part"]


def test_modules_that_import_each_other_are_found(beside: Write) -> None:
    beside("here.py", "import there")
    beside("there.py", "import here")
    assert sorted(sources(["here"])) == ["here", "there"]


def test_text_is_the_one_on_the_disk_now(beside: Write) -> None:
    path = beside("edited.py", "X = 1")
    importlib.import_module("edited")
    assert sources(["edited"])["edited"].source == "X = 1"
    path.write_text("X = 2")
    os.utime(path, ns=(1, 1))
    assert sources(["edited"])["edited"].source == "X = 2"


def test_module_that_is_no_python_travels_as_it_can(beside: Write) -> None:
    beside("broken.py", "def (")
    assert sources(["broken"])["broken"].name == "broken"


def test_imports_of_a_cell_are_seen_wherever_they_stand() -> None:
    source = "import a.b\nfrom c import d as e, f\ndef g():\n    from h import *\nif 1:\n    import i as j"
    assert imported_by(source) == {"a.b", "c", "c.d", "c.f", "h", "i"}


def test_imports_of_a_function_are_seen_in_what_is_nested_too() -> None:
    namespace: dict[str, Callable[[], object]] = {}
    exec(
        "def f():\n    import a.b\n    def g():\n        from c import d, e\n    return lambda: __import__('z')",
        namespace,
    )
    assert imported_in(namespace["f"].__code__) == {"a.b", "c", "c.d", "c.e"}


def test_packed_modules_are_the_same_whatever_their_order() -> None:
    one, two = Module("a", "/a.py", False, "é = 1"), Module("b", "/b.py", True, "")
    assert pack([one, two]) == pack([two, one])
    assert unpack(pack([two, one])) == [one, two]


def offered(**texts: str) -> dict[str, Module]:
    return {name: Module(name, f"/nowhere/{name}.py", False, text) for name, text in texts.items()}


def test_importer_imports_what_it_was_offered(importer: Importer) -> None:
    importer.use(offered(mine="import other\nX = other.Y + 1", other="Y = 1"))
    mine = importlib.import_module("mine")
    assert (mine.X, mine.__file__) == (2, "/nowhere/mine.py")
    assert mine.other is sys.modules["other"]


def test_importer_imports_packages(importer: Importer) -> None:
    package = {
        "pack": Module("pack", "/nowhere/pack/__init__.py", True, "from .inner import f"),
        "pack.inner": Module("pack.inner", "/nowhere/pack/inner.py", False, "def f(): return __name__, __package__"),
        "space": Module("space", "", True, ""),
        "space.part": Module("space.part", "/nowhere/space/part.py", False, "X = 5"),
    }
    importer.use(package)
    assert importlib.import_module("pack").f() == ("pack.inner", "pack")
    assert importlib.import_module("space.part").X == 5


def test_importer_keeps_what_has_not_changed(importer: Importer) -> None:
    assert not importer.use(offered(mine="X = 1", other="Y = 1"))
    mine = importlib.import_module("mine")
    assert not importer.use(offered(mine="X = 1"))
    assert importlib.import_module("mine") is mine


def test_importer_imports_anew_what_has_changed_and_who_uses_it(importer: Importer) -> None:
    importer.use(offered(mine="from other import Y", other="Y = 1"))
    assert importlib.import_module("mine").Y == 1
    assert importer.use(offered(mine="from other import Y", other="Y = 2"))
    assert importlib.import_module("mine").Y == 2


def test_importer_offers_nothing_of_an_earlier_task(importer: Importer) -> None:
    importer.use(offered(mine="X = 1"))
    importlib.import_module("mine")
    assert importer.use({})
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mine")


def test_importer_comes_before_a_file_of_the_same_name(importer: Importer, beside: Write) -> None:
    beside("mine.py", "X = 'file'")
    importer.use(offered(mine="X = 'sent'"))
    assert importlib.import_module("mine").X == "sent"


def test_importer_replaces_what_a_worker_imported_from_another_text(importer: Importer, beside: Write) -> None:
    path = beside("mine.py", "X = 'file'")
    os.utime(path, (1, 1))
    file = importlib.import_module("mine")
    importer.use(offered(mine="X = 'file'"))
    assert importlib.import_module("mine") is file
    importer.use(offered(mine="X = 'sent'"))
    assert importlib.import_module("mine").X == "sent"


def test_importer_does_not_trust_a_file_that_was_edited_after_it_was_imported(
    importer: Importer, beside: Write
) -> None:
    path = beside("mine.py", "X = 'old'")
    importlib.import_module("mine")
    path.write_text("X = 'new'")
    os.utime(path, (time.time() + 5, time.time() + 5))
    importer.use(offered(mine="X = 'new'"))
    assert importlib.import_module("mine").X == "new"


def test_module_that_fails_says_so_with_its_own_line(importer: Importer) -> None:
    import traceback

    importer.use(offered(mine="X = 1\n1 / 0"))
    try:
        importlib.import_module("mine")
    except ZeroDivisionError:
        text = traceback.format_exc()
    assert 'File "/nowhere/mine.py", line 2' in text
    assert "1 / 0" in text


def test_editable_install_is_a_users_own(tmp_path: Path) -> None:
    """A finder stands for the hooks that installers leave for editable packages."""
    (tmp_path / "src" / "mine").mkdir(parents=True)
    (tmp_path / "src" / "mine" / "__init__.py").write_text("from .part import X")
    (tmp_path / "src" / "mine" / "part.py").write_text("X = 1")
    program = f"""
import importlib.util, sys
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "mine":
            where = {str(tmp_path / "src" / "mine")!r}
            return importlib.util.spec_from_file_location(
                name, where + "/__init__.py", submodule_search_locations=[where])
sys.meta_path.append(Finder)
from nbqueue.modules import sources
print(sorted(sources(["mine"])))
import mine
print(sorted(sources(["mine"])))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split("\n")[:2] == ["['mine', 'mine.part']"] * 2


def test_text_is_parsed_again_when_another_thread_disturbed_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = iter([True, True, False])

    def sometimes(source: str) -> ast.Module:
        if next(disturbed):
            raise SystemError("AST constructor recursion depth mismatch (before=54, after=50)")
        return ast.parse(source)

    # In this module alone: others parse too, such as what runs the tests.
    monkeypatch.setattr(modules, "ast", SimpleNamespace(**{**vars(ast), "parse": sometimes}))
    assert ast.unparse(modules._parsed("import json")) == "import json"
