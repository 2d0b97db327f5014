"""Who holds a lock dies, stands still or is stopped; what waits for a rate outlives its server and its workers."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests import project
from tests.faults.test_processes import children_of, runs
from tests.helpers import wait_until
from tests.workers import LEASE_S, Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]


def die_once(folder: str, name: str) -> float:
    """End its own process the first time."""
    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    if len(list(Path(folder).glob(f"{name}.*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return time.time()


def test_lock_of_a_killed_worker_goes_on_once_its_lease_has_lapsed(site: Site, tmp_path: Path) -> None:
    first = site.worker(concurrency=1)
    alone = site.app.task(project.alone.run, name="tests.project.alone")
    holder = alone.delay(str(tmp_path), "holder", 5.0)
    wait_until(lambda: runs(tmp_path)["holder"] == 1, 15, "it to run")
    second = site.worker(concurrency=2)
    waiting = [alone.delay(str(tmp_path), f"t{n}", 0.1) for n in range(3)]
    wait_until(lambda: site.app.broker.size(site.queue).delayed == 3, 15, "the others to wait")
    killed_at = time.time()
    first.kill()
    spans = sorted(result.get(timeout=40) for result in (holder, *waiting))
    assert spans[0][0] >= killed_at + LEASE_S / 2, "nobody had it while the lease may have held"
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))
    assert {result.worker for result in waiting} == {second.name}
    assert runs(tmp_path)["holder"] == 2


def test_lock_of_a_killed_child_goes_on_with_its_task(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=2)
    task = site.app.task(die_once, by_value=True, lock="deadly")
    results = [task.delay(str(tmp_path), f"t{n}") for n in range(4)]
    assert len([result.get(timeout=40) for result in results]) == 4
    assert set(runs(tmp_path).values()) == {2}
    wait_until(lambda: len(children_of(worker)) == 2, 10, "both children to be replaced")


def test_lock_of_a_stopped_worker_is_free_for_others(site: Site, tmp_path: Path) -> None:
    first = site.worker(concurrency=1)
    alone = site.app.task(project.alone.run, name="tests.project.alone")
    results = [alone.delay(str(tmp_path), "holder", 3.0), alone.delay(str(tmp_path), "next", 0.0)]
    wait_until(lambda: runs(tmp_path)["holder"] == 1, 15, "it to run")
    site.worker(concurrency=2)
    first.signal(signal.SIGQUIT)
    spans = sorted(result.get(timeout=30) for result in results)
    assert spans[0][1] <= spans[1][0]


def test_frozen_holder_of_a_lock_gives_way(site: Site, tmp_path: Path) -> None:
    frozen = site.worker(concurrency=1)
    alone = site.app.task(project.alone.run, name="tests.project.alone")
    results = [alone.delay(str(tmp_path), name, 1.0) for name in ("holder", "next")]
    wait_until(lambda: runs(tmp_path)["holder"] == 1, 15, "it to run")
    frozen.signal(signal.SIGSTOP)
    site.worker(concurrency=2)
    assert len([result.get(timeout=40) for result in results]) == 2
    frozen.signal(signal.SIGCONT)


def test_what_waits_at_gates_outlives_its_server_and_its_workers(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=1)
    task = site.app.task(project.alone.run, name="waits", by_value=True, rate_limit="4/s", lock="waits")
    results = task.starmap([(str(tmp_path), f"t{n}", 0.05) for n in range(20)])
    wait_until(lambda: len(results.watched.arrived) >= 3, 20, "some to end")
    site.server.kill()
    worker.kill()
    site.server.start()
    site.worker(concurrency=2)
    spans = sorted(results.get(timeout=60))
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))
    assert len(runs(tmp_path)) == 20


def test_purge_drops_what_waits_at_a_gate_and_leaves_the_gate_open(site: Site, tmp_path: Path) -> None:
    site.worker(concurrency=2)
    alone = site.app.task(project.alone.run, name="tests.project.alone")
    holder = alone.delay(str(tmp_path), "holder", 2.0)
    wait_until(lambda: runs(tmp_path)["holder"] == 1, 15, "it to run")
    for n in range(5):
        alone.delay(str(tmp_path), f"t{n}")
    wait_until(lambda: site.app.broker.size(site.queue).delayed >= 1, 15, "some to wait")
    site.app.broker.purge(site.queue)
    after = alone.delay(str(tmp_path), "after")
    assert holder.get(timeout=20)[1] <= after.get(timeout=20)[0]
