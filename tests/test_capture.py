"""What a task says: in order, bounded, not too often."""

from __future__ import annotations

import re
import sys
import threading
from typing import Any

import msgspec
import pytest

from nbqueue import capture, paced
from nbqueue.capture import Flusher, Interrupts, Recorder, Stream, summarize
from nbqueue.messages import Output, Progress
from tests.helpers import wait_until


class Listener:
    """Takes what a recorder sends."""

    def __init__(self) -> None:
        self.events: list[tuple[str, bytes]] = []
        self.recorder = Recorder(lambda kind, data: self.events.append((kind, data)))

    def outputs(self) -> list[Output]:
        return [msgspec.json.decode(data, type=Output) for kind, data in self.events if kind == "output"]


@pytest.fixture
def listener() -> Listener:
    return Listener()


def test_text_is_sent_in_order_when_streams_alternate(listener: Listener) -> None:
    for stream, text in (("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d")):
        assert listener.recorder.write(stream, text)
    assert listener.events == []
    listener.recorder.close()
    assert [(o.name, o.text) for o in listener.outputs()] == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]


def test_text_is_sent_at_once_when_there_is_much_of_it(listener: Listener) -> None:
    assert not listener.recorder.write("stdout", "x" * capture.FLUSH_CHARACTERS)
    assert [len(o.text) for o in listener.outputs()] == [capture.FLUSH_CHARACTERS]


