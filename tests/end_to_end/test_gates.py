"""Rates and locks hold across workers; what waits for them waits at the server."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from nbqueue.exceptions import TaskRevokedError
from tests import project
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(90)]

CLOSE_S = 0.11  # what a rate may bring at once


@pytest.fixture
def two_workers(shared_site: Site) -> Iterator[Site]:
    """Yield a site with one worker more, which is stopped after the test."""
    second = shared_site.worker()
    yield shared_site
    second.signal(signal.SIGTERM)
    second.wait()


def now() -> float:
    return time.time()


def test_rate_is_kept_across_workers(two_workers: Site) -> None:
    began = time.time()
    instants = (
        two_workers.app.task(project.measured.run, name="tests.project.measured", by_value=False)
        .starmap([()] * 40)
        .get(timeout=40)
    )
    assert 39 / 20 - CLOSE_S < max(instants) - began < 20, "it is kept, and kept up with"


def test_task_over_its_rate_waits_at_the_server_in_order_and_keeps_nobody(idle_site: Site) -> None:
    idle_site.worker(concurrency=1)
    slow = idle_site.app.task(now, name="slow", rate_limit="2/s")
    began = time.time()
    waiting = [slow.delay() for _ in range(6)]
    other = idle_site.app.task(now, name="other")
    quick = [result.get(timeout=20) for result in [other.delay() for _ in range(5)]]
    wait_until(lambda: idle_site.app.broker.size("nbqueue").delayed >= 1, 5, "some to wait at the server")
    instants = [result.get(timeout=30) for result in waiting]
    assert instants == sorted(instants)
    assert max(quick) < instants[3], "what has no rate isn't kept waiting by what has"
    assert instants[-1] - began > 5 / 2 - CLOSE_S
    assert idle_site.app.broker.size("nbqueue").delayed == 0


def test_rate_that_is_taken_away_lets_all_go_at_once(idle_site: Site) -> None:
    worker = idle_site.worker()
    task = idle_site.app.task(project.measured.run, name="tests.project.measured", by_value=False)
    assert task.delay().get(timeout=20)
    control = idle_site.app.control
    said = {worker.name: {"ok": "new rate limit set successfully"}}
    assert control.rate_limit(task.name, "1/h", reply=True) == [said]
    results = [task.delay() for _ in range(150)]
    wait_until(lambda: idle_site.app.broker.size("nbqueue").delayed == 149, 20, "all but one to wait")
    assert sum(result.ready() for result in results) <= 1
    control.rate_limit(task.name, 0, reply=True)
    assert len([result.get(timeout=20) for result in results]) == 150


def test_revoked_tasks_take_no_turns_of_others(idle_site: Site) -> None:
    idle_site.worker(concurrency=1)
    task = idle_site.app.task(now, name="slow", rate_limit="1/s")
    results = [task.delay() for _ in range(12)]
    assert results[0].get(timeout=20)
    wait_until(lambda: idle_site.app.broker.size("nbqueue").delayed >= 10, 10, "the others to wait")
    idle_site.app.revoke(results[2:11])
    began = time.monotonic()
    assert results[11].get(timeout=30)
    assert time.monotonic() - began < 6, "it was the third, not the twelfth"
    with pytest.raises(TaskRevokedError):
        results[5].get(timeout=5)


def test_one_at_a_time_runs_of_all_that_have_a_lock(two_workers: Site, tmp_path: Path) -> None:
    alone = two_workers.app.task(project.alone.run, name="tests.project.alone", by_value=False)
    spans = sorted(alone.starmap([(str(tmp_path), f"t{n}", 0.02) for n in range(30)]).get(timeout=60))
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans)), "no two at a time"


def test_call_may_have_a_lock_of_its_own(two_workers: Site, tmp_path: Path) -> None:
    task = two_workers.app.task(project.alone.run, name="tests.project.alone", by_value=False)
    results = [task.apply_async((str(tmp_path), f"{lock}{n}", 0.3), lock=lock) for n in range(2) for lock in "ab"]
    spans = [result.get(timeout=30) for result in results]
    by_lock = {lock: sorted(spans[at::2]) for at, lock in enumerate("ab")}
    for first, second in by_lock.values():
        assert first[1] <= second[0]
    both = [by_lock["a"][0], by_lock["b"][0]]
    assert max(began for began, _ in both) < min(ended for _, ended in both), "those of two locks run side by side"


def test_what_waits_for_a_lock_keeps_no_child(idle_site: Site, tmp_path: Path) -> None:
    idle_site.worker(concurrency=2)
    alone = idle_site.app.task(project.alone.run, name="tests.project.alone", by_value=False)
    holder = alone.delay(str(tmp_path), "long", 4.0)
    wait_until(lambda: holder.state == "STARTED", 10, "the first to run")
    waiting = [alone.delay(str(tmp_path), f"t{n}", 0.0) for n in range(5)]
    add = idle_site.app.task(project.add.run, name="tests.project.add", by_value=False)
    assert [add.delay(n, 1).get(timeout=10) for n in range(5)] == [1, 2, 3, 4, 5]
    assert holder.state == "STARTED"
    assert idle_site.app.broker.size("nbqueue").delayed == 5
    ended = holder.get(timeout=20)[1]
    spans = [result.get(timeout=20) for result in waiting]
    assert min(spans)[0] >= ended
    assert spans == sorted(spans), "in the order in which they were sent"


def test_rate_and_lock_of_one_task_are_both_kept(shared_site: Site, tmp_path: Path) -> None:
    task = shared_site.app.task(project.alone.run, name="both", by_value=True, rate_limit="5/s", lock="both")
    began = time.time()
    spans = sorted(task.starmap([(str(tmp_path), f"t{n}", 0.05) for n in range(8)]).get(timeout=40))
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))
    assert spans[-1][0] - began > 7 / 5 - CLOSE_S


def test_setting_of_the_app_that_sends_the_code_limits_its_tasks(shared_site: Site) -> None:
    with shared_site.new_app() as app:
        app.conf.task_default_rate_limit = "5/s"
        task = app.task(now, name="of settings")
        began = time.time()
        instants = [result.get(timeout=20) for result in [task.delay() for _ in range(8)]]
    assert max(instants) - began > 7 / 5 - CLOSE_S
