"""Live views in a notebook: one widget a task or map, drawn at most ten times a second, static HTML once it ends."""

from __future__ import annotations

import itertools
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import anywidget
import traitlets
from IPython.core.getipython import get_ipython
from IPython.display import display as _untyped_display

from nbqueue import states
from nbqueue.messages import Output
from nbqueue.notebook.failures import MAX_TEXT, Frame, folded, frames_of, own_frames
from nbqueue.notebook.lines import Line, Lines
from nbqueue.notebook.outputs import combined
from nbqueue.notebook.shown import coloured, visible, visible_block
from nbqueue.notebook.text import (
    Status,
    TextView,
    clock,
    kind_of,
    name_of,
    plain_text,
    static_html,
    word_of,
)
from nbqueue.status import BINS, DONE, FAILED, Bar, MapStatus, TaskStatus, marks_of

__all__ = ["clock", "in_kernel", "watch", "watch_in_terminal"]

STATIC: Final = Path(__file__).parent / "static"
DRAW_S: Final = 0.1
OUTPUTS_S: Final = 0.5  # between two drawings of what a task displays
LARGE_S: Final = 0.25  # between two drawings of a large map
LINGER_S: Final = 4.0  # after a success, before its view becomes one line
BEAT_S: Final = 5.0  # a live view that says nothing for longer than this, and some, is no longer live
LOG_BYTES: Final = 100_000  # of a log's end, for a page that opens
NEWS_BYTES: Final = 8_000  # of a log, ten times a second at most: all views together may tell a megabyte a second
LINE_CHARACTERS: Final = 2_000
MAX_BARS: Final = 6
MAX_CELLS: Final = 12_000  # marks of a map; with more members one mark stands for several
STEPS: Final = (1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 100)  # members to a mark
BLOCK: Final = 64  # marks that are looked at together
WIDGET: Final = "application/vnd.jupyter.widget-view+json"

logger = logging.getLogger(__name__)
_NOTHING: Final = object()


class Handle(Protocol):
    """Is what a view needs of a result."""

    id: str

    @property
    def watched(self) -> Any:
        """Return what is known of it."""

    def revoke(self, *, terminate: bool = False) -> None:
        """Cancel it."""


class StatusWidget(anywidget.AnyWidget):
    """The widget of one task or map. A page that opens it asks for `now`; from then on it is told what changes."""

    _esm = STATIC / "view.js"
    _css = STATIC / "nbqueue.css"
    now = traitlets.Dict().tag(sync=True, to_json=lambda _, widget: widget.drawing.all())

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        super().__init__()


class Painter:
    """One thread that draws all views of this process which have news, and lets quiet ones show that they live."""

    def __init__(self) -> None:
        self._dirty: set[WidgetView] = set()
        self._live: set[WidgetView] = set()
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def soon(self, view: WidgetView) -> None:
        """Draw `view` within a tenth of a second."""
        with self._lock:
            self._dirty.add(view)
            self._live.add(view)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="nbqueue views", daemon=True)
                self._thread.start()
        self._news.set()

    def _run(self) -> None:
        beat_at = time.monotonic()
        while True:
            self._news.wait(BEAT_S if self._live else None)
            self._news.clear()
            with self._lock:
                dirty, self._dirty = self._dirty, set()
                if time.monotonic() - beat_at > BEAT_S:
                    beat_at = time.monotonic()
                    dirty |= self._live
                self._live = {view for view in self._live if not view.ended}
            for view in dirty:
                if not view.due():
                    self.soon(view)
                    continue
                try:
                    view.draw()
                except Exception:
                    logger.exception("a view could not be drawn")
            time.sleep(DRAW_S)


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
            self._read()
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
        """Return what is known of one member of a map: more than its mark once it has ended."""
        facts = self.watched.facts
        fact = facts[index].facts if 0 <= index < len(facts) and facts[index] is not None else None
        if fact is None:
            return {"index": index}
        took = fact.at - fact.started_at if fact.started_at else None
        return {"index": index, "worker": visible(fact.worker, 60), "took": took, "error": visible(fact.error)}

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


