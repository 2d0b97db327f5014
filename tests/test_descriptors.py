"""Writing past Python, in a real child."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait_until
from tests.pools import RunningPool


@pytest.fixture(scope="module")
def pool() -> Iterator[RunningPool]:
    # set, it would do to C's streams what a child has to do itself
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with RunningPool(1, variables=variables) as running:
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
        for _ in range(9):
            held.write(1, line, len(line))

    seq = run(pool, work)
    assert text(pool, seq).count("\n") == 9


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


def test_order_is_kept_among_pythons_prints_displays_subprocesses_and_c_code(pool: RunningPool) -> None:
    def work() -> None:
        import ctypes
        import os
        import sys

        print("1")
        os.system("echo 2")
        print("3")
        ctypes.CDLL(None).printf(b"4\n")
        print("5", file=sys.stderr)
        os.write(1, b"6\n")
        display("7")  # type: ignore[name-defined] # noqa: F821
        sys.__stdout__.write("8\n")  # type: ignore[union-attr]
        print("9")
        sys.stdout.buffer.write(b"10\n")
        print("11")

    seq = run(pool, work)
    said = [output.text or output.data["text/plain"].strip("'") for output in pool.outputs(seq)]
    assert "".join(text if text.endswith("\n") else text + "\n" for text in said).split() == [
        str(number) for number in range(1, 12)
    ]
    assert text(pool, seq, "stderr") == "5\n"


def test_subprocess_writes_where_the_tasks_streams_do_when_it_is_given_them(pool: RunningPool) -> None:
    def work() -> None:
        import subprocess
        import sys

        subprocess.run(["echo", "out"], stdout=sys.stdout, check=True)
        subprocess.run("echo err >&2", shell=True, stderr=sys.stderr, check=True)

    seq = run(pool, work)
    assert (text(pool, seq), text(pool, seq, "stderr")) == ("out\n", "err\n")


def test_task_ends_when_a_process_that_it_left_behind_writes_for_ever(pool: RunningPool) -> None:
    def work() -> int:
        import subprocess

        return subprocess.Popen(["yes"]).pid

    seq = pool.send(work)
    os.kill(pool.value(seq), signal.SIGKILL)
    assert len(text(pool, seq)) < 6_000_000
    wait_until(lambda: not text(pool, run(pool, int)), 10, "the rest to be read")  # not by the next test's task


def test_memory_stays_bounded_when_a_subprocess_writes_without_end(pool: RunningPool) -> None:
    def work() -> list[int]:
        import resource
        import subprocess

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        subprocess.run("head -c 100000000 /dev/zero | tr '\\0' 'x' | fold -w 99; echo end", shell=True, check=True)
        return [before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]

    seq = pool.send(work)
    before, after = pool.value(seq)
    assert after - before < 60_000  # KiB
    assert len(text(pool, seq)) < 6_000_000
    assert text(pool, seq).endswith("xend\n")
    assert "characters left out" in text(pool, seq)


def test_process_that_a_task_forks_prints_into_its_output(pool: RunningPool) -> None:
    def work() -> None:
        import multiprocessing

        process = multiprocessing.get_context("fork").Process(target=print, args=("forked",))
        process.start()
        process.join()

    assert text(pool, run(pool, work)) == "forked\n"
