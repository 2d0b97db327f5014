"""What a task says while it runs: text of its streams, progress, displayed objects. Streamed in order, bounded.

Lives in a child and knows no app: `send` takes finished bytes.
"""

from __future__ import annotations

import io
import itertools
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from types import FrameType
from typing import Any, Final

import msgspec

from nbqueue.exceptions import SoftTimeLimitExceeded
from nbqueue.messages import Output, Progress

Send = Callable[[str, bytes], None]

FLUSH_S: Final = 0.05  # text waits so long for more
FLUSH_CHARACTERS: Final = 8_192
HEAD_CHARACTERS: Final = 1_000_000  # of one task; what comes after is told in part, and that is said
PIECE_CHARACTERS: Final = 2_000  # of what comes after, told now and then
PIECE_S: Final = 1.0  # between two such pieces
TAIL_CHARACTERS: Final = 200_000  # of what comes after, told at the end
SLOWER: Final = 0.01  # of the time gone by: what is drawn anew for days is told ever more seldom, and so is bounded
MAX_BUNDLE_BYTES: Final = 2_000_000  # of one displayed object
MAX_DISPLAYED_BYTES: Final = 30_000_000  # of all that one task displays
PROGRESS_S: Final = 0.1  # between two events of one bar
BRIEF_BARS: Final = 5  # told at once of those that came and went meanwhile
# A supervisor tells a child with it that its task is past its soft limit. Windows has none, and no children either.
SOFT_SIGNAL: Final[int] = getattr(signal, "SIGUSR1", 0)

_encode = msgspec.json.Encoder().encode


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


