"""One task in this process: its request, its ends, and what it may say while it runs."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import nbqueue
from nbqueue import serialization
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.execute import CODES_KEPT, BoundTask, Executor, Loaded, current_request, find_app
from nbqueue.messages import Failure, Outcome, Progress
from nbqueue.retries import DEFAULTS
from tests.pools import child_task


class Runs:
    """An executor and what it said."""

    def __init__(self, **registered: Callable[..., Any]) -> None:
        self.events: list[tuple[int, str, bytes]] = []
        tasks = {name: SimpleNamespace(loaded=Loaded(run, DEFAULTS)) for name, run in registered.items()}
        self.executor = Executor(lambda *event: self.events.append(event), [SimpleNamespace(tasks=tasks)])

    def outcome(self, run: Callable[..., Any] | str, *args: Any, **options: Any) -> Outcome:
        task, code = child_task(run, *args, **options)
        if code:
            self.executor.keep_code(task.code, code)
        return self.executor.execute(task)

    def value(self, run: Callable[..., Any] | str, *args: Any, **options: Any) -> Any:
        outcome = self.outcome(run, *args, **options)
        assert outcome.state == "SUCCESS", outcome.error
        return serialization.loads(outcome.body)

    def failure(self, run: Callable[..., Any] | str, *args: Any, **options: Any) -> Failure:
        outcome = self.outcome(run, *args, **options)
        assert outcome.state == "FAILURE"
        return msgspec.msgpack.decode(outcome.body, type=Failure)

    def progress(self) -> list[Progress]:
        return [msgspec.json.decode(data, type=Progress) for _, kind, data in self.events if kind == "progress"]


@pytest.fixture
def runs() -> Runs:
    return Runs()


def fail(text: str) -> None:
    raise LookupError(text)


# ---- calls


def test_task_gets_its_arguments_when_it_is_called(runs: Runs) -> None:
    assert runs.value(lambda a, b, *, c: [a, b, c], 1, 2, kwargs={"c": 3}) == [1, 2, 3]


def test_task_runs_by_name_when_it_is_registered() -> None:
    assert Runs(shout=str.upper).value("shout", "a") == "A"


def test_failure_names_the_task_and_those_there_are_when_the_name_is_unknown() -> None:
    failure = Runs(shout=str.upper).failure("whisper", "a")
    assert failure.type == "NotRegistered"
    assert "'whisper'" in failure.message
    assert "shout" in failure.message


def test_coroutine_is_awaited_when_the_task_is_async(runs: Runs) -> None:
    async def work(number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    assert runs.value(work, 1) == 2


def test_request_tells_of_the_call_when_the_task_asks(runs: Runs) -> None:
    def ask() -> Any:
        request = current_request()
        assert request is not None
        return request.id, request.task, request.attempt, request.queue, request.retries, request.group, request.index

    assert runs.value(ask, seq=7_001, attempt=2) == ("id-7001", "tests.ask", 2, "nbqueue", 0, None, -1)
    assert current_request() is None


def test_task_gets_itself_first_when_it_is_bound(runs: Runs) -> None:
    def work(self: BoundTask, number: int) -> Any:
        return self.name, self.request.id, number

    assert runs.value(work, 5, seq=7_002, bind=True) == ("tests.work", "id-7002", 5)


def test_code_is_dropped_when_there_is_more_than_is_kept(runs: Runs) -> None:
    for number in range(CODES_KEPT + 1):
        runs.executor.keep_code(str(number), b"")
    assert not runs.executor.has_code("0")
    assert runs.executor.has_code("1")
    runs.executor.keep_code("1", b"")
    runs.executor.keep_code("new", b"")
    assert runs.executor.has_code("1")
    assert not runs.executor.has_code("2")


# ---- ends


def test_summary_says_what_came_out_when_a_task_succeeds(runs: Runs) -> None:
    assert runs.outcome(lambda: list(range(1_234))).summary == "list of 1,234"
    assert runs.outcome(lambda: None).summary == ""


def test_failure_carries_type_text_and_the_users_frames_when_a_task_raises(runs: Runs) -> None:
    outcome = runs.outcome(fail, "no such thing")
    assert outcome.error == "LookupError: no such thing"
    failure = runs.failure(fail, "no such thing")
    assert (failure.type, failure.message) == ("LookupError", "no such thing")
    assert "raise LookupError(text)" in failure.traceback
    assert "nbqueue/execute.py" not in failure.traceback
    assert isinstance(serialization.load_exception(failure), LookupError)


def test_task_fails_when_it_exits(runs: Runs) -> None:
    failure = runs.failure(sys.exit, 3)
    assert (failure.type, failure.message) == ("SystemExit", "3")


def test_task_is_revoked_when_it_is_interrupted(runs: Runs) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    outcome = runs.outcome(interrupt)
    assert (outcome.state, outcome.error) == ("REVOKED", "interrupted")
    assert outcome.started_at <= outcome.ended_at


def test_failure_names_the_result_when_it_can_not_be_pickled(runs: Runs) -> None:
    failure = runs.failure(threading.Lock)
    assert failure.type == "TypeError"
    assert "result of tests.lock" in failure.message or "result of tests.allocate_lock" in failure.message


def test_failure_says_what_to_install_when_a_module_is_missing(runs: Runs) -> None:
    def use() -> None:
        import no_such_module_of_ours.part  # type: ignore[import-not-found]  # noqa: F401

    failure = runs.failure(use)
    assert failure.type == "ModuleNotFoundError"
    assert "pip install no_such_module_of_ours" in failure.message


def test_failure_is_the_tasks_own_when_its_code_can_not_be_loaded(runs: Runs) -> None:
    task, _ = child_task(fail, "x")
    runs.executor.keep_code(task.code, b"garbage")
    assert runs.executor.execute(task).state == "FAILURE"
    assert runs.executor.execute(task).state == "FAILURE"


# ---- progress


def test_progress_does_nothing_when_no_task_runs() -> None:
    nbqueue.progress(1, 2)
    assert list(nbqueue.track([1, 2])) == [1, 2]


def test_track_tells_begin_and_end_when_it_goes_fast(runs: Runs) -> None:
    runs.value(lambda: sum(1 for _ in nbqueue.track(range(1_000), message="going")))
    told = runs.progress()
    assert (told[0].done, told[0].total, told[0].message, told[0].closed) == (0.0, 1_000.0, "going", False)
    assert (told[-1].done, told[-1].closed) == (1_000.0, True)
    assert len(told) < 20


def test_track_names_its_parent_when_it_is_nested(runs: Runs) -> None:
    def nested() -> None:
        for _ in nbqueue.track(range(2)):
            list(nbqueue.track(range(2)))

    runs.value(nested)
    outer, *others = runs.progress()
    assert outer.parent == -1
    assert {bar.parent for bar in others if bar.bar != outer.bar} == {outer.bar}


def test_track_closes_its_bar_when_the_loop_is_left(runs: Runs) -> None:
    def leave() -> None:
        for number in nbqueue.track(iter(range(10))):
            if number == 3:
                break

    runs.value(leave)
    last = runs.progress()[-1]
    assert (last.closed, last.total) == (True, None)
    assert last.done < 10


def test_nothing_is_told_when_nobody_watches(runs: Runs) -> None:
    runs.value(lambda: list(nbqueue.track(range(3))), wants_output=False)
    assert runs.events == []


# ---- -A


def test_app_is_found_when_a_module_or_its_attribute_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "class A:\n    tasks = {}\n    def send_task(self): ...\nmine = A()\n"
    (tmp_path / "nbq_proj.py").write_text(text)
    (tmp_path / "nbq_empty.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_app("nbq_proj")
    assert find_app("nbq_proj:mine") is found
    assert find_app("nbq_proj.mine") is found
    with pytest.raises(ImproperlyConfigured, match="no 'other'"):
        find_app("nbq_proj:other")
    with pytest.raises(ImproperlyConfigured, match="no App"):
        find_app("nbq_empty")
    with pytest.raises(ImproperlyConfigured, match="nbq_missing"):
        find_app("nbq_missing")


def test_member_of_a_map_may_print_less_than_a_task_by_itself(runs: Runs) -> None:
    def shout() -> None:
        for _ in range(3_000):
            current_request().recorder.write("stdout", "x" * 999 + "\n")  # type: ignore[union-attr]

    task, code = child_task(shout)
    runs.executor.keep_code(task.code, code)
    sizes = []
    for task.index in (-1, 0):
        runs.events.clear()
        assert runs.executor.execute(task).state == "SUCCESS"
        sizes.append(sum(len(data) for _, kind, data in runs.events if kind == "output"))
    assert 1_000_000 < sizes[0] < 1_500_000
    assert sizes[1] < sizes[0] / 5
