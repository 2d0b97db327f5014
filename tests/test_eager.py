"""Calls that run in this process."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from nbqueue import App, chain, chord, group, signature
from nbqueue.exceptions import ChordError, Ignore, NotRegistered
from nbqueue.execute import BoundTask, current_request, progress
from nbqueue.handles import EagerResult
from tests.workers import Site


@pytest.fixture
def app() -> App:
    made = App("proj", broker="memory://", set_as_current=False)

    @made.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @made.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @made.task(name="fail")
    def fail(*_: Any) -> None:
        raise ValueError("not wanted")

    return made


def test_call_runs_here_and_its_handle_is_as_any_other(app: App) -> None:
    result = app.tasks["add"].apply((2, 3), task_id="mine")
    assert isinstance(result, EagerResult)
    assert (result.id, result.get(), result.state) == ("mine", 5, "SUCCESS")
    assert result.ready()
    assert result.successful()
    failed = app.tasks["fail"].apply()
    assert (failed.state, failed.failed()) == ("FAILURE", True)
    assert isinstance(failed.result, ValueError)
    assert "raise ValueError" in str(failed.traceback)
    assert "nbqueue/" not in str(failed.traceback)
    with pytest.raises(ValueError, match="not wanted"):
        failed.get()
    with pytest.raises(ValueError, match="not wanted"):
        app.tasks["fail"].apply(throw=True)


def test_value_is_the_very_object(app: App) -> None:
    held = object()
    task = app.task(lambda x: x, name="same")
    assert task.apply((held,)).get() is held


def test_task_sees_its_request_and_is_retried_at_once(app: App) -> None:
    seen: list[tuple[str, int, bool]] = []

    @app.task(bind=True, name="again", max_retries=3, default_retry_delay=3600)
    def again(self: BoundTask, n: int) -> int:
        progress(1, 2)
        request = current_request()
        assert request is not None
        seen.append((request.id, request.retries, request.is_eager))
        if request.retries < 2:
            raise self.retry(args=(n + 1,), exc=KeyError("again"))
        return n

    result = again.apply((0,), task_id="x")
    assert result.get() == 2
    assert seen == [("x", 0, True), ("x", 1, True), ("x", 2, True)]
    with pytest.raises(KeyError):
        app.task(bind=True, name="never", max_retries=1)(_never).apply().get()


def _never(self: BoundTask) -> None:
    raise self.retry(exc=KeyError("again"))


def test_ignored_call_says_so(app: App) -> None:
    def ignoring() -> None:
        raise Ignore

    assert app.task(ignoring).apply().state == "IGNORED"


def test_canvas_runs_here_by_the_plan_that_workers_have(app: App) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    result = (add.s(1, 1) | add.s(2) | add.s(3)).apply()
    assert (result.get(), result.parent.get(), result.parent.parent.get()) == (7, 4, 2)
    assert result.parent.children == [result]
    assert group(add.s(i, i) for i in range(4)).apply().get() == [0, 2, 4, 6]
    assert chord([add.s(i, i) for i in range(4)], total.s()).apply().get() == 12
    assert chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.si(5, 5)).apply().get() == 10
    assert add.chunks([(i, i) for i in range(5)], 2).apply().get() == [[0, 2], [4, 6], [8]]
    assert add.xstarmap([(1, 1), (2, 2)]).apply().get() == [2, 4]


def test_task_is_replaced_here_too(app: App) -> None:
    add = app.tasks["add"]

    @app.task(bind=True, name="replaced")
    def replaced(self: BoundTask, x: int) -> None:
        self.replace(group(add.s(i, i) for i in range(x)))

    @app.task(bind=True, name="lost")
    def lost(self: BoundTask) -> None:
        self.replace(app.tasks["fail"].s())

    assert replaced.apply((3,)).get() == [0, 2, 4]
    assert chain(add.s(1, 1), replaced.s(), app.tasks["total"].s()).apply().get() == 2
    assert isinstance(lost.apply().result, ValueError)


def test_failure_travels_as_on_workers(app: App) -> None:
    add, total, fail = (app.tasks[name] for name in ("add", "total", "fail"))
    told: list[Any] = []

    @app.task(name="errback")
    def errback(request: Any, exc: BaseException, trace: str) -> None:
        told.append((request.id, str(exc), "raise ValueError" in trace))

    result = chain(add.s(1, 1), fail.s().on_error(errback.s()), add.s(1)).apply()
    assert (result.state, result.parent.state, result.parent.parent.state) == ("FAILURE", "FAILURE", "SUCCESS")
    assert told == [(result.parent.id, "not wanted", True)]
    body = chord([add.s(1, 1), fail.s()], total.s()).apply()
    assert isinstance(body.result, ChordError)
    with pytest.raises(ValueError, match="not wanted"):
        body.get()
    with pytest.raises(NotRegistered, match="'elsewhere'"):
        signature("elsewhere", app=app).apply().get()


def test_errback_takes_what_is_left_free_for_it(app: App) -> None:
    add, fail = app.tasks["add"], app.tasks["fail"]
    told: list[Any] = []

    @app.task(name="old")
    def old(id_: str, label: str) -> None:
        told.append((id_, label))

    @app.task(name="new")
    def new(request: Any, exc: BaseException, trace: str, label: str) -> None:
        told.append((request.id, request.task, request.args, request.kwargs, str(exc), label))

    @app.task(name="plain")
    def plain(label: str) -> None:
        told.append(label)

    result = fail.apply((1,), link_error=[old.s("a"), old.s(label="b"), new.s("c"), plain.si("d")])
    assert told == [(result.id, "a"), (result.id, "b"), (result.id, "fail", (1,), {}, "not wanted", "c"), "d"]
    told.clear()
    result = chain(add.s(1, 1), fail.s().on_error(new.s("e"))).apply()
    assert told == [(result.id, "fail", None, None, "not wanted", "e")]  # what it was fed isn't known


@pytest.mark.parametrize("place", range(5))
def test_errback_of_a_chain_is_told_once_wherever_it_fails(app: App, place: int) -> None:
    add, fail, total = (app.tasks[name] for name in ("add", "fail", "total"))
    told: list[str] = []

    @app.task(name="errback")
    def errback(id_: str) -> None:
        told.append(id_)

    steps: list[Any] = [
        add.s(1, 1),
        group(add.s(1), add.s(2)),
        total.s(),
        chord([add.s(1), add.s(2)], total.s()),
        group(add.s(1), add.s(2)),
        total.s(),
    ]
    failing = [fail.s(), group(fail.s(), add.s(2)), fail.s(), chord([add.s(1), fail.s()], total.s()), fail.s()]
    whole = chain(*steps[:place], failing[place], *steps[place + 1 :]).on_error(errback.s())
    assert not whole.apply().successful()
    assert len(told) == 1


def test_errback_of_a_chord_is_told_once_also_where_chords_are_in_its_header(app: App) -> None:
    add, fail, total = (app.tasks[name] for name in ("add", "fail", "total"))
    told: list[str] = []

    @app.task(name="errback")
    def errback(id_: str) -> None:
        told.append(id_)

    whole = chord([add.s(1, 1), chord([fail.s(), add.s(1, 2)], total.s())], total.s())
    whole.link_error(errback.s())
    body = whole.apply()
    assert told == [body.id]


def test_errback_of_a_chord_is_told_of_its_headers_members_where_settings_say_so(app: App) -> None:
    app.conf.task_allow_error_cb_on_chord_header = True
    add, fail, total = (app.tasks[name] for name in ("add", "fail", "total"))
    told: list[str] = []

    @app.task(name="errback")
    def errback(label: str) -> None:
        told.append(label)

    def header() -> list[Any]:
        return [fail.s(), add.s(1, 1), fail.s()]

    linked = chord(header(), total.s())
    linked.link_error(errback.si("a"))
    linked.apply()
    assert told == ["a", "a", "a"]  # two members and the body
    chord(header(), total.s(), link_error=errback.si("b")).apply()
    chain(group(header()), total.s()).on_error(errback.si("c")).apply()
    assert told == ["a", "a", "a", "b", "b", "b", "c", "c", "c"]


def test_calls_within_calls_know_whose_they_are(app: App) -> None:
    @app.task(name="inner", bind=True)
    def inner(self: Any) -> tuple[str, str, str]:
        return self.request.id, self.request.parent_id, self.request.root_id

    @app.task(name="outer", bind=True)
    def outer(self: Any, call: Any = None) -> tuple[Any, ...]:
        found = (inner if call is None else call).apply().get()
        return self.request.id, self.request.parent_id, self.request.root_id, found

    outermost = outer.apply((outer,))
    id_, parent, root, (child, childs_parent, childs_root, grandchild) = outermost.get()
    assert (id_, parent, root) == (outermost.id, None, outermost.id)
    assert (childs_parent, childs_root) == (id_, id_)
    assert grandchild[1:] == (child, id_)


def test_chain_of_one_is_a_chain_and_one_of_none_runs_nowhere(app: App) -> None:
    add = app.tasks["add"]
    app.conf.task_always_eager = True
    assert chain(add.s(3, 4))().get() == 7
    assert chain(chain(add.s(3), add.s(1))).apply_async((1,)).get() == 5
    assert group(chain(), add.s(1, 2), chain(), add.s(3, 4)).apply_async().get() == [3, 7]


def test_header_has_one_value_for_a_chain_that_ends_with_a_group(app: App) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    app.conf.task_always_eager = True

    @app.task(name="same")
    def same(value: Any) -> Any:
        return value

    many = chain(add.s(1, 1), group(add.s(1), add.s(2)))
    assert chord([many, add.s(1, 1)], same.s())().get() == [[3, 4], 2]
    assert chord([group(add.s(1, 1), add.s(1, 2)), add.s(1, 1)], total.s())().get() == 7


def test_call_raises_here_what_it_fails_with_where_it_is_told_to(app: App) -> None:
    app.conf.task_always_eager = True
    fail = app.tasks["fail"]
    assert fail.apply_async(throw=False).failed()
    for call in (fail, fail.s(), chain(fail.s())):
        with pytest.raises(ValueError, match="not wanted"):
            call.apply_async(throw=True)


def test_everything_runs_here_where_settings_say_so(app: App) -> None:
    app.conf.task_always_eager = True
    add, total = app.tasks["add"], app.tasks["total"]
    assert isinstance(add.delay(1, 2), EagerResult)
    assert list(add.apply_async((1, 2), link=add.s(3), queue="q", countdown=60).collect())[1][1] == 6
    assert add.starmap([(1, 1), (2, 2)]).get() == [2, 4]
    assert chord([add.s(1, 1)])(total.s()).get() == 2
    assert app.send_task("add", (1, 1)).get() == 2
    assert app.tasks["fail"].delay().state == "FAILURE"
    app.conf.task_eager_propagates = True
    with pytest.raises(ValueError, match="not wanted"):
        app.tasks["fail"].delay()


def test_eager_result_is_kept_where_settings_say_so(idle_site: Site) -> None:
    app = idle_site.new_app()
    app.conf.update(task_always_eager=True, task_store_eager_result=True)
    id_ = str(uuid.uuid4())
    app.task(lambda: 42, name="kept").apply_async(task_id=id_)
    assert idle_site.app.AsyncResult(id_).get(timeout=10) == 42
    failed = app.task(lambda: 1 / 0, name="lost").apply_async()
    with pytest.raises(ZeroDivisionError):
        idle_site.app.AsyncResult(failed.id).get(timeout=10)
    app.close()


def test_retry_here_has_the_options_that_it_says(app: App) -> None:
    def again(self: BoundTask) -> Any:
        if not self.request.retries:
            self.retry(queue="there", priority=7, headers={"a": 1}, shadow="s", countdown=9)
        if self.request.retries == 1:
            self.retry(priority=8)
        r = self.request
        return r.queue, r.delivery_info["priority"], r.headers, r.shadow

    assert app.task(again, bind=True).apply().get() == ("there", 8, {"a": 1}, "s")
