"""Views as text: for terminals, for logs, and as static HTML that says the same in a saved notebook."""

from __future__ import annotations

import html
import os
import re
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from typing import Final, TextIO

from nbqueue import states
from nbqueue.config import Environment
from nbqueue.notebook.failures import Frame, folded, frames_of, own_frames
from nbqueue.notebook.lines import Lines
from nbqueue.notebook.shown import visible, visible_block
from nbqueue.status import CANCELLED, DONE, FAILED, LOST, QUEUED, RETRYING, RUNNING, Bar, MapStatus, TaskStatus

Status = TaskStatus | MapStatus

MARKS: Final = {
    "queued": "○",
    "running": "◐",
    "succeeded": "✓",
    "failed": "✗",
    "retrying": "↻",
    "cancelled": "⊘",
    "lost": "◇",
}
# Text colours that pass 3:1 on white and on #111, since a saved page's own colours aren't known.
FILLS: Final = {
    "queued": "#7f8895",
    "running": "#1f7be0",
    "succeeded": "#2d9d7b",
    "failed": "#d8453a",
    "retrying": "#c07a00",
    "cancelled": "#7f8895",
    "lost": "#a05fc8",
}
_KINDS: Final = {
    states.PENDING: "queued",
    states.RECEIVED: "queued",
    states.STARTED: "running",
    states.SUCCESS: "succeeded",
    states.FAILURE: "failed",
    states.RETRY: "retrying",
    states.REVOKED: "cancelled",
    states.REJECTED: "cancelled",
    states.IGNORED: "cancelled",
    states.UNKNOWN: "queued",
}
_DOTTED: Final = re.compile(r"(?:(?:[^\W\d]\w*|<locals>)\.)+[^\W\d]\w*")
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
_STATIC_GRID: Final = 240
_COUNTS: Final = (
    ("succeeded", DONE, "done"),
    ("failed", FAILED, "failed"),
    ("lost", LOST, "lost"),
    ("retrying", RETRYING, "retrying"),
    ("running", RUNNING, "running"),
    ("cancelled", CANCELLED, "cancelled"),
    ("queued", QUEUED, "queued"),
)


def kind_of(status: Status) -> str:
    """Return the family a state belongs to: its icon, colour and word."""
    if isinstance(status, MapStatus):
        if not status.ready:
            return "running" if status.counts[QUEUED] < status.total else "queued"
        if status.counts[FAILED]:
            return "failed"
        return "cancelled" if status.counts[CANCELLED] else "succeeded"
    if status.lost and not status.ready:
        return "lost"
    return _KINDS.get(status.state, "running")


def word_of(status: Status) -> str:
    """Return the word on the chip."""
    kind = kind_of(status)
    if status.cancelling and not status.ready:
        return "Cancelling…"
    if isinstance(status, MapStatus):
        return f"{status.counts[FAILED]:,} failed" if kind == "failed" else kind.capitalize()
    if kind == "cancelled" and status.error == "expired":
        return "Expired"
    if kind == "queued" and status.due > time.time():
        return "Scheduled"
    if status.state not in _KINDS:
        return visible(status.state, 40)
    return {"lost": "Lost worker", "failed": "Failed"}.get(kind, kind.capitalize())


def clock(seconds: float) -> str:
    """Return a duration as people write it.

    >>> [clock(s) for s in (4.13, 41, 146, 6728, 183600)]
    ['4.1 s', '0:41', '2:26', '1:52:08', '2 d 3 h']
    """
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 86_400:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def short_name(name: str) -> str:
    """Return a function's own name without its module's; any other name as it is.

    >>> short_name("proj.jobs.load"), short_name("load v1.2")
    ('load', 'load v1.2')
    """
    return name.rpartition(".")[2] if _DOTTED.fullmatch(name) else name


def pace_of(each_second: float) -> str:
    """Return how many a second, or a minute, as people write it.

    >>> pace_of(1240.4), pace_of(4.26), pace_of(0.035)
    ('1,240 /s', '4.3 /s', '2.1 /m')
    """
    if each_second >= 10:
        return f"{each_second:,.0f} /s"
    return f"{each_second:.1f} /s" if each_second >= 1 else f"{60 * each_second:.1f} /m"


def _date(at: float) -> str:
    return time.strftime("%d %b %Y %H:%M", time.localtime(at)).lstrip("0")


