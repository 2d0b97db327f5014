"""Run the tests, or the checks, from a fresh clone with nothing but a system's Python.

    python3 tests/run.py            the fast tests, several side by side
    python3 tests/run.py --all      the slow ones too
    python3 tests/run.py --lint     formatting, lint, types and layers instead of tests
    python3 tests/run.py --bench    a short benchmark beside others instead of tests; it fails for nothing that is slow
    python3 tests/run.py -k cells   other arguments are pytest's

The virtual environment `.venv-test` is made on the first run, and anew when the dependencies change.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.environment import (
    ROOT,
    ensure_chromium,
    ensure_environment,
    ensure_rabbitmq,
    environment_variables,
    replace_process,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECKS = (
    ("ruff", "check"),
    ("ruff", "format", "--check"),
    ("mypy", "--strict"),
    ("lint-imports",),
)
BENCHMARK = (
    *("--kinds", "hot,backlog"),
    *("--only", "nbqueue;nbqueue, RabbitMQ;ProcessPoolExecutor;Celery;huey"),
)


def main(args: Sequence[str]) -> int:
    """Run what is asked for in the tests' environment; the exit code is the checks' or pytest's."""
    if args and args[0] in {"-h", "--help"}:
        print(__doc__)
        return 0
    os.chdir(ROOT)
    python = ensure_environment("test")
    if "--lint" in args:
        return lint(python)
    ensure_rabbitmq()
    if "--bench" in args:
        return replace_process(python, "-m", "tests.benchmarks.run", "--short", *BENCHMARK)
    ensure_chromium()
    # drawn here to be printed: pytest's own header, which would, is what -q leaves out
    seed = f"--randomly-seed={random.randrange(2**32)}"
    print(f"Random order: {seed}, unless another is given", flush=True)
    # most tests wait for processes rather than for a core; a few that are chosen start sooner without
    chosen = any(not arg.startswith("-") for arg in args)
    side_by_side = () if chosen else ("-n", str(min(8, 2 * (os.cpu_count() or 1))))
    return replace_process(python, "-m", "pytest", "-q", seed, *side_by_side, *args)


def lint(python: Path) -> int:
    """Run every check, also after one failed, and name those that failed."""
    variables = environment_variables(python)
    failed = []
    for name, *options in CHECKS:
        print(f"$ {' '.join([name, *options])}", flush=True)
        command = [str(python.parent / name), *options]
        if subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            failed.append(name)
    print(f"checks failed: {', '.join(failed)}" if failed else "checks passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
