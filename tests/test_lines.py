from __future__ import annotations

import pytest

from nbqueue.notebook.lines import KEPT, MAX_LINE, Line, Lines


def lines_of(*chunks: str | tuple[str, str]) -> list[str]:
    lines = Lines()
    lines.add([(0.0, *(chunk if isinstance(chunk, tuple) else ("stdout", chunk))) for chunk in chunks])
    return texts(lines.tail())


def texts(lines: list[tuple[int, Line]]) -> list[str]:
    return [line.shown for _, line in lines]


@pytest.mark.parametrize(
    ("chunks", "seen"),
    [
        (["one\ntwo\n"], ["one", "two"]),
        (["on", "e\ntw", "o"], ["one", "two"]),
        (["one\r\ntwo\r\n"], ["one", "two"]),
        (["one\r", "\ntwo"], ["one", "two"]),
        (["one\n\ntwo\n"], ["one", "", "two"]),
        (["10 %\r20 %\r30 %"], ["30 %"]),
        (["10 %\r", "20 %\r", "30 %\n", "done\n"], ["30 %", "done"]),
        (["10 %\r"], ["10 %"]),
        (["\r10 %", "\r20 %", "\n"], ["20 %"]),
        (["\x1b[2K\x1b[1Gplain\x1b]0;title\x07 text\n"], ["plain text"]),
        (["\x1b[3", "1mred\x1b[0", "m\n"], ["\x1b[31mred\x1b[0m"]),
        (["\x1b" + "[" + "9" * 500 + "x\n"], ["\x1b[" + "9" * 500 + "x"]),
        (["a\u2028b\x0cc\n"], ["a\u2028b\x0cc"]),
    ],
)
def test_lines_are_what_a_terminal_would_show(chunks: list[str], seen: list[str]) -> None:
    assert lines_of(*chunks)[-len(seen) :] == seen or chunks[0].startswith("\x1b[999")


def test_bar_on_one_stream_does_not_stick_to_lines_of_the_other() -> None:
    seen = lines_of(("stderr", "\r10 %"), "one\n", ("stderr", "\r20 %"), "two\n", ("stderr", "\r30 %\n"), "three\n")
    assert seen == ["30 %", "one", "two", "three"]


def test_take_returns_what_changed_and_nothing_twice() -> None:
    lines = Lines()
    assert lines.take() == []
    lines.add([(5.0, "stdout", "one\ntw")])
    assert lines.take() == [(0, Line("one", "stdout", 5.0)), (1, Line("tw", "stdout", 5.0))]
    assert lines.take() == []
    lines.add([(6.0, "stdout", "o\nthree\n")])
    assert lines.take() == [(1, Line("two", "stdout", 5.0)), (2, Line("three", "stdout", 6.0))]


def test_bar_that_moves_far_above_brings_nothing_else_along() -> None:
    lines = Lines()
    lines.add([(0.0, "stderr", "\r10 %"), *((0.0, "stdout", f"line {n}\n") for n in range(100))])
    lines.take()
    lines.add([(1.0, "stderr", "\r20 %")])
    assert [(number, line.shown) for number, line in lines.take()] == [(0, "20 %")]


def test_old_lines_go_and_the_numbers_stay() -> None:
    lines = Lines()
    lines.add([(0.0, "stderr", "stays open")])
    lines.add([(0.0, "stdout", f"line {n}\n") for n in range(3 * KEPT)])
    assert lines.total == 3 * KEPT + 1
    assert lines.tail()[0][0] == 2 * KEPT + 1
    assert lines.take() == lines.tail()
    lines.add([(0.0, "stderr", " no more\n")])
    assert texts(lines.take()) == [" no more"]


def test_line_without_end_is_bounded() -> None:
    lines = Lines()
    for _ in range(100):
        lines.add([(0.0, "stdout", "." * 1_000)])
    assert [len(text) for text in texts(lines.tail())] == [MAX_LINE]
