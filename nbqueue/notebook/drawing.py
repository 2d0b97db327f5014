"""What a page shows of a task or map: all of it once, then what has changed."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from nbqueue import states
from nbqueue.notebook.failures import MAX_TEXT, Frame, folded, frames_of, own_frames
from nbqueue.notebook.lines import Line, Lines
from nbqueue.notebook.shown import coloured, visible, visible_block
from nbqueue.notebook.text import Status, kind_of, name_of, word_of
from nbqueue.status import BINS, DONE, FAILED, WORST_FIRST, Bar, MapStatus, TaskStatus, marks_of

LOG_BYTES: Final = 100_000  # of a log's end, for a page that opens
NEWS_BYTES: Final = 8_000  # of a log, ten times a second at most: all views together may tell a megabyte a second
LINE_CHARACTERS: Final = 2_000
MAX_BARS: Final = 6
MAX_CELLS: Final = 12_000  # marks of a map; with more members one mark stands for several
STEPS: Final = (1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 100)  # members to a mark
BLOCK: Final = 64  # marks that are looked at together
_NOTHING: Final = object()


class Drawing:
    """What a page shows of a task or map, and what of it has changed since pages were told last; from any thread.

    Messages are numbered, so that a page knows when it has missed one, and asks for all of it.
    """

    def __init__(self, watched: Any) -> None:
        self.watched = watched
        self.key = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._lines = Lines()
        self._chunks = 0
        self._told = 0
        self._members = bytes(self.status.members) if isinstance(self.status, MapStatus) else b""
        self._cells = bytearray(marks_of(self._members, step_of(len(self._members))))
        self._state: dict[str, Any] = {}

    @property
    def status(self) -> Status:
        """Return what is known."""
        status: Status = self.watched.status
        return status

    def state(self) -> dict[str, Any]:
        """Return all but log and marks."""
        status = self.status
        return _map_state(status) if isinstance(status, MapStatus) else _task_state(status)

    def all(self) -> dict[str, Any]:
        """Return all that a page needs which opens now."""
        with self._lock:
            self._read()
            return {
                **self._stamp(),
                "state": self.state(),
                "lines": _rows(self._lines.tail(), LOG_BYTES),
                "total": self._lines.total,
                "cleared": self._lines.cleared,
                "cells": self._marks(),
            }

    def news(self) -> tuple[dict[str, Any], list[bytes]]:
        """Return what pages have to be told, and its buffers: one message, whatever has changed."""
        with self._lock:
            self._told += 1
            message: dict[str, Any] = self._stamp()
            state = self.state()
            if changed := {name: value for name, value in state.items() if self._state.get(name, _NOTHING) != value}:
                message["state"] = changed
            self._state = state
            cleared = self._lines.cleared
            self._read()
            if self._lines.cleared != cleared:
                message["cleared"], message["total"] = self._lines.cleared, self._lines.total
            if lines := self._lines.take():
                message["lines"], message["total"] = _rows(lines, NEWS_BYTES), self._lines.total
            runs = self._runs()
            if len(runs) > len(self._cells) // 4:
                return {**message, "cells": 0}, [bytes(self._cells)]
            if runs:
                message["runs"] = runs
            return message, []

    @property
    def told(self) -> int:
        """Return the number of the last message."""
        return self._told

    def member(self, index: int) -> dict[str, Any]:
        """Return what is known of a member of a map, or of the worst of those that share its mark."""
        told: dict[str, Any] = {"index": index}
        status = self.status
        if not isinstance(status, MapStatus) or not 0 <= index < status.total:
            return told
        part = bytes(status.members[index : index + step_of(status.total)])
        told["member"] = index + part.index(WORST_FIRST[min(map(WORST_FIRST.index, part))])
        fact = self.watched.facts[told["member"]]
        if fact is not None:
            facts = fact.facts
            told["worker"], told["error"] = visible(facts.worker, 60), visible(facts.error)
            told["took"] = facts.at - facts.started_at if facts.started_at else None
        return told

    def _stamp(self) -> dict[str, Any]:
        return {"key": self.key, "n": self._told, "at": time.time()}

    def _marks(self) -> bytes:
        """Return a map's marks, a byte each."""
        status = self.status
        return status.marks(step_of(status.total)) if isinstance(status, MapStatus) else b""

    def _runs(self) -> list[int]:
        """Return where marks have changed, as start, length and mark of each run; most of a large map has not."""
        status = self.status
        if not isinstance(status, MapStatus):
            return []
        old, new = self._members, bytes(status.members)
        step = step_of(status.total)
        runs: list[int] = []
        for start in range(0, len(new), BLOCK * step):
            end = start + BLOCK * step
            if old[start:end] != new[start:end]:
                first = start // step
                marks = marks_of(new[start:end], step)
                runs += runs_of(self._cells[first : first + len(marks)], marks, first)
                self._cells[first : first + len(marks)] = marks
        self._members = new
        return runs

    def _read(self) -> None:
        status = self.status
        if isinstance(status, TaskStatus):
            chunks, self._chunks = status.log.since(self._chunks)
            self._lines.add(chunks)


