from __future__ import annotations

import io

import pytest

from nbqueue import states
from nbqueue.messages import Fact, Facts
from nbqueue.notebook.terminal import TextView
from nbqueue.status import TaskStatus
from tests.test_text import record, task


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_text_view_writes_one_line_a_change_when_it_is_no_terminal() -> None:
    stream = io.StringIO()
    view = TextView(stream, now=lambda: 110.0)
    status = TaskStatus("0123456789", "train", sent_at=90.0)
    view.show(status)
    view.show(status)
    status.apply(record(states.STARTED))
    view.show(status)
    status.apply(record(states.SUCCESS))
    view.show(status)
    view.show(status)
    assert [line.split()[2:4] for line in stream.getvalue().splitlines()] == [
        ["train", "queued,"],
        ["train", "running,"],
        ["train", "0:10"],
    ]
    assert "\x1b" not in stream.getvalue()


def test_text_view_says_how_far_a_task_is_twice_a_minute_when_it_is_no_terminal() -> None:
    now = [100.0]
    stream = io.StringIO()
    view = TextView(stream, now=lambda: now[0])
    status = task(states.STARTED)
    for _ in range(100):
        now[0] += 1.0
        done = f'{{"bar":0,"done":{now[0] - 100},"total":200,"message":"epochs"}}'
        status.apply(Fact(Facts(kind="progress", id="0123456789", attempt=1), done.encode()))
        view.show(status)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].endswith(", 15 % epochs 31/200")


def test_text_view_draws_in_place_at_most_four_times_a_second_in_a_terminal() -> None:
    now = [100.0]
    stream = Terminal()
    view = TextView(stream, now=lambda: now[0])
    status = task(states.STARTED)
    for _ in range(100):
        now[0] += 0.01
        view.show(status)
    assert 3 <= stream.getvalue().count("running") <= 5
    assert "\x1b[1A" in stream.getvalue()


def test_text_view_uses_words_where_glyphs_can_not_be_shown() -> None:
    class Plain(Terminal):
        encoding = "ascii"

    stream = Plain()
    status = task(states.STARTED)
    status.apply(Fact(Facts(kind="progress", id="0123456789", attempt=1), b'{"bar":0,"done":5,"total":10}'))
    TextView(stream, now=lambda: 100.0).show(status)
    assert "[running] train" in stream.getvalue()
    assert "##########.........." in stream.getvalue()
    assert stream.getvalue().isascii()


def test_text_view_is_plain_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    TextView(stream, now=lambda: 100.0).show(task(states.STARTED))
    assert "[running]" in stream.getvalue()


def test_wide_characters_count_twice_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: type("Size", (), {"columns": 20}))
    stream = Terminal()
    TextView(stream, now=lambda: 100.0).show(TaskStatus("0123456789", "資料を読み込んで処理する仕事"))
    line = stream.getvalue().splitlines()[0].removeprefix("\r\x1b[2K")
    assert sum(2 if character > "\u2fff" else 1 for character in line) <= 19
