"""The virtual environments of `tests/run.py` and `notebooks/run.py`, and the programs they need.

Needs nothing but a system's Python, Debian's included, so it can run before anything is installed. What pip is told on
this machine (its configuration files, its environment variables) holds here too.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def ensure_environment(name: str) -> Path:
    """Make the virtual environment `.venv-<name>` with the project and its extra of that name; return its Python.

    One that is up to date is used as it is. One made by another Python, or for other dependencies, is made anew, so
    that nothing stays in it that pyproject.toml no longer names. Two that call this at once wait for each other.
    """
    if sys.version_info < OLDEST:
        fail(f"nbqueue needs Python {OLDEST[0]}.{OLDEST[1]} or later, this is {sys.version.split()[0]}")
    folder = environment_folder(name)
    stamp = folder / "made-for"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = _fingerprint(name)
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"Making {folder.name} with the extra [{name}]; this takes a minute or more, once ...", flush=True)
            _make(folder, name)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def environment_folder(name: str) -> Path:
    """Return where the environment of that name is or will be."""
    return ROOT / f".venv-{name}"


def environment_variables(python: Path) -> dict[str, str]:
    """Return this process's variables as they are after activating the environment of `python`."""
    variables = {key: value for key, value in os.environ.items() if key not in {"PYTHONHOME", "PYTHONPATH"}}
    variables["VIRTUAL_ENV"] = str(python.parent.parent)
    variables["PATH"] = f"{python.parent}{os.pathsep}{variables.get('PATH', os.defpath)}"
    return variables


def replace_process(python: Path, *args: str) -> NoReturn:
    """Go on as the environment's Python with these arguments: its output, its signals, its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python, [str(python), *args], environment_variables(python))


def chromium_binary() -> str | None:
    """Return the path of a Chromium or Chrome, if there is one."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


def ensure_chromium() -> None:
    """Install Chromium where that is possible without a question; say so where it stays missing."""
    if chromium_binary() or (apt_install("chromium") and chromium_binary()):
        return
    consequence = "tests in a browser fail" if os.environ.get("CI") else "tests in a browser are skipped"
    print(f"No Chromium on PATH: {consequence}. On Debian: sudo apt-get install chromium", flush=True)


def rabbitmq_binary() -> str | None:
    """Return the path of RabbitMQ's server, if there is one; where Debian keeps it comes first."""
    # /usr/sbin has a script that changes the user
    return shutil.which("rabbitmq-server", path=f"/usr/lib/rabbitmq/bin:{os.environ.get('PATH', '')}:/usr/sbin")


def ensure_rabbitmq() -> None:
    """Install RabbitMQ where that is possible without a question; say so where it stays missing."""
    if rabbitmq_binary() or (apt_install("rabbitmq-server") and rabbitmq_binary()):
        return
    consequence = "tests of RabbitMQ fail" if os.environ.get("CI") else "tests of RabbitMQ are skipped"
    print(f"No rabbitmq-server: {consequence}. On Debian: sudo apt-get install rabbitmq-server", flush=True)


def apt_install(package: str) -> bool:
    """Install a Debian package; False where that takes another user, another system or another mirror."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    print(f"Installing {package} with apt-get ...", flush=True)
    # the lists of a fresh container are empty, those of an old one name files that are gone
    install = ["install", "--yes", "--no-install-recommends", package]
    return _apt_get(*install) or (_apt_get("update") and _apt_get(*install, show=True))


def fail(message: str) -> NoReturn:
    """End the script with a message and exit code 2."""
    print(message, file=sys.stderr, flush=True)
    sys.exit(2)


def _fingerprint(name: str) -> str:
    """Describe what an environment depends on: the Python, the place, and what pyproject.toml says of the project."""
    import tomllib

    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [name, sys.version, sys.base_prefix, str(ROOT), described["project"], described["build-system"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _make(folder: Path, extra: str) -> None:
    _ensure_venv_module()
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        # quiet, but for errors
        [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--editable", f".[{extra}]"],
    ]
    for step in steps:
        if subprocess.run(step, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            fail(f"could not make {folder.name}; this failed: {' '.join(step)}")


def _ensure_venv_module() -> None:
    """Debian ships `venv` in a package of its own, of which `ensurepip` is the part that may be missing."""
    if importlib.util.find_spec("ensurepip"):
        return
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    apt_install(package)
    importlib.invalidate_caches()
    if not importlib.util.find_spec("ensurepip"):
        fail(f"{sys.executable} can't make virtual environments yet. On Debian: sudo apt-get install {package}")


def _apt_get(*args: str, show: bool = False) -> bool:
    """Run apt-get without questions; its output is shown if it fails and that is asked for."""
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *args]
    variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if show and done.returncode != 0:
        print(done.stdout + done.stderr, file=sys.stderr, flush=True)
    return done.returncode == 0
