"""What is said of entries of the schedule, in words: when they fire, what their last runs came to, who leads."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from nbqueue import states
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.notebook.rules import words_of
from nbqueue.notebook.shown import visible
from nbqueue.notebook.text import clock
from nbqueue.periodic import Leader, ShownEntry, ShownRun
from nbqueue.schedules import rule_of

KINDS: Final = {
    states.SUCCESS: "succeeded",
    states.FAILURE: "failed",
    states.RETRY: "retrying",
    states.STARTED: "running",
    states.PENDING: "queued",
    states.RECEIVED: "queued",
    states.REVOKED: "cancelled",
    states.REJECTED: "cancelled",
    states.IGNORED: "cancelled",
    states.UNKNOWN: "unknown",
    "MISSED": "missed",
}


def said_of(entry: ShownEntry, done: str, leader: Leader | None, *, embedded: bool) -> str:
    """Return what a cell says that was scheduled.

    Args:
        entry: as it is now.
        done: `added`, `changed` or `same`.
        leader: which beat leads, if one does.
        embedded: the server is one that has a beat by itself.
    """
    verb = {"added": "runs", "changed": "runs from now on"}.get(done, "is scheduled already and runs")
    lines = [f"{entry.name} {verb} {words(entry)}" + (f", next {when(entry)}." if entry.enabled else "; it is paused.")]
    if not entry.enabled:
        lines.append(f"%beat resume {shlex.quote(entry.name)} lets it go on.")
    elif done != "same":
        lines.append("It goes on without this kernel; %beat shows it.")
    if leader is None and not embedded:
        lines.append("No beat leads yet, so nothing fires: %beat start starts one here.")
    return " ".join(lines)


def as_text(entries: Sequence[ShownEntry], leader: Leader | None, *, embedded: bool = False) -> str:
    """Return the schedule as text: who leads, then a line an entry."""
    if not entries:
        return "Nothing is scheduled. Put %%task NAME --every 10m on a cell."
    if leader is not None:
        others = f", {leader.standby} stand{'s' * (leader.standby == 1)} by" if leader.standby else ""
        lines = [f"Beat: {visible(leader.name, 60)} leads{others}"]
    elif embedded:
        lines = ["Beat: one begins within seconds"]
    else:
        lines = ["No beat leads, so nothing fires: %beat start starts one here"]
    width = max(len(visible(entry.name, 40)) for entry in entries)
    for entry in entries:
        shown = f"{visible(entry.name, 40):<{width}}"
        if entry.problem:
            lines.append(f"{shown}  can't fire: {visible(entry.problem, 200)}")
            continue
        due = f"next {when(entry)}" if entry.enabled else "paused"
        lines.append("  ".join(part for part in (shown, words(entry), due, told(entry.runs)) if part))
    return "\n".join(lines)


def words(entry: ShownEntry, *, zone: bool = True) -> str:
    """Return when an entry fires, in words; with the zone of its times, unless told not to."""
    try:
        rule = rule_of(entry.rule, entry.zone)
    except ImproperlyConfigured:
        return visible(entry.rule, 80)
    return f"{words_of(rule)}{f' {entry.zone}' if zone and entry.rule.startswith('cron ') else ''}"


def when(entry: ShownEntry, now: datetime | None = None) -> str:
    """Return when an entry fires next: the time here, and how long that is.

    Args:
        entry: the entry.
        now: the time; that of this machine if None.
    """
    if entry.next_at is None:
        return "never"
    now = datetime.now(UTC) if now is None else now
    local, today = entry.next_at.astimezone(), now.astimezone().date()
    far = (local.date() - today).days
    day = "" if not far else f"{local:%a} " if 0 < far < 7 else f"{local.day} {local:%b} "
    left = (entry.next_at - now).total_seconds()
    at = f"{local:%H:%M:%S}" if local.second else f"{local:%H:%M}"
    return f"{day}{at} ({f'in {clock(left)}' if left > 0 else 'due'})"


def told(runs: Sequence[ShownRun]) -> str:
    """Return what the last runs came to, in a few words; empty if there were none."""
    counts: dict[str, int] = {}
    for run in runs:
        if run.missed:
            counts["missed"] = counts.get("missed", 0) + run.missed
        if run.id:
            kind = KINDS.get(run.state, "running")
            counts[kind] = counts.get(kind, 0) + 1
    names = {"succeeded": "done", "retrying": "retrying", "unknown": "not kept"}
    parts = [f"{counts[kind]} {names.get(kind, kind)}" for kind in dict.fromkeys(KINDS.values()) if kind in counts]
    took = last_took(runs)
    return ", ".join([*parts, *([f"last took {clock(took)}"] if took is not None else [])])


def last_took(runs: Sequence[ShownRun]) -> float | None:
    """Return how long the newest run took that has ended, seconds."""
    return next((took for run in reversed(runs) if (took := took_of(run)) is not None), None)


def took_of(run: ShownRun) -> float | None:
    """Return how long a run took, seconds; None while it has not ended."""
    if run.started_at is None or run.ended_at is None:
        return None
    return (run.ended_at - run.started_at).total_seconds()
