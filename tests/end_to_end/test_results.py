"""Results of what workers ran: kept, followed, and waited for from within."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest

from nbqueue import chain, chord, group
from nbqueue.exceptions import IncompleteStream
from nbqueue.result import GroupResult, allow_join_result
from tests.workers import Site

pytestmark = pytest.mark.brokers


def add(x: int, y: int) -> int:
    return x + y


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_saved_group_is_restored_by_another_session(shared_site: Site) -> None:
    a = shared_site.app.task(add)
    sent = group(a.s(1, 1), chord([a.s(1, 1), a.s(2, 2)], shared_site.app.task(sum).s()), a.s(3, 3))()
    sent.save()
    later = shared_site.new_app()
    again = GroupResult.restore(sent.id, app=later)
    assert again is not None
    assert again.get(timeout=15) == [2, 6, 6]
    assert again.completed_count() == 3
    assert later.GroupResult.restore(sent.id) == again
    again.delete()
    assert later.GroupResult.restore(sent.id) is None
    mapped = shared_site.app.task(add).starmap([(1, 1), (2, 2)])
    found = later.GroupResult.restore(mapped.id)
    assert found is not None
    assert found.get(timeout=15) == [2, 4]
    later.close()


def test_result_has_its_arguments_where_settings_say_so(shared_site: Site) -> None:
    plain = shared_site.app.task(add).delay(1, y=1)
    app = shared_site.new_app()
    app.conf.result_extended = True
    task = app.task(add)
    sent = [task.delay(1, y=2), *task.starmap([(3, 4)]).results, task.delay(5, "x"), task.delay([0] * 5_000, [1])]
    values = [result.get(timeout=15, propagate=False) for result in (plain, *sent)]
    assert values[:3] == [2, 3, 7]
    told = [shared_site.app.AsyncResult(result.id) for result in (plain, *sent)]
    assert [(result.args, result.kwargs) for result in told] == [
        (None, None),
        ((1,), {"y": 2}),
        ((3, 4), {}),
        ((5, "x"), {}),  # of a failure too
        (None, None),  # too long
    ]
    assert (told[1].name, told[1].queue, told[1].retries) == (task.name, shared_site.queue, 0)
    assert task.apply((1,), {"y": 2}).args == (1,)
    app.close()


def test_calls_of_a_canvas_are_followed_from_the_first(shared_site: Site) -> None:
    a = shared_site.app.task(add)
    last = chain(a.s(1, 1), a.s(2), a.s(3)).apply_async()
    assert last.get(timeout=15) == 7
    first = shared_site.app.AsyncResult(last.parent.parent.id)
    assert [child.id for child in first.children or ()] == [last.parent.id]
    assert [value for _, value in first.collect(timeout=15)] == [2, 4, 7]
    assert [one.id for _, one in first.iterdeps()] == last.as_list()[::-1]
    assert first.get_leaf() == 7
    assert last.as_list() == [last.id, last.parent.id, first.id]


def test_what_follows_a_call_is_had_as_a_graph(shared_site: Site) -> None:
    a = shared_site.app.task(add)
    last = chain(a.s(1, 1), a.s(2), group(a.s(3), a.s(4))).apply_async()
    assert last.get(timeout=15) == [7, 8]
    second = last.parent
    first = shared_site.app.AsyncResult(second.parent.id)
    graph = first.graph
    assert {node.id: [one.id for one in graph[node]] for node in graph} == {
        first.id: [second.id],
        second.id: [one.id for one in last],
        **{one.id: [] for one in last},
    }
    assert repr(graph).startswith(f"{first.id}(3)\n    {second.id}(2)\n        {last[0].id}(0)\n")
    assert graph.topsort()[-2:] == [second, first]
    file = io.StringIO()
    graph.to_dot(file)
    assert file.getvalue().count(f'"{second.id}" -> "') == 2


def test_handle_that_is_ignored_waits_for_nothing(shared_site: Site) -> None:
    sent = shared_site.app.task(add).s(1, 1).apply_async(countdown=600, ignore_result=True)
    assert sent.ignored
    later = shared_site.app.task(add).s().AsyncResult(sent.id)
    later.ignored = True
    assert later.get() is None
    with pytest.raises(sent.TimeoutError):
        sent.get(timeout=0.01)
    sent.revoke()


def test_what_has_not_ended_is_not_followed(shared_site: Site) -> None:
    naps = shared_site.app.task(nap)
    last = chain(naps.s(1.0), naps.si(0.0)).apply_async()
    with pytest.raises(IncompleteStream, match="has not ended"):
        list(last.parent.iterdeps())
    assert len(list(last.parent.iterdeps(intermediate=True))) == 1
    with pytest.raises(IncompleteStream, match="has not ended"):
        _ = last.parent.graph
    assert len(last.parent.build_graph(intermediate=True)) == 1
    assert last.get(timeout=15) == 0.0


def test_who_waits_is_told_of_changes(shared_site: Site) -> None:
    told: list[dict[str, Any]] = []
    turns: list[None] = []
    result = shared_site.app.task(nap).delay(1.0)
    value = result.get(timeout=15, on_message=told.append, on_interval=lambda: turns.append(None), interval=0.05)
    assert value == 1.0
    assert [one["status"] for one in told][-2:] == ["STARTED", "SUCCESS"]
    assert told[-1]["result"] == 1.0
    assert len(turns) > 3


def test_task_that_waits_for_another_is_told_what_to_do(shared_site: Site) -> None:
    inner = shared_site.app.task(add, queue=shared_site.queue)

    @shared_site.app.task
    def outer() -> int:
        return int(inner.delay(1, 1).get())

    @shared_site.app.task
    def patient() -> int:
        with allow_join_result():
            return int(inner.delay(1, 1).get(timeout=15))

    with pytest.raises(RuntimeError, match="holds a child that the other may need"):
        outer.delay().get(timeout=15)
    assert patient.delay().get(timeout=30) == 2


def test_results_that_never_expire_are_kept_for_a_hundred_years(idle_site: Site) -> None:
    idle_site.app.conf.update(result_expires=None)
    idle_site.worker(CELERY_CONFIG_MODULE="tests.configured")
    task = idle_site.app.task(add)
    sent = [task.delay(1, 2), task.delay(1, "2")]
    mapped = task.starmap([(1, 1), (2, 2)])
    assert sent[0].get(timeout=20) == 3
    assert isinstance(sent[1].get(timeout=20, propagate=False), TypeError)
    assert mapped.get(timeout=20) == [2, 4]
    joined = chord([task.s(1, 1), task.s(2, 2)])(idle_site.app.task(sum).s())
    assert joined.get(timeout=20) == 6
    years = 365 * 86_400
    for one in (*sent, joined):
        left = idle_site.server_says("TTL", f"celery-task-meta-{one.id}")
        assert isinstance(left, int)
        assert 99 * years < left <= 100 * years


def test_failures_are_kept_for_a_time_of_their_own_with_their_messages(idle_site: Site) -> None:
    idle_site.worker(CELERY_CONFIG_MODULE="tests.failing")
    task = idle_site.app.task(add)
    fine, failed, (member, _) = task.delay(1, 2), task.delay(1, "2"), task.starmap([(1, "2"), (1, 1)])
    assert fine.get(timeout=20) == 3
    for one in (failed, member):
        assert isinstance(one.get(timeout=20, propagate=False), TypeError)

    def left(key: str) -> int:
        return int(str(idle_site.server_says("TTL", key)))

    assert 80_000 < left(f"celery-task-meta-{fine.id}") <= 86_400
    for one in (failed, member):
        assert 3_000 < left(f"celery-task-meta-{one.id}") <= 3_600
        assert 3_000 < left(f"nbq:failed:{one.id}") <= 3_600
