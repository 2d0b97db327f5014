"""The files in binder/ make what the notebooks need, by the steps that repo2docker takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BINDER = ROOT / "binder"


def test_files_are_those_that_repo2docker_knows() -> None:
    assert sorted(path.name for path in BINDER.iterdir()) == ["postBuild", "requirements.txt", "runtime.txt"]
    assert os.access(BINDER / "postBuild", os.X_OK)
    assert re.fullmatch(r"python-3\.1[1-9]\n", (BINDER / "runtime.txt").read_text())


@pytest.fixture
def home() -> Iterator[Path]:
    """Yield a home directory of a user who has just arrived; short, for the server's socket."""
    directory = Path(tempfile.mkdtemp(prefix="nbq-"))
    yield directory
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_notebooks_run_in_what_the_steps_make(home: Path) -> None:
    """In a clone, with nothing else: the requirements, postBuild, then the notebooks."""
    copy = home / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
    venv.create(home / "env", with_pip=True)
    variables = {
        "HOME": str(home),
        "PATH": f"{home / 'env' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "NBQUEUE_HOME": str(home / "h"),
    }
    for name in ("PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy"):
        if name in os.environ:
            variables[name] = os.environ[name]

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=copy, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    run("python", "-m", "pip", "install", "-q", "-r", "binder/requirements.txt")
    run("binder/postBuild")
    try:
        run(
            "jupyter",
            "nbconvert",
            "--to",
            "notebook",
            "--execute",
            "--output-dir",
            str(home),
            "notebooks/01_quickstart.ipynb",
        )
        run(
            "jupyter",
            "nbconvert",
            "--to",
            "notebook",
            "--execute",
            "--output-dir",
            str(home),
            "notebooks/03_images_in_bulk.ipynb",
        )
    finally:
        run("python", "-m", "nbqueue", "down", "--grace", "1")
