"""`%workers`: start, stop, scale and restart local workers, and a panel that shows all there are.

The panel asks, this answers: while it is on screen the page asks once a second, so that nothing runs here for a page
that nobody looks at.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import anywidget
import traitlets
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display as _untyped_display

from nbqueue.app import App
from nbqueue.broker import ServerBroker
from nbqueue.current import current_app
from nbqueue.exceptions import NBQueueError
from nbqueue.launchers import local
from nbqueue.notebook.shown import visible
from nbqueue.notebook.text import clock, short_name
from nbqueue.notebook.views import answer_while_busy, in_kernel
from nbqueue.processes import tail
from nbqueue.watcher import ALIVE_S, Offer, Shift

STATIC: Final = Path(__file__).parent / "static"
LOG_LINES: Final = 60
FORGET_S: Final = 600.0  # a worker that has said nothing for so long is not shown
WIDGET: Final = "application/vnd.jupyter.widget-view+json"
USAGE: Final = "%workers [status | start [N] | scale N | restart [NAME] | stop [NAME]]"

_display: Any = _untyped_display


class Fleet:
    """All workers of one app's broker, and what can be done about them.

    Args:
        app: whose broker and backend they use.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    def offers(self) -> list[tuple[Offer, float]]:
        """Return what each worker says of itself and how many seconds ago, those of this machine first."""
        known = [(offer, age) for offer, age in self.app.offers() if age < FORGET_S]
        return sorted(known, key=lambda one: (not is_here(one[0]), one[0].name))

    def here(self) -> list[Offer]:
        """Return the workers of this machine that live and stay."""
        return [offer for offer, age in self.offers() if age <= ALIVE_S and is_here(offer) and not offer.stopping]

    def queued(self) -> dict[str, int]:
        """Return how many tasks wait in each queue, those that are due later too."""
        broker = self.app.broker
        if not isinstance(broker, ServerBroker):
            return {}
        sizes = {queue: broker.size(queue) for queue in sorted(broker.queues())}
        return {queue: size.queued + size.delayed for queue, size in sizes.items() if size.queued + size.delayed}

    def scale(self, size: int) -> str:
        """Have so many children on this machine; say what was done about it."""
        here = self.here()
        if size <= 0:
            return self.stop([offer.name for offer in here])
        if not here:
            return f"{self.app.start_worker(size).name} started with {_children(size)}"
        *others, last = here
        left = size - sum(offer.children for offer in others)
        if left >= 1:
            self.app.order("resize", [last.name], size=left)
            return f"{last.name} gets {_children(left)}"
        return self._shrink(here, size)

    def _shrink(self, here: Sequence[Offer], size: int) -> str:
        """Keep so many children; the workers that come first keep theirs."""
        told = []
        for offer in here:
            if size <= 0:
                told.append(self.stop([offer.name]))
            elif offer.children > size:
                self.app.order("resize", [offer.name], size=size)
                told.append(f"{offer.name} gets {_children(size)}")
            size -= offer.children
        return "\n".join(told)

    def stop(self, names: Sequence[str], *, now: bool = False) -> str:
        """Stop workers once their tasks have ended, or at once; say so."""
        if not names:
            return "No worker runs on this machine."
        self.app.order("shutdown", names, terminate=now)
        when = "at once; what it ran starts again elsewhere" if now else "when its tasks have ended"
        return "\n".join(f"{name} stops {when}" for name in names)

    def restart(self, names: Sequence[str]) -> str:
        """Replace the children of workers, each after the task it is at; say so."""
        if not names:
            return "No worker runs on this machine."
        self.app.order("restart", names)
        return "\n".join(f"{name} replaces its children, each after the task it is at" for name in names)

    def named(self, name: str) -> list[str]:
        """Return the full names that a name may stand for; all of this machine if it is empty.

        Raises:
            UsageError: no worker bears it.
        """
        if not name:
            return [offer.name for offer in self.here()]
        every = [offer.name for offer, _ in self.offers()]
        found = [one for one in every if name in (one, one.partition("@")[0])]
        if not found:
            raise UsageError(f"there is no worker {name}; there are {', '.join(every) or 'none'}")
        return found


