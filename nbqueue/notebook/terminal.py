"""Views in terminals, drawn in place, and in what is no terminal, a line a change."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from typing import Final, TextIO

from nbqueue.config import Environment
from nbqueue.notebook.shown import visible
from nbqueue.notebook.text import MARKS, Status, open_bars, plain_text, word_of
from nbqueue.status import TaskStatus

# For terminals that can't show glyphs, or are asked for plain text.
_IN_WORDS: Final = str.maketrans(
    {mark: f"[{kind}]" for kind, mark in MARKS.items()}
    | {"█": "#", "▒": "~", "·": ".", "→": "->", "│": "|", "└": "-", "…": "...", "\u2013": "-"}
)
_TINTS: Final = {
    "queued": 90,
    "running": 34,
    "succeeded": 32,
    "failed": 31,
    "retrying": 33,
    "cancelled": 90,
    "lost": 35,
}
_TINTED: Final = {mark: f"\x1b[{_TINTS[kind]}m{mark}\x1b[0m" for kind, mark in MARKS.items()}


class TextView:
    """Draws a status in a terminal, at most 4 times a second and in place; elsewhere one line a change.

    Args:
        stream: written to.
        now: the clock, Unix seconds.
    """

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.time) -> None:
        self._stream = stream or sys.stdout
        self._now = now
        self._tty = self._stream.isatty()
        self._drawn = 0
        self._last = ""
        self._at = 0.0
        self._closed = False
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        self._unicode = "utf" in encoding.lower()
        self._glyphs = self._unicode and not Environment.read().variables.get("NO_COLOR")
        self._lock = threading.Lock()

    def show(self, status: Status) -> None:
        """Draw the status, unless it was drawn just now."""
        with self._lock:
            self._show(status, self._now())

    def _show(self, status: Status, now: float) -> None:
        if self._closed or (not status.ready and now - self._at < (0.25 if self._tty else 0.0)):
            return
        if self._tty:
            self._redraw(plain_text(status, now))
            self._at = now
        else:
            self._line(status, now)
        self._closed = status.ready

    def close(self) -> None:
        """Draw no more."""
        self._closed = True

    def _redraw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        lines = [self._tinted(fitting(self._written(line), width - 1)) for line in text.splitlines()[:8]]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._stream.write(up + "".join(f"\r\x1b[2K{line}\n" for line in lines) + "\x1b[J")
        self._stream.flush()
        self._drawn = len(lines)

    def _line(self, status: Status, now: float) -> None:
        word = word_of(status).lower()
        # The same word says something new only when a bar has moved, and that twice a minute at most.
        if word == self._last and not (status.ready or now - self._at >= 30.0):
            return
        self._last, self._at = word, now
        text = plain_text(status, now).splitlines()[0][2:]
        bars = open_bars(status) if isinstance(status, TaskStatus) else []
        if bars and bars[0].total:
            label = visible(bars[0].label or "progress", 24)
            text += f" · {int(100 * bars[0].done / bars[0].total)} % {label} {bars[0].done:,.10g}/{bars[0].total:,.10g}"
        stamp = time.strftime("%H:%M:%S", time.localtime(now))
        self._stream.write(self._written(f"{stamp} {status.id[:4]} {text}") + os.linesep)
        self._stream.flush()

    def _tinted(self, line: str) -> str:
        """Return a line with the sign it begins with in its colour."""
        start = line[: len(line) - len(line.lstrip())]
        sign = line[len(start) : len(start) + 1]
        return f"{start}{_TINTED[sign]}{line[len(start) + 1 :]}" if self._glyphs and sign in _TINTED else line

    def _written(self, line: str) -> str:
        """Return a line in characters that the stream can show."""
        text = line if self._glyphs else line.replace(" · ", ", ").translate(_IN_WORDS)
        return text if self._unicode else text.encode("ascii", "replace").decode()


def fitting(line: str, width: int) -> str:
    """Return the beginning of a line that fits in so many columns; some characters take two, some none.

    >>> fitting("資料 data", 6)
    '資料 d'
    """
    used = 0
    for place, character in enumerate(line):
        if not unicodedata.combining(character):
            used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > width:
            return line[:place]
    return line
