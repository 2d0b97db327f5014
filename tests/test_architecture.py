from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("IPython", "ipywidgets", "kombu", "redis")
FENCED = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
POINTER = re.compile(r"`((?:nbqueue|tests|notebooks|binder|\.ci)/[\w./-]+)`")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#")


def files_named(ending: str) -> list[Path]:
    """Every file of the project with that ending; folders that tools made have names with a dot."""
    found = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if not name.startswith(".") and name not in {"out", "build", "dist"}]
        found += [Path(folder, name) for name in files if name.endswith(ending)]
    return sorted(found)


def prose() -> list[tuple[Path, str]]:
    """Every Markdown text, without its blocks of code: documents, and the cells of notebooks."""
    texts = [(path, path.read_text()) for path in files_named(".md")]
    for path in files_named(".ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts += [(path, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"]
    return [(path, FENCED.sub("", text)) for path, text in texts]


def heavy_modules_after(statement: str) -> list[str]:
    """Those of the heavy packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout)
    return loaded


@pytest.mark.parametrize("module", ["nbqueue", "nbqueue.child"])
def test_import_loads_no_heavy_package_when_nothing_is_used_yet(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == []


def test_heavy_modules_are_seen_when_they_are_loaded() -> None:
    assert heavy_modules_after("import redis") == ["redis"]


def test_version_is_written_once_when_all_files_are_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "nbqueue/_version.py"
    assigned = re.compile(r"^__version__\b.*=", re.MULTILINE)
    writers = [path for path in files_named(".py") if assigned.search(path.read_text())]
    assert writers == [ROOT / "nbqueue" / "_version.py"]


def test_links_lead_to_files_when_they_are_relative() -> None:
    links = [(path, link) for path, text in prose() for link in LINK.findall(text) if not ELSEWHERE.match(link)]
    assert links
    dead = [(str(path), link) for path, link in links if not (path.parent / link.split("#")[0]).exists()]
    assert dead == []


def test_paths_exist_when_prose_names_them() -> None:
    pointers = [(str(path), pointer) for path, text in prose() for pointer in POINTER.findall(text)]
    assert pointers
    assert [(path, pointer) for path, pointer in pointers if not (ROOT / pointer).exists()] == []


def test_tests_exist_when_prose_names_them() -> None:
    named = [(str(path), name) for path, text in prose() for name in re.findall(r"`(test_\w+)`", text)]
    assert named
    tests = re.compile(r"^def (test_\w+)", re.MULTILINE)
    defined = {name for path in files_named(".py") for name in tests.findall(path.read_text())}
    assert [(path, name) for path, name in named if name not in defined] == []


def notebooks() -> list[Any]:
    """Each notebook as a test's parameter."""
    return [pytest.param(json.loads(path.read_text()), id=path.stem) for path in files_named(".ipynb")]


def test_notebooks_include_the_one_to_begin_with() -> None:
    assert (ROOT / "notebooks" / "01_quickstart.ipynb").exists()


@pytest.mark.parametrize("notebook", notebooks())
def test_notebook_holds_no_outputs_when_it_is_stored(notebook: dict[str, Any]) -> None:
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["source"] for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert "widgets" not in notebook["metadata"]


@pytest.mark.parametrize("notebook", notebooks())
def test_notebook_names_its_kernel_when_it_is_opened(notebook: dict[str, Any]) -> None:
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