class WidgetView:
    """One view under a cell: a widget while the task lives, then static HTML that stays in the saved notebook."""

    def __init__(self, result: Handle, painter: Painter) -> None:
        self.result = result
        self.watched = result.watched
        self.drawing = Drawing(self.watched)
        self.widget = StatusWidget(self.drawing)
        answer_while_busy(self.widget)
        self.widget.on_msg(self._said)
        self._painter = painter
        self._outputs: Sequence[Output] = self.watched.status.outputs[:0] if is_task(self.watched.status) else ()
        self._outputs_at = 0.0
        self.ended = False
        self._page = False  # whether a page has shown it
        self._held = False  # whether somebody is at it there
        self._over_at: float | None = None
        self._drawn_at = 0.0
        self._lock = threading.Lock()
        self._handle: Any = _display(self._bundle(), raw=True, display_id=True)
        shows = is_task(self.watched.status)
        self._shown: Any = _display({"text/html": ""}, raw=True, display_id=True) if shows else None
        self._unsubscribe = self.watched.subscribe(lambda: painter.soon(self))
        painter.soon(self)

    def due(self) -> bool:
        """Tell whether it was not drawn just now: a large map takes time to draw, and its counts change slowly."""
        large = isinstance(self.watched.status, MapStatus) and self.watched.status.total > MAX_CELLS
        return time.monotonic() - self._drawn_at >= (LARGE_S if large else 0.0)

    def draw(self) -> None:
        """Draw what is known now; from any thread."""
        with self._lock:
            self._drawn_at = time.monotonic()
            self._draw()

    def _draw(self) -> None:
        status: Status = self.watched.status
        if self.ended:
            return
        trouble = getattr(self.watched, "trouble", None)
        if trouble is not None:
            status.note = str(trouble)
        if isinstance(status, TaskStatus) and self._show_outputs(status) and not status.ready:
            # one message at a time, whatever it is
            self._painter.soon(self)
            return
        self._tell(*self.drawing.news())
        if (status.ready or trouble is not None) and not self._stays(status):
            self.ended = True
            self._unsubscribe()
            text = plain_text(status)
            # The widget stays: a page that is loaded again from an older save asks for it.
            self._handle.update({"text/html": static_html(status), "text/plain": text}, raw=True)

    def _stays(self, status: Status) -> bool:
        """Tell whether a view that has ended is left as it is: who reads in it is not disturbed, nor who just looks."""
        if not self._page:
            return False
        if self._over_at is None:
            self._over_at = time.monotonic()
            wake = threading.Timer(LINGER_S, self._painter.soon, [self])
            wake.daemon = True
            wake.start()
        just_now = time.monotonic() - self._over_at < LINGER_S - DRAW_S
        return self._held or (just_now and kind_of(status) == "succeeded")

    def _tell(self, message: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
        self.widget.send(message, buffers=list(buffers))

    def _show_outputs(self, status: TaskStatus) -> bool:
        """Show what the task displays below the view, twice a second at most; tell whether there was something new."""
        outputs = status.outputs
        if outputs is self._outputs:
            return False
        if not status.ready and time.monotonic() - self._outputs_at < OUTPUTS_S:
            self._painter.soon(self)
            return False
        self._outputs, self._outputs_at = outputs, time.monotonic()
        data, metadata = combined(outputs)
        self._shown.update(data, metadata=metadata, raw=True)
        return True

    def _bundle(self) -> dict[str, Any]:
        status = self.watched.status
        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        return {WIDGET: view, "text/html": static_html(status), "text/plain": plain_text(status)}

    def _said(self, _: object, content: dict[str, Any], __: object) -> None:
        match content:
            case {"do": "hello", "n": number}:
                self._page = True
                if number != self.drawing.told:
                    message = self.drawing.all()
                    self._tell({**message, "all": True, "cells": 0}, [message["cells"]])
            case {"do": "hold", "on": bool(held)}:
                self._held = held
                if self._over_at is not None:
                    self._painter.soon(self)
            case {"do": "member", "index": int(index)}:
                self._tell({"key": self.drawing.key, "member": self.drawing.member(index)})
            case {"do": "cancel"}:
                self.watched.status.cancelling = True
                self._painter.soon(self)
                # Off this thread: it may be the kernel's, and the server may be slow to answer.
                threading.Thread(target=self._cancel, name="nbqueue cancel", daemon=True).start()

    def _cancel(self) -> None:
        try:
            self.result.revoke(terminate=True)
        except Exception as exc:  # noqa: BLE001 - shown where the click was made
            self.watched.status.cancelling = False
            self.watched.status.note = f"Not cancelled: {exc}"
            self._painter.soon(self)


def is_task(status: Status) -> bool:
    """Tell whether a status is that of one task."""
    return isinstance(status, TaskStatus)


_painter = Painter()
_display: Any = _untyped_display


def watch(result: Handle, kind: str = "full") -> WidgetView | None:
    """Show a live view of a task or map under the running cell; in a terminal, one line of text.

    Args:
        result: its handle.
        kind: `full`, `plain` (text only) or `none`.

    Returns:
        The view, if it lives on; `draw()` brings it up to date at once.
    """
    if kind == "none":
        return None
    if kind == "plain" or not in_kernel():
        print(plain_text(result.watched.status))  # noqa: T201 - this is the view
        return None
    return WidgetView(result, _painter)


def watch_in_terminal(result: Handle) -> Callable[[], None]:
    """Draw a task in place in a terminal; return what ends that."""
    view = TextView()
    unsubscribe = result.watched.subscribe(lambda: view.show(result.watched.status))
    view.show(result.watched.status)
    ended = threading.Event()

    def tick() -> None:
        # Time passes without news too.
        while not ended.wait(1.0):
            view.show(result.watched.status)

    threading.Thread(target=tick, name="nbqueue clock", daemon=True).start()

    def end() -> None:
        ended.set()
        unsubscribe()
        view.show(result.watched.status)
        view.close()

    return end


def in_kernel() -> bool:
    """Tell whether this is a kernel, whose cells can show widgets."""
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def answer_while_busy(widget: anywidget.AnyWidget) -> None:
    """Let clicks on this widget be handled while a cell runs.

    ipykernel 7.4 sends a comm's messages to the thread that last published on it, which is the busy one.
    """
    comm = widget.comm
    if comm is not None and hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _, default: default  # noqa: SLF001 - there is no public way


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


def _failure(traceback: str) -> dict[str, Any]:
    frames = frames_of(traceback)
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
