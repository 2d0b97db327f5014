from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest

from nbqueue import states
from nbqueue.messages import Fact, Facts, Failure, encode_failure
from nbqueue.notebook.shown import visible
from nbqueue.notebook.text import TextView, kind_of, name_of, plain_text, static_html, word_of
from nbqueue.status import MapStatus, TaskStatus

EVIL = "<img src=x onerror=alert(1)>\x1b[31mred\x1b[0m\u202eabc\r\n\x00"


TRACE = """Traceback (most recent call last):
  File "<cell clean>", line 6, in <module>
    df[col] = df[col].astype(float)
              ^^^^^^^^^^^^^^^^^^^^^
  File "/venv/lib/python3.11/site-packages/pandas/core/generic.py", line 6643, in astype
    new_data = self._mgr.astype(dtype=dtype)
ValueError: bad
"""


def record(state: str, **more: Any) -> Fact:
    body = b""
    if state == states.FAILURE:
        body = encode_failure(Failure("ValueError", "bad", 'File "<cell x>", line 1\n    boom\nValueError: bad'))
    facts = Facts(
        kind="record",
        id="0123456789",
        state=state,
        at=110.0,
        started_at=100.0 if state != states.PENDING else 0.0,
        **more,
    )
    return Fact(facts, body)


def task(state: str = states.PENDING, **more: Any) -> TaskStatus:
    status = TaskStatus("0123456789", "demo.train", sent_at=90.0)
    status.apply(record(state, name="demo.train", **more))
    return status


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (task(), "○ train queued · 0:20"),
        (task(states.STARTED, worker="w@host"), "◐ train running on w@host · 0:10"),
        (task(states.SUCCESS, worker="w@host", summary="42"), "✓ train 0:10 on w@host → 42"),
        (task(states.REVOKED, error="cancelled"), "⊘ train cancelled after 0:10"),
        (task(states.REVOKED, error="expired"), "⊘ train expired after 0:10"),
    ],
)
def test_plain_text_says_state_place_and_time(status: TaskStatus, said: str) -> None:
    assert plain_text(status, 110.0) == said


def test_plain_text_of_a_failure_shows_error_and_frames() -> None:
    text = plain_text(task(states.FAILURE, error="ValueError: bad"), 110.0)
    assert text.splitlines()[:2] == ["✗ train failed after 0:10", "  ValueError: bad"]
    assert "boom" in text


def test_plain_text_of_a_failure_shows_the_readers_own_line_and_counts_the_rest() -> None:
    status = task(states.FAILURE, error="ValueError: bad", worker="w@host", retries=2, max_retries=2, attempt=3)
    assert status.failure is not None
    status.max_retries = 2
    status.failure.traceback = TRACE
    assert plain_text(status, 110.0).splitlines() == [
        "✗ train failed after 0:10 on w@host (attempt 3 of 3)",
        "  ValueError: bad",
        "  Cell clean, line 6",
        "    >   6  df[col] = df[col].astype(float)",
        "                     ^^^^^^^^^^^^^^^^^^^^^",
        "  1 frame in pandas",
    ]


def test_static_html_of_a_failure_marks_the_readers_own_line_and_folds_the_rest() -> None:
    status = task(states.FAILURE, error="ValueError: <bad>")
    assert status.failure is not None
    status.failure.traceback = TRACE
    page = static_html(status, 110.0)
    assert "<b>  &gt;   6  df[col] = df[col].astype(float)</b>" in page
    assert "<details><summary>1 frame in pandas</summary>" in page
    assert "&lt;bad&gt;" in page


def test_word_says_that_a_cancel_was_asked_for() -> None:
    status = task(states.STARTED)
    status.cancelling = True
    assert word_of(status) == "Cancelling…"


def test_kind_is_lost_when_the_worker_is() -> None:
    status = task(states.STARTED)
    status.lost = True
    assert kind_of(status) == "lost"


def test_visible_shows_what_hides_and_cuts_what_is_long() -> None:
    assert visible("a\x1b[31mb\x1b[0m\nc\u202ed") == "ab c\\x202ed"
    assert visible("x" * 300, 10) == "x" * 9 + "…"


