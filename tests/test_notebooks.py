"""The example notebooks run from top to bottom on an embedded server of their own, as a user's would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def home() -> Iterator[Path]:
    """Yield a short directory in which a server, a keeper and a worker start, and end with the test."""
    directory = Path(tempfile.mkdtemp(prefix="nbq-"))
    yield directory
    down = [sys.executable, "-m", "nbqueue", "down", "--grace", "1"]
    subprocess.run(down, env={**os.environ, "NBQUEUE_HOME": str(directory)}, check=True, capture_output=True, cwd=ROOT)
    shutil.rmtree(directory)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_top_to_bottom(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBQUEUE_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=150, kernel_name="python3", resources={"metadata": {"path": str(home)}})
    with (home / "kernel.log").open("w") as log:
        client.execute(stderr=log)  # raises at the first cell that fails, and the last ones assert
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
