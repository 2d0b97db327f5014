"""What views say in words: states, names, times, and a whole status as text."""

from __future__ import annotations

import re
import time
from typing import Final

from nbqueue import states
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
COUNTS: Final = (
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


def date(at: float) -> str:
    """Return an instant as `23 Nov 2026 14:05`."""
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
    lines += [bar_line(bar) for bar in open_bars(status)[:3]]
    return lines + [f"  │ {visible(line, 160)}" for line in log_lines(status)[-2:]]


def _map_lines(status: MapStatus, now: float) -> list[str]:
    kind = kind_of(status)
    head = f"{MARKS[kind]} {visible(name_of(status), 60)} map of {status.total:,} · {_map_time(status, now)}"
    if status.note and not status.ready:
        head += f" · {visible(status.note)}"
    counts = "  ".join(f"{MARKS[word]} {status.counts[n]:,} {said}" for word, n, said in COUNTS if status.counts[n])
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


def bar_line(bar: Bar) -> str:
    """Return a progress bar as a line of text."""
    label = ("└ " if bar.parent >= 0 else "") + visible(bar.label or "progress", 24)
    if not bar.total:
        return f"  {label:<12} {bar.done:,.10g}"
    share = min(1.0, bar.done / bar.total)
    took = bar.updated_at - bar.started_at
    to_go = (bar.total - bar.done) / bar.rate if bar.rate else took * (1 - share) / share if share else 0.0
    left = f"  {clock(to_go)} left" if 0 < share < 1 and to_go > 0 else ""
    return f"  {label:<12} {_blocks(share, 24)} {int(100 * share):>3} %  {bar.done:,.10g}/{bar.total:,.10g}{left}"


def open_bars(status: TaskStatus) -> list[Bar]:
    """Return the bars that still move, outer ones first."""
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