class Recorder:
    """Takes what one task says and sends it on, at most some 20 times a second.

    Args:
        send: called with an event's kind and data, from any thread.
        interrupts: wait until a call of this has ended.
        share: of what a task may put out in all.
    """

    def __init__(self, send: Send, interrupts: Interrupts | None = None, share: float = 1.0) -> None:
        self._send = send
        self._interrupts = interrupts or Interrupts()
        self._lock = threading.RLock()
        self._parts: list[tuple[str, str]] = []
        self._waiting = 0
        self._room = int(HEAD_CHARACTERS * share)
        self._tail = int(TAIL_CHARACTERS * share)
        self._excess: Excess | None = None
        self._progress_at: dict[int, float] = {}
        self._held: dict[int, Progress] = {}  # the newest of each bar that came too soon after the last sent
        self._begun_at = 0.0  # when the newest bar was told of that was begun at least a while after another
        self._bars = 0
        self._open: dict[int, int] = {}  # bars, outermost first, and the threads that opened them
        self._display_room = int(MAX_DISPLAYED_BYTES * share)
        self._full = False
        self._newest: list[Output] = []  # of what there was no more room for
        self._left_out = 0  # displayed objects, of the others
        self._clears = False  # what comes next takes the place of all there is
        self._frames: dict[str, list[Output]] = {}  # by display_id: what came too soon after what it is to replace
        self._replaced_at: dict[str, float] = {}
        self._first_replaced_at: float | None = None
        self.closed = False

    def write(self, stream: str, text: str) -> bool:
        """Take text of `stdout` or `stderr`; tell whether somebody has to flush it later."""
        with self._interrupts, self._lock:
            if self.closed or not text:
                return False
            if self._clears:
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
        self._excess = Excess(time.monotonic(), self._tail)
        self._excess.add(stream, text[self._room :])
        self.flush()

    def leave_out(self, stream: str, size: int) -> None:
        """Take note of text that is not told."""
        with self._interrupts, self._lock:
            if self._excess is None:
                self._exceed(stream, "")
            if self._excess is not None:
                self._excess.left_out += size

    def flush(self) -> bool:
        """Send what waits; tell whether something goes on waiting."""
        with self._interrupts, self._lock:
            parts, self._parts, self._waiting = self._parts, [], 0
            self._send_text(parts)
            self._tell_held()
            excess = self._excess
            if not self._frames and excess is None:
                return False
            now = time.monotonic()
            for display_id in [display_id for display_id in self._frames if self._may_replace(display_id, now)]:
                self._send_frame(display_id, self._frames.pop(display_id), now)
            if excess is not None and excess.waits and now >= excess.due_at:
                self._send_text(excess.take(PIECE_CHARACTERS, now))
            return bool(self._frames) or (excess is not None and excess.waits)

    def _send_text(self, parts: list[tuple[str, str]]) -> None:
        for stream, of_one in itertools.groupby(parts, key=itemgetter(0)):
            text = "".join(text for _, text in of_one)
            self._send("output", _encode(Output("stream", stream, text) if stream else Output("clear_output")))

    def display(
        self, kind: str, data: dict[str, Any], metadata: dict[str, Any] | None = None, display_id: str = ""
    ) -> bool:
        """Send one displayed object, a MIME bundle; tell whether somebody has to flush it later.

        What takes the place of something is sent ten times a second at most, and ever more seldom: a task may draw
        for days.

        Args:
            kind: `display_data`, `update_display_data` or `execute_result`.
        """
        with self._interrupts, self._lock:
            if self.closed:
                return False
            output = Output(kind, data=data, metadata=metadata or {}, id=display_id)
            if kind == "update_display_data":
                return self._replace(display_id, [output])
            if self._clears:
                self._clears = False
                return self._replace("", [Output("clear_output", wait=True), output])
            if "" in self._frames:
                self._frames[""].append(output)
                return False
            self.flush()
            self._send_output(output)
            return False

    def clear(self, *, wait: bool = False) -> None:
        """Take away what was displayed, now or when something new is."""
        with self._interrupts, self._lock:
            if self.closed:
                return
            self._frames.pop("", None)
            self._clears = wait
            if not wait:
                self._frames.clear()
                self.flush()
                self._send("output", _encode(Output("clear_output")))

    def _clear_for_text(self) -> None:
        """Clear what there is as text comes; text that nobody has seen yet is cleared with it."""
        self._clears = False
        if self._excess is not None:
            self._excess.clear()
        else:
            self._parts, self._waiting = [("", "")], 0

    def _replace(self, display_id: str, frame: list[Output]) -> bool:
        now = time.monotonic()
        if not self._may_replace(display_id, now):
            self._frames[display_id] = frame
            return True
        self.flush()
        self._frames.pop(display_id, None)
        self._send_frame(display_id, frame, now)
        return False

    def _may_replace(self, display_id: str, now: float) -> bool:
        if self._first_replaced_at is None:
            self._first_replaced_at = now
        pause = max(PROGRESS_S, SLOWER * (now - self._first_replaced_at))
        return now - self._replaced_at.get(display_id, -pause) >= pause

    def _send_frame(self, display_id: str, frame: list[Output], now: float) -> None:
        self._replaced_at[display_id] = now
        for output in frame:
            self._send_output(output)

    def _send_output(self, output: Output) -> None:
        """Send an output if it is small enough and there is room for it; else say what is left out."""
        if self._full:
            self._keep_newest(output)
            return
        encoded = _encoded(output)
        if len(encoded) > MAX_BUNDLE_BYTES:
            encoded = _encode(_instead(output, f"{len(encoded):,} bytes: not shown, beyond {MAX_BUNDLE_BYTES:,}"))
        if len(encoded) > self._display_room:
            self._full = True
            self._keep_newest(output)
            encoded = _encode(_instead(output, "not shown: very much was displayed; the newest is, at the end"))
        self._display_room -= len(encoded)
        self._send("output", encoded)

    def _keep_newest(self, output: Output) -> None:
        if output.type == "clear_output":
            self._newest, self._left_out = [output], 0
            return
        if self._newest and self._newest[-1].type != "clear_output":
            self._newest.pop()
            self._left_out += 1
        self._newest.append(output)

    def _send_last(self) -> None:
        """Send what is still held of what was displayed, and the newest of what there was no room for."""
        frames, self._frames = self._frames, {}
        for display_id, frame in frames.items():
            self._send_frame(display_id, frame, 0.0)
        if not self._full:
            return
        self._full, self._display_room = False, 2 * MAX_BUNDLE_BYTES
        if self._left_out:
            said = Output("display_data", data={"text/plain": f"[\u2026 {self._left_out:,} displays left out \u2026]"})
            self._newest.insert(len(self._newest) - 1, said)
        for output in self._newest:
            self._send_output(output)

    def open_bar(self) -> tuple[int, int]:
        """Return the number of a new progress bar, and that of the one it is nested in; -1 if in none."""
        with self._interrupts, self._lock:
            thread = threading.get_ident()
            parent = next((bar for bar in reversed(self._open) if self._open[bar] == thread), -1)
            self._bars += 1
            self._open[self._bars] = thread
            return self._bars, parent

    def close_bar(self, number: int) -> None:
        """Forget that a bar is open."""
        with self._interrupts, self._lock:
            self._open.pop(number, None)

    def progress(self, progress: Progress, *, last: bool = False) -> bool:
        """Send how far a bar has come: at most ten times a second but for the last, and not of too many new bars.

        What comes sooner is held; the answer tells whether somebody has to flush it later.
        """
        with self._interrupts, self._lock:
            if self.closed:
                return False
            now = time.monotonic()
            told_at = self._progress_at.get(progress.bar)
            if told_at is None:
                soon = now - self._begun_at < PROGRESS_S
                self._begun_at = self._begun_at if soon else now
            else:
                soon = not last and now - told_at < PROGRESS_S
            if soon:
                waits = bool(self._held)
                self._held.pop(progress.bar, None)
                self._held[progress.bar] = progress
                return not waits
            self._held.pop(progress.bar, None)
            if progress.closed:
                self._tell_held()  # of those nested in it, before it ends
            self._tell(progress, now)
            return False

    def _tell(self, progress: Progress, now: float) -> None:
        self._progress_at[progress.bar] = now
        if progress.closed:
            del self._progress_at[progress.bar]
        self._send("progress", _encode(progress))

    def _tell_held(self) -> None:
        """Tell of the bars that were held; of those that nobody has seen, and that have ended, only the newest."""
        if not self._held:
            return
        held, self._held = self._held, {}
        brief = [bar for bar, progress in held.items() if progress.closed and bar not in self._progress_at]
        left_out = set(brief[:-BRIEF_BARS])
        now = time.monotonic()
        for bar, progress in held.items():
            if bar not in left_out:
                self._tell(progress, now)

    def close(self) -> None:
        """Send what waits, and take nothing more."""
        with self._interrupts, self._lock:
            if self._excess is not None:
                self._parts += self._excess.take(self._tail, time.monotonic())
            self.flush()
            self._send_last()
            self.closed = True


