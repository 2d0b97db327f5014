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
from nbqueue.notebook.drawing import Drawing, runs_of
from nbqueue.notebook.saved import static_html
from nbqueue.notebook.text import plain_text
from nbqueue.notebook.views import Painter, WidgetView
from nbqueue.status import DONE, FAILED, MapStatus, TaskStatus
from tests.helpers import wait_until


class Watched:
    """Stands for what the watcher feeds."""

    def __init__(self, status: TaskStatus | MapStatus) -> None:
        self.status = status
        self.facts: list[Fact | None] = [None] * (status.total if isinstance(status, MapStatus) else 0)
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

    def retry(self) -> None:
        raise LookupError("no message of it is kept")


class Shown:
    """Stands for the front end: keeps what is displayed, and what a widget is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundles: list[dict[str, Any]] = []
        self.messages: list[tuple[float, dict[str, Any], list[bytes]]] = []
        monkeypatch.setattr(views, "_display", self.display)

        def send(widget: views.StatusWidget, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
            # a closed one is an earlier test's, whose painter still lives
            if widget.comm is not None:
                self.messages.append((time.monotonic(), content, buffers or []))

        monkeypatch.setattr(views.StatusWidget, "send", send)

    def display(self, bundle: dict[str, Any], **_: Any) -> Shown:
        self.bundles.append(bundle)
        return self

    def update(self, bundle: dict[str, Any], **_: Any) -> None:
        self.bundles.append(bundle)


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
    return len(json.dumps(content, ensure_ascii=False).encode())


def test_log_is_sent_once_and_then_what_is_new() -> None:
    watched = Watched(TaskStatus("0123456789", "train"))
    drawing = Drawing(watched)
    watched.say(output("one\ntwo\n"))
    first = drawing.news()[0]
    assert (first["lines"], first["total"]) == ([[0, 1.0, 0, "one"], [1, 1.0, 0, "two"]], 2)
    assert "lines" not in drawing.news()[0]
    watched.say(output("three\n", "stderr"))
    assert drawing.news()[0]["lines"] == [[2, 1.0, 1, "three"]]
    # for a page that opens now
    assert [row[3] for row in drawing.all()["lines"]] == ["one", "two", "three"]


def test_page_that_opens_while_a_view_lives_misses_nothing_of_what_follows() -> None:
    watched = Watched(TaskStatus("0123456789", "train"))
    drawing = Drawing(watched)
    watched.say(output("one\n"))
    drawing.news()
    watched.say(output("two\n"))
    page = drawing.all()
    assert [row[0] for row in page["lines"]] == [0, 1]
    later = drawing.news()[0]
    assert later["n"] == page["n"] + 1
    assert [row[0] for row in later["lines"]] == [1]  # again: it was told to nobody else yet


def test_state_is_sent_whole_once_and_then_what_changed() -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    drawing = Drawing(watched)
    assert drawing.news()[0]["state"]["name"] == "train"
    assert "state" not in drawing.news()[0]
    watched.say(progress(0, 3))
    assert set(drawing.news()[0]["state"]) == {"bars"}


def test_message_of_a_view_with_nothing_new_is_small() -> None:
    watched = Watched(MapStatus("g", "part", 10_000))
    drawing = Drawing(watched)
    drawing.news()
    assert size_of(drawing.news()[0]) < 100


@pytest.mark.parametrize("text", ["a line of a flood of lines", "\x1b[31m\x07\u202e" * 40, "資料" * 3_000])
def test_flood_of_prints_is_bounded_in_bytes_a_second(shown: Shown, text: str) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    WidgetView(Handle(watched), Painter())
    wait_until(lambda: bool(shown.messages), 5, "the first message")
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        watched.say(output("".join(f"{text} {n}\n" for n in range(200))))
    lasted = time.monotonic() - shown.messages[0][0]
    sent = [size_of(content) for _, content, _ in shown.messages]
    assert len(sent) <= 10 * lasted + 2
    assert max(sent) < 10_000
    assert sum(sent) <= 100_000 * (lasted + 0.2)


def test_flood_ends_with_its_last_line_and_says_how_many_there_were(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    drawing = Drawing(watched)
    watched.say(output("".join(f"line {n}\n" for n in range(50_000))))
    message = drawing.news()[0]
    assert (message["lines"][-1][0], message["lines"][-1][3], message["total"]) == (49_999, "line 49999", 50_000)
    numbers = [row[0] for row in message["lines"]]
    assert numbers == list(range(numbers[0], 50_000))


def test_view_is_told_at_most_ten_times_a_second_and_always_the_last(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    WidgetView(Handle(watched), Painter())
    for n in range(2_000):
        watched.say(progress(0, n / 200))

    def last() -> float:
        told = [content["state"]["bars"] for _, content, _ in shown.messages if "bars" in content.get("state", {})]
        return float(told[-1][0]["done"]) if told and told[-1] else 0.0

    wait_until(lambda: last() > 9.99, 5, "the last step")
    times = [at for at, *_ in shown.messages]
    assert all(later - earlier > 0.05 for earlier, later in itertools.pairwise(times))


def test_marks_are_sent_once_and_then_the_runs_that_changed() -> None:
    watched = Watched(MapStatus("g", "part", 1_000))
    drawing = Drawing(watched)
    assert drawing.all()["cells"] == bytes(1_000)
    assert "runs" not in drawing.news()[0]
    for index in (3, 4, 5, 700):
        watched.say(member(index, states.SUCCESS))
    watched.say(member(6, states.FAILURE))
    content, buffers = drawing.news()
    assert (content["runs"], buffers) == ([3, 3, DONE, 6, 1, FAILED, 700, 1, DONE], [])
    assert "runs" not in drawing.news()[0]
    assert drawing.all()["cells"][6] == FAILED


@pytest.mark.parametrize("size", [1, 255, 256, 257, 4_000])
def test_runs_turn_old_marks_into_new(size: int) -> None:
    chance = random.Random(size)
    old = bytes(chance.choice([0, 0, 0, 1]) for _ in range(size))
    new = bytearray(old)
    for _ in range(size // 50):
        start = chance.randrange(size)
        new[start : start + 5] = bytes([chance.randrange(7)] * len(new[start : start + 5]))
    runs = runs_of(old, bytes(new))
    assert patched(old, runs) == new
    assert all(old[start] != mark for start, _, mark in triples(runs))


@pytest.mark.parametrize("total", [5, 1_000, 30_007])
def test_pages_marks_are_the_kernels_whatever_happens_between_two_messages(total: int) -> None:
    chance = random.Random(total)
    status = MapStatus("g", "part", total)
    drawing = Drawing(Watched(status))
    page = drawing.all()["cells"]
    for _ in range(30):
        for _ in range(chance.choice([0, 3, total // 10, total])):
            state = chance.choice([states.STARTED, states.SUCCESS, states.SUCCESS, states.FAILURE, states.RETRY])
            status.apply(member(chance.randrange(total), state))
        content, buffers = drawing.news()
        page = buffers[0] if "cells" in content else bytes(patched(page, content.get("runs", [])))
        assert page == drawing.all()["cells"] == status.marks(drawing.state()["step"])


def triples(runs: list[int]) -> Iterator[tuple[int, int, int]]:
    return zip(*[iter(runs)] * 3, strict=True)


def patched(marks: bytes, runs: list[int]) -> bytearray:
    found = bytearray(marks)
    for start, length, mark in triples(runs):
        found[start : start + length] = bytes([mark] * length)
    return found


def test_mark_of_many_members_shows_the_worst_of_them() -> None:
    status = MapStatus("g", "part", 100_000)
    drawing = Drawing(Watched(status))
    step = drawing.state()["step"]
    assert step == 10
    assert len(drawing.all()["cells"]) == 10_000
    for index in range(step, 2 * step):
        status.apply(member(index, states.SUCCESS))
    status.apply(member(step + 1, states.FAILURE))  # ended already, and stays so
    status.apply(member(2 * step, states.FAILURE))
    for index in range(2 * step + 1, 3 * step):
        status.apply(member(index, states.SUCCESS))
    status.apply(member(3 * step, states.STARTED))
    assert list(drawing.all()["cells"][:5]) == [0, DONE, FAILED, 1, 0]


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


def test_success_stays_for_a_moment_where_a_page_shows_it(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "LINGER_S", 0.5)
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    view = WidgetView(Handle(watched), Painter())
    view._said(None, {"do": "hello", "n": view.drawing.told}, None)
    watched.say(record(states.SUCCESS))
    view.draw()
    assert not view.ended
    wait_until(lambda: view.ended, 5, "the end")
    assert "succeeded" in shown.bundles[-1]["text/html"]


def test_view_that_is_read_in_ends_when_its_reader_leaves(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    view = WidgetView(Handle(watched), Painter())
    view._said(None, {"do": "hello", "n": view.drawing.told}, None)
    view._said(None, {"do": "hold", "on": True}, None)
    watched.say(record(states.REVOKED, error="cancelled"))
    view.draw()
    assert not view.ended
    view._said(None, {"do": "hold", "on": False}, None)
    wait_until(lambda: view.ended, 5, "the end")


def test_page_that_is_loaded_anew_holds_nothing(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    view = WidgetView(Handle(watched), Painter())
    view._said(None, {"do": "hold", "on": True}, None)
    view._said(None, {"do": "hello", "n": view.drawing.told}, None)
    watched.say(record(states.REVOKED, error="cancelled"))
    wait_until(lambda: view.ended, 5, "the end")


def test_failure_stays_on_a_page_while_it_may_be_run_again(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    painter = Painter()
    view = WidgetView(Handle(watched), painter)
    view._said(None, {"do": "hello", "n": view.drawing.told}, None)
    watched.say(record(states.FAILURE, error="ValueError: no"))
    view.draw()
    assert not view.ended
    view._said(None, {"do": "retry", "like": -1}, None)
    wait_until(lambda: watched.status.note == "Not run again: no message of it is kept", 5, "the note")
    monkeypatch.setattr(views, "RETRY_S", 0.0)
    view.draw()
    wait_until(lambda: view.ended, 5, "the end")
    assert "ValueError</b>: no" in shown.bundles[-1]["text/html"]


def test_view_of_a_failure_lives_on_when_the_task_runs_again(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    painter = Painter()
    view = WidgetView(Handle(watched), painter)
    view._said(None, {"do": "hello", "n": view.drawing.told}, None)
    watched.say(record(states.FAILURE, error="ValueError: no"))
    view.draw()
    assert isinstance(watched.status, TaskStatus)
    watched.status.begin_again(5.0)
    shown.messages.clear()
    view.draw()
    # the painter may have drawn it just before
    told = next(content["state"] for _, content, _ in shown.messages if "ready" in content.get("state", {}))
    assert (told["kind"], told["ready"], told["error"], told["failure"]) == ("queued", False, "", None)
    watched.say(record(states.SUCCESS))
    view.draw()
    painter.settle_all()
    assert view.ended
    assert "succeeded" in shown.bundles[-1]["text/html"]


def test_log_that_was_cleared_begins_anew_on_pages(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train"))
    drawing = Drawing(watched)
    watched.say(output("one\ntwo\n"))
    drawing.news()
    clear = msgspec.json.encode(Output("clear_output"))
    watched.say(Fact(Facts(kind="output", id="0123456789", at=1.0, attempt=1), clear))
    watched.say(output("three\n"))
    message = drawing.news()[0]
    assert (message["cleared"], message["total"], message["lines"]) == (2, 3, [[2, 1.0, 0, "three"]])
    assert "cleared" not in drawing.news()[0]
    opened = drawing.all()
    assert (opened["cleared"], opened["total"], opened["lines"]) == (2, 3, [[2, 1.0, 0, "three"]])
    assert "two" not in plain_text(watched.status)


def test_page_that_missed_a_message_is_told_all_again(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    view = WidgetView(Handle(watched), Painter())
    watched.say(output("one\n"))
    wait_until(lambda: view.drawing.told > 0, 5, "a message")
    view._said(None, {"do": "missed", "n": 0}, None)
    whole = [content for _, content, _ in shown.messages if "all" in content]
    assert [row[3] for row in whole[0]["lines"]] == ["one"]
    assert whole[0]["state"]["name"] == "train"


def test_member_that_has_ended_is_told_on_demand(shown: Shown) -> None:
    watched = Watched(MapStatus("g", "part", 3))
    facts = Facts(kind="record", id="g-1", at=5.0, started_at=4.5, state=states.FAILURE, worker="w", error="E: \x07")
    watched.facts[1] = Fact(facts, b"")
    view = WidgetView(Handle(watched), Painter())
    for index in (1, 2, 99):
        view._said(None, {"do": "member", "index": index}, None)
    told = [content["member"] for _, content, _ in shown.messages if "member" in content]
    assert told == [
        {"index": 1, "member": 1, "worker": "w", "took": 0.5, "error": "E: \\x07"},
        {"index": 2, "member": 2},
        {"index": 99},
    ]


def test_mark_of_many_members_tells_of_the_worst_of_them() -> None:
    watched = Watched(MapStatus("g", "part", 100_000))
    for index, state in ((20, states.SUCCESS), (23, states.FAILURE), (24, states.STARTED)):
        watched.status.apply(member(index, state))
    watched.facts[23] = member(23, states.FAILURE)
    told = Drawing(watched).member(20)
    assert (told["member"], told["error"]) == (23, "E: x")


def test_outputs_count_as_messages_and_the_last_one_is_shown(shown: Shown) -> None:
    watched = Watched(TaskStatus("0123456789", "train", state=states.STARTED))
    view = WidgetView(Handle(watched), Painter())
    before = len(shown.bundles)
    start = time.monotonic()
    while time.monotonic() < start + 1.2:
        body = msgspec.json.encode(Output("display", data={"text/plain": str(time.monotonic())}))
        watched.say(Fact(Facts(kind="output", id="0123456789", at=1.0, attempt=1), body))
    body = msgspec.json.encode(Output("display", data={"text/plain": "last"}))
    watched.say(Fact(Facts(kind="output", id="0123456789", at=1.0, attempt=1), body))
    watched.say(record(states.SUCCESS))
    wait_until(lambda: view.ended, 5, "the end")
    outputs = [bundle["text/plain"] for bundle in shown.bundles[before:-1]]
    assert outputs[-1].splitlines()[-1] == "last"
    assert len(outputs) <= 2 * (time.monotonic() - start) + 2
    assert len(shown.messages) + len(outputs) <= 10 * (time.monotonic() - start) + 3


def test_kind_of_error_tells_where_in_the_map_it_was() -> None:
    status = MapStatus("g", "part", 600)
    for index in (0, 9, 300, 599):
        status.apply(member(index, states.FAILURE))
    assert Drawing(Watched(status)).state()["kinds"][0]["where"] == [0, 30, 59]


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
    assert view.drawing.all()["total"] == 3_000


def test_maps_can_be_drawn_while_they_change(shown: Shown) -> None:
    watched = Watched(MapStatus("g", "part", 3_000))
    view = WidgetView(Handle(watched), Painter())
    stop, failed = threading.Event(), []

    def draw() -> None:
        while not stop.is_set():
            try:
                view.draw()
                view._said(None, {"do": "missed", "n": -1}, None)
                static_html(watched.status)
                plain_text(watched.status)
            except Exception as exc:  # noqa: BLE001 - that is the question
                failed.append(exc)

    drawing = threading.Thread(target=draw)
    drawing.start()
    for n in range(3_000):
        error = f"ValueError: {n}" if n < 1_500 else "E: x"
        watched.status.apply(Fact(msgspec.structs.replace(member(n, states.FAILURE).facts, error=error), b""))
    stop.set()
    drawing.join()
    assert failed == []


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
    assert [row[3] for row in drawing.news()[0]["lines"]] == ["\x1b[31mred\x1b[0m \\x2028 \\x61c \\xad \\x07"]
