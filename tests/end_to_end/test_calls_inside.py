"""Calls that tasks make: sent from a child, to where its worker is connected to."""

from __future__ import annotations

import pytest

from nbqueue import signature
from nbqueue.execute import BoundTask
from tests.workers import Site

pytestmark = pytest.mark.brokers


def double(x: int) -> int:
    return 2 * x


def test_task_sent_with_its_code_calls_another(shared_site: Site) -> None:
    doubled = shared_site.app.task(double, queue=shared_site.queue)

    @shared_site.app.task
    def outer(x: int) -> tuple[int, str]:
        return doubled(x), doubled.delay(x + 1).id

    here, id_ = outer.delay(20).get(timeout=15)
    assert here == 40
    assert shared_site.app.AsyncResult(id_).get(timeout=15) == 42


def test_task_calls_one_by_name_and_a_canvas(shared_site: Site) -> None:
    queue = shared_site.queue

    @shared_site.app.task
    def outer() -> tuple[str, str]:
        add = signature("tests.project.add", queue=queue)
        chained = add.clone((1, 1)) | add.clone((3,))
        return add.clone((1, 2)).apply_async().id, chained.apply_async().id

    one, chained = outer.delay().get(timeout=15)
    assert shared_site.app.AsyncResult(one).get(timeout=15) == 3
    assert shared_site.app.AsyncResult(chained).get(timeout=15) == 5


def level(self: BoundTask) -> int:
    return int(self.request.delivery_info["priority"])


def test_call_has_its_parents_priority_where_settings_say_so(idle_site: Site) -> None:
    inner = idle_site.app.task(level, bind=True)

    @idle_site.app.task
    def outer() -> tuple[str, str]:
        return inner.delay().id, inner.apply_async(priority=2).id

    idle_site.worker(CELERY_CONFIG_MODULE="tests.configured")
    inherited, own = outer.apply_async(priority=7).get(timeout=20)
    assert idle_site.app.AsyncResult(inherited).get(timeout=15) == 7
    assert idle_site.app.AsyncResult(own).get(timeout=15) == 2
    assert inner.delay().get(timeout=15) == 0
