"""Writing past Python, in a real child."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pools import RunningPool


@pytest.fixture(scope="module")
def pool() -> Iterator[RunningPool]:
    with RunningPool(1) as running:
        yield running


def text(pool: RunningPool, seq: int, stream: str = "stdout") -> str:
    return "".join(output.text for output in pool.outputs(seq) if output.name == stream)


def run(pool: RunningPool, work: Any, *args: Any) -> int:
    seq = pool.send(work, *args)
    pool.value(seq)
    return int(seq)


def test_output_of_subprocesses_is_the_tasks_own(pool: RunningPool) -> None:
    def work() -> None:
        import subprocess

        subprocess.run("echo out; echo err >&2; printf 'no end'", shell=True, check=True)

    seq = run(pool, work)
    assert text(pool, seq) == "out\nno end"
    assert text(pool, seq, "stderr") == "err\n"


def test_c_code_that_writes_while_it_holds_the_interpreter_does_not_block(pool: RunningPool) -> None:
    def work() -> None:
        import ctypes

        held = ctypes.PyDLL(None)  # calls through it don't let others run
        line = b"x" * 99_999 + b"\n"
        for _ in range(20):
            held.write(1, line, len(line))

    seq = run(pool, work)
    assert text(pool, seq).count("\n") == 20


def test_output_comes_while_the_task_runs(pool: RunningPool, tmp_path: Path) -> None:
    def work(folder: str) -> None:
        import os

        os.write(1, b"begun\n")
        while not (Path(folder) / "go").exists():
            time.sleep(0.02)

    seq = pool.send(work, str(tmp_path))
    pool.until(lambda: "begun" in text(pool, seq), "the output")
    (tmp_path / "go").touch()
    pool.value(seq)


def test_each_task_has_its_own_output(pool: RunningPool) -> None:
    def work(n: int) -> None:
        import os

        os.write(1, f"task {n}\n".encode())

    seqs = [run(pool, work, n) for n in range(5)]
    assert [text(pool, seq) for seq in seqs] == [f"task {n}\n" for n in range(5)]


def test_descriptor_that_somebody_has_emptied_is_read_on(pool: RunningPool) -> None:
    def empty() -> None:
        import os
        import subprocess

        os.write(1, b"before, and long enough\n")
        time.sleep(0.2)
        subprocess.run(": > /dev/stdout; sleep 0.2; echo after", shell=True, check=True)

    def work() -> None:
        import os

        os.write(1, b"next\n")

    seq = run(pool, empty)
    assert text(pool, seq) == "before, and long enough\nafter\n"
    assert text(pool, run(pool, work)) == "next\n"


def test_character_that_is_written_in_two_pieces_is_one(pool: RunningPool) -> None:
    def work() -> None:
        import os

        first, rest = "€".encode()[:1], "€".encode()[1:]
        os.write(1, b"a" + first)
        time.sleep(0.15)
        os.write(1, rest + b"b")

    assert text(pool, run(pool, work)) == "a€b"