def is_here(offer: Offer) -> bool:
    """Tell whether a worker runs on this machine."""
    return offer.host == socket.gethostname()


def _children(number: int) -> str:
    return "1 child" if number == 1 else f"{number} children"


# ---- the magic


def register(shell: InteractiveShell) -> None:
    """Make `%workers` known to a shell."""
    shell.magics_manager.register_function(workers, "line", "workers")


def unregister(shell: InteractiveShell) -> None:
    """Remove `%workers`."""
    shell.magics_manager.magics["line"].pop("workers", None)


def workers(line: str) -> None:
    """%workers [status | start [N] | scale N | restart [NAME] | stop [NAME]].

    Without a word, a panel of all workers. `start` starts a worker on this machine, with N children; `scale` has N
    children on this machine in all. What runs ends before a worker stops or a child is replaced.
    """
    word, *rest = line.split() or [""]
    if word not in ("", "status", "start", "scale", "restart", "stop") or len(rest) > (word not in ("", "status")):
        raise UsageError(f"%workers: {line!r} is nothing it can do; {USAGE}")
    argument = rest[0] if rest else ""
    try:
        _obey(Fleet(current_app()), word, argument)
    except NBQueueError as exc:
        raise UsageError(str(exc)) from exc


def _obey(fleet: Fleet, word: str, argument: str) -> None:
    if word == "start":
        made = fleet.app.start_worker(_number(word, argument or str(os.cpu_count() or 1)))
        _say(f"{made.name} runs. It goes on without this kernel; %workers stop {made.name.partition('@')[0]} ends it.")
    elif word == "scale":
        _say(fleet.scale(_number(word, argument)))
    elif word == "restart":
        _say(fleet.restart(fleet.named(argument)))
    elif word == "stop":
        _say(fleet.stop(fleet.named(argument)))
    elif word == "status" or not in_kernel():
        _say(as_text(fleet.offers(), fleet.queued()))
    else:
        Panel(fleet).show()


