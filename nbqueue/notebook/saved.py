"""Views as static HTML: complete in a saved notebook, wherever it is shown, and with all styles removed."""

from __future__ import annotations

import html
import re
import time
from typing import Final

from nbqueue.notebook.failures import folded, frames_of, own_frames
from nbqueue.notebook.shown import visible, visible_block
from nbqueue.notebook.text import (
    COUNTS,
    MARKS,
    Status,
    attempt_of,
    bar_line,
    clock,
    date,
    elapsed,
    frame_lines,
    kind_of,
    log_lines,
    name_of,
    open_bars,
    pace_of,
    word_of,
)
from nbqueue.status import CANCELLED, DONE, FAILED, LOST, QUEUED, RETRYING, RUNNING, MapStatus, TaskStatus

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
_STATIC_GRID: Final = 240


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
    when = date(status.ended_at or now)
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
        parts += [f"<br>{_escaped(bar_line(bar).strip())}" for bar in open_bars(status)[:3]]
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
    counts = ", ".join(f"{status.counts[n]:,} {word}" for _, n, word in COUNTS if status.counts[n])
    head = f"{mark} <b>{_escaped(name_of(status), 80)}</b> map of {status.total:,}: <b>{counts}</b>"
    head += f" in <b>{clock(elapsed(status, now))}</b>"
    took, when = elapsed(status, now), date(status.ended_at or now)
    pace = f"{pace_of(status.ended / took)} · " if status.ended > 1 and took > 0 else ""
    head += f' <span style="opacity:.65">{pace}{when} · id {_escaped(status.id[:8], 8)}</span>'
    rows = "".join(
        f'<tr><td>{kind.count:,}</td><td style="text-align:left">{_escaped(kind.text)}</td>'
        f'<td style="white-space:nowrap">#{kind.first:,}</td></tr>'
        for kind in sorted(status.kinds.values(), key=lambda k: -k.count)[:10]
    )
    heads = '<th style="white-space:nowrap">failed</th><th style="text-align:left">error</th><th>first</th>'
    table = f"<table><tr>{heads}</tr>{rows}</table>" if rows else ""
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
        '<pre style="line-height:1.2;margin:4px 0;white-space:pre;overflow-x:auto;font-size:min(13px,1.5vw);'
        f'color:{FILLS["succeeded"]}">{text}</pre>'
        f'<span style="opacity:.65">{legend}</span>'
    )


def _folded(title: str, text: str, *, is_open: bool = False) -> str:
    clean = visible_block(text[:50_000])
    tag = "details open" if is_open else "details"
    return f"<{tag}><summary>{html.escape(title)}</summary><pre>{html.escape(clean)}</pre></details>"


def _escaped(text: str, limit: int = 200) -> str:
    return html.escape(visible(text, limit))
