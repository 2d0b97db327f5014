"""`%beat`: what runs by the clock, as text or as a panel that adds, changes, pauses, runs and deletes it.

The panel asks, this answers: while it is on screen the page asks once a second, and is told what has changed. Other
notebooks and programs change the schedule too.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import shlex
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

import anywidget
import traitlets
from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display as _untyped_display

from nbqueue import states
from nbqueue.app import App
from nbqueue.broker import ServerBroker
from nbqueue.canvas import Signature
from nbqueue.current import current_app
from nbqueue.exceptions import ImproperlyConfigured, NBQueueError
from nbqueue.notebook.rules import preview, sentence, words_of
from nbqueue.notebook.shown import visible
from nbqueue.notebook.text import clock, short_name
from nbqueue.notebook.views import answer_while_busy, in_kernel
from nbqueue.periodic import Leader, ShownEntry, ShownRun
from nbqueue.schedules import rule_of, schedule, shown_interval, zone_of

STATIC: Final = Path(__file__).parent / "static"
WIDGET: Final = "application/vnd.jupyter.widget-view+json"
USAGE: Final = "%beat [list | start | pause NAME | resume NAME | run NAME | delete NAME | undelete NAME]"
MOST: Final = 200  # entries that a panel shows
RUNS: Final = 30
POLICIES: Final = ("coalesce", "skip", "all")
_KINDS: Final = {
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

_display: Any = _untyped_display


# ---- the magic


def register(shell: InteractiveShell) -> None:
    """Make `%beat` known to a shell."""
    shell.magics_manager.register_function(beat, "line", "beat")


def unregister(shell: InteractiveShell) -> None:
    """Remove `%beat`."""
    shell.magics_manager.magics["line"].pop("beat", None)


def beat(line: str) -> None:
    """%beat [list | start | pause NAME | resume NAME | run NAME | delete NAME | undelete NAME].

    Without a word, a panel of all that runs by the clock. `start` starts a beat on this machine, where the server has
    none by itself. `run` runs one now, beside its times. What was deleted within the last hour can be undeleted.
    """
    try:
        word, *rest = shlex.split(line) or [""]
    except ValueError as exc:
        raise UsageError(f"%beat: {exc}; {USAGE}") from exc
    if word not in ("", "list", "start", *_ACTS) or len(rest) != (word in _ACTS):
        near = difflib.get_close_matches(word, ["list", "start", *_ACTS], n=1) if word not in _ACTS else []
        raise UsageError(f"%beat: {line!r} is nothing it can do; {f'did you mean {near[0]}? ' if near else ''}{USAGE}")
    app = current_app()
    try:
        if word in _ACTS:
            _say(_ACTS[word](app, _known(app, word, rest[0])))
        elif word == "start":
            _say(_start(app))
        elif word == "list" or not in_kernel():
            _say(as_text(app.beat.list(), app.beat.leader(), embedded=app.link.embedded))
        else:
            Panel(app).show()
    except NBQueueError as exc:
        raise UsageError(str(exc)) from exc


def _known(app: App, word: str, name: str) -> str:
    """Return a name that the schedule has.

    Raises:
        UsageError: it has none such; names what it has.
    """
    if word == "undelete":
        return name
    names = [entry.name for entry in app.beat.list()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names[:20]) or 'nothing'}"
        raise UsageError(f"%beat: the schedule has no {name}; {hint}")
    return name


def _start(app: App) -> str:
    leader = app.beat.leader()
    if leader is not None:
        return f"{leader.name} leads already."
    if app.link.embedded:
        return "The embedded server has a beat by itself, as soon as something is scheduled."
    made = app.start_beat()
    return f"{made.name} runs, and goes on without this kernel. Its log: {made.log}"


def _pause(app: App, name: str) -> str:
    app.beat.pause(name)
    return f"{name} is paused. %beat resume {shlex.quote(name)} lets it go on."


def _resume(app: App, name: str) -> str:
    entry = app.beat.resume(name)
    return f"{name} goes on: {words(entry)}, next {when(entry)}."


def _run(app: App, name: str) -> str:
    return f"{name} was sent, beside its times, as {app.beat.run_now(name)}."


def _delete(app: App, name: str) -> str:
    app.beat.delete(name)
    return f"{name} is deleted. %beat undelete {shlex.quote(name)} brings it back, within an hour."


def _undelete(app: App, name: str) -> str:
    entry = app.beat.undelete(name)
    return f"{name} is back: {words(entry)}, {f'next {when(entry)}' if entry.enabled else 'paused'}."


_ACTS: Final[Mapping[str, Callable[[App, str], str]]] = {
    "pause": _pause,
    "resume": _resume,
    "run": _run,
    "delete": _delete,
    "undelete": _undelete,
}


def _say(text: str) -> None:
    print(text)  # noqa: T201 - a cell's output


# ---- text


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


def words(entry: ShownEntry) -> str:
    """Return when an entry fires, in words, with the zone of its times."""
    try:
        rule = rule_of(entry.rule, entry.zone)
    except ImproperlyConfigured:
        return visible(entry.rule, 80)
    return f"{words_of(rule)}{f' {entry.zone}' if entry.rule.startswith('cron ') else ''}"


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
            kind = _KINDS.get(run.state, "running")
            counts[kind] = counts.get(kind, 0) + 1
    names = {"succeeded": "done", "retrying": "retrying", "unknown": "not kept"}
    parts = [f"{counts[kind]} {names.get(kind, kind)}" for kind in dict.fromkeys(_KINDS.values()) if kind in counts]
    took = last_took(runs)
    return ", ".join([*parts, *([f"last took {clock(took)}"] if took is not None else [])])


def last_took(runs: Sequence[ShownRun]) -> float | None:
    """Return how long the newest run took that has ended, seconds."""
    return next((took for run in reversed(runs) if (took := _took(run)) is not None), None)


def _took(run: ShownRun) -> float | None:
    if run.started_at is None or run.ended_at is None:
        return None
    return (run.ended_at - run.started_at).total_seconds()


# ---- what is sent


def call_of(text: str, app: App, variables: Mapping[str, Any]) -> Signature:
    """Return the call that a person has written: a task's name, or a call of it with plain values.

    Args:
        text: `report`, `proj.tasks.report`, or `report(3, region="north")`.
        app: whose task it is.
        variables: of the notebook; one of them may be the task.

    Raises:
        ImproperlyConfigured: it is neither, or names no task.
    """
    name, args, kwargs = _parsed(text)
    found = variables.get(name)
    if found is not None and hasattr(found, "apply_async") and hasattr(found, "run"):
        task = found
    elif name in app.tasks or "." in name:
        task = app.task_for(name)
    else:
        short = [one for one in app.tasks if short_name(one) == name]
        if len(short) != 1:
            near = difflib.get_close_matches(name, [short_name(one) for one in app.tasks], n=1)
            hint = (
                f"did you mean {near[0]}?" if near else "one that workers have needs its whole name, as proj.tasks.add"
            )
            raise ImproperlyConfigured(f"{visible(name, 60)} is no task of this notebook; {hint}")
        task = app.tasks[short[0]]
    return app.signature(task, args=tuple(args), kwargs=kwargs)


def _parsed(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    if not text.strip():
        raise ImproperlyConfigured("say what is to run: a task's name")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.Call):
            return _name(tree), [], {}
        kwargs = {word.arg: ast.literal_eval(word.value) for word in tree.keywords if word.arg}
        if len(kwargs) != len(tree.keywords):
            raise ValueError("**")
        return _name(tree.func), [ast.literal_eval(arg) for arg in tree.args], kwargs
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as exc:
        raise ImproperlyConfigured(
            f"{visible(text, 60)!r} is no call of a task with plain values; write report, or report(3, region='north')"
        ) from exc


def _name(tree: ast.expr) -> str:
    if isinstance(tree, ast.Attribute):
        return f"{_name(tree.value)}.{tree.attr}"
    if not isinstance(tree, ast.Name):
        raise ValueError("no name")  # noqa: TRY004 - caught above
    return tree.id


# ---- the panel


class BeatWidget(anywidget.AnyWidget):
    """The widget of the panel; all it draws is in `state`."""

    _esm = STATIC / "beat.js"
    _css = "\n".join((STATIC / name).read_text() for name in ("nbqueue.css", "workers.css", "beat.css"))
    state = traitlets.Dict().tag(sync=True)


class Panel:
    """The panel of one cell.

    Args:
        app: whose schedule it shows.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.widget = BeatWidget()
        answer_while_busy(self.widget)
        self.widget.on_msg(self._said)
        self._led_at = 0.0
        self._lock = threading.Lock()
        self._waiting: deque[dict[str, Any]] = deque()
        self._working = False
        self.look()

    def show(self) -> None:
        """Show it under the running cell, with text for where there are no widgets."""
        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        text = as_text(self.app.beat.list(), self.app.beat.leader(), embedded=self.app.link.embedded)
        _display({WIDGET: view, "text/plain": text}, raw=True)

    def look(self) -> None:
        """Bring it up to date; what has not changed is not sent again."""
        try:
            entries, leader, now = self.app.beat.list(), self.app.beat.leader(), self.app.backend.now()
        except Exception as exc:  # noqa: BLE001 - shown on the page, which asks again
            self.widget.send({"alive": 0, "trouble": visible(str(exc), 300)})
            return
        if leader is not None:
            self._led_at = now
        self.widget.state = {
            "entries": [row(entry) for entry in entries[:MOST]],
            "more": max(0, len(entries) - MOST),
            "leader": None if leader is None else {"name": visible(leader.name, 60), "standby": leader.standby},
            "led_at": None if leader is not None else self._led_at,
            "embedded": self.app.link.embedded,
        }
        self.widget.send({"alive": now})

    def _said(self, _: object, content: dict[str, Any], __: object) -> None:
        # Off this thread: it may be the kernel's, and the server may be slow to answer. What is done is done in order,
        # as an undo that overtook its deletion would find nothing; a preview asks no server and waits for nobody.
        if content.get("do") == "preview":
            self._start(lambda: self._do(content))
            return
        with self._lock:
            if content in self._waiting and content.get("do") == "look":
                return
            self._waiting.append(content)
            if self._working:
                return
            self._working = True
        self._start(self._work)

    @staticmethod
    def _start(work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="nbqueue beat panel", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._working = False
                    return
                content = self._waiting.popleft()
            self._do(content)

    def _do(self, content: dict[str, Any]) -> None:
        what = content.get("do")
        if what == "look":
            self.look()
            return
        try:
            told = self._act(str(what), content)
        except Exception as exc:  # noqa: BLE001 - shown where the click was made
            text = sentence(visible(str(exc), 300))
            self.widget.send({"failed": what, "name": content.get("name", ""), "text": text})
        else:
            self.widget.send(told)
        if what not in ("preview", "form"):
            self.look()

    def _act(self, what: str, content: Mapping[str, Any]) -> dict[str, Any]:
        entries, name = self.app.beat, str(content.get("name", ""))
        simple: dict[str, Callable[[str], object]] = {"pause": entries.pause, "resume": entries.resume}
        simple |= {"delete": entries.delete, "undelete": entries.undelete}
        if what in simple:
            simple[what](name)
            return {"done": what, "name": name}
        match what:
            case "preview":
                told = {"preview": content.get("n", 0), **shown_preview(content, datetime.now(UTC))}
            case "form":
                told = {"form": self._choices()}
            case "add":
                told = {"done": what, "name": self._add(content)}
            case "change":
                rule, zone = written(content)
                entries.change(name, rule=rule, zone=zone, policy=_policy(content))
                told = {"done": what, "name": name}
            case "start":
                told = {"done": what, "name": _start(self.app)}
            case "run":
                told = {"done": what, "name": name, "id": entries.run_now(name)}
            case _:
                raise ImproperlyConfigured(f"nobody knows how to {visible(what, 20)}")
        return told

    def _add(self, content: Mapping[str, Any]) -> str:
        call = call_of(str(content.get("run", "")), self.app, _variables())
        if queue := str(content.get("queue", "")).strip():
            call = call.set(queue=queue)
        rule, zone = written(content)
        name = str(content.get("name", "")).strip() or short_name(call.task)
        self.app.beat.add(name, rule, call, zone=zone, policy=_policy(content))
        return name

    def _choices(self) -> dict[str, Any]:
        """Return what the fields of the form offer."""
        broker = self.app.broker
        queues = {self.app.conf.task_default_queue, *(broker.queues() if isinstance(broker, ServerBroker) else ())}
        tasks = {short_name(name) for name in self.app.tasks if not name.startswith("nbqueue.")}
        return {
            "tasks": sorted(visible(name, 80) for name in tasks)[:MOST],
            "queues": sorted(visible(name, 60) for name in queues)[:MOST],
            "queue": visible(self.app.conf.task_default_queue, 60),
            "zones": sorted(available_timezones()),
            "zone": str(self.app.timezone) if isinstance(self.app.timezone, ZoneInfo) else "UTC",
        }


def _variables() -> Mapping[str, Any]:
    shell = get_ipython()
    return {} if shell is None else shell.user_ns


def written(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return rule and zone of what the form says; of an interval there is no zone to say."""
    text = str(content.get("text", "")).strip()
    if content.get("kind") == "cron":
        return f"cron {text}", str(content.get("zone", "")).strip() or "UTC"
    return f"every {text.removeprefix('every ')}", "UTC"


def _policy(content: Mapping[str, Any]) -> str:
    policy = str(content.get("policy", "coalesce"))
    if policy not in POLICIES:
        raise ImproperlyConfigured(f"{visible(policy, 20)} is none of {', '.join(POLICIES)}")
    return policy


def shown_preview(content: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return what the form shows beside a rule: its meaning, and the next five firings in its zone."""
    rule, zone = written(content)
    found = preview(rule, zone, now)
    if found.mistake:
        return {"mistake": visible(found.mistake, 300)}
    tz = zone_of(zone)
    if content.get("kind") != "cron":
        with contextlib.suppress(ImproperlyConfigured):
            tz = zone_of(str(content.get("zone", "")))
    today = now.astimezone(tz)
    seconds = any(one.at.second or one.at.microsecond for one in found.firings)
    rows = []
    for one in found.firings:
        local = one.at.astimezone(tz)
        rows.append(
            {
                "day": f"{local:%a} {local.day} {local:%b}{f' {local.year}' if local.year != today.year else ''}",
                "time": f"{local:%H:%M:%S}" if seconds else f"{local:%H:%M}",
                "at": one.at.timestamp(),
                "note": one.note,
            }
        )
    return {"words": found.words[:1].upper() + found.words[1:], "zone": str(tz), "firings": rows}


def row(entry: ShownEntry) -> dict[str, Any]:
    """Return an entry as the page draws it."""
    kind, _, text = entry.rule.partition(" ")
    length = 0.0
    with contextlib.suppress(ImproperlyConfigured):
        rule = rule_of(entry.rule, entry.zone)
        if isinstance(rule, schedule):
            length = rule.seconds
            text = text if " from " in text else shown_interval(length)
    return {
        "name": entry.name,
        "shown": visible(entry.name, 80),
        "kind": kind,
        "text": visible(text, 80),
        "words": "" if entry.problem else words_without_zone(entry),
        "zone": visible(entry.zone, 40) if kind == "cron" else "",
        "seconds": length % 60 != 0,
        "task": visible(entry.task.removeprefix("__main__."), 120),
        "queue": visible(entry.queue, 60),
        "on": entry.enabled,
        "policy": entry.policy,
        "origin": visible(entry.origin, 40),
        "next": _unix(entry.next_at),
        "last": _unix(entry.last_at),
        "count": entry.count,
        "problem": visible(entry.problem, 200),
        "runs": strip(entry.runs),
        "took": last_took(entry.runs),
        "told": told(entry.runs),
    }


def words_without_zone(entry: ShownEntry) -> str:
    """Return when an entry fires, in words."""
    return words(entry).removesuffix(f" {entry.zone}") if entry.rule.startswith("cron ") else words(entry)


def strip(runs: Iterable[ShownRun]) -> list[dict[str, Any]]:
    """Return the last 30 runs, oldest first, with a mark for those that were missed before one."""
    marks: list[dict[str, Any]] = []
    for run in runs:
        due = run.due_at.timestamp()
        if run.missed:
            marks.append({"is": "missed", "due": due, "missed": run.missed})
        if run.id:
            mark = {"is": _KINDS.get(run.state, "running"), "due": due, "id": run.id, "took": _took(run)}
            if run.by_hand:
                mark["hand"] = True
            if run.started_at is not None and run.ended_at is None:
                mark["since"] = run.started_at.timestamp()
            marks.append(mark)
    return marks[-RUNS:]


def _unix(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


__all__ = ["BeatWidget", "Panel", "as_text", "beat", "call_of", "said_of"]
