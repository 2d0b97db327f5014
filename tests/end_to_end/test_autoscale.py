"""A worker has as many children as there is work for."""

from __future__ import annotations

import time

import pytest

from tests.faults.test_processes import children_of
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(90)]


def nap() -> None:
    time.sleep(1.5)


def test_worker_has_as_many_children_as_there_is_work_for(idle_site: Site) -> None:
    worker = idle_site.worker("--autoscale", "4,1", AUTOSCALE_KEEPALIVE="2")
    wait_until(lambda: len(children_of(worker)) == 1, 15, "it to begin with one")
    results = [idle_site.app.task(nap).delay() for _ in range(12)]
    wait_until(lambda: len(children_of(worker)) == 4, 20, "it to have four")
    assert [result.get(timeout=30) for result in results] == [None] * 12
    wait_until(lambda: len(children_of(worker)) == 1, 20, "it to be back to one")
    assert idle_site.app.task(nap).delay().get(timeout=20) is None


def test_bounds_are_set_while_the_worker_runs(idle_site: Site) -> None:
    worker = idle_site.worker(concurrency=1)
    control = idle_site.app.control
    assert control.autoscale(5, 3, reply=True) == [{worker.name: {"ok": "autoscale now max=5 min=3"}}]
    wait_until(lambda: len(children_of(worker)) == 3, 15, "it to have three")
    assert control.pool_grow(3, reply=True) == [{worker.name: {"ok": "pool will grow"}}]
    wait_until(lambda: len(children_of(worker)) == 6, 15, "it to have six")
    assert control.autoscale(2, 1, reply=True) == [{worker.name: {"ok": "autoscale now max=2 min=1"}}]
    wait_until(lambda: len(children_of(worker)) == 2, 15, "it to have two")
    ((said,),) = [answer.values() for answer in control.autoscale(1, 5, reply=True) or ()]
    assert "MAX,MIN" in said["error"]
