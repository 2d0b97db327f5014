"""Live views in a notebook: one widget a task or map, drawn at most ten times a second, static HTML once it ends."""

from __future__ import annotations

import logging
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
from nbqueue.notebook.lines import Lines
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
from nbqueue.status import DONE, FAILED, Bar, MapStatus, TaskStatus

__all__ = ["clock", "in_kernel", "watch", "watch_in_terminal"]

STATIC: Final = Path(__file__).parent / "static"
DRAW_S: Final = 0.1
LARGE_S: Final = 0.25  # between two drawings of a large map
BEAT_S: Final = 5.0  # a live view that says nothing for longer than this, and some, is no longer live
LOG_LINES: Final = 500
LOG_CHARACTERS: Final = 60_000
NEWS_CHARACTERS: Final = 10_000  # of a log, ten times a second at most: pages may be told a megabyte a second in all
LINE_CHARACTERS: Final = 2_000
MAX_BARS: Final = 6
MAX_CELLS: Final = 4_000  # marks in a map's strip; with more members one mark stands for several
WIDGET: Final = "application/vnd.jupyter.widget-view+json"

logger = logging.getLogger(__name__)


class Handle(Protocol):
    """Is what a view needs of a result."""

    id: str

    @property
    def watched(self) -> Any:
        """Return what is known of it."""

    def revoke(self, *, terminate: bool = False) -> None:
        """Cancel it."""


class StatusWidget(anywidget.AnyWidget):
    """The widget of one task or map. A page that opens it asks for these; from then on it is told what changes."""

    _esm = STATIC / "view.js"
    _css = STATIC / "nbqueue.css"
    state = traitlets.Dict().tag(sync=True, to_json=lambda _, widget: widget.now.state())
    log: Any = traitlets.Dict().tag(sync=True, to_json=lambda _, widget: widget.now.log())
    cells = traitlets.Bytes(b"").tag(sync=True, to_json=lambda _, widget: widget.now.cells())

    def __init__(self, now: Drawing) -> None:
        self.now = now
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
    """What a page shows of a task or map, and what of it has changed since it was told last."""

    def __init__(self, watched: Any) -> None:
        self.watched = watched
        self._lines = Lines()
        self._chunks = 0
        self._cells = b""
        self._state: dict[str, Any] = {}

    @property
    def status(self) -> Status:
        """Return what is known."""
        status: Status = self.watched.status
        return status

    def state(self) -> dict[str, Any]:
        """Return all but log and marks."""
        status = self.status
        shown = _map_state(status) if isinstance(status, MapStatus) else _task_state(status)
        return {**shown, "beat": time.time()}

    def log(self) -> dict[str, Any]:
        """Return the end of the log."""
        self._read()
        return self._part(*self._lines.tail(LOG_LINES, LOG_CHARACTERS))

    def cells(self) -> bytes:
        """Return a map's marks, a byte each."""
        status = self.status
        return status.marks(_step(status)) if isinstance(status, MapStatus) else b""

    def news(self) -> tuple[dict[str, Any], list[bytes]]:
        """Return what a page has to be told, and its buffers: one message, whatever has changed."""
        message: dict[str, Any] = {"state": self.state()}
        if isinstance(self.status, MapStatus):
            cells = self.cells()
            runs = runs_of(self._cells, cells)
            self._cells = cells
            if runs is None:
                return {**message, "cells": True}, [cells]
            return {**message, "runs": runs}, []
        self._read()
        if (changed := self._lines.take(LOG_LINES, NEWS_CHARACTERS)) is not None:
            message["log"] = self._part(*changed)
        return message, []

    def _read(self) -> None:
        status = self.status
        if isinstance(status, TaskStatus):
            chunks, self._chunks = status.log.since(self._chunks)
            self._lines.add(chunks)

    def _part(self, start: int, lines: Sequence[str]) -> dict[str, Any]:
        return {"start": start, "lines": [_cut(coloured(line)) for line in lines], "total": self._lines.total}


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
        self._outputs = 0
        self.ended = False
        self._drawn_at = 0.0
        self._lock = threading.Lock()
        self._handle: Any = _display(self._bundle(), raw=True, display_id=True)
        is_task = isinstance(self.watched.status, TaskStatus)
        self._shown: Any = _display({"text/html": ""}, raw=True, display_id=True) if is_task else None
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
        if isinstance(status, TaskStatus):
            self._show_outputs(status)
        message, buffers = self.drawing.news()
        self.widget.send(message, buffers=buffers)
        if status.ready or trouble is not None:
            self.ended = True
            self._unsubscribe()
            text = plain_text(status)
            # The widget stays: a page that is loaded again from an older save asks for it.
            self._handle.update({"text/html": static_html(status), "text/plain": text}, raw=True)

    def _show_outputs(self, status: TaskStatus) -> None:
        """Let the front end's own renderers draw what the task displayed last."""
        if len(status.outputs) != self._outputs and status.outputs:
            self._outputs = len(status.outputs)
            last = status.outputs[-1]
            self._shown.update(last.data, metadata=last.metadata, raw=True)

    def _bundle(self) -> dict[str, Any]:
        status = self.watched.status
        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        return {WIDGET: view, "text/html": static_html(status), "text/plain": plain_text(status)}

    def _said(self, _: object, content: dict[str, Any], __: object) -> None:
        if content.get("do") == "cancel":
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
            "nested": bar.parent >= 0,
            "started": bar.started_at,
            "at": bar.updated_at,
        }
        for bar in _worth_showing(status)
    ]
    failure = status.failure
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
        "error": visible(status.error, 200),
        "traceback": visible_block(failure.traceback[:20_000]) if failure else "",
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
        "step": _step(status),
        "kinds": [{"text": visible(k.text, 160), "count": k.count, "first": k.first} for k in kinds],
        "done": status.counts[DONE],
        "failed": status.counts[FAILED],
    }


def _step(status: MapStatus) -> int:
    return max(1, -(-status.total // MAX_CELLS))


def runs_of(old: bytes, new: bytes) -> list[int] | None:
    """Return where marks differ, as start, length and mark of each run; None if all of them are shorter."""
    if len(old) != len(new):
        return None
    runs: list[int] = []
    place = 0
    while place < len(new):
        if old[place] == new[place]:
            # what is equal is skipped in steps that need no loop
            if old[place : place + 256] == new[place : place + 256]:
                place += 256
            else:
                place += 1
            continue
        end = place
        while end < len(new) and new[end] == new[place] and old[end] != new[end]:
            end += 1
        runs += [place, end - place, new[place]]
        if len(runs) > len(new) // 4:
            return None
        place = end
    return runs


def _cut(line: str) -> str:
    if len(line) <= LINE_CHARACTERS:
        return line
    return f"{line[:LINE_CHARACTERS]}… {len(line) - LINE_CHARACTERS:,} more characters"
