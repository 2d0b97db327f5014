"""Live views in a notebook: one widget a task or map, drawn at most ten times a second, static HTML once it ends."""

from __future__ import annotations

import atexit
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

from nbqueue.messages import Output
from nbqueue.notebook.drawing import MAX_CELLS, Drawing
from nbqueue.notebook.outputs import combined
from nbqueue.notebook.saved import static_html
from nbqueue.notebook.terminal import TextView
from nbqueue.notebook.text import Status, clock, kind_of, plain_text
from nbqueue.result import MapResult
from nbqueue.status import MapStatus, TaskStatus

__all__ = ["clock", "in_kernel", "watch", "watch_in_terminal"]

STATIC: Final = Path(__file__).parent / "static"
DRAW_S: Final = 0.1
OUTPUTS_S: Final = 0.5  # between two drawings of what a task displays
LARGE_S: Final = 0.25  # between two drawings of a large map
LINGER_S: Final = 4.0  # after a success, before its view becomes one line
PAGE_S: Final = 2.0  # within which a page shows itself, if there is one
RETRY_S: Final = 600.0  # after a failure, so long it may be run again from its view
BEAT_S: Final = 5.0  # a live view that says nothing for longer than this, and some, is no longer live
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

    def retry(self) -> object:
        """Run again what failed, or at once what waits for its retry."""


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

    def settle_all(self) -> None:
        """Leave static HTML of all that has ended."""
        with self._lock:
            live = list(self._live)
        for view in live:
            view.settle()

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
        self._over_for: float | None = None  # the end that this was of; one that runs again may end before it is drawn
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
        if not status.ready and trouble is None:
            self._over_at = None
        elif not self._stays(status):
            self._leave_static(status)

    def settle(self) -> None:
        """Become static HTML if it has ended, whoever looks."""
        with self._lock:
            if self.watched.status.ready and not self.ended:
                self._leave_static(self.watched.status)

    def _leave_static(self, status: Status) -> None:
        self.ended = True
        self._unsubscribe()
        # The widget stays: a page that is loaded again from an older save asks for it.
        self._handle.update({"text/html": static_html(status), "text/plain": plain_text(status)}, raw=True)

    def _stays(self, status: Status) -> bool:
        """Tell whether a view that has ended is left as it is: who reads in it is not disturbed, nor who just looks."""
        failed = kind_of(status) == "failed"
        if not self._page and not failed:
            return False
        if self._over_at is None or self._over_for != status.ended_at:
            self._over_at, self._over_for = time.monotonic(), status.ended_at
            # later ends than these are seen at the next beat
            wake = threading.Timer(LINGER_S if self._page else PAGE_S, self._painter.soon, [self])
            wake.daemon = True
            wake.start()
            if not self._page:
                self._handle.update(self._bundle(), raw=True)  # should it be saved as it is
        linger_s = {"succeeded": LINGER_S, "failed": RETRY_S if self._page else PAGE_S}.get(kind_of(status), 0.0)
        return self._held or time.monotonic() - self._over_at < linger_s - DRAW_S

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
                # a page that was loaded anew has nobody reading in it yet, and its old self says no goodbye
                self._page, self._held = True, False
                self._tell_all(number)
            case {"do": "missed", "n": number}:
                self._tell_all(number)
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
            case {"do": "retry", "like": int(index)}:
                threading.Thread(target=self._retry, args=(index,), name="nbqueue retry", daemon=True).start()

    def _tell_all(self, number: int) -> None:
        """Tell all there is, unless the page's last message was the last."""
        with self._lock:  # else what is drawn meanwhile would reach it first
            if number != self.drawing.told:
                message = self.drawing.all()
                self._tell({**message, "all": True, "cells": 0}, [message["cells"]])

    def _cancel(self) -> None:
        try:
            self.result.revoke(terminate=True)
        except Exception as exc:  # noqa: BLE001 - shown where the click was made
            self.watched.status.cancelling = False
            self.watched.status.note = f"Not cancelled: {exc}"
            self._painter.soon(self)

    def _retry(self, like: int) -> None:
        """Run again what failed, of a map all members or those with the error of one."""
        self.watched.status.note = ""
        try:
            if isinstance(self.result, MapResult):
                self.result.retry(self.watched.failures(like))
            else:
                self.result.retry()
        except Exception as exc:  # noqa: BLE001 - shown where the click was made
            self.watched.status.note = f"Not run again: {exc}"
        self._painter.soon(self)


def is_task(status: Status) -> bool:
    """Tell whether a status is that of one task."""
    return isinstance(status, TaskStatus)


_painter = Painter()


@atexit.register
def settle_all() -> None:
    """Leave static HTML of every task that has ended, as when this process ends."""
    _painter.settle_all()


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