def name_of(status: Status) -> str:
    """Return what a person calls a task."""
    return short_name(status.name or status.id[:8])


def elapsed(status: Status, now: float) -> float:
    """Return how long a task has been at it: since it started, or since it was sent."""
    end = status.ended_at or now
    return max(0.0, end - (status.started_at or status.sent_at or end))


def waiting_for(status: Status, now: float) -> str:
    """Return when something happens that a task waits for, in words: its start, or its next attempt."""
    if isinstance(status, MapStatus) or status.ready or status.due <= now or status.state == states.STARTED:
        return ""
    left = status.due - now
    if status.state != states.RETRY:
        return f"starts in {clock(left)}"
    of = f" of {status.max_retries + 1}" if status.max_retries >= 0 else ""
    return f"attempt {status.retries + 1}{of} in {clock(left)}"


def plain_text(status: Status, now: float | None = None) -> str:
    """Return a status as text, for `text/plain` and terminals."""
    now = time.time() if now is None else now
    return "\n".join(_map_lines(status, now) if isinstance(status, MapStatus) else _task_lines(status, now))


def _task_lines(status: TaskStatus, now: float) -> list[str]:
    kind = kind_of(status)
    name = visible(name_of(status), 60)
    time_text = clock(elapsed(status, now))
    where = f" on {visible(status.worker, 40)}" if status.worker else ""
    if kind == "succeeded":
        arrow = f" → {visible(status.summary, 120)}" if status.summary else ""
        return [f"{MARKS[kind]} {name} {time_text}{where}{arrow}"]
    if kind == "failed":
        attempt = f" ({attempt_of(status)})" if status.attempt > 1 else ""
        lines = [f"{MARKS[kind]} {name} failed after {time_text}{where}{attempt}", f"  {visible(status.error)}"]
        return lines + _failure_lines(status)
    if kind == "cancelled":
        return [f"{MARKS[kind]} {name} {word_of(status).lower()} after {time_text}"]
    lines = [f"{MARKS[kind]} {name} {word_of(status).lower()}{where} · {time_text}"]
    for more in (waiting_for(status, now), status.note):
        if more:
            lines[0] += f" · {visible(more)}"
    lines += [_bar_line(bar) for bar in _open_bars(status)[:3]]
    return lines + [f"  │ {visible(line, 160)}" for line in log_lines(status)[-2:]]


def _map_lines(status: MapStatus, now: float) -> list[str]:
    kind = kind_of(status)
    head = f"{MARKS[kind]} {visible(name_of(status), 60)} map of {status.total:,} · {_map_time(status, now)}"
    if status.note and not status.ready:
        head += f" · {visible(status.note)}"
    counts = "  ".join(f"{MARKS[word]} {status.counts[n]:,} {said}" for word, n, said in _COUNTS if status.counts[n])
    kinds = sorted(status.kinds.values(), key=lambda one: -one.count)[:4]
    wide = len(f"{kinds[0].count:,}") if kinds else 0
    errors = [
        f"  {MARKS['failed']} {one.count:>{wide},}  {visible(one.text, 100)}  first #{one.first:,}" for one in kinds
    ]
    share = status.ended / status.total if status.total else 1.0
    # never 100 % while one is missing
    return [head, f"  {_map_blocks(status, 60)}  {int(1000 * share) / 10:.1f} %", f"  {counts}", *errors]


def _map_time(status: MapStatus, now: float) -> str:
    took = elapsed(status, now)
    if status.ready or status.started_at is None or status.ended < 3 or took <= 0:
        return clock(took)
    return f"{pace_of(status.ended / took)} · {clock((status.total - status.ended) * took / status.ended)} left"


