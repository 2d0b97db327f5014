"""What is told of very much, without a task."""

from __future__ import annotations

import msgspec

from nbqueue import paced
from nbqueue.messages import Output, Progress
from nbqueue.paced import BarPace, Displays, Excess


def test_pieces_come_once_a_second_when_a_task_goes_on() -> None:
    excess, now = Excess(0.0), 0.0
    for _ in range(100):
        excess.add("stdout", "line\n" * 1_000)
        assert sum(len(text) for _, text in excess.take(paced.PIECE_CHARACTERS, now)) < 2_100
        assert excess.due_at - now == 1.0
        now = excess.due_at


def test_text_left_out_is_counted_in_front_of_the_newest_whole_lines() -> None:
    excess = Excess(0.0, tail=100)
    for number in range(100):
        excess.add("stdout" if number % 2 else "stderr", f"line {number:04}\n")
    said, *newest = excess.take(25, 0.0)
    assert said == ("stderr", "\n[\u2026 980 characters left out \u2026]\n")
    assert newest == [("stderr", "line 0098\n"), ("stdout", "line 0099\n")]
    assert not excess.waits


def test_bars_that_came_and_went_meanwhile_are_told_of_in_part() -> None:
    told: list[Progress] = []
    pace = BarPace(lambda _, data: told.append(msgspec.json.decode(data, type=Progress)))
    first, parent = pace.open()
    assert parent == -1
    pace.progress(Progress(first))
    for _ in range(100):
        bar, parent = pace.open()
        assert parent == first
        pace.progress(Progress(bar, parent=parent))
        pace.close(bar)
        pace.progress(Progress(bar, 1.0, closed=True, parent=parent), last=True)
    pace.close(first)
    pace.progress(Progress(first, 1.0, closed=True), last=True)
    assert [progress.closed for progress in told] == [False] + [True] * (paced.BRIEF_BARS + 1)
    assert [told[0].bar, told[-1].bar] == [first, first]
    assert pace.open()[1] == -1


def test_drawing_anew_becomes_seldom_when_it_goes_on_for_days() -> None:
    sent: list[Output] = []
    displays = Displays(lambda _, data: sent.append(msgspec.json.decode(data, type=Output)), 1.0, lambda: None)
    days, now = 3, 0.0
    displays._may_replace("a", now)
    while now < days * 86_400:
        now += 0.1
        if displays._may_replace("a", now):
            displays._replaced_at["a"] = now
            sent.append(Output("update_display_data"))
    assert len(sent) < 2_000
