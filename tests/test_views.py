from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from nbqueue import states
from nbqueue.messages import Fact, Facts, Failure, Output, Progress, encode_failure
from nbqueue.notebook import views
from nbqueue.notebook.text import plain_text, static_html
from nbqueue.notebook.views import Drawing, Painter, WidgetView, runs_of
from nbqueue.status import DONE, FAILED, MapStatus, TaskStatus
from tests.helpers import wait_until


class Watched:
    """Stands for what the watcher feeds."""

    def __init__(self, status: TaskStatus | MapStatus) -> None:
        self.status = status
        self.trouble: Exception | None = None
        self.callbacks: list[Any] = []

    def subscribe(self, callback: Any) -> Any:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def say(self, fact: Fact) -> None:
        self.status.apply(fact)
        for callback in list(self.callbacks):
            callback()


class Handle:
    def __init__(self, watched: Watched) -> None:
        self.id = "0123456789"
        self.watched = watched
        self.revoked = threading.Event()

    def revoke(self, *, terminate: bool = False) -> None:
        assert terminate
        self.revoked.set()


class Shown:
    """Stands for the front end: keeps what is displayed, and what a widget is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundles: list[dict[str, Any]] = []
        self.messages: list[tuple[float, dict[str, Any], list[bytes]]] = []
        monkeypatch.setattr(views, "_display", self.display)
        monkeypatch.setattr(views.StatusWidget, "send", self.send)

    def display(self, bundle: dict[str, Any], **_: Any) -> Shown:
        self.bundles.append(bundle)
        return self

    def update(self, bundle: dict[str, Any], **_: Any) -> None:
        self.bundles.append(bundle)

    def send(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        self.messages.append((time.monotonic(), content, buffers or []))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    yield Shown(monkeypatch)
    views.StatusWidget.close_all()


def output(text: str, stream: str = "stdout") -> Fact:
    body = msgspec.json.encode(Output("stream", stream, text))
    return Fact(Facts(kind="output", id="0123456789", at=1.0, attempt=1), body)


def record(state: str, **more: Any) -> Fact:
    body = encode_failure(Failure("ValueError", "no", "Traceback\n  here")) if state == states.FAILURE else b""
    return Fact(Facts(kind="record", id="0123456789", at=2.0, state=state, attempt=1, **more), body)


def progress(bar: int, done: float, *, closed: bool = False, label: str = "") -> Fact:
    body = msgspec.json.encode(Progress(bar, done, 10.0, label or f"bar {bar}", closed=closed))
    return Fact(Facts(kind="progress", id="0123456789", at=1.0, attempt=1), body)


def member(index: int, state: str) -> Fact:
    return Fact(Facts(kind="record", id=f"g-{index}", at=2.0, state=state, index=index, error="E: x"), b"")


def size_of(content: dict[str, Any]) -> int:
    return len(json.dumps(content))


def test_log_is_sent_once_and_then_what_is_new() -> None:
    watched = Watched(TaskStatus("0123456789", "train"))
    drawing = Drawing(watched)
    watched.say(output("one\ntwo\n"))
    assert drawing.news()[0]["log"] == {"start": 0, "lines": ["one", "two"], "total": 2}
    assert "log" not in drawing.news()[0]
    watched.say(output("three\n"))
    assert drawing.news()[0]["log"] == {"start": 2, "lines": ["three"], "total": 3}
    assert drawing.log() == {"start": 0, "lines": ["one", "two", "three"], "total": 3}  # for a page that opens now


def test_flood_of_prints_is_bounded_in_bytes_a_second(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    WidgetView(Handle(watched), Painter())
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        watched.say(output("".join(f"a line of a flood of lines {n}\n" for n in range(1_000))))
    sent = [size_of(content) for _, content, _ in shown.messages]
    assert len(sent) <= 1.5 * 10 + 2
    assert max(sent) < 25_000


def test_view_is_told_at_most_ten_times_a_second_and_always_the_last(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    WidgetView(Handle(watched), Painter())
    for n in range(2_000):
        watched.say(progress(0, n / 200))

    def last() -> float:
        bars = shown.messages[-1][1]["state"]["bars"] if shown.messages else []
        return float(bars[0]["done"]) if bars else 0.0

    wait_until(lambda: last() > 9.99, 5, "the last step")
    times = [at for at, *_ in shown.messages]
    assert all(later - earlier > 0.05 for earlier, later in itertools.pairwise(times))


def test_marks_are_sent_once_and_then_the_runs_that_changed() -> None:
    watched = Watched(MapStatus("g", "part", 1_000))
    drawing = Drawing(watched)
    content, buffers = drawing.news()
    assert (content["cells"], buffers) == (True, [bytes(1_000)])
    for index in (3, 4, 5, 700):
        watched.say(member(index, states.SUCCESS))
    watched.say(member(6, states.FAILURE))
    content, buffers = drawing.news()
    assert (content["runs"], buffers) == ([3, 3, DONE, 6, 1, FAILED, 700, 1, DONE], [])
    assert drawing.news()[0]["runs"] == []
    assert drawing.cells()[6] == FAILED


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 4_000])
def test_runs_turn_old_marks_into_new(size: int) -> None:
    chance = random.Random(size)
    old = bytes(chance.choice([0, 0, 0, 1]) for _ in range(size))
    new = bytearray(old)
    for _ in range(size // 50):
        start = chance.randrange(size)
        new[start : start + 5] = bytes([chance.randrange(7)] * len(new[start : start + 5]))
    runs = runs_of(old, bytes(new))
    if runs is not None:
        patched = bytearray(old)
        for start, length, mark in zip(*[iter(runs)] * 3, strict=True):
            patched[start : start + length] = bytes([mark] * length)
        assert patched == new
    assert runs_of(old, old + b"x") is None


def test_mark_of_many_members_shows_the_worst_of_them() -> None:
    status = MapStatus("g", "part", 100_000)
    drawing = Drawing(Watched(status))
    step = drawing.state()["step"]
    assert len(drawing.cells()) <= 4_000
    for index in range(step, 2 * step):
        status.apply(member(index, states.SUCCESS))
    status.apply(member(step + 1, states.FAILURE))  # ended already, and stays so
    status.apply(member(2 * step, states.FAILURE))
    for index in range(2 * step + 1, 3 * step):
        status.apply(member(index, states.SUCCESS))
    status.apply(member(3 * step, states.STARTED))
    assert list(drawing.cells()[:5]) == [0, DONE, FAILED, 1, 0]


def test_view_ends_as_html_and_is_told_nothing_more(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    view = WidgetView(Handle(watched), Painter())
    watched.say(record(states.FAILURE, error="ValueError: no"))
    wait_until(lambda: view.ended, 5, "the end")
    assert "train" in shown.bundles[-1]["text/html"]
    assert "ValueError: no" in shown.bundles[-1]["text/plain"]
    told = len(shown.messages)
    view.draw()
    assert len(shown.messages) == told
    assert watched.callbacks == []


def test_statuses_can_be_drawn_while_they_change(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    view = WidgetView(Handle(watched), Painter())
    stop, failed = threading.Event(), []

    def draw() -> None:
        while not stop.is_set():
            try:
                view.draw()
                static_html(watched.status)
                plain_text(watched.status)
            except Exception as exc:  # noqa: BLE001 - that is the question
                failed.append(exc)

    drawing = threading.Thread(target=draw)
    drawing.start()
    for n in range(3_000):
        watched.say(progress(n, 1, closed=n % 2 == 0))
        watched.say(output(f"line {n}\n"))
    stop.set()
    drawing.join()
    assert failed == []
    assert view.drawing.log()["total"] == 3_000


def test_click_on_cancel_revokes_off_the_kernels_thread(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    handle = Handle(watched)
    view = WidgetView(handle, Painter())
    view._said(None, {"do": "cancel"}, None)
    assert handle.revoked.wait(5)
    assert view.drawing.state()["cancelling"]


def test_cancel_that_fails_says_so(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    handle = Handle(watched)
    handle.revoke = lambda **_: 1 / 0  # type: ignore[assignment]
    view = WidgetView(handle, Painter())
    view._said(None, {"do": "cancel"}, None)
    wait_until(lambda: "Not cancelled" in view.drawing.state()["note"], 5, "the note")
    assert not view.drawing.state()["cancelling"]


def test_state_of_a_delayed_task_tells_when_it_is_due() -> None:
    due = time.time() + 60
    status = TaskStatus("0123456789", "train")
    status.apply(record(states.PENDING, eta=due))
    state = Drawing(Watched(status)).state()
    assert (state["due"], state["word"]) == (due, "Scheduled")
    status.apply(record(states.STARTED))
    state = Drawing(Watched(status)).state()
    assert (state["due"], state["word"]) == (0.0, "Running")


def test_only_so_many_bars_are_sent_and_the_rest_counted() -> None:
    status = TaskStatus("0123456789", "train", state=states.STARTED)
    for n in range(50):
        status.apply(progress(n, 1))
    state = Drawing(Watched(status)).state()
    assert (len(state["bars"]), state["more"]) == (6, 44)


def test_hostile_strings_reach_the_page_as_text_with_marks() -> None:
    status = TaskStatus("0123456789", "\u202eevil\x1b]0;x\x07\u061c</script>", state=states.STARTED)
    drawing = Drawing(Watched(status))
    status.apply(output("\x1b[31mred\x1b[0m \u2028 \u061c \xad \x07\n"))
    assert drawing.state()["name"] == "\\x202eevil\\x61c</script>"
    assert drawing.news()[0]["log"]["lines"] == ["\x1b[31mred\x1b[0m \\x2028 \\x61c \\xad \\x07"]
