from __future__ import annotations

import time
from typing import Any

import pytest

from nbqueue import states
from nbqueue.messages import Fact, Facts, Failure, encode_failure
from nbqueue.notebook.shown import visible
from nbqueue.notebook.text import kind_of, name_of, plain_text, word_of
from nbqueue.status import MapStatus, TaskStatus

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


def test_waiting_task_says_when_it_starts() -> None:
    status = TaskStatus("0123456789", "train", due=time.time() + 80.5)
    assert "scheduled" in plain_text(status)
    assert "starts in 1:20" in plain_text(status)
    status = TaskStatus("0123456789", "train", state=states.RETRY, retries=1, max_retries=3, due=time.time() + 8.5)
    assert "attempt 2 of 4 in 8." in plain_text(status)
