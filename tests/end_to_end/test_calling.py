"""What a task knows of its call, says of itself and has done before and after it: by value and by name."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nbqueue import Task, chain, current_task, group, states
from nbqueue.exceptions import Ignore, SendFailed, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from nbqueue.utils.log import get_task_logger
from tests.helpers import wait_until
from tests.project import Noting
from tests.workers import Site

pytestmark = pytest.mark.brokers

ENDS = {
    "value": ["before_start", "run 0", "on_success value", "after_return SUCCESS"],
    "fail": ["before_start", "run 0", "on_failure no good True", "after_return FAILURE"],
    "retry": [
        *("before_start", "run 0", "on_retry again"),
        *("before_start", "run 1", "on_failure again True", "after_return FAILURE"),
    ],
}


def fields(self: Task, x: int, y: int = 0) -> dict[str, Any]:
    request = self.request
    names = (
        *("id", "task", "args", "kwargs", "retries", "delivery_info", "eta", "expires", "parent_id", "root_id"),
        *("group", "group_index", "chord", "correlation_id", "reply_to", "timelimit", "is_eager", "headers"),
        *("called_directly", "origin", "utc", "shadow", "argsrepr", "kwargsrepr", "hostname", "ignore_result"),
    )
    return {name: getattr(request, name) for name in names}


def test_task_knows_all_of_its_call(shared_site: Site) -> None:
    result = shared_site.app.task(fields, bind=True).apply_async(
        (1,), {"y": 2}, headers={"tenant": "a", "n": [1]}, reply_to="there", shadow="shown", argsrepr="(one,)",
        time_limit=50, soft_time_limit=40, priority=3, expires=100, connection=None, producer=None,
    )  # fmt: skip
    said = result.get(timeout=20)
    assert said["id"] == said["correlation_id"] == said["root_id"] == result.id
    assert (said["args"], said["kwargs"], said["retries"]) == ((1,), {"y": 2}, 0)
    assert said["delivery_info"]["routing_key"] == shared_site.queue
    assert (said["delivery_info"]["priority"], said["delivery_info"]["redelivered"]) == (3, False)
    assert (said["headers"], said["reply_to"], said["shadow"]) == ({"tenant": "a", "n": [1]}, "there", "shown")
    assert (said["argsrepr"], said["kwargsrepr"]) == ("(one,)", "{'y': 2}")
    assert (said["timelimit"], said["called_directly"], said["is_eager"]) == ((50, 40), False, False)
    assert (said["parent_id"], said["group"], said["eta"]) == (None, None, None)
    assert said["expires"] > time.strftime("%Y-%m-%dT", time.gmtime())
    assert said["origin"] == shared_site.app.session


def test_members_of_a_map_know_their_group(shared_site: Site) -> None:
    results = shared_site.app.task(fields, bind=True).map([1, 2], headers={"a": 1})
    said = results.get(timeout=20)
    assert [(one["group"], one["group_index"]) for one in said] == [(results.id, 0), (results.id, 1)]
    assert said[1]["headers"] == {"a": 1}


@pytest.mark.parametrize("outcome", ENDS)
def test_hooks_are_called_in_their_order(shared_site: Site, tmp_path: Path, outcome: str) -> None:
    path = tmp_path / "notes"
    result = shared_site.app.send_task("tests.project.noted", (str(path), outcome))
    result.get(timeout=20, propagate=False)
    assert path.read_text().splitlines() == ENDS[outcome]


def test_hooks_and_state_of_a_class_travel_with_a_function(shared_site: Site, tmp_path: Path) -> None:
    class Counting(Noting):
        step = 10

    @shared_site.app.task(base=Counting, bind=True)
    def count(self: Counting, path: str) -> tuple[int, int, int | None]:
        return self.calls, self.step, self.max_retries

    path = tmp_path / "notes"
    calls = [count.delay(str(path)).get(timeout=20) for _ in range(6)]
    assert max(number for number, _, _ in calls) >= 3, "one object a child"
    assert calls[0][1:] == (10, 1)
    lines = path.read_text().splitlines()
    assert lines.count("before_start") == lines.count("after_return SUCCESS") == 6


def test_hook_that_fails_leaves_the_end_as_it_is_and_says_so(shared_site: Site) -> None:
    class Broken(Task):
        def on_success(self, retval: Any, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise RuntimeError("broken hook")

    class Refusing(Task):
        def before_start(self, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise RuntimeError("not today")

    result = shared_site.app.task(lambda: 5, base=Broken, name="broken").delay()
    log = result.watched.status.log
    assert result.get(timeout=20) == 5
    wait_until(lambda: "broken hook" in "".join(text for _, _, text in log.chunks), 10, "the hook's error in the log")
    with pytest.raises(RuntimeError, match="not today"):
        shared_site.app.task(lambda: 5, base=Refusing, name="refusing").delay().get(timeout=20)


def test_class_of_tasks_runs_by_name_and_by_value(shared_site: Site) -> None:
    result = shared_site.app.send_task("project.adding", (1, 2))
    assert result.get(timeout=20) == {"sum": 3, "id": result.id, "name": "project.adding"}

    class Times(Task):
        factor = 3

        def run(self, x: int) -> tuple[int, str]:
            return self.factor * x, self.request.id

    times = shared_site.app.register_task(Times)
    result = times.delay(4)
    assert result.get(timeout=20) == (12, result.id)
    assert times.map([1, 2]).get(timeout=20)[1][0] == 6


def test_class_that_is_called_its_own_way(shared_site: Site) -> None:
    class Doubling(Task):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().__call__(*args, **kwargs)

    @shared_site.app.task(base=Doubling, bind=True)
    def one(self: Task, x: int) -> int:
        return x

    assert one.delay(21).get(timeout=20) == 42


def test_shared_task_of_a_module_runs_by_name(shared_site: Site) -> None:
    assert shared_site.app.send_task("tests.project.shared_double", (4,)).get(timeout=20) == 8


def test_bound_task_has_all_that_a_task_has(shared_site: Site) -> None:
    @shared_site.app.task(bind=True, time_limit=33, queue=shared_site.queue)
    def work(self: Task, deep: bool = False) -> Any:
        if deep:
            return "deep"
        again = self.apply_async((True,))
        same = current_task.name == self.name and current_task.request.id == self.request.id
        return self.time_limit, self.name, same, self.s(True).task, again.id, self.app.conf.task_time_limit

    limit, name, same, signed, id_, _ = work.delay().get(timeout=20)
    assert (limit, name, same, signed) == (33, work.name, True, work.name)
    assert shared_site.app.AsyncResult(id_).get(timeout=20) == "deep"
    assert not current_task


def test_calls_made_inside_are_children_and_know_whose(shared_site: Site) -> None:
    queue = shared_site.queue
    told = shared_site.app.task(fields, bind=True, queue=queue)

    @shared_site.app.task
    def parent() -> tuple[str, str, str]:
        hidden = told.apply_async((3,), add_to_parent=False)
        return told.delay(1).id, told.map([2]).id, hidden.id

    result = parent.delay()
    one, group, hidden = result.get(timeout=20)
    children = result.children
    assert children is not None
    assert [child.id for child in children] == [one, group]
    said = children[0].get(timeout=20)
    assert (said["parent_id"], said["root_id"]) == (result.id, result.id)
    [member] = children[1].get(timeout=20)
    assert member["root_id"] == result.id
    assert children[0].parent == result
    assert shared_site.app.AsyncResult(hidden).get(timeout=20)["parent_id"] == result.id
    assert [child.id for child in shared_site.new_app().AsyncResult(result.id).children or ()] == [one, group]


def test_state_and_what_goes_with_it_are_seen_while_it_runs(shared_site: Site, tmp_path: Path) -> None:
    @shared_site.app.task(bind=True)
    def slow(self: Task, folder: str) -> str:
        self.update_state(state="PROGRESS", meta={"done": 1, "of": 3})
        while not (Path(folder) / "go").exists():
            time.sleep(0.01)
        for number in range(50_000):
            self.update_state(state="PROGRESS", meta=number)
        return "done"

    result = slow.delay(str(tmp_path))
    wait_until(lambda: result.state == "PROGRESS", 20, "the state of the task's own")
    assert (result.info, result.ready()) == ({"done": 1, "of": 3}, False)
    stored = shared_site.server_says("GET", f"celery-task-meta-{result.id}")
    assert isinstance(stored, bytes)
    assert b'"status":"PROGRESS"' in stored
    assert b'"result":{"done":1,"of":3}' in stored
    assert shared_site.new_app().AsyncResult(result.id).info == {"done": 1, "of": 3}
    (tmp_path / "go").touch()
    assert result.get(timeout=20) == "done"
    assert result.state == states.SUCCESS


def test_task_names_its_own_end_and_raises_ignore(shared_site: Site) -> None:
    @shared_site.app.task(bind=True)
    def own(self: Task, state: str, meta: Any) -> None:
        self.update_state(state=state, meta=meta)
        raise Ignore

    failed = own.delay("FAILURE", {"exc_type": "ValueError", "exc_message": ["of", "its own"]})
    with pytest.raises(ValueError, match="of its own"):
        failed.get(timeout=20)
    assert own.delay("SUCCESS", {"a": 1}).get(timeout=20) == {"a": 1}
    with pytest.raises(ValueError, match="the worker's to write"):
        own.delay("REVOKED", None).get(timeout=20)


def test_coroutine_is_a_task_with_hooks_and_limits(shared_site: Site, tmp_path: Path) -> None:
    @shared_site.app.task(base=Noting, bind=True, soft_time_limit=0.4)
    async def sleepy(self: Noting, path: str, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds + float(self.request.retries)

    path = tmp_path / "notes"
    assert sleepy.delay(str(path), 0.01).get(timeout=20) == 0.01
    assert path.read_text().splitlines() == ["before_start", "on_success 0.01", "after_return SUCCESS"]
    with pytest.raises(SoftTimeLimitExceeded):
        sleepy.delay(str(path), 30).get(timeout=20)
    assert path.read_text().splitlines()[-1] == "after_return FAILURE"


def test_calls_of_a_canvas_know_what_came_before(shared_site: Site) -> None:
    told = shared_site.app.task(fields, bind=True, queue=shared_site.queue)

    @shared_site.app.task
    def parent() -> str:
        return str((told.si(1) | told.si(2)).apply_async().id)

    chained = (told.si(1) | told.si(2) | told.si(3)).apply_async()
    last = chained.get(timeout=20)
    second, first = chained.parent, chained.parent.parent
    assert (last["parent_id"], last["root_id"]) == (second.id, first.id)
    assert (first.get()["parent_id"], first.get()["root_id"]) == (None, first.id)
    sent = parent.delay()
    inner = shared_site.app.AsyncResult(sent.get(timeout=20))
    assert inner.get(timeout=20)["root_id"] == sent.id
    (head,) = list(sent.children or ())
    assert head.get(timeout=20)["parent_id"] == sent.id
    assert [one.id for one in head.children or ()] == [inner.id]


def test_id_of_a_task_with_a_state_of_its_own_is_not_sent_again(shared_site: Site, tmp_path: Path) -> None:
    @shared_site.app.task(bind=True)
    def slow(self: Task, folder: str) -> str:
        self.update_state(state="HALF_WAY")
        while not (Path(folder) / "go").exists():
            time.sleep(0.01)
        return str(self.request.hostname)

    result = slow.delay(str(tmp_path))
    wait_until(lambda: result.state == "HALF_WAY", 20, "the state of the task's own")
    with pytest.raises(SendFailed, match="queued or running already"):
        slow.apply_async((str(tmp_path),), task_id=result.id)
    (tmp_path / "go").touch()
    assert result.get(timeout=20) == shared_site.workers[0].name


def test_task_with_a_state_of_its_own_is_cancelled_like_any(shared_site: Site) -> None:
    @shared_site.app.task(bind=True)
    def endless(self: Task) -> None:
        while True:
            self.update_state(state="ENDLESS", meta=time.time())
            time.sleep(0.01)

    result = endless.delay()
    wait_until(lambda: result.state == "ENDLESS", 20, "the state of the task's own")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert result.state == states.REVOKED


def test_failures_are_logged_and_expected_ones_in_one_line(shared_site: Site) -> None:
    expecting = shared_site.app.task(fails, name="expecting", throws=(ValueError,)).delay()
    failing = shared_site.app.task(fails, name="failing").delay()
    for result in (expecting, failing):
        result.get(timeout=20, propagate=False)
    log = shared_site.workers[0].log
    wait_until(lambda: failing.id in log.read_text(), 10, "both to be logged")
    text = log.read_text()
    assert f"INFO/nbqueue.outcomes] task expecting[{expecting.id}] raised expected: ValueError: as ever\n" in text
    line = f"ERROR/nbqueue.outcomes] task failing[{failing.id}] raised unexpected: ValueError: as ever\nTraceback"
    assert line in text


def fails() -> None:
    raise ValueError("as ever")


def test_call_like_one_that_runs_is_made_of_its_request(shared_site: Site) -> None:
    @shared_site.app.task(bind=True, queue=shared_site.queue)
    def twin(self: Task, x: int, again: bool = True) -> Any:
        if again:
            return self.signature_from_request(kwargs={"again": False}, shadow="twin").apply_async().id
        return x, self.request.headers, self.request.shadow

    id_ = twin.apply_async((5,), headers={"a": 1}).get(timeout=20)
    assert shared_site.app.AsyncResult(id_).get(timeout=20) == (5, {"a": 1}, "twin")


def test_error_is_kept_where_values_are_not(shared_site: Site) -> None:
    options = {"ignore_result": True, "store_errors_even_if_ignored": False, "track_started": False}
    failed = shared_site.app.task(fails, name="kept", **options).delay()
    with pytest.raises(ValueError, match="as ever"):
        failed.get(timeout=20)
    assert shared_site.app.task(lambda: 5, name="dropped", **options).delay().get(timeout=20) is None


def test_task_that_runs_for_a_while_is_started_whatever_it_says(shared_site: Site, tmp_path: Path) -> None:
    @shared_site.app.task(track_started=False)
    def slow(folder: str) -> None:
        while not (Path(folder) / "go").exists():
            time.sleep(0.01)

    result = slow.delay(str(tmp_path))
    wait_until(lambda: result.state == states.STARTED, 20, "the task to be started")
    (tmp_path / "go").touch()
    result.get(timeout=20)


def test_what_is_printed_is_logged_where_a_task_wants_it_so(shared_site: Site) -> None:
    @shared_site.app.task(bind=True)
    def work(self: Task) -> str:
        logger, before = get_task_logger("printed"), (sys.stdout, sys.stderr)
        told: list[str] = []
        conf: Any = self.app.conf
        handler = logging.Handler(logging.INFO)
        handler.emit = lambda record: told.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
        logger.addHandler(handler)
        try:
            self.app.log.redirect_stdouts_to_logger(logger, conf.worker_redirect_stdouts_level)
            print("one")
            print("two", file=sys.stderr)
        finally:
            sys.stdout, sys.stderr = before
            logger.removeHandler(handler)
        print("three")
        return ", ".join(told)

    result = work.delay()
    log = result.watched.status.log
    assert result.get(timeout=20) == "WARNING one, WARNING two"
    wait_until(
        lambda: [line for _, _, text in log.chunks for line in text.splitlines()] == ["one", "two", "three"], 10, "it"
    )


def test_call_of_a_canvas_knows_what_came_before_and_not_what_follows(shared_site: Site) -> None:
    def told(self: Task, *_: Any) -> dict[str, Any]:
        names = ("root_id", "parent_id", "group", "chord", "chain", "callbacks", "errbacks")
        return {name: getattr(self.request, name) for name in names}

    task = shared_site.app.task(told, bind=True)
    ended = chain(task.s(), group(task.s(), task.s()), task.s()).apply_async()
    ended.get(timeout=20)
    first, header = ended.parent.parent, ended.parent
    for said in header.get(timeout=20):
        assert (said.pop("root_id"), said.pop("parent_id")) == (first.id, first.id)
        assert set(said.values()) == {None}


def test_hook_is_not_called_of_a_task_whose_process_was_ended_but_its_errback_is(
    shared_site: Site, tmp_path: Path
) -> None:
    path = tmp_path / "told"

    class Telling(Task):
        def on_failure(
            self, exc: BaseException, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: Any
        ) -> None:
            path.with_name("hook").touch()

    @shared_site.app.task(base=Telling, time_limit=0.5)
    def endless() -> None:
        while True:
            with suppress(BaseException):
                time.sleep(60)

    @shared_site.app.task
    def tell(request: Any, exc: BaseException, traceback: str) -> None:
        path.write_text(type(exc).__name__)

    result = endless.apply_async(link_error=tell.s())
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=30)
    wait_until(lambda: path.exists() and path.read_text(), 20, "the errback")
    assert path.read_text() == "TimeLimitExceeded"
    assert not path.with_name("hook").exists()


def test_what_is_started_says_where_it_runs(shared_site: Site, tmp_path: Path) -> None:
    @shared_site.app.task(bind=True)
    def slow(self: Task, folder: str) -> dict[str, Any]:
        while not (Path(folder) / "go").exists():
            time.sleep(0.01)
        return {"pid": os.getpid(), "hostname": self.request.hostname}

    result = slow.delay(str(tmp_path))
    wait_until(lambda: result.state == states.STARTED, 20, "the task to be started")
    where = result.info
    (tmp_path / "go").touch()
    assert result.get(timeout=20) == where


def test_call_that_was_refused_is_no_child(shared_site: Site) -> None:
    told = shared_site.app.task(fields, bind=True, queue=shared_site.queue)

    @shared_site.app.task
    def parent() -> str:
        waits = told.apply_async((1,), countdown=600)
        with suppress(SendFailed):
            told.apply_async((2,), task_id=waits.id, headers={"refused": True})
            raise AssertionError("one id names one task at a time")
        return waits.id

    result = parent.delay()
    waits = result.get(timeout=20)
    assert [child.id for child in result.children or ()] == [waits]
    shared_site.app.AsyncResult(waits).revoke()
