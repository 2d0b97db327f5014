"""The panel of what runs by the clock: shows it, adds, changes, pauses, runs, deletes and brings it back.

The panel asks, this answers: while it is on screen the page asks once a second, and is told what has changed. Other
notebooks and programs change the schedule too.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

import anywidget
import traitlets
from IPython.core.getipython import get_ipython
from IPython.display import display as _untyped_display

from nbqueue.app import App
from nbqueue.broker import ServerBroker
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.notebook.entries import KINDS, as_text, last_took, told, took_of, words
from nbqueue.notebook.rules import sentence
from nbqueue.notebook.shown import visible
from nbqueue.notebook.text import short_name
from nbqueue.notebook.views import answer_while_busy
from nbqueue.notebook.written import call_of, policy_of, shown_preview, written
from nbqueue.periodic import Leader, ShownEntry, ShownRun
from nbqueue.schedules import rule_of, schedule, shown_interval

STATIC: Final = Path(__file__).parent / "static"
WIDGET: Final = "application/vnd.jupyter.widget-view+json"
MOST: Final = 200  # entries that a panel shows
RUNS: Final = 30
REST: Final = 9  # times as long as a look took until the next one

_display: Any = _untyped_display


class BeatWidget(anywidget.AnyWidget):
    """The widget of the panel. A page that opens it asks for `now`; from then on it is told what changes."""

    _esm = STATIC / "beat.js"
    _css = "\n".join((STATIC / name).read_text() for name in ("nbqueue.css", "workers.css", "beat.css"))
    now = traitlets.Dict().tag(sync=True, to_json=lambda _, widget: widget.all())

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        super().__init__()

    def all(self) -> dict[str, Any]:
        """Return all that a page needs which opens now."""
        return self.panel.told.all()


@dataclass(frozen=True)
class Told:
    """What pages know: the number of the last message with news, the entries by name, and all else."""

    number: int = 0
    rows: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def all(self) -> dict[str, Any]:
        """Return it as a page needs that opens now."""
        return {"n": self.number, "put": list(self.rows.values()), "facts": dict(self.facts)}

    def then(self, rows: Mapping[str, dict[str, Any]], facts: Mapping[str, Any]) -> tuple[Told, dict[str, Any]]:
        """Return what pages know next, and the message that makes them know it."""
        put = [made for name, made in rows.items() if self.rows.get(name) != made]
        gone = [name for name in self.rows if name not in rows]
        if not put and not gone and facts == self.facts:
            return self, {"n": self.number}
        news = {"n": self.number + 1, "put": put, "gone": gone, "facts": dict(facts)}
        return Told(self.number + 1, rows, facts), news


class Panel:
    """The panel of one cell.

    Args:
        app: whose schedule it shows.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.told = Told()
        self.widget = BeatWidget(self)
        answer_while_busy(self.widget)
        self.widget.on_msg(self._said)
        self._seen: tuple[Sequence[ShownEntry], Leader | None] = ((), None)
        self._led_at = 0.0
        self._rests_until = 0.0
        self._lock = threading.Lock()
        self._waiting: deque[dict[str, Any]] = deque()
        self._working = False
        self.look()

    def show(self) -> None:
        """Show it under the running cell, with text for where there are no widgets, that says when it is of."""
        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        entries, leader = self._seen
        text = as_text(entries, leader, embedded=self.app.link.embedded)
        at = f"As of {datetime.now(UTC).astimezone():%d %b %Y %H:%M:%S}"
        _display({WIDGET: view, "text/plain": f"{at}\n{text}"}, raw=True)

    def look(self) -> None:
        """Bring it up to date; what has not changed is not sent again."""
        began = time.monotonic()
        try:
            entries, leader, now = self.app.beat.list(), self.app.beat.leader(), self.app.backend.now()
        except Exception as exc:  # noqa: BLE001 - shown on the page, which asks again
            self.widget.send({"alive": 0, "trouble": visible(str(exc), 300)})
            return
        self._seen = entries, leader
        if leader is not None:
            self._led_at = now
        facts = {
            "more": max(0, len(entries) - MOST),
            "leader": None if leader is None else {"name": visible(leader.name, 60), "standby": leader.standby},
            "led_at": None if leader is not None else self._led_at,
            "embedded": self.app.link.embedded,
        }
        self.told, message = self.told.then({entry.name: row(entry) for entry in entries[:MOST]}, facts)
        self.widget.send({"alive": now, **message})
        self._rests_until = time.monotonic() + REST * (time.monotonic() - began)

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
            # a schedule so large that a look takes long is looked at less often
            if time.monotonic() >= self._rests_until:
                self.look()
            else:
                self.widget.send({"alive": time.time(), "n": self.told.number})
            return
        if what == "all":
            self.widget.send({"alive": time.time(), "all": True, **self.told.all()})
            return
        try:
            answer = self._act(str(what), content)
        except Exception as exc:  # noqa: BLE001 - shown where the click was made
            text = sentence(visible(str(exc), 300))
            self.widget.send({"failed": what, "name": content.get("name", ""), "text": text})
        else:
            self.widget.send(answer)
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
                answer = {"preview": content.get("n", 0), **shown_preview(content, datetime.now(UTC))}
            case "form":
                answer = {"form": self._choices()}
            case "add":
                answer = {"done": what, "name": self._add(content)}
            case "change":
                rule, zone = written(content)
                entries.change(name, rule=rule, zone=zone, policy=policy_of(content))
                answer = {"done": what, "name": name}
            case "start":
                answer = {"done": what, "name": start(self.app)}
            case "run":
                answer = {"done": what, "name": name, "id": entries.run_now(name)}
            case _:
                raise ImproperlyConfigured(f"nobody knows how to {visible(what, 20)}")
        return answer

    def _add(self, content: Mapping[str, Any]) -> str:
        call = call_of(str(content.get("run", "")), self.app, _variables())
        if queue := str(content.get("queue", "")).strip():
            call = call.set(queue=queue)
        rule, zone = written(content)
        name = str(content.get("name", "")).strip() or short_name(call.task)
        self.app.beat.add(name, rule, call, zone=zone, policy=policy_of(content))
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
        "words": "" if entry.problem else words(entry, zone=False),
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


def strip(runs: Iterable[ShownRun]) -> list[dict[str, Any]]:
    """Return the last 30 runs, oldest first, with a mark for those that were missed before one."""
    marks: list[dict[str, Any]] = []
    for run in runs:
        due = run.due_at.timestamp()
        if run.missed:
            marks.append({"is": "missed", "due": due, "missed": run.missed})
        if run.id:
            mark = {"is": KINDS.get(run.state, "running"), "due": due, "id": run.id, "took": took_of(run)}
            if run.by_hand:
                mark["hand"] = True
            if run.started_at is not None and run.ended_at is None:
                mark["since"] = run.started_at.timestamp()
            marks.append(mark)
    return marks[-RUNS:]


def _unix(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def start(app: App) -> str:
    """Start a beat on this machine where none leads; say so."""
    leader = app.beat.leader()
    if leader is not None:
        return f"{leader.name} leads already."
    if app.link.embedded:
        return "The embedded server has a beat by itself, as soon as something is scheduled."
    made = app.start_beat()
    return f"{made.name} runs, and goes on without this kernel. Its log: {made.log}"
