"""The lines of a task's output, put together as its text comes: each stream has a line of its own that it writes to.

A carriage return begins that line anew, as progress bars do; what another stream writes meanwhile stands on lines of
its own.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Final

from nbqueue.notebook.shown import split_codes

KEPT: Final = 2_000
MAX_LINE: Final = 10_000  # characters kept of one line
_RETURN: Final = re.compile(r"\r+(?=.)", re.DOTALL)


class Lines:
    """Lines of text, numbered from 0; the newest are kept."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._first = 0  # the number of the oldest line that is kept
        self._open: dict[str, int] = {}  # stream -> the number of the line it is at
        self._begun: dict[str, str] = {}  # stream -> an escape sequence that its text broke off in
        self._changed: int | None = None  # the oldest line that was changed since `take`

    @property
    def total(self) -> int:
        """Return how many lines there were."""
        return self._first + len(self._lines)

    def add(self, chunks: Iterable[tuple[float, str, str]]) -> None:
        """Take text: when, of which stream, and what."""
        for _, stream, text in chunks:
            clean, self._begun[stream] = split_codes(self._begun.get(stream, "") + text)
            # not splitlines(): that ends a line at a carriage return too
            first, *others = clean.replace("\r\n", "\n").split("\n")
            self._write(stream, first)
            for part in others:
                self._open.pop(stream, None)
                self._write(stream, part)

    def tail(self, lines: int, characters: int) -> tuple[int, list[str]]:
        """Return the number of the first of the last lines, and these: not more than so many lines or characters."""
        return self._from(max(self._first, self.total - lines), characters)

    def take(self, lines: int, characters: int) -> tuple[int, list[str]] | None:
        """Return what changed since the last `take`, as `tail` does; None if nothing did."""
        if self._changed is None:
            return None
        start = max(self._changed, self._first, self.total - lines)
        self._changed = None
        return self._from(start, characters)

    def _from(self, start: int, characters: int) -> tuple[int, list[str]]:
        found: list[str] = []
        for number in range(self.total - 1, start - 1, -1):
            line = self._lines[number - self._first].rstrip("\r")
            characters -= len(line) + 1
            if characters < 0 and found:
                return number + 1, found[::-1]
            found.append(line)
        return start, found[::-1]

    def _write(self, stream: str, text: str) -> None:
        if not text:
            return
        number = self._open.get(stream)
        if number is None or number < self._first:
            number = self.total
            self._lines.append("")
            self._open[stream] = number
            if len(self._lines) > KEPT:
                self._lines.popleft()
                self._first += 1
        place = number - self._first
        *_, last = _RETURN.split(self._lines[place] + text)
        self._lines[place] = last[:MAX_LINE]
        self._changed = number if self._changed is None else min(self._changed, number)
