"""The lines of a task's output, put together as its text comes: each stream has a line of its own that it writes to.

A carriage return begins that line anew, as progress bars do; what another stream writes meanwhile stands on lines of
its own.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nbqueue.notebook.shown import split_codes

KEPT: Final = 2_000
MAX_LINE: Final = 10_000  # characters kept of one line
_RETURN: Final = re.compile(r"\r+(?=.)", re.DOTALL)


@dataclass(slots=True)
class Line:
    """One line: its text, of which stream it is, and when it was begun."""

    text: str
    stream: str
    at: float

    @property
    def shown(self) -> str:
        """Return what a terminal would show of it: a carriage return at its end has overwritten nothing yet."""
        return self.text.rstrip("\r")


class Lines:
    """Lines of text, numbered from 0; the newest are kept. Not for several threads at once."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque()
        self._first = 0  # the number of the oldest line that is kept
        self.cleared = 0  # so many lines were taken away, all of them at once
        self._open: dict[str, int] = {}  # stream -> the number of the line it is at
        self._begun: dict[str, str] = {}  # stream -> an escape sequence that its text broke off in
        self._changed: set[int] = set()  # numbers of lines changed since `take`

    @property
    def total(self) -> int:
        """Return how many lines there were."""
        return self._first + len(self._lines)

    def add(self, chunks: Iterable[tuple[float, str, str]]) -> None:
        """Take text: when, of which stream, and what. Of no stream: all there is goes."""
        for at, stream, text in chunks:
            if not stream:
                self._clear()
                continue
            clean, self._begun[stream] = split_codes(self._begun.get(stream, "") + text)
            # not splitlines(): that ends a line at a carriage return too
            first, *others = clean.replace("\r\n", "\n").split("\n")
            self._write(at, stream, first)
            for part in others:
                self._end(at, stream)
                self._write(at, stream, part)

    def tail(self) -> list[tuple[int, Line]]:
        """Return all lines that are kept, with their numbers."""
        return list(enumerate(self._lines, self._first))

    def take(self) -> list[tuple[int, Line]]:
        """Return the lines that are new or were changed since the last `take`, in order, with their numbers."""
        numbers, self._changed = sorted(self._changed), set()
        return [(number, self._lines[number - self._first]) for number in numbers if number >= self._first]

    def _clear(self) -> None:
        self._first = self.cleared = self.total
        for kept in (self._lines, self._open, self._begun, self._changed):
            kept.clear()

    def _end(self, at: float, stream: str) -> None:
        """End the line that a stream is at; one that nothing was written to is empty."""
        if self._current(stream) is None:
            self._begin(at, stream)
        self._open.pop(stream, None)

    def _write(self, at: float, stream: str, text: str) -> None:
        if not text:
            return
        number = self._current(stream)
        if number is None:
            number = self._begin(at, stream)
        line = self._lines[number - self._first]
        *_, last = _RETURN.split(line.text + text)
        line.text = last[:MAX_LINE]
        self._changed.add(number)

    def _current(self, stream: str) -> int | None:
        number = self._open.get(stream)
        return number if number is not None and number >= self._first else None

    def _begin(self, at: float, stream: str) -> int:
        number = self.total
        self._lines.append(Line("", stream, at))
        self._open[stream] = number
        self._changed.add(number)
        if len(self._lines) > KEPT:
            self._lines.popleft()
            self._changed.discard(self._first)
            self._first += 1
        return number
