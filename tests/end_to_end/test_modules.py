"""Users' own modules: they travel with the tasks that use them, and again when they were edited."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from IPython.core.interactiveshell import InteractiveShell

from nbqueue.exceptions import RemoteError
from nbqueue.notebook.magics import TaskMagics
from tests.workers import Site

Write = Callable[[str, str], ModuleType]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Yield what writes a module that only this process can find, and imports it anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(name: str, source: str) -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        os.utime(path, ns=(path.stat().st_mtime_ns + len(source), path.stat().st_mtime_ns + len(source)))
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    made = InteractiveShell(user_ns={})  # type: ignore[no-untyped-call]
    yield made
    made.history_manager.end_session()  # type: ignore[union-attr]
    InteractiveShell.clear_instance()


def cell(shell: InteractiveShell, site: Site, source: str) -> object:
    return TaskMagics(shell, site.app, show=lambda *_, **__: None).task("--wait --view none --again", source)


def test_cell_uses_modules_beside_the_notebook(shell: InteractiveShell, shared_site: Site, folder: Write) -> None:
    folder("deeper", "FACTOR = 3")
    shell.user_ns["helpers"] = folder("helpers", "import deeper\ndef scale(x): return x * deeper.FACTOR")
    assert cell(shell, shared_site, "helpers.scale(2)") == 6
    assert cell(shell, shared_site, "from helpers import scale as s\ns(3)") == 9
    assert cell(shell, shared_site, "def f():\n    import helpers\n    return helpers.scale(4)\nf()") == 12


def test_edited_module_is_in_force_in_workers_that_run(
    shell: InteractiveShell, shared_site: Site, folder: Write
) -> None:
    for version in range(1, 4):
        shell.user_ns["helpers"] = folder("helpers", f"def version(): return {version}")
        answers = [cell(shell, shared_site, f"# {n}\nhelpers.version()") for n in range(4)]  # both children
        assert answers == [version] * 4


def test_function_of_a_module_travels_and_its_edit_too(shared_site: Site, folder: Write) -> None:
    for version in (1, 2):
        module = folder("jobs", f"def job(x, again=0): return job(x, 0) if again else x + {version}")
        task = shared_site.app.task(module.job)
        assert task.map(range(10)).get(timeout=20) == [x + version for x in range(10)]
        assert task.delay(1, again=1).get(timeout=20) == 1 + version


def test_class_of_a_module_is_one_and_the_same_class(shared_site: Site, folder: Write) -> None:
    module = folder("shapes", "class Square:\n    def __init__(self, a): self.a = a\ndef make(a): return Square(a)")

    def area(square: object) -> object:
        import shapes  # type: ignore[import-not-found]

        assert isinstance(square, shapes.Square)
        return shapes.make(square.a**2)

    back = shared_site.app.task(area).delay(module.Square(3)).get(timeout=20)
    assert isinstance(back, module.Square)
    assert back.a == 9


def test_modules_of_one_project_are_not_found_by_another(
    shell: InteractiveShell, shared_site: Site, folder: Write
) -> None:
    folder("mine", "X = 1")
    for n in range(4):  # both children
        assert cell(shell, shared_site, f"import mine\nmine.X + {n}") == 1 + n
    for n in range(4):
        with pytest.raises(ModuleNotFoundError, match="mine"):
            cell(shell, shared_site, f"import importlib\nimportlib.import_module('mi' + 'ne').X + {n}")


def test_missing_module_is_named_with_its_worker_and_the_way_out(shared_site: Site) -> None:
    def uses() -> None:
        import no_such_thing  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises((ModuleNotFoundError, RemoteError), match=r"no_such_thing.*on worker .*pip install"):
        shared_site.app.task(uses).delay().get(timeout=20)


def test_error_in_a_module_shows_its_own_line(shell: InteractiveShell, shared_site: Site, folder: Write) -> None:
    shell.user_ns["helpers"] = folder("helpers", "def fail():\n    return 1 / 0  # here")
    with pytest.raises(ZeroDivisionError) as caught:
        cell(shell, shared_site, "helpers.fail()")
    assert "helpers.py" in str(caught.value.__cause__)
    assert "return 1 / 0  # here" in str(caught.value.__cause__)


def test_worker_on_another_machine_gets_modules_through_the_backend(
    tmp_path: Path, folder: Write, idle_site: Site
) -> None:
    module = folder("far", "def f(x): return -x")
    idle_site.worker(home=tmp_path / "elsewhere")
    assert idle_site.app.task(module.f).delay(2).get(timeout=20) == -2
