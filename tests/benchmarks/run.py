"""Compare nbqueue with a process pool and with Celery: `python -m tests.benchmarks.run [--repeats N] [--short]`.

Each repeat measures every system in turn, each with a new client process, new workers and a new server on a unix
socket. The tables hold medians with the lowest and the highest. Nothing here fails because something was slow.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nbqueue import __version__
from nbqueue.signing import create_key_file
from tests.benchmarks.peers import SYSTEMS
from tests.helpers import RedisServer, server_binary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.session import Figures

ROOT: Final = Path(__file__).resolve().parents[2]
REPORT: Final = Path(__file__).parent / "report" / "first.md"
LIMIT_S: Final = 180.0
OURS: Final = ("nbqueue", "nbqueue, file", "nbqueue, by name")
THEIRS: Final = ("ProcessPoolExecutor", "Celery")
PACKAGES: Final = ("redis", "hiredis", "kombu", "celery")


class Row(NamedTuple):
    title: str
    figure: str
    digits: int
    higher_is_better: bool = False


ROWS: Final = (
    Row("map of no-ops, all results back, tasks/s", "map_rate", 0, higher_is_better=True),
    Row("loop of `delay()`, each confirmed, sent/s", "send_rate", 0, higher_is_better=True),
    Row("the same until all results are back, tasks/s", "send_all_rate", 0, higher_is_better=True),
    Row("round trip p50, ms", "p50_ms", 2),
    Row("round trip p99, ms", "p99_ms", 2),
    Row("idle memory of the workers (PSS), MB", "pss_mb", 0),
    Row("cold start to the first result, s", "cold_s", 2),
    Row("spin (a fixed piece of Python), ms", "spin_ms", 0),
)
NOISE: Final = "spin_ms"

Runs = dict[str, list["Figures"]]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and add to the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--short", action="store_true", help="one repeat, a tenth of the work, no report")
    parser.add_argument("--report", type=Path, help=f"the file to add to, instead of {REPORT.relative_to(ROOT)}")
    options = parser.parse_args(words)
    repeats, seconds = (1, 0.2) if options.short else (options.repeats, 1.0)
    about = describe(repeats)  # with the load before this adds to it
    text = report(repeat(repeats, seconds), about)
    print(text)
    path: Path | None = options.report or (None if options.short else REPORT)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text + "\n")
    return 0


def repeat(repeats: int, seconds: float) -> Runs:
    """Measure every system that is installed so often, interleaved."""
    runs: Runs = {name: [] for name in SYSTEMS if SYSTEMS[name].installed()}
    for number in range(repeats):
        for name, done in runs.items():
            print(f"repeat {number + 1} of {repeats}: {name}", file=sys.stderr, flush=True)
            done.append(session(name, seconds))
    return runs


def session(name: str, seconds: float) -> Figures:
    """Measure one system once, on a server of its own."""
    with tempfile.TemporaryDirectory(prefix="nbq-") as directory, Server(appendonly=SYSTEMS[name].appendonly) as server:
        key_file = Path(directory) / "key"
        create_key_file(key_file)
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NBQUEUE_", "CELERY_"))},
            "NBQUEUE_BROKER_URL": server.url,
            "NBQUEUE_KEY_FILE": str(key_file),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "tests.benchmarks.session", name, server.url, str(seconds)]
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            # the client, if it was interrupted, and what it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{out}{err}")
    figures: Figures = json.loads(out.splitlines()[-1])
    return figures


class Server(RedisServer):
    """The system's redis-server, if it has one, for all alike."""

    def _command(self) -> list[str]:
        return [program(), *super()._command()[1:]]


def program() -> str:
    return shutil.which("redis-server") or server_binary()


def report(runs: Runs, about: str) -> str:
    """Return the tables as Markdown."""
    return "\n".join([about, "", *table(runs), "", *ratios(runs), "", *details(runs), ""])


def table(runs: Runs) -> Iterator[str]:
    """Yield the table of medians, lowest and highest."""
    yield f"| work | {' | '.join(SYSTEMS)} |"
    yield "| --- |" + " ---: |" * len(SYSTEMS)
    for row in ROWS:
        cells = [spread([f[row.figure] for f in runs[name]], row.digits) if name in runs else "" for name in SYSTEMS]
        yield f"| {row.title} | {' | '.join(cells)} |"
    for name in SYSTEMS:
        if name not in runs:
            yield f"| {name} is not installed |" + " |" * len(SYSTEMS)


def ratios(runs: Runs) -> Iterator[str]:
    """Yield the table of ratios: within each repeat, then their median, lowest and highest."""
    pairs = [(ours, theirs) for theirs in THEIRS for ours in OURS if theirs in runs]
    yield "| ratio | " + " | ".join(f"{ours} : {theirs}" for ours, theirs in pairs) + " |"
    yield "| --- |" + " ---: |" * len(pairs)
    for row in ROWS:
        if row.figure == NOISE:
            continue
        cells = [
            spread([a[row.figure] / b[row.figure] for a, b in zip(runs[ours], runs[theirs], strict=True)], 2)
            for ours, theirs in pairs
        ]
        better = "higher" if row.higher_is_better else "lower"
        yield f"| {row.title.rpartition(',')[0]} ({better} is better) | {' | '.join(cells)} |"


def details(runs: Runs) -> Iterator[str]:
    """Yield how each system was driven."""
    for name, done in runs.items():
        n = [f"{statistics.median(f[key] for f in done):,.0f}" for key in ("map_n", "send_n", "trips_n", "processes")]
        yield f"* {name}: {SYSTEMS[name].about}."
        yield f"  Tasks in a map {n[0]}, in a loop {n[1]}, round trips {n[2]}; processes besides the client {n[3]}."


def spread(values: Sequence[float], digits: int) -> str:
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def describe(repeats: int) -> str:
    """Return a line on machine and versions."""
    server = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout
    version = next(word for word in server.split() if word.startswith("v=")).removeprefix("v=")
    packages = ", ".join(f"{name} {found}" for name in PACKAGES if (found := installed_version(name)))
    return (
        f"## {time.strftime('%Y-%m-%d %H:%M')}, {repeats} interleaved repeat{'s' * (repeats != 1)}\n\n"
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
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    sys.exit(main())
