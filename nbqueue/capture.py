"""What a task says while it runs: text of its streams, progress, displayed objects. Streamed in order, bounded.

Lives in a child and knows no app: `send` takes finished bytes.
"""

from __future__ import annotations

import io
import itertools
import signal
import threading
import time
from collections.abc import Callable
from operator import itemgetter
from types import FrameType
from typing import Any, Final, Protocol

from nbqueue.exceptions import SoftTimeLimitExceeded
from nbqueue.messages import Output, Progress
from nbqueue.paced import PIECE_CHARACTERS, TAIL_CHARACTERS, BarPace, Displays, Excess, Send, encode

FLUSH_S: Final = 0.05  # text waits so long for more
FLUSH_CHARACTERS: Final = 8_192
HEAD_CHARACTERS: Final = 1_000_000  # of one task; what comes after is told in part, and that is said
# A supervisor tells a child with it that its task is past its soft limit. Windows has none, and no children either.
SOFT_SIGNAL: Final[int] = getattr(signal, "SIGUSR1", 0)


class Interrupts:
    """Turns a signal into KeyboardInterrupt: while armed only, once, and never in a `with` block of this.

    `SOFT_SIGNAL` becomes SoftTimeLimitExceeded instead, once too, while `soft_limit_s` is set.

    Such a block is machinery on the main thread, where an exception at any instruction would leave a lock locked or
    half a reply sent; the exception comes at the block's end instead.
    """

    def __init__(self) -> None:
        self.armed = False
        self.soft_limit_s = 0.0  # of the task that runs
        self._main = threading.main_thread().ident
        self._depth = 0
        self._late: BaseException | None = None

    def handle(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Take a signal; between tasks it is late: whom it was meant for has ended."""
        error: BaseException
        if number == SOFT_SIGNAL:
            if not self.soft_limit_s:
                return
            error = SoftTimeLimitExceeded(f"ran past its soft limit of {self.soft_limit_s:g} s")
            self.soft_limit_s = 0.0
        elif self.armed:
            self.armed = False
            error = KeyboardInterrupt()
        else:
            return
        if not self._depth:
            raise error
        if not isinstance(self._late, KeyboardInterrupt):
            self._late = error

    def disarm(self) -> None:
        """Let signals pass from now on: the task has ended."""
        self.armed = False
        self.soft_limit_s = 0.0

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:  # signals come to no other
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() != self._main:
            return
        self._depth -= 1
        if self._late is not None and not self._depth:
            late, self._late = self._late, None
            raise late


class Flushed(Protocol):
    """Is what a `Flusher` flushes."""

    def flush(self) -> bool:
        """Send what waits; tell whether something goes on waiting."""


class Recorder:
    """Takes what one task says and sends it on, at most some 20 times a second.

    Args:
        send: called with an event's kind and data, from any thread.
        interrupts: wait until a call of this has ended.
        share: of what a task may put out in all.
    """

    def __init__(self, send: Send, interrupts: Interrupts | None = None, share: float = 1.0) -> None:
        self._send = send
        self.interrupts = interrupts or Interrupts()
        self._lock = threading.RLock()
        self._share = share
        self._room = HEAD_CHARACTERS if share == 1.0 else int(HEAD_CHARACTERS * share)
        self._parts: list[tuple[str, str]] = []
        self._waiting = 0
        # Most tasks need none of these.
        self._excess: Excess | None = None
        self._bars: BarPace | None = None
        self._displays: Displays | None = None
        self.in_line = False  # what was written last ended no line
        self.closed = False

    def write(self, stream: str, text: str) -> bool:
        """Take text of `stdout` or `stderr`; tell whether somebody has to flush it later."""
        with self.interrupts, self._lock:
            if self.closed or not text:
                return False
            self.in_line = text[-1] != "\n"
            if self._displays is not None and self._displays.clears:
                self._displays.clears = False
                self._clear_for_text()
            if self._excess is not None:
                self._excess.add(stream, text)
                return True
            if len(text) > self._room:
                self._exceed(stream, text)
                return True
            self._room -= len(text)
            self._parts.append((stream, text))
            self._waiting += len(text)
            if self._waiting < FLUSH_CHARACTERS:
                return True
            self.flush()
            return False

    def _exceed(self, stream: str, text: str) -> None:
        """Tell what there is still room for, and keep the rest as one that is told in part."""
        said = "\n[very much text: from here on the newest lines now and then, and the last ones]\n"
        self._parts += [(stream, text[: self._room]), (stream, said)]
        self._excess = Excess(time.monotonic(), int(TAIL_CHARACTERS * self._share))
        self._excess.add(stream, text[self._room :])
        self.flush()

    def leave_out(self, stream: str, size: int) -> None:
        """Take note of text that is not told."""
        with self.interrupts, self._lock:
            if self._excess is None:
                self._exceed(stream, "")
            if self._excess is not None:
                self._excess.left_out += size

    def flush(self) -> bool:
        """Send what waits; tell whether something goes on waiting."""
        with self.interrupts, self._lock:
            self._send_text()
            if self._bars is not None:
                self._bars.flush()
            waits = self._displays is not None and self._displays.flush()
            excess = self._excess
            if excess is None or not excess.waits:
                return waits
            now = time.monotonic()
            if now < excess.due_at:
                return True
            self._parts = excess.take(PIECE_CHARACTERS, now)
            self._send_text()
            return waits

    def _send_text(self) -> None:
        parts, self._parts, self._waiting = self._parts, [], 0
        for stream, of_one in itertools.groupby(parts, key=itemgetter(0)):
            text = "".join(text for _, text in of_one)
            self._send("output", encode(Output("stream", stream, text) if stream else Output("clear_output")))

    def _clear_for_text(self) -> None:
        """Clear what there is as text comes; text that nobody has seen yet is cleared with it."""
        if self._excess is not None:
            self._excess.clear()
        else:
            self._parts, self._waiting = [("", "")], 0

    def display(
        self, kind: str, data: dict[str, Any], metadata: dict[str, Any] | None = None, display_id: str = ""
    ) -> bool:
        """Send one displayed object, a MIME bundle; tell whether somebody has to flush it later.

        What takes the place of something is sent ten times a second at most, and ever more seldom: a task may draw
        for days.

        Args:
            kind: `display_data`, `update_display_data` or `execute_result`.
        """
        with self.interrupts, self._lock:
            output = Output(kind, data=data, metadata=metadata or {}, id=display_id)
            return not self.closed and self._made_displays().display(output)

    def clear(self, *, wait: bool = False) -> None:
        """Take away what was displayed, now or when something new is."""
        with self.interrupts, self._lock:
            if not self.closed:
                self._made_displays().clear(wait=wait)

    def open_bar(self) -> tuple[int, int]:
        """Return the number of a new progress bar, and that of the one it is nested in; -1 if in none."""
        with self.interrupts, self._lock:
            return self._made_bars().open()

    def close_bar(self, number: int) -> None:
        """Forget that a bar is open."""
        with self.interrupts, self._lock:
            self._made_bars().close(number)

    def progress(self, progress: Progress, *, last: bool = False) -> bool:
        """Send how far a bar has come: at most ten times a second but for the last, and not of too many new bars.

        What comes sooner is held; the answer tells whether somebody has to flush it later.
        """
        with self.interrupts, self._lock:
            return not self.closed and self._made_bars().progress(progress, last=last)

    def close(self) -> None:
        """Send what waits, and take nothing more."""
        with self.interrupts, self._lock:
            if self._excess is not None:
                self._parts += self._excess.take(int(TAIL_CHARACTERS * self._share), time.monotonic())
            if self._parts or self._bars is not None:
                self.flush()
            if self._displays is not None:
                self._displays.close()
            self.closed = True

    def _made_displays(self) -> Displays:
        if self._displays is None:
            self._displays = Displays(self._send, self._share, self._send_text)
        return self._displays

    def _made_bars(self) -> BarPace:
        if self._bars is None:
            self._bars = BarPace(self._send)
        return self._bars


class Stream(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr` in a child: writes to the recorder of the task that runs.

    Args:
        name: `stdout` or `stderr`.
        recorder: returns the recorder of the running task, or None between tasks.
        flusher: flushes later.
        interrupts: wait until a call of this has ended.
        binary: takes bytes, as `buffer` does; has the descriptor that subprocesses write to.
        before: brings what was written elsewhere, to keep its place.
    """

    def __init__(
        self,
        name: str,
        recorder: Callable[[], Recorder | None],
        flusher: Flusher,
        interrupts: Interrupts | None = None,
        binary: io.RawIOBase | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self._before = before
        if binary is not None:
            self.buffer = binary
        self._name = name
        self._recorder = recorder
        self._flusher = flusher
        self._interrupts = interrupts or Interrupts()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the encoding that programs ask for."""
        return "utf-8"

    @property
    def name(self) -> str:
        """Return the stream's name."""
        return f"<{self._name}>"

    def writable(self) -> bool:
        """Return True."""
        return True

    def reconfigure(self, **_: object) -> None:
        """Do nothing: programs that ask for line buffering have more than that."""

    def fileno(self) -> int:
        """Return the descriptor whose text joins this stream's."""
        binary = getattr(self, "buffer", None)
        return super().fileno() if binary is None else int(binary.fileno())

    def write(self, text: str) -> int:
        """Take text."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._interrupts:
            # Not before the end of a line, which `print` writes by itself: no other process shall break lines.
            if self._before is not None and text != "\n":
                self._before()
            recorder = self._recorder()
            if recorder is not None and recorder.write(self._name, text):
                self._flusher.soon(recorder)
        return len(text)

    def flush(self) -> None:
        """Do nothing: text is sent within 50 ms anyway, and programs that flush each character stay quick."""


class Flusher:
    """A thread, started at the first need, that flushes recorders shortly after they were written to."""

    def __init__(self) -> None:
        self._due: set[Flushed] = set()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def soon(self, recorder: Flushed) -> None:
        """Flush `recorder` within 50 ms."""
        with self._lock:
            self._due.add(recorder)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nbqueue output", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            time.sleep(FLUSH_S)
            with self._lock:
                due, self._due = self._due, set()
            waiting = {recorder for recorder in due if recorder.flush()}
            if waiting:
                with self._lock:
                    self._due |= waiting
                self._wake.set()


def summarize(value: Any) -> str:  # noqa: PLR0911 - one return a kind of value
    """Return what came out in one line of at most 120 characters; empty for None."""
    if value is None:
        return ""
    kind = type(value)
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape and all(isinstance(n, int) for n in shape):
        sides = " \u00d7 ".join(f"{n:,}" for n in shape)
        return f"{kind.__name__} {sides}"
    if kind in (list, tuple, set, dict, frozenset) and len(value) > 5:
        return f"{kind.__name__} of {len(value):,}"
    if kind in (bytes, bytearray):
        return f"{kind.__name__} of {len(value):,}"
    if kind is str and len(value) > 120:
        return f"{value[:110]!r}…"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - users' reprs may raise anything
        return kind.__name__
    return text if len(text) <= 120 else f"{text[:119]}…"