def _map_blocks(status: MapStatus, width: int) -> str:
    """Return what has become of how many: done, failed, under way, waiting. What there is has one block at least."""
    counts = status.counts
    under_way = counts[RUNNING] + counts[RETRYING] + counts[LOST]
    failed, running = (max(1, n * width // status.total) if n else 0 for n in (counts[FAILED], under_way))
    done = min((counts[DONE] + counts[CANCELLED]) * width // max(1, status.total), width - failed - running)
    return "█" * done + "x" * failed + "▒" * running + "·" * (width - done - failed - running)


def _blocks(share: float, width: int) -> str:
    full = int(share * width)
    return "█" * full + "·" * (width - full)


def _bar_line(bar: Bar) -> str:
    label = ("└ " if bar.parent >= 0 else "") + visible(bar.label or "progress", 24)
    if not bar.total:
        return f"  {label:<12} {bar.done:,.10g}"
    share = min(1.0, bar.done / bar.total)
    took = bar.updated_at - bar.started_at
    left = f"  {clock(took * (1 - share) / share)} left" if 0 < share < 1 and took > 0 else ""
    return f"  {label:<12} {_blocks(share, 24)} {int(100 * share):>3} %  {bar.done:,.10g}/{bar.total:,.10g}{left}"


def _open_bars(status: TaskStatus) -> list[Bar]:
    return [bar for bar in list(status.bars.values()) if not bar.closed]


def _failure_lines(status: TaskStatus) -> list[str]:
    """Return the frame of the reader's own code that a failure came from, and how much else there is."""
    frames = frames_of(status.failure.traceback if status.failure else "")
    own = own_frames(frames)[-1:]
    lines = [f"  {line}" for frame in own for line in frame_lines(frame)]
    if not lines and status.failure:
        # no traceback of Python's, or none of it is the reader's own
        return [f"  {visible(line, 160)}" for line in status.failure.traceback.rstrip().splitlines()[-7:-1] if line]
    return [*lines, f"  {visible(folded(frames, own))}"] if lines and len(frames) > len(own) else lines


def frame_lines(frame: Frame) -> list[str]:
    """Return a frame as text: where it is, and its source with the line marked."""
    name = f", in {visible(frame.name, 60)}" if frame.name not in ("", "<module>") else ""
    lines = [f"{visible(frame.title, 80)}, line {frame.line}{name}"]
    for number, source in frame.code:
        sign = ">" if number == frame.line else " "
        lines.append(f"  {sign} {number:>3}  {visible_block(source)}")
        if sign == ">" and frame.marks and visible_block(source) == source:
            start, end = frame.marks
            lines.append(" " * (9 + start) + "^" * (end - start))
    return lines


def attempt_of(status: TaskStatus) -> str:
    """Return which attempt it is, in words."""
    return f"attempt {status.attempt}" + (f" of {status.max_retries + 1}" if status.max_retries >= 0 else "")


def log_lines(status: TaskStatus) -> list[str]:
    """Return the newest lines of a task's output, hidden characters shown; a carriage return overwrites its line."""
    lines = Lines()
    lines.add(list(status.log.chunks))
    return [visible_block(line.shown) for _, line in lines.tail() if line.shown.strip()]


# ---- static HTML


def static_html(status: Status, now: float | None = None) -> str:
    """Return a status as HTML with inline styles only: complete in a saved page, and with all styles removed."""
    now = time.time() if now is None else now
    body = _map_html(status, now) if isinstance(status, MapStatus) else _task_html(status, now)
    colour = FILLS[kind_of(status)]
    return (
        f'<div style="border:1px solid #8884;border-left:4px solid {colour};border-radius:4px;padding:6px 12px;'
        f'margin:2px 0;font-size:13px;line-height:1.5;overflow-wrap:anywhere">{body}</div>'
    )


def _task_html(status: TaskStatus, now: float) -> str:
    kind = kind_of(status)
    took = f"<b>{clock(elapsed(status, now))}</b>"
    when = _date(status.ended_at or now)
    where = f" on {_escaped(status.worker, 60)}" if status.worker else ""
    tail = f'<span style="opacity:.65">{where} · {when} · id {_escaped(status.id[:8], 8)}</span>'
    name = f"<b>{_escaped(name_of(status), 80)}</b>"
    mark = f'<span style="color:{FILLS[kind]}">{MARKS[kind]}</span>'
    parts = []
    if kind == "succeeded":
        parts.append(f"{mark} {name} succeeded in {took}{tail}")
        if status.summary:
            parts.append(f"<br>→ {_escaped(status.summary)}")
    elif kind == "failed":
        attempt = f" · {attempt_of(status)}" if status.attempt > 1 else ""
        parts.append(f"{mark} {name} failed after {took}{tail.replace(' · ', f'{attempt} · ', 1)}")
        parts.append(_failure_html(status))
    elif kind == "cancelled":
        parts.append(f"{mark} {name} {word_of(status).lower()} after {took}{tail}")
    else:
        after = f", after {took}" if status.started_at else ""
        parts.append(f"{mark} {name} was {word_of(status).lower()} when this was saved{after}{tail}")
        parts += [f"<br>{_escaped(_bar_line(bar).strip())}" for bar in _open_bars(status)[:3]]
        again = "Run the cell again to see it live; it won't be sent twice."
        parts.append(f'<br><span style="opacity:.65">{again}</span>')
    lines = log_lines(status)
    if lines:
        shown = lines[-20:]
        count = f"{len(lines):,} line{'s' * (len(lines) > 1)}"
        title = f"Log, {count}" if len(lines) == len(shown) else f"Log, last 20 of {len(lines):,} lines"
        parts.append(_folded(title, "\n".join(shown)))
    return "".join(parts)


def _failure_html(status: TaskStatus) -> str:
    kind, colon, message = visible(status.error).partition(": ")
    kind = f'<b style="color:{FILLS["failed"]}">{html.escape(kind)}</b>'
    style = "background:none;padding:0;color:inherit"
    parts = [f'<br><code style="{style}">{kind}{colon}{html.escape(message)}</code>']
    if status.failure:
        frames = frames_of(status.failure.traceback)
        own = own_frames(frames)
        if own:
            lines = [html.escape(line) for frame in own for line in frame_lines(frame)]
            text = "\n".join(f"<b>{line}</b>" if line.startswith("  &gt; ") else line for line in lines)
            parts.append(f'<pre style="margin:6px 0">{text}</pre>')
        parts.append(_folded(folded(frames, own), status.failure.traceback[-50_000:], is_open=not own))
    return "".join(parts)


def _map_html(status: MapStatus, now: float) -> str:
    kind = kind_of(status)
    mark = f'<span style="color:{FILLS[kind]}">{MARKS[kind]}</span>'
    counts = ", ".join(f"{status.counts[n]:,} {word}" for _, n, word in _COUNTS if status.counts[n])
    head = f"{mark} <b>{_escaped(name_of(status), 80)}</b> map of {status.total:,}: <b>{counts}</b>"
    head += f" in <b>{clock(elapsed(status, now))}</b>"
    took, when = elapsed(status, now), _date(status.ended_at or now)
    pace = f"{pace_of(status.ended / took)} · " if status.ended > 1 and took > 0 else ""
    head += f' <span style="opacity:.65">{pace}{when} · id {_escaped(status.id[:8], 8)}</span>'
    rows = "".join(
        f"<tr><td>{kind.count:,}</td><td>{_escaped(kind.text)}</td><td>#{kind.first:,}</td></tr>"
        for kind in sorted(status.kinds.values(), key=lambda k: -k.count)[:10]
    )
    table = f"<table><tr><th>failed</th><th>error</th><th>first</th></tr>{rows}</table>" if rows else ""
    return head + _static_grid(status) + table


def _static_grid(status: MapStatus) -> str:
    """Return at most four lines of 60 marks; one that stands for several tasks shows the worst of them."""
    if not status.total:
        return ""
    step = -(-status.total // _STATIC_GRID)
    signs = {FAILED: "x", LOST: "!", RETRYING: "▒", RUNNING: "▒", QUEUED: "·", CANCELLED: "/", DONE: "■"}
    marks = [signs[mark] for mark in status.marks(step)]
    text = "\n".join("".join(marks[start : start + 60]) for start in range(0, len(marks), 60))
    text = re.sub("x+", lambda found: f'<b style="color:{FILLS["failed"]}">{found[0]}</b>', text)
    legend = f"one mark = {step:,} tasks, in call order; x has a failure" if step > 1 else "in call order; x failed"
    return (
        f'<pre style="line-height:1.2;margin:4px 0;color:{FILLS["succeeded"]}">{text}</pre>'
        f'<span style="opacity:.65">{legend}</span>'
    )


def _folded(title: str, text: str, *, is_open: bool = False) -> str:
    clean = visible_block(text[:50_000])
    tag = "details open" if is_open else "details"
    return f"<{tag}><summary>{html.escape(title)}</summary><pre>{html.escape(clean)}</pre></details>"


def _escaped(text: str, limit: int = 200) -> str:
    return html.escape(visible(text, limit))


# ---- terminals


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
        bars = _open_bars(status) if isinstance(status, TaskStatus) else []
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