def _common(status: Status) -> dict[str, Any]:
    return {
        "id": status.id,
        "name": visible(name_of(status), 120),
        "kind": kind_of(status),
        "word": word_of(status),
        "queue": visible(status.queue, 60),
        "sent": status.sent_at,
        "started": status.started_at,
        "ended": status.ended_at,
        "note": visible(status.note, 300),
        "cancelling": status.cancelling,
        "ready": status.ready,
    }


def _task_state(status: TaskStatus) -> dict[str, Any]:
    bars = [
        {
            "number": bar.number,
            "label": visible(bar.label or "progress", 60),
            "done": bar.done,
            "total": bar.total,
            "closed": bar.closed,
            "unit": visible(bar.unit, 20),
            "note": visible(bar.note, 80),
            "rate": bar.rate,
            "nested": bar.parent >= 0,
            "started": bar.started_at,
            "at": bar.updated_at,
        }
        for bar in _worth_showing(status)
    ]
    return {
        **_common(status),
        "form": "task",
        "state": status.state if status.state in states.ALL_STATES else visible(status.state, 40),
        "worker": visible(status.worker, 60),
        "child": status.child,
        "attempt": status.attempt,
        "due": status.due if not status.ready else 0.0,
        "bars": bars,
        "more": max(0, sum(not bar.closed for bar in list(status.bars.values())) - MAX_BARS),
        "summary": visible(status.summary, 200),
        "told": status.told_at,
        "attempts": status.max_retries + 1 if status.max_retries >= 0 else 0,
        "error": visible(status.error, 200),
        "failure": _failure(status.failure.traceback) if status.failure else None,
    }


def _failure(traceback: str) -> dict[str, Any] | None:
    frames = frames_of(traceback)
    if not frames and "\n" not in traceback.strip():
        return None  # it says no more than the error
    own = own_frames(frames)
    return {
        "frames": [_frame(frame) for frame in own],
        "folded": visible(folded(frames, own), 300),
        "text": visible_block(traceback[-MAX_TEXT:]),
    }


def _frame(frame: Frame) -> dict[str, Any]:
    code = [(number, visible_block(line)) for number, line in frame.code]
    # where marks were put in, columns are no longer those of the traceback
    same = code == list(frame.code)
    return {
        "title": visible(frame.title, 80),
        "name": visible(frame.name, 60) if frame.name != "<module>" else "",
        "line": frame.line,
        "code": code,
        "marks": frame.marks if same else None,
    }


def _worth_showing(status: TaskStatus) -> list[Bar]:
    """Return open bars, outer ones first, and of those that ended the newest of each label that isn't open again."""
    bars = list(status.bars.values())  # at once: it may change meanwhile
    still_open = [bar for bar in bars if not bar.closed]
    labels = {bar.label for bar in still_open}
    ended = {bar.label: bar for bar in bars if bar.closed and bar.label not in labels}
    return [*still_open[:MAX_BARS], *list(ended.values())[-MAX_BARS:]]


def _map_state(status: MapStatus) -> dict[str, Any]:
    kinds = sorted(status.kinds.values(), key=lambda kind: -kind.count)[:6]
    return {
        **_common(status),
        "form": "map",
        "total": status.total,
        "counts": list(status.counts),
        "step": step_of(status.total),
        "kinds": [
            {"text": visible(kind.text, 160), "count": kind.count, "first": kind.first, "where": _bins(kind.bins)}
            for kind in kinds
        ],
        "kindCount": len(status.kinds),
        "bins": BINS,
        "done": status.counts[DONE],
        "failed": status.counts[FAILED],
    }


def _bins(bits: int) -> list[int]:
    return [number for number in range(BINS) if bits >> number & 1]


def step_of(total: int) -> int:
    """Return how many members share a mark, so that there are not too many of them."""
    least = -(-total // MAX_CELLS)
    return next((step for step in STEPS if step >= least), least)


def runs_of(old: bytes | bytearray, new: bytes, first: int = 0) -> list[int]:
    """Return where marks differ, as start, length and mark of each run.

    Args:
        old: as many marks.
        new: the marks of now.
        first: the place of the first of them.
    """
    runs: list[int] = []
    place = first
    for (now, before), same in itertools.groupby(zip(new, old, strict=True)):
        length = sum(1 for _ in same)
        if now != before:
            if runs and runs[-1] == now and runs[-3] + runs[-2] == place:
                runs[-2] += length
            else:
                runs += [place, length, now]
        place += length
    return runs


def _rows(lines: Sequence[tuple[int, Line]], size: int) -> list[list[Any]]:
    """Return the newest of these lines as pages read them: number, when, whether it is an error's, and the text.

    Args:
        lines: in order, with their numbers.
        size: bytes they may take together; one line may always be shown.
    """
    rows: list[list[Any]] = []
    for number, line in reversed(lines):
        row = [number, round(line.at, 1), int(line.stream == "stderr"), coloured(_cut(line.shown, LINE_CHARACTERS))]
        if (taken := _size(row)) > size:
            if rows:
                break
            row[3] = visible_block(_cut(line.shown, size // 12))
        size -= taken
        rows.append(row)
    return rows[::-1]


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… {len(text) - limit:,} more characters"
