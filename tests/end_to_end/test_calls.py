"""Calls that go to a worker and come back."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nbqueue import AsyncResult, GroupResult
from nbqueue.exceptions import (
    NotPicklable,
    NotRegistered,
    SendFailed,
    TaskRevokedError,
    TimeoutError,  # noqa: A004
    UnknownTask,
)
from tests import project
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = pytest.mark.brokers


def double(x: int) -> int:
    return 2 * x


def fail_on_three(x: int) -> int:
    if x == 3:
        raise ValueError(f"{x} is not wanted")
    return x


def wait_a_while(seconds: float) -> str:
    print("waiting")
    time.sleep(seconds)
    return "waited"


def test_function_by_value_needs_no_import_on_the_worker(shared_site: Site) -> None:
    factor = 3

    def scale(x: int) -> int:
        return factor * x

    assert shared_site.app.task(scale).delay(14).get(timeout=10) == 42


def test_function_by_name_runs_what_the_worker_has(shared_site: Site) -> None:
    assert shared_site.app.send_task("tests.project.add", (40, 2)).get(timeout=10) == 42


def test_unregistered_name_fails_and_names_what_the_worker_knows(shared_site: Site) -> None:
    with pytest.raises(NotRegistered, match=r"nowhere\.task.*tests\.project\.add"):
        shared_site.app.send_task("nowhere.task").get(timeout=10)


def test_bound_task_knows_its_own_call(shared_site: Site) -> None:
    result = shared_site.app.task(project.who.function, bind=True, by_value=False, name="tests.project.who").delay()
    assert result.get(timeout=10) == {
        "id": result.id,
        "attempt": 1,
        "name": "tests.project.who",
        "queue": "nbqueue",
    }


def test_error_comes_back_as_itself_with_the_remote_traceback(shared_site: Site) -> None:
    result = shared_site.app.task(fail_on_three).delay(3)
    with pytest.raises(ValueError, match="3 is not wanted") as caught:
        result.get(timeout=10)
    assert "fail_on_three" in str(caught.value.__cause__)
    assert result.failed()
    assert result.traceback is not None
    assert "ValueError: 3 is not wanted" in result.traceback
    assert isinstance(result.get(propagate=False), ValueError)


def test_map_returns_results_in_order_of_the_calls(shared_site: Site) -> None:
    results = shared_site.app.task(double).map(range(300))
    assert results.get(timeout=20) == [2 * x for x in range(300)]
    assert results.completed_count() == 300
    assert results.successful()
    assert [result.get() for result in results][:3] == [0, 2, 4]


def wait_for(path: str) -> None:
    while path and not Path(path).exists():
        time.sleep(0.01)


def test_map_yields_results_as_they_complete(shared_site: Site, tmp_path: Path) -> None:
    results = shared_site.app.task(wait_for).map([str(tmp_path / "go"), ""])
    order = []
    for result in results.as_completed(timeout=20):
        order.append(result.id[-2:])
        (tmp_path / "go").touch()
    assert order == ["-1", "-0"]


def test_map_raises_its_first_error_and_keeps_the_other_results(shared_site: Site) -> None:
    results = shared_site.app.task(fail_on_three).map(range(6))
    with pytest.raises(ValueError, match="3 is not wanted"):
        results.get(timeout=10)
    values = results.get(timeout=10, propagate=False)
    assert [v for v in values if not isinstance(v, Exception)] == [0, 1, 2, 4, 5]
    assert results.failed()
    assert results[3].state == "FAILURE"
    assert results[4].get(timeout=5) == 4


def test_empty_map_is_ready_at_once(shared_site: Site) -> None:
    results = shared_site.app.task(double).map([])
    assert results.ready()
    assert results.get(timeout=1) == []


def test_output_and_progress_stream_back_while_the_task_runs(shared_site: Site) -> None:
    result = shared_site.app.send_task("tests.project.talk", (3,))
    assert result.get(timeout=10) == "said"
    status = result.watched.status
    assert "".join(text for *_, text in status.log.chunks) == "line 0\nline 1\nline 2\n"
    assert status.bars[0].done == 3


def test_another_session_finds_state_output_and_result_by_id(shared_site: Site) -> None:
    sent = shared_site.app.task(wait_a_while).delay(0.8)
    with shared_site.new_app() as other:
        found = other.attach(sent.id)
        assert isinstance(found, AsyncResult)
        wait_until(lambda: found.state == "STARTED", 5, "the task to be seen running")
        assert found.get(timeout=10) == "waited"
        assert [text for *_, text in found.watched.status.log.chunks] == ["waiting\n"]


def test_another_session_finds_a_map_by_id(shared_site: Site) -> None:
    sent = shared_site.app.task(double).map(range(20))
    with shared_site.new_app() as other:
        found = other.attach(sent.id)
        assert isinstance(found, GroupResult)
        assert found.get(timeout=10) == [2 * x for x in range(20)]
        assert other.AsyncResult(sent[7].id).get(timeout=5) == 14


def test_result_can_be_awaited(shared_site: Site) -> None:
    async def both() -> tuple[int, list[int]]:
        task = shared_site.app.task(double)
        return await task.delay(4), await task.map([1, 2])

    assert asyncio.run(asyncio.wait_for(both(), 10)) == (8, [2, 4])


def test_then_calls_back_with_the_handle_once_it_has_ended(shared_site: Site) -> None:
    seen: list[int] = []
    shared_site.app.task(double).delay(5).then(lambda result: seen.append(result.get()))
    wait_until(lambda: seen == [10], 5, "the callback")


def test_forgotten_result_is_unknown_to_others(shared_site: Site) -> None:
    result = shared_site.app.task(double).delay(1)
    result.get(timeout=10)
    result.forget()
    with shared_site.new_app() as other, pytest.raises(UnknownTask):
        other.attach(result.id)


def test_id_that_nobody_sent_is_unknown_and_not_pending(shared_site: Site) -> None:
    result = AsyncResult("no-such-task", shared_site.app)
    assert result.state == "UNKNOWN"
    with pytest.raises(UnknownTask, match="no-such-task"):
        result.get(timeout=5)


def test_countdown_keeps_a_task_back(shared_site: Site) -> None:
    began = time.monotonic()
    result = shared_site.app.task(double).apply_async((2,), countdown=0.7)
    assert result.get(timeout=10) == 4
    assert time.monotonic() - began >= 0.7


def test_eta_keeps_a_task_back(shared_site: Site) -> None:
    eta = datetime.now(UTC) + timedelta(seconds=0.7)
    assert shared_site.app.task(double).apply_async((2,), eta=eta).get(timeout=10) == 4
    assert datetime.now(UTC) >= eta


def test_expired_task_is_not_run(idle_site: Site) -> None:
    result = idle_site.app.task(double).apply_async((2,), expires=0.05)
    wait_until(lambda: time.time() > result.watched.steering.expires, 2, "it to expire")  # type: ignore[union-attr]
    idle_site.worker()
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=10)


def test_serializer_json_carries_arguments(shared_site: Site) -> None:
    assert shared_site.app.task(double).apply_async((21,), serializer="json").get(timeout=10) == 42
    with pytest.raises(NotPicklable, match="JSON"):
        shared_site.app.task(double).apply_async((object(),), serializer="json")


def test_ignored_result_keeps_no_value(shared_site: Site) -> None:
    assert shared_site.app.task(double, ignore_result=True).delay(1).get(timeout=10) is None


def test_shadow_is_the_name_that_is_shown(shared_site: Site) -> None:
    result = shared_site.app.task(double).apply_async((1,), shadow="other name")
    result.get(timeout=10)
    assert result.watched.status.name == "other name"


def test_id_of_a_live_task_is_refused_and_of_an_ended_one_runs_anew(idle_site: Site) -> None:
    task = idle_site.app.task(double)
    first = task.apply_async((1,), task_id="mine")
    with pytest.raises(SendFailed, match="mine"):
        task.apply_async((2,), task_id="mine")
    idle_site.worker()
    assert first.get(timeout=10) == 2
    assert task.apply_async((3,), task_id="mine").get(timeout=10) == 6


def test_queue_is_served_by_its_own_worker_only(idle_site: Site) -> None:
    result = idle_site.app.task(double).apply_async((1,), queue="gpu")
    idle_site.worker("-Q", "nbqueue")
    assert idle_site.app.task(double).delay(1).get(timeout=10) == 2
    assert not result.ready()
    idle_site.worker("-Q", "other,gpu")
    assert result.get(timeout=10) == 2


def test_wait_without_a_worker_says_why(idle_site: Site) -> None:
    result = idle_site.app.task(double).delay(1)
    idle_site.app.watcher.check_soon()
    with pytest.warns(UserWarning, match="No worker listens to queue nbqueue"), pytest.raises(TimeoutError):
        result.get(timeout=8)


def test_another_python_is_refused_before_anything_is_unpickled(
    shared_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbqueue.tasks.python_version", lambda: "3.99")
    result = shared_site.app.task(double).delay(1)
    with pytest.raises(Exception, match=r"Python 3\.99.*runs 3\."):
        result.get(timeout=10)


# ---- revoking


def test_revoke_ends_a_queued_task_without_any_worker(idle_site: Site, tmp_path: Path) -> None:
    result = idle_site.app.send_task("tests.project.note", (str(tmp_path), "never"))
    result.revoke()
    with pytest.raises(TaskRevokedError, match="cancelled"):
        result.get(timeout=5)
    idle_site.worker()
    assert idle_site.app.send_task("tests.project.add", (1, 1)).get(timeout=10) == 2
    assert list(tmp_path.iterdir()) == []


def test_revoke_ends_a_delayed_task(idle_site: Site) -> None:
    result = idle_site.app.task(double).apply_async((1,), countdown=60)
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)
    assert idle_site.app.broker.size("nbqueue").delayed == 0


def test_revoke_lets_a_running_task_go_on_unless_it_terminates(shared_site: Site) -> None:
    result = shared_site.app.task(wait_a_while).delay(0.8)
    wait_until(lambda: result.state == "STARTED", 5, "the task to run")
    result.revoke()
    assert result.get(timeout=10) == "waited"


def test_revoke_stops_a_running_task_when_it_terminates(shared_site: Site) -> None:
    result = shared_site.app.task(wait_a_while).delay(60)
    wait_until(lambda: result.state == "STARTED", 5, "the task to run")
    began = time.monotonic()
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    assert time.monotonic() - began < 2


def test_revoke_stops_a_task_that_takes_no_notice(shared_site: Site, tmp_path: Path) -> None:
    result = shared_site.app.send_task("tests.project.stubborn", (str(tmp_path),))
    wait_until((tmp_path / "running").exists, 5, "the task to run")
    began = time.monotonic()
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=15)
    assert time.monotonic() - began < 8


def test_revoke_by_another_session_stops_a_running_task(shared_site: Site, tmp_path: Path) -> None:
    result = shared_site.app.send_task("tests.project.note", (str(tmp_path), "long", 60.0))
    wait_until(lambda: list(tmp_path.iterdir()), 5, "the task to run")
    with shared_site.new_app() as other:
        found = other.attach(result.id)
        found.revoke(terminate=True, signal="SIGTERM")
        for handle in (found, result):
            with pytest.raises(TaskRevokedError):
                handle.get(timeout=10)


def test_revoke_of_an_ended_task_changes_nothing(shared_site: Site) -> None:
    result = shared_site.app.task(double).delay(3)
    assert result.get(timeout=10) == 6
    result.revoke(terminate=True)
    assert shared_site.app.task(double).delay(4).get(timeout=10) == 8
    with shared_site.new_app() as other:
        assert other.AsyncResult(result.id).get(timeout=5) == 6


def test_revoked_task_lets_the_next_one_in_its_child_alone(shared_site: Site) -> None:
    for _ in range(4):
        victims = shared_site.app.task(wait_a_while).map([60, 60])
        others = shared_site.app.task(double).map(range(20))
        wait_until(lambda: any(victim.state == "STARTED" for victim in victims.results), 10, "one to run")  # noqa: B023
        victims.revoke(terminate=True)
        assert others.get(timeout=20) == [2 * x for x in range(20)]
        assert all(isinstance(value, TaskRevokedError) for value in victims.get(timeout=20, propagate=False))


def test_revoke_of_a_map_ends_what_has_not_ended(shared_site: Site) -> None:
    results = shared_site.app.task(wait_a_while).map([0.0, 60, 60, 60, 60])
    assert results[0].get(timeout=10) == "waited"
    results.revoke(terminate=True)
    values = results.get(timeout=15, propagate=False)
    assert values[0] == "waited"
    assert all(isinstance(value, TaskRevokedError) for value in values[1:])


def test_revoke_by_another_session_ends_a_queued_member_of_a_map(idle_site: Site) -> None:
    results = idle_site.app.task(double).map(range(2))
    with idle_site.new_app() as other:
        other.AsyncResult(f"{results.id}-1").revoke()
    with pytest.raises(TaskRevokedError):
        results[1].get(timeout=10)
    assert not results[0].ready()


def test_revoke_of_an_id_that_nobody_sent_leaves_nothing_behind(idle_site: Site) -> None:
    idle_site.app.AsyncResult("nobody").revoke(terminate=True)
    assert idle_site.server_says("EXISTS", "nbq:revoked") == 0
    later = idle_site.app.task(double).apply_async((21,), task_id="nobody")
    idle_site.worker()
    assert later.get(timeout=20) == 42