def test_head_and_tail_are_kept_and_the_rest_is_counted_when_a_task_says_too_much(listener: Listener) -> None:
    lines = [f"{number:09}\n" for number in range(1_000_000)]
    for line in lines:
        listener.recorder.write("stdout", line)
    listener.recorder.close()
    text = "".join(o.text for o in listener.outputs())
    assert len(text) < capture.HEAD_CHARACTERS + paced.TAIL_CHARACTERS + 100_000
    assert text.startswith("".join(lines[: capture.HEAD_CHARACTERS // 10]))
    assert "[very much text" in text
    assert text.endswith("".join(lines[-(paced.TAIL_CHARACTERS // 10 - 1) :]))
    left_out = sum(int(number.replace(",", "")) for number in re.findall(r"… ([\d,]+) characters left out", text))
    said = re.sub(r"\n\[(?:… [\d,]+ characters left out …|very much text[^\]]+)\]\n", "", text)
    assert left_out + len(said) == 10_000_000


def test_newest_lines_are_told_meanwhile_when_a_task_says_too_much(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paced, "PIECE_S", 0.0)
    listener.recorder.write("stdout", "x" * (capture.HEAD_CHARACTERS + 10_000) + "\nnewest\n")
    assert listener.recorder.flush() is False
    assert listener.outputs()[-1].text.endswith("newest\n")
    assert len(listener.outputs()[-1].text) < paced.PIECE_CHARACTERS + 100


def test_one_enormous_print_is_cut_in_its_middle(listener: Listener) -> None:
    listener.recorder.write("stdout", "a" * capture.HEAD_CHARACTERS + "b" * 50_000_000 + "c" * 1_000)
    listener.recorder.close()
    text = "".join(o.text for o in listener.outputs())
    assert text.count("a") >= capture.HEAD_CHARACTERS
    assert text.endswith("c" * 1_000)
    assert len(text) < 5_000_000


def test_nothing_is_taken_when_the_task_has_ended(listener: Listener) -> None:
    listener.recorder.close()
    assert not listener.recorder.write("stdout", "late")
    listener.recorder.progress(Progress(0, 1.0), last=True)
    listener.recorder.display("display_data", {"text/plain": "late"})
    assert listener.events == []


def test_display_keeps_its_place_when_text_waits(listener: Listener) -> None:
    listener.recorder.write("stdout", "before")
    listener.recorder.display("display_data", {"text/plain": "shown"})
    listener.recorder.write("stdout", "after")
    listener.recorder.close()
    assert [o.text or o.data["text/plain"] for o in listener.outputs()] == ["before", "shown", "after"]


def test_what_replaces_something_is_thinned_and_its_last_is_told(listener: Listener) -> None:
    recorder = listener.recorder
    recorder.display("display_data", {"text/plain": "first"}, display_id="a")
    held = [recorder.display("update_display_data", {"text/plain": str(n)}, display_id="a") for n in range(1_000)]
    recorder.close()
    told = [(o.type, o.data["text/plain"]) for o in listener.outputs()]
    assert told[:2] == [("display_data", "first"), ("update_display_data", "0")]
    assert told[-1] == ("update_display_data", "999")
    assert len(told) < 50
    assert any(held)


def test_frames_of_an_animation_are_thinned_and_kept_whole(listener: Listener) -> None:
    for number in range(500):
        listener.recorder.clear(wait=True)
        listener.recorder.display("display_data", {"text/plain": f"left {number}"})
        listener.recorder.display("display_data", {"text/plain": f"right {number}"})
    listener.recorder.close()
    told = [o.data.get("text/plain", o.type) for o in listener.outputs()]
    assert told[:3] == ["clear_output", "left 0", "right 0"]
    assert told[-3:] == ["clear_output", "left 499", "right 499"]
    assert len(told) < 150


def test_held_frame_comes_when_the_task_displays_nothing_more(listener: Listener) -> None:
    flusher = Flusher()
    for number in range(2):
        if listener.recorder.display("update_display_data", {"text/plain": str(number)}, display_id="a"):
            flusher.soon(listener.recorder)
    wait_until(lambda: listener.outputs()[-1].data["text/plain"] == "1", 5, "the newest")


def test_text_after_a_clear_takes_the_place_of_what_nobody_saw(listener: Listener) -> None:
    for number in range(100):
        listener.recorder.write("stdout", f"{number}\n")
        listener.recorder.clear(wait=True)
    listener.recorder.write("stdout", "last\n")
    listener.recorder.close()
    assert [(o.type, o.text) for o in listener.outputs()] == [("clear_output", ""), ("stream", "last\n")]


def test_newest_display_is_told_at_the_end_when_there_was_no_room_for_more(listener: Listener) -> None:
    for number in range(60):
        listener.recorder.display("display_data", {"text/plain": str(number), "image/png": "x" * 1_000_000})
    listener.recorder.close()
    told = [o.data["text/plain"] for o in listener.outputs()]
    assert told[:29] == [str(number) for number in range(29)]
    assert "not shown: very much was displayed" in told[-3]
    shown = len(told) - 3
    assert told[-2:] == [f"[… {60 - shown - 1} displays left out …]", "59"]
    assert sum(len(data) for _, data in listener.events) < 33_000_000


def test_member_of_a_map_may_say_a_tenth() -> None:
    sent: list[bytes] = []
    recorder = Recorder(lambda _, data: sent.append(data), share=0.1)
    for _ in range(40):
        recorder.write("stdout", "x" * 99_999 + "\n")
        recorder.display("display_data", {"image/png": "x" * 1_000_000})
    recorder.close()
    assert sum(map(len, sent)) < 6_000_000


def test_display_is_replaced_by_its_text_when_it_is_too_large(listener: Listener) -> None:
    listener.recorder.display("display_data", {"text/plain": "a table", "text/html": "x" * paced.MAX_BUNDLE_BYTES})
    (shown,) = listener.outputs()
    assert shown.data.keys() == {"text/plain"}
    assert shown.data["text/plain"].startswith("a table\n[")


def test_progress_is_thinned_when_it_comes_fast(listener: Listener) -> None:
    for number in range(1_000):
        listener.recorder.progress(Progress(1, float(number)))
    listener.recorder.progress(Progress(1, 1_000.0), last=True)
    told = [msgspec.json.decode(data, type=Progress).done for _, data in listener.events]
    assert told[0] == 0.0
    assert told[-1] == 1_000.0
    assert len(told) < 20


def test_progress_that_came_too_soon_is_told_a_moment_later(listener: Listener) -> None:
    flusher = Flusher()
    for number in range(22):
        if listener.recorder.progress(Progress(1, float(number))):
            flusher.soon(listener.recorder)

    def told() -> list[float]:
        return [msgspec.json.decode(data, type=Progress).done for _, data in listener.events]

    wait_until(lambda: told()[-1] == 21.0, 5, "the newest progress")
    assert len(told()) <= 3


def test_stream_is_flushed_by_itself_when_a_task_writes_a_little(listener: Listener) -> None:
    flusher = Flusher()
    stream = Stream("stdout", lambda: listener.recorder, flusher)
    assert stream.write("hello\n") == 6
    stream.flush()
    wait_until(listener.outputs, 5.0, "the text to be sent")
    assert [o.text for o in listener.outputs()] == ["hello\n"]


def test_stream_takes_text_and_drops_it_when_no_task_runs() -> None:
    stream = Stream("stderr", lambda: None, Flusher())
    print("nobody", file=stream)
    assert stream.writable()
    assert not stream.isatty()
    stream.reconfigure(line_buffering=True)
    with pytest.raises(OSError, match="fileno"):
        stream.fileno()
    with pytest.raises(TypeError, match="not bytes"):
        stream.write(b"bytes")  # type: ignore[arg-type]


def test_lines_stay_whole_when_threads_write_at_once(listener: Listener) -> None:
    def write() -> None:
        for _ in range(500):
            listener.recorder.write("stdout", "0123456789\n")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listener.recorder.close()
    assert "".join(o.text for o in listener.outputs()) == "0123456789\n" * 2_000


def test_interrupt_is_ignored_when_no_task_runs() -> None:
    Interrupts().handle()


def test_interrupt_comes_once_when_it_is_sent_twice() -> None:
    interrupts = Interrupts()
    interrupts.armed = True
    with pytest.raises(KeyboardInterrupt):
        interrupts.handle()
    interrupts.handle()


def test_interrupt_waits_for_the_end_when_machinery_runs() -> None:
    interrupts, done = Interrupts(), []

    def machinery() -> None:
        with interrupts:
            with interrupts:
                interrupts.handle()
                done.append("inner")
            done.append("outer")

    interrupts.armed = True
    with pytest.raises(KeyboardInterrupt):
        machinery()
    assert done == ["inner", "outer"]


class Odd:
    def __repr__(self) -> str:
        raise ValueError


class Framed:
    shape = (48_211, 12)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, ""),
        (42, "42"),
        ("text", "'text'"),
        ([1, 2], "[1, 2]"),
        (list(range(40)), "list of 40"),
        ({n: n for n in range(1_000)}, "dict of 1,000"),
        (b"abc", "bytes of 3"),
        (Framed(), "Framed 48,211 \u00d7 12"),
        (Odd(), "Odd"),
    ],
    ids=["none", "number", "text", "short", "list", "dict", "bytes", "array", "odd"],
)
def test_summary_is_one_line_when_a_value_is_of_that_kind(value: Any, line: str) -> None:
    assert summarize(value) == line


def test_summary_is_short_when_a_value_is_long() -> None:
    for value in ("x" * 10_000, ["x" * 1_000, "y\n" * 100], sys):
        assert 0 < len(summarize(value)) <= 121
        assert "\n" not in summarize(value)
