"""Handles, on what a watcher knows; the way to a worker and back is tested end to end."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from nbqueue import App, AsyncResult, states
from nbqueue.exceptions import (
    RemoteError,
    TaskRevokedError,
    TimeoutError,  # noqa: A004
)
from nbqueue.groups import MapResult
from nbqueue.messages import Fact, Facts, Failure, Steering, encode_failure
from nbqueue.serialization import dumps_exception, dumps_value
from nbqueue.signing import create_key_file
from nbqueue.watched import WatchedMap, WatchedTask


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    create_key_file(tmp_path / "key")
    made = App("t", broker="memory://", backend="memory://", key_file=tmp_path / "key", set_as_current=False)
    yield made
    made.close()


def fact(state: str, body: bytes = b"", *, index: int = -1, error: str = "") -> Fact:
    return Fact(Facts(kind="record", id="t", at=5.0, state=state, index=index, attempt=1, error=error), body)


def success(value: Any, *, index: int = -1) -> Fact:
    return fact(states.SUCCESS, dumps_value(value), index=index)


def failure(exc: BaseException, *, index: int = -1) -> Fact:
    return fact(states.FAILURE, encode_failure(dumps_exception(exc, "Traceback: here")), index=index)


def task(app: App, *facts: Fact) -> AsyncResult:
    watched = WatchedTask("t", Steering(id="t", nonce="n", task="proj.f", queue="q", sent_at=1.0))
    for one in facts:
        watched.add(one)
    return AsyncResult("t", app, watched=watched)


def group(app: App, size: int) -> MapResult:
    return MapResult(
        "g", app=app, watched=WatchedMap(Steering(id="g", nonce="n", task="f", queue="q", sent_at=1.0, size=size))
    )


def test_value_is_there_once_the_task_has_ended(app: App) -> None:
    result = task(app, success({"a": 1}))
    assert (result.get(), result.wait(), result.result, result.info) == ({"a": 1},) * 4
    assert (result.ready(), result.successful(), result.failed(), result.state) == (True, True, False, "SUCCESS")
    assert (result.name, result.queue) == ("proj.f", "q")
    assert result.date_done is not None


def test_error_is_raised_as_itself_with_the_remote_traceback(app: App) -> None:
    result = task(app, failure(KeyError("k")))
    with pytest.raises(KeyError) as caught:
        result.get()
    assert "Traceback: here" in str(caught.value.__cause__)
    assert result.traceback == "Traceback: here"
    assert isinstance(result.get(propagate=False), KeyError)
    assert (result.failed(), result.successful()) == (True, False)


def test_error_whose_class_is_not_here_carries_its_name(app: App) -> None:
    body = encode_failure(Failure("their.Error", "what", "trace", b"\x80\x05cno_such_module\nError\n."))
    with pytest.raises(RemoteError, match=r"their\.Error: what"):
        task(app, fact(states.FAILURE, body)).get()


def test_exception_that_is_a_value_is_returned(app: App) -> None:
    assert isinstance(task(app, success(ValueError("fine"))).get(), ValueError)


def test_cancelled_and_expired_tasks_say_which(app: App) -> None:
    for why in ("cancelled", "expired"):
        with pytest.raises(TaskRevokedError, match=why):
            task(app, fact(states.REVOKED, error=why)).get()


def test_wait_that_runs_out_names_the_task_and_does_not_end_it(app: App) -> None:
    result = task(app, fact(states.STARTED))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="t"):
        result.get(timeout=0.05)
    assert time.monotonic() - began < 5
    result.watched.add(success(1))
    assert result.get() == 1


def test_wait_is_ended_by_another_threads_news(app: App) -> None:
    result = task(app)
    Thread(target=lambda: result.watched.add(success(5))).start()
    assert result.get(timeout=10) == 5


def test_handles_of_one_task_are_equal_and_travel_by_id(app: App) -> None:
    result = task(app)
    assert result == AsyncResult("t") == "t"
    assert len({result, AsyncResult("t")}) == 1
    assert pickle.loads(pickle.dumps(result)) == result
    assert str(result) == result.task_id == "t"


def test_result_can_be_awaited_beside_others(app: App) -> None:
    one, two = task(app), task(app, success(2))

    async def both() -> list[int]:
        asyncio.get_running_loop().call_later(0.05, one.watched.add, success(1))
        return list(await asyncio.gather(_awaited(one), _awaited(two)))

    assert asyncio.run(both()) == [1, 2]


async def _awaited(result: AsyncResult) -> Any:
    return await result


def test_callback_gets_id_and_value(app: App) -> None:
    heard: list[tuple[str, Any]] = []
    task(app, success(1)).get(callback=lambda id_, value: heard.append((id_, value)))
    assert heard == [("t", 1)]


def test_map_returns_values_in_order_however_they_come(app: App) -> None:
    result = group(app, 3)
    result.watched.add_all([success("c", index=2), success("a", index=0)])
    assert (result.completed_count(), result.ready(), result.waiting()) == (2, False, True)
    with pytest.raises(TimeoutError, match="1 of 3 tasks have not ended"):
        result.get(timeout=0.05)
    assert [one.get() for _, one in zip(range(2), result.as_completed(), strict=False)] == ["c", "a"]
    result.watched.add_all([success("b", index=1)])
    assert result.get() == ["a", "b", "c"]
    assert [one.get() for one in result] == ["a", "b", "c"]
    assert (len(result), result[1].get(), result.successful()) == (3, "b", True)


def test_map_raises_its_first_error_before_the_others_have_ended(app: App) -> None:
    result = group(app, 3)
    result.watched.add_all([failure(ValueError("early"), index=1)])
    with pytest.raises(ValueError, match="early"):
        result.get(timeout=5)
    result.watched.add_all([success(0, index=0), success(2, index=2)])
    first, error, last = result.get(propagate=False)
    assert (first, last) == (0, 2)
    assert isinstance(error, ValueError)
    assert (result.failed(), result.successful(), result.completed_count()) == (True, False, 2)


def test_map_tells_ids_states_and_values_as_they_come(app: App) -> None:
    result = group(app, 2)
    result.watched.add_all([success("b", index=1), success("a", index=0)])
    assert list(result.iter_native()) == [
        ("g-1", {"status": "SUCCESS", "result": "b"}),
        ("g-0", {"status": "SUCCESS", "result": "a"}),
    ]