def _number(word: str, text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= 1_000:
        raise UsageError(f"%workers {word} takes a number of children from 1 to 1000, not {text or 'nothing'}")
    return int(text)


def _say(text: str) -> None:
    print(text)  # noqa: T201 - a cell's output


# ---- the panel


class WorkersWidget(anywidget.AnyWidget):
    """The widget of the panel; all it draws is in `state`."""

    _esm = STATIC / "workers.js"
    _css = (STATIC / "nbqueue.css").read_text() + (STATIC / "workers.css").read_text()
    state = traitlets.Dict().tag(sync=True)


class Panel:
    """The panel of one cell.

    Args:
        fleet: what it shows.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.widget = WorkersWidget()
        answer_while_busy(self.widget)
        self.widget.on_msg(self._said)
        self._note = ""
        self._rates = Rates()
        self._busy = threading.Lock()
        self.look()

    def show(self) -> None:
        """Show it under the running cell, with text for where there are no widgets."""
        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        text = as_text(self.fleet.offers(), self.fleet.queued())
        _display({WIDGET: view, "text/plain": text}, raw=True)

    def look(self) -> None:
        """Bring it up to date."""
        try:
            offers, queued, trouble = self.fleet.offers(), self.fleet.queued(), ""
        except NBQueueError as exc:
            self.widget.state = {**self.widget.state, "trouble": visible(str(exc), 300), "at": time.time()}
            return
        self.widget.state = {
            "workers": [_row(offer, age, self._rates.of(offer)) for offer, age in offers],
            "queued": queued,
            "here": sum(offer.children for offer in self.fleet.here()),
            "cores": os.cpu_count() or 1,
            "embedded": self.fleet.app.link.embedded,
            "note": visible(self._note, 300),
            "trouble": trouble,
            "at": time.time(),
        }

    def _said(self, _: object, content: dict[str, Any], __: object) -> None:
        # Off this thread: it may be the kernel's, and the server may be slow to answer.
        threading.Thread(target=self._do, args=(content,), name="nbqueue workers", daemon=True).start()

    def _do(self, content: dict[str, Any]) -> None:
        if content.get("do") == "look":
            if self._busy.acquire(blocking=False):
                with contextlib.ExitStack() as stack:
                    stack.callback(self._busy.release)
                    self.look()
            return
        try:
            self._note = self._act(content)
        except Exception as exc:  # noqa: BLE001 - shown where the click was made
            self._note = str(exc)
        self.look()

    def _act(self, content: dict[str, Any]) -> str:
        name = str(content.get("name", ""))
        match content.get("do"):
            case "scale":
                return self.fleet.scale(int(content["size"]))
            case "stop":
                return self.fleet.stop([name], now=bool(content.get("now")))
            case "restart":
                return self.fleet.restart([name])
            case "cancel":
                self.fleet.app.AsyncResult(str(content["id"])).revoke(terminate=True)
                return f"{content['id']}: cancelling"
            case "log":
                text = tail(local.log_of(self.fleet.app, name), LOG_LINES, 20_000)
                self.widget.send({"log": text, "name": name})
        return self._note


class Rates:
    """Tells how many tasks a second each worker ends, from what it counts."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, int]]] = {}

    def of(self, offer: Offer, now: float | None = None) -> float | None:
        """Return the rate over the last ten seconds; None while too little is known."""
        now = time.monotonic() if now is None else now
        ended = offer.done + offer.failed
        seen = [one for one in self._seen.get(offer.name, []) if now - one[0] < 10.0 and one[1] <= ended]
        self._seen[offer.name] = [*seen, (now, ended)]
        if not seen or now - seen[0][0] < 2.0:
            return None
        return (ended - seen[0][1]) / (now - seen[0][0])


def _row(offer: Offer, age: float, rate: float | None) -> dict[str, Any]:
    lost = age > ALIVE_S
    return {
        "name": visible(offer.name.partition("@")[0], 60),
        "full": visible(offer.name, 120),
        "host": visible(offer.host, 60),
        "here": is_here(offer),
        "lost": lost,
        "stopping": offer.stopping,
        "queues": [] if offer.all_queues else [visible(queue, 30) for queue in offer.queues],
        "children": offer.children,
        "busy": offer.busy,
        "done": offer.done,
        "failed": offer.failed,
        "rate": None if lost else rate,
        "memory": 0 if lost else offer.memory,
        "cpu": 0.0 if lost else sum(shift.cpu for shift in offer.shifts),
        "heard": age,
        "python": visible(offer.python, 10),
        "shifts": [_shift(shift) for shift in offer.shifts],
    }


def _shift(shift: Shift) -> dict[str, Any]:
    return {
        "number": shift.number,
        "pid": shift.pid,
        "cpu": shift.cpu,
        "memory": shift.memory,
        "id": shift.id,
        "name": visible(short_name(shift.name), 80),
        "since": shift.since,
        "ready": shift.ready,
    }


# ---- text


def as_text(offers: Sequence[tuple[Offer, float]], queued: dict[str, int], now: Callable[[], float] = time.time) -> str:
    """Return the fleet as text: a line a worker, then what its children are at, then what waits."""
    lines = []
    for offer, age in offers:
        if age > ALIVE_S:
            lines.append(f"{visible(offer.name, 60)}  stopped answering {clock(age)} ago")
            continue
        queues = "all queues" if offer.all_queues else ", ".join(visible(queue, 30) for queue in offer.queues)
        state = "stopping, " if offer.stopping else ""
        size = f"{offer.memory / 1e6:,.0f} MB" if offer.memory else "-"
        lines.append(
            f"{visible(offer.name, 60)}  {state}{offer.busy} of {_children(offer.children)} busy  {queues}  "
            f"{offer.done:,} done, {offer.failed:,} failed  {size}"
        )
        lines += [
            f"  child {shift.number}: {visible(short_name(shift.name), 60)} {clock(max(0.0, now() - shift.since))}"
            for shift in offer.shifts
            if shift.id
        ]
    if not offers:
        lines.append("No workers yet. %workers start 4 starts one here.")
    waiting = sum(queued.values())
    if waiting:
        names = ", ".join(f"{visible(queue, 30)} {number:,}" for queue, number in queued.items())
        lines.append(f"{waiting:,} task{'s' * (waiting > 1)} waiting: {names}")
    return "\n".join(lines)