@pytest.mark.parametrize("state", [states.PENDING, states.STARTED, states.SUCCESS, states.FAILURE, states.REVOKED])
def test_static_html_escapes_every_string_of_a_task(state: str) -> None:
    status = task(state, error=EVIL, summary=EVIL, worker=EVIL)
    status.name = EVIL
    status.log.add(1.0, "stdout", EVIL)
    if status.failure:
        status.failure.traceback = EVIL
    page = static_html(status, 110.0)
    assert "<img" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    assert "<script" not in page
    assert "class=" not in page


def test_static_html_of_a_map_never_averages_a_failure_away() -> None:
    status = MapStatus("0123456789", "sim", 10_000, sent_at=90.0)
    for index in range(10_000):
        failed = index == 5_000
        state = states.FAILURE if failed else states.SUCCESS
        status.apply(record(state, group="0123456789", index=index, error="ValueError: bad" if failed else ""))
    page = static_html(status, 110.0)
    assert len(re.findall(r"■<b[^>]*>x</b>\s■", page)) == 1
    assert "9,999 done, 1 failed" in page
    assert "#5,000" in page


def test_map_is_never_said_to_be_all_done_while_one_is_missing() -> None:
    status = MapStatus("0123456789", "sim", 10_000, sent_at=90.0)
    for index in range(9_999):
        status.apply(record(states.SUCCESS, group="0123456789", index=index))
    assert plain_text(status, 110.0).splitlines()[1].endswith("  99.9 %")


def test_map_shows_one_failure_among_many_in_its_bar() -> None:
    status = MapStatus("0123456789", "sim", 10_000, sent_at=90.0)
    for index in range(10_000):
        state = states.FAILURE if index == 7 else states.STARTED if index == 8 else states.SUCCESS
        status.apply(record(state, group="0123456789", index=index))
    bar = plain_text(status, 110.0).splitlines()[1].split()[0]
    assert (bar.count("x"), bar.count("▒"), len(bar)) == (1, 1, 60)


def test_map_text_counts_and_groups_errors() -> None:
    status = MapStatus("0123456789", "sim", 4, sent_at=90.0)
    for index, state in enumerate((states.SUCCESS, states.FAILURE, states.FAILURE)):
        status.apply(record(state, group="0123456789", index=index, error="" if not index else "ValueError: bad"))
    lines = plain_text(status, 110.0).splitlines()
    assert lines[0].startswith("◐ sim map of 4 · 18.0 /m · 3.3 s left")
    assert lines[1] == "  " + "█" * 15 + "x" * 30 + "·" * 15 + "  75.0 %"
    assert lines[2] == "  ✓ 1 done  ✗ 2 failed  ○ 1 queued"
    assert lines[3] == "  ✗ 2  ValueError: bad  first #1"


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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("proj.jobs.load", "load"),
        ("__main__.make.<locals>.inner", "inner"),
        ("load v1.2", "load v1.2"),
        ("3.14", "3.14"),
        ("train", "train"),
        ("a..b", "a..b"),
        ("été.nuit", "nuit"),
    ],
)
def test_name_is_a_functions_own_and_any_other_as_it_is(name: str, shown: str) -> None:
    assert name_of(TaskStatus("0123456789", name)) == shown


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


def test_waiting_task_says_when_it_starts() -> None:
    status = TaskStatus("0123456789", "train", due=time.time() + 80.5)
    assert "scheduled" in plain_text(status)
    assert "starts in 1:20" in plain_text(status)
    status = TaskStatus("0123456789", "train", state=states.RETRY, retries=1, max_retries=3, due=time.time() + 8.5)
    assert "attempt 2 of 4 in 8." in plain_text(status)


def test_wide_characters_count_twice_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: type("Size", (), {"columns": 20}))
    stream = Terminal()
    TextView(stream, now=lambda: 100.0).show(TaskStatus("0123456789", "資料を読み込んで処理する仕事"))
    line = stream.getvalue().splitlines()[0].removeprefix("\r\x1b[2K")
    assert sum(2 if character > "\u2fff" else 1 for character in line) <= 19
