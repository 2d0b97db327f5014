"""What of a task's output is told, and when: so much that it can be followed live, so little that it stays bounded.

Nothing here locks; a `Recorder` does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from nbqueue.messages import Output, Progress, encode_said

Send = Callable[[str, bytes], None]

PIECE_CHARACTERS: Final = 2_000  # of text beyond what is told in full, told now and then
PIECE_S: Final = 1.0  # between two such pieces
TAIL_CHARACTERS: Final = 200_000  # of it, told at the end
SLOWER: Final = 0.01  # of the time gone by: what is drawn anew for days is told ever more seldom, and so is bounded
MAX_BUNDLE_BYTES: Final = 6_000_000  # of one displayed object: some bring a library along
MIN_BUNDLE_BYTES: Final = 3_000  # as which the smallest counts: each costs others something
MAX_DISPLAYED_BYTES: Final = 30_000_000  # of all that one task displays
PROGRESS_S: Final = 0.1  # between two events of one bar
BRIEF_BARS: Final = 5  # told at once of those that came and went meanwhile

_encode = msgspec.json.Encoder().encode


def encode(value: Any) -> bytes:
    """Return what a task has said, as JSON."""
    return encode_said(_encode, value)


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
            kept = text[self._size - limit :]
            _, newline, rest = kept.partition("\n")
            if newline and (rest or self._parts):
                kept = rest  # from the first whole line on
            self.left_out += len(text) - len(kept)
            self._parts.appendleft((stream, kept))
        taken = [part for part in self._parts if part[1] or not part[0]]
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


class BarPace:
    """Tells of bars ten times a second each, and not of all when very many come and go.

    Args:
        send: called with an event's kind and data.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._progress_at: dict[int, float] = {}
        self._held: dict[int, Progress] = {}  # the newest of each bar that came too soon after the last sent
        self._begun_at = 0.0  # when the newest bar was told of that was begun at least a while after another
        self._bars = 0
        self._open: dict[int, int] = {}  # bars, outermost first, and the threads that opened them

    def open(self) -> tuple[int, int]:
        """Return the number of a new progress bar, and that of the one it is nested in; -1 if in none."""
        thread = threading.get_ident()
        parent = next((bar for bar in reversed(self._open) if self._open[bar] == thread), -1)
        self._bars += 1
        self._open[self._bars] = thread
        return self._bars, parent

    def close(self, number: int) -> None:
        """Forget that a bar is open."""
        self._open.pop(number, None)

    def progress(self, progress: Progress, *, last: bool = False) -> bool:
        """Send how far a bar has come: at most ten times a second but for the last, and not of too many new bars.

        What comes sooner is held; the answer tells whether somebody has to flush it later.
        """
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
            self.flush()  # of those nested in it, before it ends
        self._tell(progress, now)
        return False

    def _tell(self, progress: Progress, now: float) -> None:
        self._progress_at[progress.bar] = now
        if progress.closed:
            del self._progress_at[progress.bar]
        self._send("progress", encode(progress))

    def flush(self) -> None:
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


class Displays:
    """Sends displayed objects, within bounds; what takes the place of something ten times a second at most.

    Args:
        send: called with an event's kind and data.
        share: of what a task may display in all.
        before: called before anything is sent.
    """

    def __init__(self, send: Send, share: float, before: Callable[[], object]) -> None:
        self._send = send
        self._before = before
        self.clears = False  # what comes next takes the place of all there is
        self._room = int(MAX_DISPLAYED_BYTES * share)
        self._full = False
        self._newest: list[Output] = []  # of what there was no more room for
        self._left_out = 0  # displayed objects, of the others
        self._frames: dict[str, list[Output]] = {}  # by display_id: what came too soon after what it is to replace
        self._replaced_at: dict[str, float] = {}
        self._first_replaced_at: float | None = None

    def display(self, output: Output) -> bool:
        """Send one displayed object; tell whether somebody has to flush it later."""
        if output.type == "update_display_data":
            return self._replace(output.id, [output])
        if self.clears:
            self.clears = False
            return self._replace("", [Output("clear_output", wait=True), output])
        if "" in self._frames:
            self._frames[""].append(output)
            return False
        self._before()
        self._send_output(output)
        return False

    def clear(self, *, wait: bool) -> None:
        """Take away what was displayed, now or when something new is."""
        self._frames.pop("", None)
        self.clears = wait
        if not wait:
            self._frames.clear()
            self._before()
            self._send_output(Output("clear_output"))

    def flush(self) -> bool:
        """Send what was held long enough; tell whether something still is."""
        now = time.monotonic()
        for display_id in [display_id for display_id in self._frames if self._may_replace(display_id, now)]:
            self._send_frame(display_id, self._frames.pop(display_id), now)
        return bool(self._frames)

    def _replace(self, display_id: str, frame: list[Output]) -> bool:
        now = time.monotonic()
        if not self._may_replace(display_id, now):
            self._frames[display_id] = frame
            return True
        self._before()
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
            encoded = _encoded(_what_fits(output))
        if len(encoded) > self._room:
            self._full = True
            self._keep_newest(output)
            encoded = encode(_instead(output, "not shown: very much was displayed; the newest is, at the end"))
        self._room -= max(len(encoded), MIN_BUNDLE_BYTES)
        self._send("output", encoded)

    def _keep_newest(self, output: Output) -> None:
        if output.type == "clear_output":
            self._newest, self._left_out = [output], 0
            return
        if self._newest and self._newest[-1].type != "clear_output":
            self._newest.pop()
            self._left_out += 1
        self._newest.append(output)

    def close(self) -> None:
        """Send what is still held of what was displayed, and the newest of what there was no room for."""
        frames, self._frames = self._frames, {}
        for display_id, frame in frames.items():
            self._send_frame(display_id, frame, 0.0)
        if not self._full:
            return
        self._full, self._room = False, 2 * MAX_BUNDLE_BYTES
        if self._left_out:
            said = Output("display_data", data={"text/plain": f"[\u2026 {self._left_out:,} displays left out \u2026]"})
            self._newest.insert(len(self._newest) - 1, said)
        for output in self._newest:
            self._send_output(output)


def _instead(output: Output, why: str) -> Output:
    """Return what is shown in the place of an output."""
    text = str(output.data.get("text/plain", ""))[:2_000]
    kind = output.type if output.data else "display_data"
    return Output(kind, data={"text/plain": f"{text}\n[{why}]"}, id=output.id)


def _what_fits(output: Output) -> Output:
    """Return an output without the parts of its bundle that are too large, which its text names."""
    sizes = {mime: len(encode(part)) for mime, part in output.data.items()}
    small: dict[str, Any] = {}
    left_out = []
    for mime in sorted(sizes, key=sizes.__getitem__):
        if sum(sizes[kept] for kept in small) + sizes[mime] < MAX_BUNDLE_BYTES - MIN_BUNDLE_BYTES:
            small[mime] = output.data[mime]
        else:
            left_out.append(f"{mime} of {sizes[mime]:,} bytes")
    text = str(output.data.get("text/plain", ""))[:2_000]
    small["text/plain"] = f"{text}\n[{', '.join(left_out)}: not shown, beyond {MAX_BUNDLE_BYTES:,}]"
    return Output(output.type, data=small, id=output.id)


def _encoded(output: Output) -> bytes:
    """Return an output as JSON; parts of its bundle that are none are left out."""
    try:
        return encode(output)
    except (TypeError, ValueError, OverflowError):
        output.data = {mime: part for mime, part in output.data.items() if isinstance(part, str)}
        output.metadata = {}
        return encode(output)
