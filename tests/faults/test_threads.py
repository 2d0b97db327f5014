"""Workers of threads are stopped, killed and begin anew while their tasks run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from nbqueue.exceptions import WorkerLostError
from tests import project
from tests.faults.test_processes import children_of, runs, send_notes
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]


def test_stopped_worker_of_threads_finishes_what_runs(site: Site, tmp_path: Path) -> None:
    first = site.worker("-P", "threads", concurrency=4)
    results = send_notes(site, tmp_path, 40, 0.15)
    wait_until(lambda: len(results.watched.arrived) > 4, 20, "some to end")
    first.signal(signal.SIGTERM)
    began = time.monotonic()
    assert first.wait() == 0
    assert time.monotonic() - began < 5
    site.worker("-P", "threads", concurrency=4)
    assert results.get(timeout=60) == [f"t{n}" for n in range(40)]
    assert sum(runs(tmp_path).values()) == 40, "none ran twice"


def test_killed_worker_takes_its_threads_along_and_loses_nothing(site: Site, tmp_path: Path) -> None:
    worker = site.worker("-P", "threads", concurrency=3)
    results = send_notes(site, tmp_path, 60, 0.05)
    wait_until(lambda: len(results.watched.arrived) > 10, 30, "part of the map")
    orphans = children_of(worker)
    worker.kill()
    wait_until(lambda: not [p for p in orphans if p.is_running()], 5, "the process to end with it")
    site.worker("-P", "threads", concurrency=3)
    assert results.get(timeout=60) == [f"t{n}" for n in range(60)]
    assert sum(runs(tmp_path).values()) <= 60 + 3, "only what it was at ran twice"


def test_process_of_threads_killed_again_and_again_loses_nothing(site: Site, tmp_path: Path) -> None:
    worker = site.worker("-P", "threads", concurrency=3)
    results = send_notes(site, tmp_path, 120, 0.05)
    for share in range(15, 90, 15):
        wait_until(lambda: len(results.watched.arrived) >= share, 30, "tasks to end")  # noqa: B023
        wait_until(lambda: children_of(worker), 5, "the process")[0].kill()
    assert results.get(timeout=60) == [f"t{n}" for n in range(120)]
    assert sum(runs(tmp_path).values()) <= 120 + 5 * 3, "only what the process was at runs again"


def test_early_task_beside_one_that_ends_their_process_fails_and_runs_once(site: Site, tmp_path: Path) -> None:
    site.worker("-P", "threads", concurrency=2)
    once = site.app.send_task("tests.project.once", (str(tmp_path), "once", 60.0))
    wait_until(lambda: runs(tmp_path)["once"] == 1, 15, "it to run")
    deadly = site.app.task(project.deadly.run, name="tests.project.deadly")
    assert deadly.delay(str(tmp_path), "deadly", 1).get(timeout=30) == "deadly"
    with pytest.raises(WorkerLostError, match="acks_late is off"):
        once.get(timeout=10)
    assert runs(tmp_path) == {"once": 1, "deadly": 2}
