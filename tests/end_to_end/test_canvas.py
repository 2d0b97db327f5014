"""Canvas on real workers."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from nbqueue import App, chain, chord, group
from nbqueue.exceptions import ChordError, TimeoutError, UnknownTask  # noqa: A004
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = pytest.mark.brokers


def add(x: int, y: int) -> int:
    return x + y


def total(numbers: list[int]) -> int:
    return sum(numbers)


def fail(x: int) -> int:
    raise ValueError(f"{x} is not wanted")


def tasks_of(app: App) -> tuple[Any, Any, Any]:
    return app.task(add), app.task(total), app.task(fail)


def test_chain_passes_values_on(shared_site: Site) -> None:
    a, _, _ = tasks_of(shared_site.app)
    result = (a.s(2, 2) | a.s(4) | a.s(8)).apply_async()
    assert result.get(timeout=15) == 16
    assert result.parent.get(timeout=15) == 8
    assert result.parent.parent.get(timeout=15) == 4


def test_tilde_sends_a_call_and_returns_its_value(shared_site: Site) -> None:
    a, t, _ = tasks_of(shared_site.app)
    assert ~a.s(2, 2) == 4
    assert ~(group(a.s(1, 1), a.s(2, 2)) | t.s()) == 6


def test_group_comes_back_in_order(shared_site: Site) -> None:
    a, _, _ = tasks_of(shared_site.app)
    assert group(a.s(i, i) for i in range(10))().get(timeout=15) == [2 * i for i in range(10)]


def test_body_of_a_chord_gets_the_values_of_its_header(shared_site: Site) -> None:
    a, t, _ = tasks_of(shared_site.app)
    assert chord([a.s(i, i) for i in range(20)])(t.s()).get(timeout=15) == 380


def test_group_in_a_chain_becomes_a_chord(shared_site: Site) -> None:
    a, t, _ = tasks_of(shared_site.app)
    assert chain(a.s(1, 1), group(a.s(1), a.s(2)), t.s(), a.s(100)).apply_async().get(timeout=15) == 107


def test_failure_ends_what_follows_with_the_same_error(shared_site: Site) -> None:
    a, _, f = tasks_of(shared_site.app)
    with pytest.raises(ValueError, match="3 is not wanted"):
        (a.s(1, 2) | f.s() | a.s(1)).apply_async().get(timeout=15)


def test_failed_member_fails_the_body_with_its_cause(shared_site: Site) -> None:
    a, t, f = tasks_of(shared_site.app)
    body = chord([a.s(1, 1), f.s(3)])(t.s())
    with pytest.raises(ValueError, match="3 is not wanted"):
        body.get(timeout=15)
    assert isinstance(body.result, ChordError)
    many = chord([a.s(1, 1), f.s(3)], group(t.s(), t.s()))()
    with pytest.raises(ValueError, match="3 is not wanted"):
        many.get(timeout=15)
    # a handle that knows of no header has what was kept of the body
    with pytest.raises(ChordError, match=r"Dependency .* raised ValueError: 3 is not wanted"):
        shared_site.app.AsyncResult(body.id).get(timeout=15)


def seen_id(id_: str) -> str:
    return f"told of {id_}"


def test_callback_and_errback_run(shared_site: Site) -> None:
    a, _, f = tasks_of(shared_site.app)
    assert a.apply_async((1, 2), link=a.s(10)).get(timeout=15) == 3
    told_id = str(uuid.uuid4())
    errback = shared_site.app.task(seen_id).s().set(task_id=told_id)
    failed = f.apply_async((3,), link_error=errback)
    with pytest.raises(ValueError, match="3 is not wanted"):
        failed.get(timeout=15)
    told = shared_site.app.AsyncResult(told_id)
    wait_until(lambda: shared_site.app.backend.load([told_id])[0] is not None, 15, "the errback to end")
    assert told.get(timeout=15) == f"told of {failed.id}"


def labelled(id_: str, label: str) -> list[str]:
    return [id_, label]


def all_of(request: Any, exc: BaseException, trace: str, label: str) -> list[Any]:
    return [request.id, request.task, request.args, request.root_id, str(exc), "raise ValueError" in trace, label]


def noted(id_: str, notes: str) -> None:
    with Path(notes).open("a") as file:
        file.write(f"{id_}\n")


def only(label: str) -> str:
    return label


def test_errbacks_take_what_is_left_free_for_them(shared_site: Site) -> None:
    app = shared_site.app
    a, _, f = tasks_of(app)
    ids = [str(uuid.uuid4()) for _ in range(5)]
    old, new, plain = (app.task(run, queue=shared_site.queue) for run in (labelled, all_of, only))
    errbacks = [old.s("a"), old.s(label="b"), new.s("c"), plain.si("d")]
    failed = f.apply_async(
        (3,), link_error=[errback.set(task_id=id_) for errback, id_ in zip(errbacks, ids, strict=False)]
    )
    fed = chain(a.s(1, 2), f.s().on_error(new.s("e").set(task_id=ids[4]))).apply_async()
    wait_until(lambda: all(text is not None for text in app.backend.load(ids)), 15, "the errbacks to end")
    assert [app.AsyncResult(id_).get(timeout=15) for id_ in ids] == [
        [failed.id, "a"],
        [failed.id, "b"],
        [failed.id, f.name, (3,), failed.id, "3 is not wanted", True, "c"],
        "d",
        [fed.id, f.name, None, fed.parent.id, "3 is not wanted", True, "e"],  # what it was fed isn't told
    ]


@pytest.mark.parametrize("place", range(5))
def test_errback_of_a_chain_is_told_once_wherever_it_fails(shared_site: Site, tmp_path: Path, place: int) -> None:
    app = shared_site.app
    a, t, f = tasks_of(app)
    told = app.task(noted, queue=shared_site.queue)
    notes = tmp_path / "notes"
    notes.touch()
    steps: list[Any] = [
        a.si(1, 1),
        group(a.s(1), a.s(2)),
        t.s(),
        chord([a.s(1), a.s(2)], t.s()),
        group(a.s(1), a.s(2)),
        t.s(),
    ]
    failing = [f.si(3), group(f.si(3), a.s(2)), f.si(3), chord([a.s(1), f.si(3)], t.s()), f.si(3)]
    whole = chain(*steps[:place], failing[place], *steps[place + 1 :])
    sent = whole.on_error(told.s(str(notes))).apply_async()
    with pytest.raises(ValueError, match="3 is not wanted"):
        sent.get(timeout=15)
    wait_until(notes.read_text, 15, "the errback to run")
    # what else might be told was sent before this, and both children have had their turn
    assert a.starmap([(1, 2)] * 20).get(timeout=15) == [3] * 20
    assert len(notes.read_text().split()) == 1


def test_frozen_canvas_is_sent_again_and_who_waits_for_a_call_of_it_gets_its_value(shared_site: Site) -> None:
    a, t, f = tasks_of(shared_site.app)
    last = a.s(5)
    waiting = last.freeze()
    told = shared_site.app.task(seen_id, queue=shared_site.queue).s()
    hears = told.freeze()
    whole = chord([a.s(1, 1), a.s(2, 2).on_error(told)], chain(t.s(), group(a.s(1), a.s(2)), t.s().on_error(told)))
    whole.body.link(last)
    whole.freeze()
    for _ in range(2):
        sent = whole.apply_async()
        assert waiting.get(timeout=15) == 20
        assert sent.get(timeout=15) == 15
        waiting = shared_site.app.AsyncResult(waiting.id)
    assert not hears.ready()
    failing = f.s(3).on_error(told)
    failing.apply_async()
    assert shared_site.app.AsyncResult(hears.id).get(timeout=15).startswith("told of")


def test_header_has_one_value_for_a_chain_that_ends_with_a_group(shared_site: Site) -> None:
    a, _, _ = tasks_of(shared_site.app)
    same = shared_site.app.task(only, queue=shared_site.queue)
    many = chain(a.s(1, 1), group(a.s(1), a.s(2)))
    assert chord([many, a.s(1, 1)])(same.s()).get(timeout=15) == [[3, 4], 2]
    assert chain(chain(a.s(1), a.s(1))).apply_async((1,)).get(timeout=15) == 3
    assert group(chain(), a.s(1, 2), chain(), a.s(3, 4)).apply_async().get(timeout=15) == [3, 7]


def test_chunks_and_maps_run(shared_site: Site) -> None:
    a, t, _ = tasks_of(shared_site.app)
    assert a.chunks([(i, i) for i in range(5)], 2)().get(timeout=15) == [[0, 2], [4, 6], [8]]
    assert a.xstarmap([(1, 1), (2, 2)]).delay().get(timeout=15) == [2, 4]
    assert t.xmap([[1, 2], [3]]).delay().get(timeout=15) == [3, 3]


def test_chain_of_a_thousand_ends_with_the_last_value(shared_site: Site) -> None:
    a, _, _ = tasks_of(shared_site.app)
    assert chain(a.s(0, 1), *(a.s(1) for _ in range(999))).apply_async().get(timeout=45) == 1000


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def last(path: str) -> float:
    while not Path(path).exists():
        time.sleep(0.01)
    return 0.6


def test_group_is_waited_for_in_every_way(shared_site: Site, tmp_path: Path) -> None:
    a, _, f = tasks_of(shared_site.app)
    naps = shared_site.app.task(nap)
    go = tmp_path / "go"
    sent = group(shared_site.app.task(last).s(str(go)), a.s(1, 1), group(a.s(2, 2), a.s(3, 3)))()
    ended: list[Any] = []
    sent.then(ended.append)
    order = []
    for part in sent.as_completed(timeout=15):
        order.append(part.get())
        if len(order) == 3:
            go.touch()
    assert order[-1] == 0.6
    wait_until(lambda: ended, 5, "the callback")
    assert ended == [sent]
    assert asyncio.run(_awaited(sent)) == [0.6, 2, 4, 6]
    assert dict(sent.iter_native())[sent[0].id] == {"status": "SUCCESS", "result": 0.6}
    failed = group(f.s(1), a.s(1, 1))()
    with pytest.raises(ValueError, match="not wanted"):
        asyncio.run(_awaited(failed))
    with pytest.raises(UnknownTask, match="send the canvas again"):
        failed.retry()
    go.unlink()
    slow = group(shared_site.app.task(last).s(str(go)), naps.s(0.0))()
    slow[1].get(timeout=15)
    with pytest.raises(TimeoutError, match="1 of 2 tasks have not ended"):
        list(slow.as_completed(timeout=0.5))
    go.touch()
    slow.get(timeout=15)


async def _awaited(sent: Any) -> Any:
    return await sent
