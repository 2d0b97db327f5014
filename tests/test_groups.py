"""Handles put together: sets of results, groups, and what is kept of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nbqueue import App
from nbqueue.exceptions import BadMessage, TimeoutError  # noqa: A004
from nbqueue.handles import AsyncResult
from nbqueue.result import EagerResult, GroupResult, ResultSet, result_from_tuple
from nbqueue.watched import WatchedTask


@pytest.fixture
def app() -> App:
    return App("proj", broker="memory://", set_as_current=False)


def done(id_: str, value: Any, state: str = "SUCCESS") -> EagerResult:
    return EagerResult(id_, value, state)


def test_set_takes_handles_in_and_out(app: App) -> None:
    one, two = done("1", "a"), done("2", "b")
    found = ResultSet([one], app=app)
    found.add(two)
    found.add(one)
    assert list(found) == [one, two]
    assert (len(found), found[1], found.completed_count()) == (2, two, 2)
    found.remove("1")
    found.discard(one)
    assert found == ResultSet([two])
    with pytest.raises(KeyError):
        found.remove(one)
    found.update([one])
    assert found.get() == ["b", "a"]
    found.clear()
    assert (found.get(), found.ready(), found.successful()) == ([], True, True)


def test_set_waits_in_order_and_tells_each(app: App) -> None:
    found = ResultSet([done("1", "a"), done("2", "b")], app=app)
    told: list[Any] = []
    assert found.join(callback=lambda id_, value: told.append((id_, value))) == []
    assert told == [("1", "a"), ("2", "b")]
    then: list[Any] = []
    found.then(then.append)
    assert then == [found]
    assert dict(found.iter_native())["2"] == {"status": "SUCCESS", "result": "b"}
    assert asyncio.run(_ended(found)) == ["a", "b"]


async def _ended(found: ResultSet) -> list[Any]:
    ends = [one.get() async for one in found]
    assert await found == ["a", "b"]
    return sorted(ends)


def test_first_failure_of_a_set_is_raised(app: App) -> None:
    found = ResultSet([done("1", "a"), done("2", ValueError("no"), "FAILURE")], app=app)
    assert (found.failed(), found.successful(), found.completed_count()) == (True, False, 1)
    with pytest.raises(ValueError, match="no"):
        found.get()
    with pytest.raises(ValueError, match="no"):
        found.maybe_throw()
    assert [type(value) for value in found.get(propagate=False)] == [str, ValueError]
    told: list[str] = []
    found.then(lambda _: told.append("all"), on_error=lambda _: told.append("error"))
    assert told == ["error"]


def test_group_is_made_from_handles_and_from_its_tuple(app: App) -> None:
    inner = GroupResult("inner", [AsyncResult("3", app)], app=app)
    found = GroupResult("g", [AsyncResult("1", app), inner], AsyncResult("0", app), app=app)
    assert found.as_tuple() == (
        ("g", (("0", None), None)),
        [(("1", None), None), (("inner", None), [(("3", None), None)])],
    )
    again = result_from_tuple(found.as_tuple(), app)
    assert isinstance(again, GroupResult)
    assert (again, again.parent, again[1], len(again)) == (found, AsyncResult("0", app), inner, 2)
    assert result_from_tuple("1", app) == AsyncResult("1", app)


def test_saved_group_is_found_again_until_it_is_deleted(app: App) -> None:
    found = GroupResult("g", [AsyncResult("1", app), AsyncResult("2", app)], app=app)
    assert GroupResult.restore("g", app=app) is None
    found.save()
    again = GroupResult.restore("g", app=app)
    assert again is not None
    assert [one.id for one in again] == ["1", "2"]
    found.delete()
    assert GroupResult.restore("g", app=app) is None


def test_group_that_somebody_else_saved_is_not_believed(app: App) -> None:
    GroupResult("g", [AsyncResult("1", app)], app=app).save()
    text = app.backend.saved("g")
    assert text is not None
    for forged in (b'{"result": [["g", null], []]}', b"[]", b"{", text.replace(b'"nbq":"', b'"nbq":"x')):
        app.backend.save("g", forged, 60)
        with pytest.raises(BadMessage):
            GroupResult.restore("g", app=app)
    app.backend.save("h", text, 60)
    with pytest.raises(BadMessage, match="another group"):
        GroupResult.restore("h", app=app)


def test_wait_for_a_set_ends_with_its_time(app: App) -> None:
    waiting = AsyncResult("x", app, watched=WatchedTask("x"))
    with pytest.raises(TimeoutError):
        ResultSet([done("1", "a"), waiting], app=app).get(timeout=0.05)
