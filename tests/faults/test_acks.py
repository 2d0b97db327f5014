"""What is acknowledged before it runs never runs twice, whatever is lost; what has options of its own keeps to them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from nbqueue import chain
from nbqueue.deadletters import DeadLetters
from nbqueue.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from nbqueue.watched import WatchedTask
from tests import project
from tests.faults.test_processes import children_of, runs
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]


def fail_or_linger(folder: str, name: str, seconds: float) -> None:
    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    time.sleep(seconds)
    raise ValueError("no")


def test_early_task_whose_child_is_killed_fails_and_runs_once(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=1)
    result = site.app.send_task("tests.project.once", (str(tmp_path), "once", 60.0))
    wait_until(lambda: runs(tmp_path)["once"] == 1, 15, "it to run")
    children_of(worker)[0].kill()
    with pytest.raises(WorkerLostError, match=r"signal 9.*acks_late is off"):
        result.get(timeout=20)
    assert site.app.send_task("tests.project.add", (1, 2)).get(timeout=15) == 3
    assert runs(tmp_path)["once"] == 1


def test_early_task_whose_worker_is_killed_fails_elsewhere_and_runs_once(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=1)
    once = site.app.task(project.once.run, name="tests.project.once")  # the option is that of the worker's module
    add = site.app.task(project.add.run, name="tests.project.add")
    followed = chain(once.s(str(tmp_path), "once", 60.0), add.s("!"))()
    wait_until(lambda: runs(tmp_path)["once"] == 1, 15, "it to run")
    worker.kill()
    site.worker()
    assert followed.parent is not None
    with pytest.raises(WorkerLostError, match=r"Its worker was lost; acks_late is off"):
        followed.parent.get(timeout=30)
    with pytest.raises(WorkerLostError):
        followed.get(timeout=10)
    assert runs(tmp_path)["once"] == 1


def test_early_task_whose_worker_does_not_wait_for_it_fails(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=1)
    result = site.app.send_task("tests.project.once", (str(tmp_path), "once", 60.0))
    waits = site.app.send_task("tests.project.once", (str(tmp_path), "waits", 0.0))
    wait_until(lambda: runs(tmp_path)["once"] == 1, 15, "it to run")
    worker.signal(signal.SIGQUIT)
    assert worker.wait() == 0
    with pytest.raises(WorkerLostError, match="was stopped"):
        result.get(timeout=10)
    site.worker()
    assert waits.get(timeout=15) == "waits", "what had not begun is not lost"
    assert runs(tmp_path) == {"once": 1, "waits": 1}


def test_early_map_whose_workers_are_killed_runs_nothing_twice_and_ends(site: Site, tmp_path: Path) -> None:
    worker = site.worker()
    once = site.app.task(project.once.run, name="tests.project.once", acks_late=False)
    results = once.starmap((str(tmp_path), f"t{n}", 0.03) for n in range(100))
    for share in (20, 50):
        wait_until(lambda: len(results.watched.arrived) > share, 60, "part of the map")  # noqa: B023
        worker.kill()
        worker = site.worker()
    values = results.get(timeout=60, propagate=False)
    done = sum(isinstance(value, str) for value in values)
    assert done + sum(isinstance(value, WorkerLostError) for value in values) == 100
    assert 60 < done < 100
    assert set(runs(tmp_path).values()) == {1}


def test_task_that_is_not_to_run_again_fails_at_the_first_lost_child(site: Site, tmp_path: Path) -> None:
    site.worker(concurrency=1)
    deadly = site.app.task(project.deadly.run, name="tests.project.deadly", reject_on_worker_lost=False)
    with pytest.raises(WorkerLostError, match=r"signal 9.*reject_on_worker_lost is off"):
        deadly.delay(str(tmp_path), "first", 1).get(timeout=20)
    assert runs(tmp_path)["first"] == 1


@pytest.mark.parametrize("late", [True, False])
def test_lost_child_is_a_retry_where_the_task_says_so(site: Site, tmp_path: Path, late: bool) -> None:
    site.worker(concurrency=1)
    options = {"retry_on_worker_lost": True, "max_retries": 1, "acks_late": late, "name": "lost"}
    deadly = site.app.task(project.deadly.run, by_value=True, default_retry_delay=0, **options)
    once = deadly.delay(str(tmp_path), "once", 1)
    assert once.get(timeout=20) == "once"
    assert (once.retries, runs(tmp_path)["once"]) == (1, 2)
    with pytest.raises(WorkerLostError, match=r"signal 9.*it has been retried 1 times, as often as it may"):
        deadly.delay(str(tmp_path), "ever", 9).get(timeout=20)
    assert runs(tmp_path)["ever"] == 2
    deadly.default_retry_delay = 600
    waits = deadly.delay(str(tmp_path), "waits", 9)
    wait_until(lambda: waits.state == "RETRY", 20, "its retry")
    assert waits.watched.latest is not None
    facts = waits.watched.latest.facts
    assert (facts.retries, facts.max_retries, facts.eta > time.time() + 300) == (1, 1, True)
    assert "WorkerLostError" in facts.error
    waits.revoke()
    with pytest.raises(TaskRevokedError):
        waits.get(timeout=10)


def test_lost_child_is_retried_as_often_as_a_task_may_end_its_child_without_another_limit(
    site: Site, tmp_path: Path
) -> None:
    site.worker(concurrency=1)
    site.app.conf.task_retry_on_worker_lost = True
    deadly = site.app.task(project.deadly.run, name="lost", by_value=True, default_retry_delay=0, max_retries=None)
    with pytest.raises(WorkerLostError, match=r"Given up: it ended its child 3 times"):
        deadly.delay(str(tmp_path), "ever", 9).get(timeout=20)
    assert runs(tmp_path)["ever"] == 3
    add = site.app.task(project.add.run, name="tests.project.add")
    assert chain(deadly.s(str(tmp_path), "canvas", 1), add.s("!")).apply_async().get(timeout=20) == "canvas!"
    assert deadly.starmap([(str(tmp_path), "map", 1)]).get(timeout=20) == ["map"]


def test_failure_that_is_not_acknowledged_is_kept_and_a_timeout_runs_again(site: Site, tmp_path: Path) -> None:
    site.worker(concurrency=1)
    task = site.app.task(fail_or_linger, by_value=True, acks_on_failure_or_timeout=False)
    failed = task.delay(str(tmp_path), "failed", 0.0)
    with pytest.raises(ValueError, match="no"):
        failed.get(timeout=20)
    late = task.apply_async((str(tmp_path), "late", 60.0), time_limit=1.0)
    with pytest.raises(TimeLimitExceeded):
        late.get(timeout=30)
    assert isinstance(late.watched, WatchedTask)
    assert late.watched.status.attempt == 3
    assert runs(tmp_path)["failed"] == 1
    assert {letter.id for letter in DeadLetters(site.app).list()} == {failed.id, late.id}


def leave_at_once() -> None:
    os._exit(3)


def test_setting_of_the_app_that_sends_the_code_is_kept(site: Site) -> None:
    site.worker(concurrency=1)
    with site.new_app(by_value=True) as app:
        app.conf.task_acks_late = False
        with pytest.raises(WorkerLostError, match=r"exit code 3.*acks_late is off"):
            app.task(leave_at_once).delay().get(timeout=20)
