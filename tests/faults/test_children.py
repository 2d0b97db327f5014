"""Children that stand still, leave processes behind, garble their replies, or lose their fork server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nbqueue.exceptions import TaskRevokedError, WorkerLostError
from tests.faults.test_messages import still_works
from tests.faults.test_processes import children_of, runs, send_notes
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(60)]


def stand_still() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def leave_a_process(folder: str) -> None:
    import subprocess

    (Path(folder) / "pid").write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
    time.sleep(60)


def write_everywhere() -> str:
    """Write to every open descriptor, as a confused library does."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\xff" * 64)
        except OSError:
            continue
    return "wrote"


def close_everything() -> None:
    os.closerange(0, 64)
    time.sleep(0.2)


def end_quietly(status: int) -> None:
    os._exit(status)


def crash_at_three(number: int, how: str) -> int:
    import ctypes

    if number == 3 and how == "segfault":
        ctypes.string_at(0)
    if number == 3:
        os.abort()
    return number


def say_what_has_no_utf8(fails: bool) -> str:
    name = os.fsdecode(b"caf\xe9")
    from IPython.display import display

    from nbqueue import track

    print(name)
    display({"text/plain": name}, raw=True)  # type: ignore[no-untyped-call]
    for _ in track([1], message=name):
        pass
    if fails:
        raise FileNotFoundError(name)
    return name


def fill_memory() -> int:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return len(b"x" * (1 << 40))


def fork_and_return() -> int:
    return os.fork()


@pytest.mark.slow
def test_stopped_child_is_ended_when_its_task_is_revoked(site: Site) -> None:
    worker = site.worker()
    result = site.app.task(stand_still, by_value=True).delay()
    wait_until(
        lambda: any(child.status() == psutil.STATUS_STOPPED for child in children_of(worker)), 10, "the child to stop"
    )
    began = time.monotonic()
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=15)
    assert time.monotonic() - began < 8
    assert still_works(site)


@pytest.mark.parametrize("how", ["revoked", "child killed", "worker killed", "worker stopped"])
def test_processes_that_a_task_has_started_end_with_it(site: Site, tmp_path: Path, how: str) -> None:
    worker = site.worker(concurrency=1)
    result = site.app.task(leave_a_process, by_value=True).delay(str(tmp_path))
    pid = wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 10, "it to be started")
    process = psutil.Process(int(pid))
    match how:
        case "revoked":
            result.revoke(terminate=True)
        case "child killed":
            children_of(worker)[0].kill()
        case "worker killed":
            worker.kill()
        case "worker stopped":
            worker.signal(signal.SIGQUIT)
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 10, "it to end too")


@pytest.mark.parametrize("function", [write_everywhere, close_everything])
def test_task_that_breaks_its_childs_descriptors_harms_only_itself(site: Site, function: Callable[..., object]) -> None:
    site.worker()
    result = site.app.task(function, by_value=True).delay()
    outcome = result.get(timeout=30, propagate=False)
    assert isinstance(outcome, WorkerLostError) or outcome in ("wrote", None)
    assert still_works(site)


@pytest.mark.parametrize("status", [0, 7])
def test_task_that_exits_is_given_up_and_the_exit_code_named(site: Site, status: int) -> None:
    site.worker()
    with pytest.raises(WorkerLostError, match=f"exit code {status}"):
        site.app.task(end_quietly, by_value=True).delay(status).get(timeout=20)
    assert still_works(site)


@pytest.mark.parametrize(("how", "cause"), [("segfault", "signal 11 (SIGSEGV)"), ("abort", "signal 6 (SIGABRT)")])
def test_call_that_crashes_the_interpreter_is_given_up_and_those_beside_it_are_done(
    site: Site, how: str, cause: str
) -> None:
    site.worker()
    results = site.app.task(crash_at_three, by_value=True).starmap([(n, how) for n in range(8)])
    *values, crashed = sorted(results.get(timeout=30, propagate=False), key=lambda value: isinstance(value, Exception))
    assert values == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(crashed, WorkerLostError)
    assert cause in str(crashed)
    assert still_works(site)


def test_text_that_has_no_utf8_is_told_with_escapes_and_harms_nobody(site: Site) -> None:
    worker = site.worker(concurrency=1)
    (child,) = wait_until(lambda: children_of(worker), 5, "the child")
    task = site.app.task(say_what_has_no_utf8, by_value=True)
    result = task.delay(False)
    assert result.get(timeout=20) == "caf\udce9"
    status = result.watched.status
    assert [text for *_, text in status.log.chunks] == ["caf\\udce9\n"]
    assert [output.data for output in status.outputs] == [{"text/plain": "caf\\udce9"}]
    with pytest.raises(FileNotFoundError) as raised:
        task.delay(True).get(timeout=20)
    assert str(raised.value) == "caf\udce9"
    assert r"FileNotFoundError: caf\udce9" in str(raised.value.__cause__)
    assert children_of(worker) == [child], "it lives on"


def test_memory_that_is_not_there_is_the_tasks_own_error(site: Site) -> None:
    site.worker()
    with pytest.raises(MemoryError):
        site.app.task(fill_memory, by_value=True).delay().get(timeout=20)
    assert still_works(site)


def test_task_that_forks_and_returns_twice_has_one_result(site: Site) -> None:
    site.worker()
    assert site.app.task(fork_and_return, by_value=True).delay().get(timeout=20) > 0
    assert still_works(site)


def test_fork_server_killed_before_it_is_ready_is_replaced(site: Site) -> None:
    worker = site.worker(ready=False)
    process = psutil.Process(worker.pid)
    server = wait_until(process.children, 10, "the fork server")[0]
    server.kill()
    assert still_works(site)


def test_fork_server_killed_mid_map_loses_nothing(site: Site, tmp_path: Path) -> None:
    worker = site.worker()
    results = send_notes(site, tmp_path, 100, 0.03)
    for share in (0.2, 0.5):
        wait_until(lambda: len(results.watched.arrived) > 100 * share, 20, "part of the map")  # noqa: B023
        (server,) = psutil.Process(worker.pid).children()
        server.kill()
    assert results.get(timeout=30) == [f"t{n}" for n in range(100)]
    assert sum(runs(tmp_path).values()) <= 100 + 2 * 2
    assert worker.process.poll() is None
