from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from nbqueue.processes import PidFile, locked, open_log, start_child, start_detached, tail
from tests.helpers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[PidFile]:
    """Yield a pid file; whoever holds it in the end is killed."""
    file = PidFile(tmp_path / "pid")
    yield file
    assert file.end((signal.SIGKILL, 5.0))


def started(tmp_path: Path, pid_file: PidFile) -> bool:
    """Start something that does nothing for a while."""
    return start_detached(SLEEP, pid_file, log=tmp_path / "log", environment={})


def test_pid_file_names_its_holder_when_a_process_was_started(tmp_path: Path, pid_file: PidFile) -> None:
    assert started(tmp_path, pid_file)
    pid = pid_file.pid()
    assert pid is not None
    process = psutil.Process(pid)
    # the shell's copy of itself, until it has become the program
    wait_until(lambda: process.cmdline() == SLEEP, 5, "the program to begin")
    assert os.getsid(pid) != os.getsid(0)
    assert process.ppid() != os.getpid()
    wait_until(lambda: "up" in tail(tmp_path / "log"), 5, "the process to print")


def test_nothing_is_started_when_the_process_lives(tmp_path: Path, pid_file: PidFile) -> None:
    assert started(tmp_path, pid_file)
    pid = pid_file.pid()
    assert not started(tmp_path, pid_file)
    assert start_child(SLEEP, pid_file, log=tmp_path / "log") is None
    assert pid_file.pid() == pid


def test_pid_file_is_free_when_its_process_was_killed(tmp_path: Path, pid_file: PidFile) -> None:
    assert started(tmp_path, pid_file)
    assert pid_file.end((signal.SIGKILL, 5.0))
    assert pid_file.pid() is None
    assert started(tmp_path, pid_file)


def test_nobody_is_signalled_when_the_number_is_anothers_by_now(pid_file: PidFile) -> None:
    with subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL) as other:
        descriptor = pid_file.take()
        assert descriptor is not None
        pid_file.write(descriptor, other.pid)
        os.close(descriptor)
        assert pid_file.end((signal.SIGKILL, 5.0))
        assert other.poll() is None
        other.kill()


def test_nobody_is_signalled_when_the_holder_counts_in_another_container(pid_file: PidFile) -> None:
    descriptor = pid_file.take()
    assert descriptor is not None
    os.write(descriptor, f"{os.getpid()} pid:[1]\n".encode())
    assert pid_file.held()
    assert pid_file.pid() is None
    assert not pid_file.end((signal.SIGKILL, 0.0))
    os.close(descriptor)


def test_end_goes_on_to_the_next_signal_when_one_is_ignored(tmp_path: Path, pid_file: PidFile) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    assert start_detached([sys.executable, "-c", deaf], pid_file, log=tmp_path / "log", environment={})
    wait_until(lambda: "up" in tail(tmp_path / "log"), 5, "the process to be deaf")
    assert not pid_file.end((signal.SIGTERM, 0.1))
    assert pid_file.end((signal.SIGTERM, 0.1), (signal.SIGKILL, 5.0))


def test_end_spares_the_successor_when_one_is_started_meanwhile(pid_file: PidFile) -> None:
    first = os.getpid()
    descriptor = pid_file.take()
    assert descriptor is not None
    pid_file.write(descriptor, first)
    told: list[int] = []

    def replaced(number: int, _: object) -> None:
        told.append(number)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        pid_file.write(descriptor, first + 1)

    before = signal.signal(signal.SIGUSR1, replaced)
    try:
        assert pid_file.end((signal.SIGUSR1, 5.0), (signal.SIGKILL, 5.0))
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(descriptor)
    assert told == [signal.SIGUSR1]


def test_child_can_be_reaped_when_it_was_started_as_one(tmp_path: Path, pid_file: PidFile) -> None:
    child = start_child([sys.executable, "-c", "import sys; sys.exit(3)"], pid_file, log=tmp_path / "log")
    assert child is not None
    assert child.wait(10) == 3
    assert not pid_file.held()


def test_process_inherits_no_lock_when_its_parent_holds_one(tmp_path: Path, pid_file: PidFile) -> None:
    mother = PidFile(tmp_path / "mother")
    lock = mother.take()
    assert lock is not None
    assert started(tmp_path, pid_file)
    os.close(lock)
    assert not mother.held()


def test_lock_is_refused_when_another_has_it(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", 0.0) as first, locked(tmp_path / "lock", 0.02) as second:
        assert (first, second) == (True, False)
    with locked(tmp_path / "lock", 0.0) as third:
        assert third


def test_log_is_set_aside_when_it_is_large(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 1_000_001)
    with open_log(tmp_path / "log") as descriptor:
        os.write(descriptor, b"new\n")
    assert (tmp_path / "log").read_text() == "new\n"
    assert (tmp_path / "log.1").stat().st_size == 1_000_001
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_tail_gives_the_last_lines_when_there_are_many(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(str(n) for n in range(10_000)))
    assert tail(tmp_path / "log", 2) == "9998\n9999"
    assert tail(tmp_path / "none") == ""
