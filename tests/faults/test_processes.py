"""Children, workers and their supervisors die or stand still: nothing is lost, nobody waits for ever."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from nbqueue.exceptions import WorkerLostError
from nbqueue.result import MapResult
from tests import project
from tests.helpers import wait_until
from tests.workers import LEASE_S, Site, Worker

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]


def runs(folder: Path) -> Counter[str]:
    """Return how often each task was begun."""
    return Counter(path.name.partition(".")[0] for path in folder.iterdir())


def children_of(worker: Worker) -> list[psutil.Process]:
    """Return the processes that run tasks: children of the worker's fork server."""
    try:
        return [child for server in psutil.Process(worker.pid).children() for child in server.children()]
    except psutil.NoSuchProcess:
        return []


def send_notes(site: Site, folder: Path, number: int, seconds: float) -> MapResult:
    """Send a map of tasks that each leave a file."""
    task = site.app.task(project.note.run, name="tests.project.note")
    return task.starmap((str(folder), f"t{n}", seconds) for n in range(number))


def test_children_killed_again_and_again_lose_nothing(site: Site, tmp_path: Path) -> None:
    worker = site.worker()
    results = send_notes(site, tmp_path, 120, 0.05)
    killed = 0
    while killed < 20:
        before = len(results.watched.arrived)
        victim = wait_until(lambda: children_of(worker), 5, "a child")[killed % 2 - 1]
        victim.kill()
        killed += 1
        # A task may be hit twice, not three times: something ends between two kills.
        wait_until(lambda: len(results.watched.arrived) >= min(before + 3, 118), 20, "tasks to end")  # noqa: B023
    assert results.get(timeout=60) == [f"t{n}" for n in range(120)]
    assert sum(runs(tmp_path).values()) <= 120 + 20, "only what a child was at runs again"


def test_task_that_ends_its_child_is_given_up_and_says_how(site: Site, tmp_path: Path) -> None:
    site.worker()
    result = site.app.send_task("tests.project.deadly", (str(tmp_path), "poison", 99))
    with pytest.raises(WorkerLostError, match=r"ended its child 3 times.*signal 9 \(SIGKILL, out of memory\?\) on w"):
        result.get(timeout=30)
    assert runs(tmp_path)["poison"] == 3
    assert site.app.send_task("tests.project.add", (1, 2)).get(timeout=10) == 3


def test_task_survives_two_deaths_of_its_child(site: Site, tmp_path: Path) -> None:
    site.worker()
    assert site.app.send_task("tests.project.deadly", (str(tmp_path), "tough", 2)).get(timeout=30) == "tough"


def test_worker_killed_three_times_loses_nothing(site: Site, tmp_path: Path) -> None:
    worker = site.worker()
    results = send_notes(site, tmp_path, 200, 0.03)
    for share in (0.2, 0.4, 0.6):
        wait_until(lambda: len(results.watched.arrived) > 200 * share, 60, "part of the map")  # noqa: B023
        orphans = children_of(worker)
        worker.kill()
        wait_until(lambda: not [p for p in orphans if p.is_running()], 5, "the children to end with it")  # noqa: B023
        worker = site.worker()
    assert results.get(timeout=90) == [f"t{n}" for n in range(200)]
    counted = runs(tmp_path)
    assert set(counted) == {f"t{n}" for n in range(200)}
    assert sum(counted.values()) - 200 <= 3 * 2, "only what a dead worker's children were at may have run twice"


def test_stopped_worker_finishes_what_runs_and_gives_back_the_rest(site: Site, tmp_path: Path) -> None:
    first = site.worker()
    results = send_notes(site, tmp_path, 40, 0.15)
    wait_until(lambda: len(results.watched.arrived) > 4, 20, "some to end")
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    site.worker()
    assert results.get(timeout=60) == [f"t{n}" for n in range(40)]
    assert sum(runs(tmp_path).values()) == 40, "none ran twice"


def test_worker_stopped_twice_gives_back_what_runs(site: Site, tmp_path: Path) -> None:
    first = site.worker()
    result = site.app.send_task("tests.project.note", (str(tmp_path), "long", 3.0))
    wait_until(lambda: runs(tmp_path)["long"] == 1, 10, "it to run")
    first.signal(signal.SIGQUIT)
    assert first.wait() == 0
    site.worker()
    began = time.monotonic()
    assert result.get(timeout=30) == "long"
    assert time.monotonic() - began < 3.0 + LEASE_S, "it went back at once, not when its lease lapsed"
    assert runs(tmp_path)["long"] == 2


def test_task_longer_than_the_lease_runs_once(site: Site, tmp_path: Path) -> None:
    # One of the two looks for claims that have lapsed, and leaves its own alone; so each has a task.
    site.worker(concurrency=1)
    site.worker(concurrency=1)
    long = [site.app.send_task("tests.project.note", (str(tmp_path), f"t{n}", 3 * LEASE_S)) for n in range(2)]
    assert [result.get(timeout=30) for result in long] == ["t0", "t1"]
    assert set(runs(tmp_path).values()) == {1}


def test_frozen_worker_loses_its_task_and_its_late_outcome_is_dropped(site: Site, tmp_path: Path) -> None:
    frozen = site.worker(concurrency=1)
    result = site.app.send_task("tests.project.note", (str(tmp_path), "taken", 1.0))
    wait_until(lambda: runs(tmp_path)["taken"] == 1, 10, "it to run")
    frozen.signal(signal.SIGSTOP)
    other = site.worker(concurrency=1)
    assert result.get(timeout=30) == "taken"
    assert result.worker == other.name
    frozen.signal(signal.SIGCONT)
    wait_until(lambda: "was lost" in frozen.log.read_text(), 15, "the late worker to see that it lost the task")
    assert runs(tmp_path)["taken"] == 2
    record = site.app.backend.load([result.id])[0]
    assert record is not None
    assert other.name.encode() in record
