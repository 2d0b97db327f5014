"""Canvases that grow while they run: tasks replaced by others, and headers that are added to."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from nbqueue import chain, chord, group
from nbqueue.exceptions import ChordError, ImproperlyConfigured
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = pytest.mark.brokers


def add(x: int, y: int) -> int:
    return x + y


def fail(text: str) -> None:
    raise ValueError(text)


def collect(values: list[int]) -> list[int]:
    return values


def total(numbers: list[int]) -> int:
    return sum(numbers)


@pytest.fixture
def tasks(shared_site: Site) -> dict[str, Any]:  # noqa: C901 - each of them is short
    app, queue = shared_site.app, shared_site.queue
    made: dict[str, Any] = {run.__name__: app.task(run, queue=queue) for run in (add, fail, total, collect)}
    plus, failing = made["add"], made["fail"]

    @app.task(bind=True, queue=queue)
    def doubled(self: Any, x: int) -> None:
        self.replace(plus.s(x, x))

    @app.task(bind=True, queue=queue)
    def chained(self: Any, x: int) -> None:
        raise self.replace(chain(plus.s(x, 1), plus.s(1), doubled.s()))

    @app.task(bind=True, queue=queue)
    def grouped(self: Any, x: int) -> None:
        self.replace(group(plus.s(i, i) for i in range(x)))

    @app.task(bind=True, queue=queue)
    def spread(self: Any, x: int) -> None:
        self.replace(chain(plus.s(x, 1), group(plus.s(1), plus.s(2))))

    @app.task(bind=True, queue=queue)
    def emptied(self: Any, _: int) -> None:
        self.replace(chain())

    @app.task(bind=True, queue=queue)
    def nested(self: Any, left: int, seen: tuple[int, ...] = ()) -> list[int]:
        seen = (*seen, self.request.replaced_task_nesting)
        if left:
            self.replace(chain(plus.si(1, 1), nested.si(left - 1, seen)) if left % 2 else nested.s(left - 1, seen))
        return list(seen)

    @app.task(bind=True, queue=queue)
    def counting(self: Any, left: int, so_far: int = 0) -> int:
        if left:
            self.replace(counting.s(left - 1, so_far + left))
        return so_far

    @app.task(bind=True, queue=queue)
    def failed(self: Any, text: str) -> None:
        self.replace(chain(plus.si(1, 1), failing.si(text)))

    @app.task(bind=True, queue=queue, max_retries=2, default_retry_delay=0)
    def stubborn(self: Any, x: int) -> int:
        if self.request.retries < 2:
            self.retry(exc=ValueError("once more"))
        self.replace(again.s(x))
        return 0

    @app.task(bind=True, queue=queue, max_retries=1, default_retry_delay=0)
    def again(self: Any, x: int) -> int:
        if self.request.retries < 1:
            self.retry(exc=ValueError("once more"))
        return x

    @app.task(bind=True, queue=queue)
    def adding(self: Any, x: int) -> int:
        for i in range(x):
            self.add_to_chord(chain(plus.s(100, i), plus.s(1)))
        return x

    @app.task(bind=True, queue=queue)
    def adding_and_replaced(self: Any, left: int) -> int:
        self.add_to_chord(plus.s(100, left))
        self.add_to_chord(adding.s(1))
        if left:
            self.replace(adding_and_replaced.s(left - 1))
        return 7

    @app.task(bind=True, queue=queue)
    def adding_and_failed(self: Any) -> None:
        self.add_to_chord(plus.s(100, 1))
        self.replace(failing.si("no good"))

    growing = (adding, adding_and_replaced, adding_and_failed)
    for task in (doubled, chained, grouped, nested, spread, emptied, counting, failed, stubborn, *growing):
        made[task.run.__name__] = task
    return made


def test_what_takes_a_tasks_place_ends_for_it(tasks: dict[str, Any]) -> None:
    assert tasks["doubled"].delay(4).get(timeout=15) == 8
    result = tasks["chained"].delay(3)
    assert result.get(timeout=15) == 10
    assert result.state == "SUCCESS"
    assert tasks["grouped"].delay(4).get(timeout=15) == [0, 2, 4, 6]


def test_what_follows_a_task_follows_what_takes_its_place(tasks: dict[str, Any]) -> None:
    plus = tasks["add"]
    assert chain(plus.s(1, 1), tasks["chained"].s(), plus.s(100)).apply_async().get(timeout=15) == 108
    assert chord([tasks["chained"].s(1), plus.s(1, 1), tasks["doubled"].s(2)])(tasks["total"].s()).get(timeout=15) == 12
    assert group(tasks["doubled"].s(1), tasks["grouped"].s(2))().get(timeout=15) == [2, [0, 2]]
    linked = tasks["doubled"].apply_async((5,), link=plus.s(1))
    assert linked.get(timeout=15) == 10
    child = linked.children[0]
    assert child.get(timeout=15) == 11


def test_members_of_a_map_are_replaced_in_their_places(tasks: dict[str, Any]) -> None:
    results = tasks["chained"].map([1, 2, 3])
    assert results.get(timeout=15) == [6, 8, 10]
    assert results.completed_count() == 3


def test_chain_that_ends_with_a_group_takes_a_tasks_place_with_all_its_values(tasks: dict[str, Any]) -> None:
    assert tasks["spread"].delay(1).get(timeout=15) == [3, 4]
    assert chain(tasks["spread"].s(1), tasks["total"].s()).apply_async().get(timeout=15) == 7


def test_task_knows_how_often_something_took_its_place(tasks: dict[str, Any]) -> None:
    assert tasks["nested"].delay(4).get(timeout=15) == [0, 1, 2, 3, 4]
    assert tasks["nested"].apply((4,)).get() == [0, 1, 2, 3, 4]


def test_nothing_can_not_take_a_tasks_place(tasks: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match="nothing in it that could run"):
        chain(tasks["add"].s(1, 1), tasks["emptied"].s()).apply_async().get(timeout=15)


def test_task_may_be_replaced_again_and_again(tasks: dict[str, Any]) -> None:
    assert tasks["counting"].delay(30).get(timeout=30) == 465
    assert chain(tasks["counting"].s(3), tasks["add"].s(1)).apply_async().get(timeout=15) == 7


def test_failure_of_what_takes_its_place_is_the_tasks_own(tasks: dict[str, Any], shared_site: Site) -> None:
    told = str(uuid.uuid4())
    errback = shared_site.app.task(lambda id_: id_, name="errback", queue=shared_site.queue)
    sent = tasks["failed"].apply_async(("no good",), link_error=errback.s().set(task_id=told))
    with pytest.raises(ValueError, match="no good"):
        sent.get(timeout=15)
    wait_until(lambda: shared_site.app.backend.load([told])[0] is not None, 15, "the errback to end")
    assert shared_site.app.AsyncResult(told).get(timeout=15) == sent.id
    body = chord([tasks["failed"].s("no good"), tasks["add"].s(1, 1)])(tasks["total"].s())
    with pytest.raises(ValueError, match="no good"):
        body.get(timeout=15)
    assert isinstance(body.result, ChordError)


def test_retries_of_a_task_and_of_what_takes_its_place_are_counted_apart(tasks: dict[str, Any]) -> None:
    assert tasks["stubborn"].delay(7).get(timeout=15) == 7


def test_header_is_added_to_while_it_runs(tasks: dict[str, Any]) -> None:
    body = chord([tasks["adding"].s(2), tasks["add"].s(1, 1), tasks["adding"].s(1)])(tasks["total"].s())
    assert body.get(timeout=15) == 2 + 2 + 1 + (101 + 102) + 101
    with pytest.raises(ValueError, match="in no header of a chord"):
        tasks["adding"].delay(1).get(timeout=15)
    assert tasks["adding"].delay(0).get(timeout=15) == 0


def test_task_may_add_to_its_header_and_be_replaced_again_and_again(tasks: dict[str, Any]) -> None:
    plus, collect = tasks["add"], tasks["collect"]
    body = chord([tasks["adding_and_replaced"].s(3), plus.s(1, 1)])(collect.s())
    # Each of four runs adds 100 + left, and a member that is 1 and adds 101.
    expected = sorted([7, 2, *(100 + left for left in range(4)), *[1, 101] * 4])
    values = body.get(timeout=20)
    assert (values[:2], sorted(values)) == ([7, 2], expected)
    alone = chord([tasks["adding_and_replaced"].s(1)])(collect.s())
    assert sorted(alone.get(timeout=20)) == sorted([7, 100, 101, *[1, 101] * 2])
    with pytest.raises(ValueError, match="no good"):
        chord([tasks["adding_and_failed"].s(), plus.s(1, 1)])(collect.s()).get(timeout=20)


def test_revoked_task_is_not_gone_on_with_by_what_takes_its_place(tasks: dict[str, Any], shared_site: Site) -> None:
    sent = tasks["counting"].delay(100_000)
    wait_until(lambda: sent.watched.latest is not None and sent.watched.latest.facts.retries > 3, 15, "replacements")
    sent.revoke()
    wait_until(sent.ready, 15, "its end")
    assert sent.state == "REVOKED"