class Excess:
    """Text of a task beyond what is told in full: a piece of the newest now and then, and the end of it.

    Args:
        now: monotonic seconds.
        tail: so many characters are told at the end.
    """

    def __init__(self, now: float, tail: int = TAIL_CHARACTERS) -> None:
        self._tail = tail
        self.left_out = 0  # characters, since the last piece
        self.due_at = now
        self._parts: deque[tuple[str, str]] = deque()
        self._size = 0

    @property
    def waits(self) -> bool:
        """Tell whether there is anything to be told."""
        return bool(self._parts or self.left_out)

    def add(self, stream: str, text: str) -> None:
        """Take text; what lies too far back is left out."""
        if len(text) > self._tail:
            self.left_out += len(text) - self._tail
            text = text[-self._tail :]
        self._parts.append((stream, text))
        self._size += len(text)
        while self._size - len(self._parts[0][1]) >= self._tail:
            self._drop()

    def clear(self) -> None:
        """Forget all text: what comes takes its place."""
        self._parts = deque([("", "")])
        self._size = self.left_out = 0

    def take(self, limit: int, now: float) -> list[tuple[str, str]]:
        """Return the newest `limit` characters at most, after a line that says how many are left out before them."""
        while self._parts and self._size - len(self._parts[0][1]) >= limit:
            self._drop()
        if self._size > limit:
            stream, text = self._parts.popleft()
            kept = _from_line(text[self._size - limit :])
            self.left_out += len(text) - len(kept)
            self._parts.appendleft((stream, kept))
        taken = list(self._parts)
        if self.left_out:
            said = f"\n[\u2026 {self.left_out:,} characters left out \u2026]\n"
            taken.insert(0, (next((stream for stream, _ in taken if stream), "stdout"), said))
        self._parts.clear()
        self._size = self.left_out = 0
        self.due_at = now + PIECE_S
        return taken

    def _drop(self) -> None:
        text = self._parts.popleft()[1]
        self._size -= len(text)
        self.left_out += len(text)


def _from_line(text: str) -> str:
    """Return text from the beginning of its first whole line on, if it has one."""
    _, newline, rest = text.partition("\n")
    return rest if newline and rest else text


def _instead(output: Output, why: str) -> Output:
    """Return what is shown in the place of an output."""
    text = str(output.data.get("text/plain", ""))[:2_000]
    return Output(output.type, data={"text/plain": f"{text}\n[{why}]"}, id=output.id)


def _encoded(output: Output) -> bytes:
    """Return an output as JSON; parts of its bundle that are none are left out."""
    try:
        return _encode(output)
    except (TypeError, ValueError, OverflowError):
        output.data = {mime: part for mime, part in output.data.items() if isinstance(part, str)}
        output.metadata = {}
        return _encode(output)


class Stream(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr` in a child: writes to the recorder of the task that runs.

    Args:
        name: `stdout` or `stderr`.
        recorder: returns the recorder of the running task, or None between tasks.
        flusher: flushes later.
        interrupts: wait until a call of this has ended.
        binary: takes bytes, as `buffer` does; has the descriptor that subprocesses write to.
    """

    def __init__(
        self,
        name: str,
        recorder: Callable[[], Recorder | None],
        flusher: Flusher,
        interrupts: Interrupts | None = None,
        binary: io.RawIOBase | None = None,
    ) -> None:
        super().__init__()
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

    def fileno(self) -> int:
        """Return the descriptor whose text joins this stream's."""
        binary = getattr(self, "buffer", None)
        return super().fileno() if binary is None else int(binary.fileno())

    def write(self, text: str) -> int:
        """Take text."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._interrupts:
            recorder = self._recorder()
            if recorder is not None and recorder.write(self._name, text):
                self._flusher.soon(recorder)
        return len(text)

    def flush(self) -> None:
        """Do nothing: text is sent within 50 ms anyway, and programs that flush each character stay quick."""


class Flusher:
    """A thread, started at the first need, that flushes recorders shortly after they were written to."""

    def __init__(self) -> None:
        self._due: set[Recorder] = set()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def soon(self, recorder: Recorder) -> None:
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
