"""Compare nbqueue with its peers: `python -m tests.benchmarks.run [--rounds N] [--short]`.

Each round runs each kind of work on each installed system once, in turn, each time with a new client process, new
workers and a new server on a unix socket. Figures are medians; ratios are made within a round. Nothing here fails
because something was slow.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from nbqueue import __version__
from nbqueue.signing import create_key_file
from tests.benchmarks import report
from tests.benchmarks.peers import FIRST, KINDS, SYSTEMS, URL
from tests.benchmarks.report import Figures, Runs
from tests.benchmarks.work import MARKS
from tests.helpers import RedisServer, server_binary

ROOT: Final = Path(__file__).resolve().parents[2]
REPORT: Final = Path(__file__).parent / "report"
LIMIT_S: Final = 230.0
VIEW: Final = "view"  # a kind that only nbqueue has: see `view`
PACKAGES: Final = (
    *("redis", "hiredis", "kombu", "celery", "dramatiq", "huey", "saq", "rq", "ray", "distributed", "ipyparallel"),
    *("numpy", "ipykernel"),
)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--short", action="store_true", help="one round, a tenth of the work, no report")
    parser.add_argument("--only", default="", help="systems, separated by `;`")
    parser.add_argument("--kinds", default=",".join((*KINDS, VIEW)), help="of work, separated by commas")
    parser.add_argument("--backlog", type=int, default=50_000, metavar="N", help="messages; 1000000 takes long")
    parser.add_argument("--report", type=Path, help=f"the file to write, instead of {REPORT.name}/speed.md")
    options = parser.parse_args(words)
    rounds, seconds = (1, 0.1) if options.short else (options.rounds, 1.0)
    backlog = options.backlog // 50 if options.short else options.backlog
    chosen = [name.strip() for name in options.only.split(";") if name.strip()] or list(SYSTEMS)
    if not options.short:  # start-up would measure the compiler, where nothing may be written while programs run
        for code in (ROOT / "nbqueue", ROOT / "tests", Path(sysconfig.get_path("purelib"))):
            compileall.compile_dir(code, quiet=2)
    about = describe(f"{rounds} interleaved round{'s' * (rounds != 1)} ")  # with the load before this adds to it
    path: Path | None = options.report or (None if options.short else REPORT / "speed.md")
    said = ""
    for runs in repeat(rounds, chosen, options.kinds.split(","), seconds, backlog):
        said = report.text(runs, about)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(said)
    print(said)
    return 0


def repeat(rounds: int, names: Sequence[str], kinds: Sequence[str], seconds: float, backlog: int) -> Iterator[Runs]:
    """Measure every chosen system that is installed so often, interleaved; yield all there is after each kind."""
    runs: Runs = {name: [] for name in names if SYSTEMS[name].installed}
    for number in range(rounds):
        for done in runs.values():
            done.append({})
        for kind in kinds:
            for name, done in runs.items():
                if kind in (*SYSTEMS[name].kinds, VIEW) and (kind != VIEW or name == "nbqueue"):
                    began = time.monotonic()
                    done[number] |= attempted(kind, name, seconds, backlog)
                    took = time.monotonic() - began
                    print(f"round {number + 1}/{rounds}: {kind}, {name}, {took:.0f} s", file=sys.stderr, flush=True)
            yield runs


def attempted(kind: str, name: str, seconds: float, backlog: int) -> Figures:
    """Measure one system; what another's fails at is left out, and said."""
    try:
        return session(kind, name, seconds, backlog)
    except (RuntimeError, subprocess.TimeoutExpired) as exc:
        if name.startswith("nbqueue"):
            raise
        print(f"left out: {exc}", file=sys.stderr, flush=True)
        return {}


def session(kind: str, name: str, seconds: float, backlog: int) -> Figures:
    """Measure one system once, on a server of its own."""
    system = SYSTEMS[name]
    with contextlib.ExitStack() as ends:
        place = tempfile.TemporaryDirectory(prefix="nbq-", ignore_cleanup_errors=True)
        directory = Path(ends.enter_context(place))
        url = ends.enter_context(Server(appendonly=system.appendonly)).url if system.server else ""
        if kind == VIEW:
            command = [sys.executable, "-m", "tests.benchmarks.view", str(seconds)]
        else:
            command = [sys.executable, "-m", "tests.benchmarks.session", kind, name, url, str(seconds), str(backlog)]
        # files: a pipe would be kept open by whatever a system leaves behind
        with (directory / "out").open("w") as out, (directory / "err").open("w") as err:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment(directory, url),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            process.wait(timeout=LIMIT_S if kind != FIRST else LIMIT_S / 2)
        finally:
            # the client, if it was interrupted, and what it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said, errors = (directory / "out").read_text(), (directory / "err").read_text()
    if process.returncode != 0:
        raise RuntimeError(f"{kind} of {name} failed:\n{said}{errors[-3000:]}")
    figures: Figures = json.loads(said.splitlines()[-1])
    return figures


def environment(directory: Path, url: str) -> dict[str, str]:
    """Return the variables of a session and all that it starts."""
    ours = ("NBQUEUE_", "CELERY_", "RAY_", "BENCHMARK_")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    (directory / "marks").mkdir()
    (directory / "tmp").mkdir()
    variables |= {
        "NBQUEUE_HOME": str(directory / "h"),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(directory / "tmp"),
        "C_FORCE_ROOT": "1",
        MARKS: str(directory / "marks"),
    }
    if url:
        key_file = directory / "key"
        create_key_file(key_file)
        variables |= {"NBQUEUE_BROKER_URL": url, "NBQUEUE_KEY_FILE": str(key_file), URL: url}
    return variables


class Server(RedisServer):
    """The system's redis-server, if it has one, for all alike."""

    def _command(self) -> list[str]:
        return [program(), *super()._command()[1:]]


def program() -> str:
    return shutil.which("redis-server") or server_binary()


def describe(how: str = "") -> str:
    """Return a line on machine and versions; `how` says how it was measured."""
    server = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout
    version = next(word for word in server.split() if word.startswith("v=")).removeprefix("v=")
    packages = ", ".join(f"{name} {found}" for name in PACKAGES if (found := installed_version(name)))
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {how}on "
        f"{os.cpu_count()} cores ({processor()}), {platform.system()}, load {os.getloadavg()[0]:.1f} at the start; "
        f"Python {platform.python_version()}, {Path(program()).name} {version} on a unix socket, "
        f"nbqueue {__version__}{commit()}, {packages}."
    )


def commit() -> str:
    """Return which commit is measured, if that can be told."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return f" ({subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()})"
    return ""


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(models(lines), platform.machine())


def models(lines: Sequence[str]) -> Iterator[str]:
    return (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    sys.exit(main())
