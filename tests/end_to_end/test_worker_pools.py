"""Pools: threads, solo, and names that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nbqueue.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from nbqueue.poolkinds import pool_kind
from tests.end_to_end.test_output import text
from tests.faults.test_processes import children_of, runs
from tests.helpers import RedisServer, wait_until
from tests.workers import ROOT, Site, Worker

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(90)]


def process_of(worker: Worker) -> psutil.Process:
    """Return the process that runs tasks; a test before may have ended it just now."""
    return wait_until(lambda: children_of(worker), 10, "the process of the tasks")[0]


def where(seconds: float) -> tuple[int, int, str]:
    from nbqueue.execute import current_request

    time.sleep(seconds)
    request = current_request()
    return os.getpid(), threading.get_ident(), request.id if request else ""


def speak(word: str) -> None:
    for n in range(20):
        print(f"{word} {n}")
        time.sleep(0.01)


def loop(folder: str, name: str) -> None:
    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    while True:
        time.sleep(0.01)


def linger(folder: str, name: str, seconds: float) -> int:
    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    time.sleep(seconds)
    return os.getpid()


def square(x: int) -> int:
    return x * x


@pytest.fixture(scope="module")
def threads(broker_url: Callable[[], str]) -> Iterator[tuple[Site, Worker]]:
    """Yield a site, and its worker, which has four threads."""
    with RedisServer(appendonly=True) as server, Site(server, broker_url=broker_url()) as site:
        yield site, site.worker("-P", "threads", concurrency=4)


def test_tasks_run_side_by_side_in_threads_of_one_process(threads: tuple[Site, Worker]) -> None:
    site, worker = threads
    task = site.app.task(where)
    results = [task.delay(1.0) for _ in range(4)]
    found = [result.get(timeout=20) for result in results]
    assert {pid for pid, _, _ in found} == {process_of(worker).pid}
    assert len({ident for _, ident, _ in found}) == 4
    assert [id_ for _, _, id_ in found] == [result.id for result in results]
    assert len(children_of(worker)) == 1


def test_each_thread_has_the_output_of_its_own_task(threads: tuple[Site, Worker]) -> None:
    site, _ = threads
    task = site.app.task(speak)
    results = {word: task.delay(word) for word in ("one", "two", "three")}
    for word, result in results.items():
        result.get(timeout=20)
        wanted = "".join(f"{word} {n}\n" for n in range(20))
        wait_until(lambda: text(result) == wanted, 10, f"what {word} has said")  # noqa: B023


def test_map_in_threads_keeps_its_order(threads: tuple[Site, Worker]) -> None:
    site, _ = threads
    assert site.app.task(square).map(range(500)).get(timeout=30) == [n * n for n in range(500)]


def test_task_in_a_thread_calls_others(threads: tuple[Site, Worker]) -> None:
    site, _ = threads
    inner = site.app.task(square, name="inner")

    def outer(x: int) -> str:
        return str(inner.delay(x).id)

    results = [site.app.task(outer).delay(n) for n in range(8)]
    ids = [result.get(timeout=20) for result in results]
    assert [site.app.AsyncResult(id_).get(timeout=20) for id_ in ids] == [n * n for n in range(8)]


def test_limits_that_threads_can_not_keep_are_named(idle_site: Site) -> None:
    worker = idle_site.worker("-P", "threads", "--max-tasks-per-child", "1", concurrency=2)
    assert "threads share a process: limits of memory are not kept" in worker.log.read_text()
    assert idle_site.app.task(square).map(range(10)).get(timeout=20)[-1] == 81


def test_soft_limit_is_raised_in_the_thread_of_its_task(threads: tuple[Site, Worker], tmp_path: Path) -> None:
    site, worker = threads
    process = process_of(worker).pid
    other = site.app.task(linger).delay(str(tmp_path), "other", 1.5)
    late = site.app.task(loop).apply_async((str(tmp_path), "late"), soft_time_limit=0.5)
    with pytest.raises(SoftTimeLimitExceeded):
        late.get(timeout=20)
    assert other.get(timeout=20) == process
    assert runs(tmp_path) == {"other": 1, "late": 1}


def test_revoked_task_is_interrupted_and_leaves_the_others_alone(threads: tuple[Site, Worker], tmp_path: Path) -> None:
    site, worker = threads
    process = process_of(worker).pid
    other = site.app.task(linger).delay(str(tmp_path), "other", 1.5)
    running = site.app.task(loop).delay(str(tmp_path), "running")
    wait_until(lambda: len(runs(tmp_path)) == 2, 15, "both to run")
    running.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        running.get(timeout=20)
    assert other.get(timeout=20) == process
    assert process_of(worker).pid == process


def test_hard_limit_ends_the_process_and_the_others_run_again(threads: tuple[Site, Worker], tmp_path: Path) -> None:
    site, worker = threads
    process = process_of(worker).pid
    other = site.app.task(linger).delay(str(tmp_path), "other", 4.0)
    wait_until(lambda: len(runs(tmp_path)) == 1, 15, "it to run")
    late = site.app.task(linger).apply_async((str(tmp_path), "late", 60.0), time_limit=1.0)
    with pytest.raises(TimeLimitExceeded, match="1 s"):
        late.get(timeout=20)
    assert other.get(timeout=20) not in (0, process)
    assert runs(tmp_path) == {"other": 2, "late": 1}
    wait_until(lambda: len(children_of(worker)) == 1, 10, "one process to be left")


def test_what_a_killed_process_of_threads_was_at_runs_again(threads: tuple[Site, Worker], tmp_path: Path) -> None:
    site, worker = threads
    task = site.app.task(linger)
    results = [task.delay(str(tmp_path), f"t{n}", 1.0) for n in range(4)]
    wait_until(lambda: len(runs(tmp_path)) == 4, 15, "all to run")
    process = process_of(worker)
    process.kill()
    pids = {result.get(timeout=30) for result in results}
    assert len(pids) == 1
    assert process.pid not in pids
    assert set(runs(tmp_path).values()) == {2}


def test_threads_are_added_and_end(threads: tuple[Site, Worker]) -> None:
    site, worker = threads

    def count() -> int:
        return int(psutil.Process(process_of(worker).pid).num_threads())

    busy = [site.app.task(where).delay(1.0) for _ in range(4)]
    assert len({result.get(timeout=20)[1] for result in busy}) == 4, "all of them are there"
    before = count()
    site.app.control.pool_grow(2, reply=True)
    wait_until(lambda: count() == before + 2, 10, "two more")
    site.app.control.pool_shrink(2, reply=True)
    wait_until(lambda: count() == before, 10, "two less")
    assert site.app.task(square).delay(4).get(timeout=10) == 16


def test_solo_runs_one_task_at_a_time(idle_site: Site, tmp_path: Path) -> None:
    worker = idle_site.worker("--pool", "solo", concurrency=4)
    task = idle_site.app.task(linger)
    pids = {result.get(timeout=30) for result in [task.delay(str(tmp_path), f"t{n}", 0.1) for n in range(3)]}
    assert pids == {process_of(worker).pid}
    assert len(children_of(worker)) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("prefork", "prefork"), ("processes", "prefork"), ("thread", "threads"), ("threads", "threads"), ("solo", "solo")],
)
def test_pool_has_celerys_names(name: str, kind: str) -> None:
    assert pool_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "said"), [("gevent", "pool threads"), ("treads", "did you mean 'threads'"), (7, "there are")]
)
def test_pool_that_is_not_there_is_refused_with_what_is(name: object, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        pool_kind(name)


def test_command_line_refuses_a_pool_that_patches() -> None:
    command = [sys.executable, "-m", "nbqueue", "worker", "-P", "eventlet"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert said.returncode == 2
    assert "the pool threads" in said.stderr
