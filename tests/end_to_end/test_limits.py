"""Tasks that take more than they may, on a real worker."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbqueue.exceptions import MemoryLimitExceeded, SoftTimeLimitExceeded, TimeLimitExceeded
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = pytest.mark.brokers

LONG_S = 60.0


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def loop() -> None:
    while True:
        pass


def clean_up(folder: str) -> str:
    """Tidy up when it is told to hurry."""
    try:
        time.sleep(LONG_S)
    except SoftTimeLimitExceeded as exc:
        (Path(folder) / "tidy").touch()
        return str(exc)
    return "had time"


async def sleep_in_a_coroutine() -> None:
    import asyncio

    await asyncio.sleep(LONG_S)


def hold_on(folder: str) -> None:
    """Take no notice of the soft limit, and leave a process behind."""
    (Path(folder) / "pid").write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
    while True:
        try:
            time.sleep(LONG_S)
        except SoftTimeLimitExceeded:
            (Path(folder) / "warned").touch()


def process_id() -> int:
    return os.getpid()


@pytest.mark.parametrize("function", [loop, sleep_in_a_coroutine])
def test_soft_limit_is_raised_in_a_task_that_loops_or_waits(shared_site: Site, function: Callable[..., Any]) -> None:
    result = shared_site.app.task(function, soft_time_limit=0.2).delay()
    with pytest.raises(SoftTimeLimitExceeded, match=r"ran past its soft limit of 0\.2 s"):
        result.get(timeout=20)


def test_task_goes_on_after_its_soft_limit_when_it_catches_it(shared_site: Site, tmp_path: Path) -> None:
    task = shared_site.app.task(clean_up)
    # Long enough for it to have begun what it will be interrupted in, on a machine with much else to do.
    result = task.apply_async((str(tmp_path),), soft_time_limit=3.0, time_limit=LONG_S)
    assert result.get(timeout=30) == "ran past its soft limit of 3 s"
    assert (tmp_path / "tidy").exists()


def test_task_within_its_limits_is_left_alone(shared_site: Site) -> None:
    results = shared_site.app.task(sleep).map([0.01] * 20, time_limit=LONG_S, soft_time_limit=LONG_S / 2)
    assert results.get(timeout=20) == ["slept"] * 20


def test_hard_limit_ends_the_task_and_what_it_started(idle_site: Site, tmp_path: Path) -> None:
    idle_site.worker(concurrency=1)
    before = idle_site.app.task(process_id).delay().get(timeout=20)
    result = idle_site.app.task(hold_on).apply_async((str(tmp_path),), time_limit=3.0, soft_time_limit=1.0)
    with pytest.raises(TimeLimitExceeded, match=r"^ran past its limit of 3 s$"):
        result.get(timeout=20)
    assert (tmp_path / "warned").exists()
    left = int((tmp_path / "pid").read_text())
    gone = lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE  # noqa: E731
    wait_until(gone, 10, "what it started to end")
    after = idle_site.app.task(process_id).delay().get(timeout=20)
    assert before != after, "the child was replaced"
    assert result.state == "FAILURE"
    assert idle_site.app.broker.size("nbqueue").claimed == 0


def test_hard_limit_ends_a_task_that_holds_the_interpreter(shared_site: Site) -> None:
    def hold_the_lock() -> int:
        return sum(range(10**13))  # one call into C, in which no handler of a signal runs

    task = shared_site.app.task(hold_the_lock, time_limit=0.6, soft_time_limit=0.2)
    with pytest.raises(TimeLimitExceeded):
        task.delay().get(timeout=20)


def test_limits_of_an_apps_settings_travel_with_its_code(shared_site: Site) -> None:
    with shared_site.new_app() as app:
        app.conf.update(task_time_limit=LONG_S, task_soft_time_limit=0.2)
        with pytest.raises(SoftTimeLimitExceeded):
            app.task(sleep).delay(LONG_S).get(timeout=20)


def test_limit_of_a_member_of_a_map_leaves_the_others_alone(shared_site: Site) -> None:
    results = shared_site.app.task(sleep, time_limit=2.0).map([0.0, LONG_S, 0.0])
    values = results.get(timeout=20, propagate=False)
    assert [values[0], values[2]] == ["slept"] * 2
    assert isinstance(values[1], TimeLimitExceeded)


def test_limit_of_a_registered_task_holds_when_the_caller_knows_only_its_name(shared_site: Site) -> None:
    with pytest.raises(TimeLimitExceeded, match=r"0\.5 s"):
        shared_site.app.send_task("tests.project.linger", (LONG_S,)).get(timeout=20)


def test_limits_of_the_worker_hold_where_a_call_has_none(idle_site: Site, tmp_path: Path) -> None:
    idle_site.worker("--time-limit", "2.5", "--soft-time-limit", "1", concurrency=1)
    with pytest.raises(TimeLimitExceeded, match=r"2\.5 s"):
        idle_site.app.task(hold_on).delay(str(tmp_path)).get(timeout=20)
    assert (tmp_path / "warned").exists()
    task = idle_site.app.task(sleep)
    assert task.apply_async((0.5,), soft_time_limit=LONG_S).get(timeout=20) == "slept"


# ---- memory, and children that are replaced


def fill_up(folder: str) -> None:
    """Take 20 MB more every few milliseconds."""
    (Path(folder) / "begun").touch()
    kept = []
    while True:
        kept.append(b"x" * 20_000_000)
        time.sleep(0.02)


def grow(megabytes: int) -> int:
    """Leave memory in use behind, as a cache does."""
    import builtins

    builtins.kept_by_a_test = b"x" * (megabytes << 20)  # type: ignore[attr-defined]
    return os.getpid()


def test_task_that_uses_more_memory_than_it_may_is_ended_and_says_so(shared_site: Site, tmp_path: Path) -> None:
    task = shared_site.app.task(fill_up, memory_limit="300 MB")
    with pytest.raises(MemoryLimitExceeded, match=r"^used \d+ MB, its limit is 300 MB$") as caught:
        task.delay(str(tmp_path)).get(timeout=30)
    used = int(str(caught.value).split()[1])
    assert 300 < used < 3_000
    quiet = shared_site.app.task(sleep, memory_limit="300 MB")
    assert quiet.delay(0.6).get(timeout=20) == "slept"


def test_memory_limit_of_the_worker_holds_where_a_call_has_none(idle_site: Site, tmp_path: Path) -> None:
    idle_site.worker("--memory-limit", "200 MB", concurrency=1)
    with pytest.raises(MemoryLimitExceeded, match="its limit is 200 MB"):
        idle_site.app.task(fill_up).delay(str(tmp_path)).get(timeout=30)


def test_child_is_replaced_after_so_many_tasks(idle_site: Site) -> None:
    worker = idle_site.worker("--max-tasks-per-child", "10", concurrency=1)
    pids = idle_site.app.task(process_id).starmap([()] * 60).get(timeout=30)
    assert {pids.count(pid) for pid in pids} == {10}
    log = worker.log.read_text()
    assert "replaced after 10 tasks" in log
    assert "WARNING" not in log


def test_child_is_replaced_when_it_has_grown_too_large(idle_site: Site) -> None:
    worker = idle_site.worker("--max-memory-per-child", str(150 << 10), concurrency=1)
    task = idle_site.app.task(grow)
    pids = [task.delay(megabytes).get(timeout=20) for megabytes in (1, 2, 200, 3)]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert "replaced, as it used 2" in worker.log.read_text()


def test_threads_of_numeric_libraries_share_the_cores_among_the_children(idle_site: Site) -> None:
    def threads() -> dict[str, str | None]:
        import os

        return {name: os.environ.get(f"{name}_NUM_THREADS") for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}

    cores = os.cpu_count() or 1
    idle_site.worker(concurrency=cores)
    shares = idle_site.app.task(threads).delay().get(timeout=20)
    expected = {name: os.environ.get(f"{name}_NUM_THREADS", "1") for name in shares}
    assert shares == expected
