"""`%%task`: a cell sent to a worker, its handle bound, its view shown, and found again when it is run again."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import keyword
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, NoReturn

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from nbqueue import serialization, states
from nbqueue.app import App
from nbqueue.cellrun import CellRun
from nbqueue.config import Environment
from nbqueue.current import current_app
from nbqueue.exceptions import NBQueueError, NotPicklable, TaskError
from nbqueue.messages import pack_body
from nbqueue.modules import imported_by
from nbqueue.notebook.cells import capture, read_cell
from nbqueue.notebook.fingerprint import fingerprint
from nbqueue.notebook.views import clock, in_kernel, watch, watch_in_terminal
from nbqueue.payloads import Packer
from nbqueue.result import AsyncResult, EagerResult, MapResult
from nbqueue.tasks import Task

LARGE_BYTES: Final = 500_000_000
VIEWS: Final = ("full", "plain", "none")
MISSED: Final = {"once": "coalesce", "skip": "skip", "all": "all"}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line in the cell."""

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if unknown:
            options = [text for action in self._actions for text in action.option_strings]
            near = difflib.get_close_matches(unknown[0], options, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(sorted(options))}"
            raise UsageError(f"%%task has no option {unknown[0]}{hint}")
        raise UsageError(f"%%task: {message}")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is no number of times")
    return int(text)


def _priority(text: str) -> int:
    if text not in [str(level) for level in range(10)]:
        raise argparse.ArgumentTypeError(f"{text} is no priority; it is 0 to 9, the highest first")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="%%task", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("-o", "--output", default="", help="names to bring back: a,b")
    parser.add_argument("-q", "--queue")
    parser.add_argument(
        "--wait", action="store_true", help="wait for the value, and show the task's error as the cell's"
    )
    parser.add_argument("--countdown", type=_seconds)
    parser.add_argument("--retries", type=_count, default=0, help="run it again so often if it raises")
    parser.add_argument("--time-limit", type=_seconds, help="seconds after which it is ended")
    parser.add_argument("--memory-limit", help="as 2GB; more than that ends it")
    parser.add_argument("--priority", type=_priority, help="0 to 9, the highest first")
    parser.add_argument("--again", action="store_true", help="send it anew even if the same is running")
    parser.add_argument("--large", action="store_true", help="send more than 500 MB")
    parser.add_argument("--view", choices=VIEWS, default="full")
    parser.add_argument("--every", help="run it again and again: 30s, 10m, 1h30m")
    parser.add_argument("--cron", help='run it at these times: "0 7 * * mon-fri"')
    parser.add_argument("--zone", help="in which --cron is meant: Europe/Oslo")
    parser.add_argument("--missed", choices=sorted(MISSED), help="what becomes of times when nobody was there")
    return parser


@dataclass(frozen=True)
class Line:
    """The words after `%%task`."""

    name: str
    outputs: tuple[str, ...]
    queue: str | None
    wait: bool
    countdown: float | None
    again: bool
    large: bool
    view: str
    retries: int = 0
    time_limit: float | None = None
    memory_limit: str | None = None
    priority: int | None = None
    every: str | None = None
    cron: str | None = None
    zone: str = ""
    missed: str = "once"

    @property
    def rule(self) -> str:
        """Return when a periodic cell runs; empty for one that runs now."""
        return f"every {self.every}" if self.every else f"cron {self.cron}" if self.cron else ""

    @property
    def options(self) -> dict[str, Any]:
        """Return those of `App.cell_steering`."""
        return {
            "queue": self.queue,
            "priority": self.priority,
            "time_limit": self.time_limit,
            "memory_limit": self.memory_limit,
            "max_retries": self.retries,
        }


def parse_line(line: str) -> Line:
    """Return what the line of a `%%task` cell says.

    Raises:
        UsageError: a word is unknown or unfit; names it.
    """
    try:
        words = shlex.split(line)
    except ValueError as exc:
        raise UsageError(f"%%task: {exc}") from exc
    found = _parser().parse_args(words)
    outputs = tuple(name.strip() for name in found.output.split(",") if name.strip())
    for name in (*outputs, *([found.name] if found.name else [])):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"%%task: {name!r} is no name a variable can have")
    handle = found.name or "_task"
    if handle in outputs:
        raise UsageError(f"%%task: -o {handle} would replace the task's handle; give the task another name")
    _check_periodic(found)
    return Line(
        found.name,
        outputs,
        found.queue,
        found.wait,
        found.countdown,
        found.again,
        found.large,
        found.view,
        found.retries,
        found.time_limit,
        found.memory_limit,
        found.priority,
        found.every and found.every.strip().removeprefix("every "),
        found.cron,
        found.zone or "",
        found.missed or "once",
    )


def _check_periodic(found: argparse.Namespace) -> None:
    """Refuse options that say nothing beside, or without, those of a periodic cell."""
    if found.every is not None and found.cron is not None:
        raise UsageError("%%task: --every and --cron are two ways to say when; give one")
    if found.every is None and found.cron is None:
        given = [option for option in ("zone", "missed") if getattr(found, option) is not None]
        if given:
            raise UsageError(f"%%task: --{given[0]} says something of --every or --cron; give one of these too")
        return
    if not (found.every if found.cron is None else found.cron).strip():
        raise UsageError('%%task: say when: --every 10m, or --cron "0 7 * * mon-fri"')
    if found.zone is not None and found.cron is None:
        raise UsageError("%%task: --zone says in which zone --cron is meant; an interval is as long in each")
    for option, said in (("wait", found.wait), ("again", found.again), ("countdown", found.countdown is not None)):
        if said:
            raise UsageError(
                f"%%task: --{option} has no meaning for a cell that runs by the clock; %beat run runs it now"
            )


@dataclass(frozen=True)
class Place:
    """Where a cell stands: empty strings where that isn't known."""

    notebook: str = ""
    cell: str = ""

    @classmethod
    def find(cls, shell: InteractiveShell) -> Place:
        """Return the place of the cell that runs now.

        nbclient and papermill give a kernel neither, so nothing attaches where nobody looks.
        """
        metadata: Mapping[str, Any] = {}
        with contextlib.suppress(AttributeError, LookupError, TypeError):
            metadata = shell.get_parent().get("metadata", {})  # type: ignore[attr-defined]
        path = Environment.read().variables.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__", "")
        return cls(str(path or ""), str(metadata.get("cellId") or ""))

    def identity(self, name: str) -> str:
        """Return what a cell is known by when it runs again; empty if that can't be told."""
        own = name or self.cell
        if not self.notebook or not self.cell:
            return ""
        return hashlib.sha256(f"{self.notebook}\0{own}".encode()).hexdigest()[:32]

    def label(self, name: str) -> str:
        """Return what a person calls the task."""
        return name or (f"cell-{self.cell[:8]}" if self.cell else "")


def _as_text(handle: EagerResult) -> None:
    """Let a call that ran in this kernel show as text: there is nothing of it to follow."""
    raise NotImplementedError


class TaskMagics:
    """`%%task` for one shell.

    Args:
        shell: IPython's.
        app: sends; the current app if None, so that nothing is started before something is sent.
        show: shows a handle's view.
    """

    def __init__(self, shell: InteractiveShell, app: App | None = None, show: Callable[..., Any] = watch) -> None:
        self.shell = shell
        self._app = app
        self._show = show
        self._latest: dict[str, str] = {}  # a variable that outputs are brought back to -> id of the task that does

    @classmethod
    def register(cls, shell: InteractiveShell) -> TaskMagics:
        """Make `%%task` known to a shell."""
        magics = cls(shell)
        shell.magics_manager.register_function(magics.task, "cell", "task")
        formatter = shell.display_formatter.ipython_display_formatter if shell.display_formatter else None
        if formatter is not None:
            formatter.for_type(AsyncResult, watch)
            formatter.for_type(EagerResult, _as_text)
            formatter.for_type(MapResult, watch)
        current_app().show = watch
        return magics

    @staticmethod
    def unregister(shell: InteractiveShell) -> None:
        """Remove `%%task` and the views."""
        shell.magics_manager.magics["cell"].pop("task", None)
        formatter = shell.display_formatter.ipython_display_formatter if shell.display_formatter else None
        if formatter is not None:
            formatter.pop(AsyncResult, None)
            formatter.pop(EagerResult, None)
            formatter.pop(MapResult, None)
        app = current_app()
        if app.show is watch:
            app.show = None

    @property
    def app(self) -> App:
        """Return the app that sends."""
        return self._app or current_app()

    def task(self, line: str, cell: str) -> Any:
        """Send the cell to a worker, with just the variables it reads.

        %%task [name] [-o a,b] [-q queue] [--wait] [--countdown s] [--retries n] [--time-limit s] [--memory-limit 2GB]
               [--priority 0-9] [--again] [--large] [--view full|plain|none]
        %%task name --every 10m | --cron "0 7 * * mon-fri" [--zone Europe/Oslo] [--missed once|skip|all] […]
        """
        words = parse_line(line)
        try:
            return self._task(words, line, cell)
        except SyntaxError as exc:
            text = "".join(traceback.format_exception_only(exc)).rstrip()
            raise UsageError(f"Not sent: the cell is no Python.\n{text}") from None
        except NBQueueError as exc:
            # A task's own error, of a cell that waits, is the cell's; what is ours is one line.
            if isinstance(exc, TaskError):
                raise
            raise UsageError(str(exc)) from exc

    def _task(self, words: Line, line: str, cell: str) -> Any:
        place = Place.find(self.shell)
        run = self._run_of(words, line, cell, place)
        packer = Packer()
        packed = self._pack(run, packer, large=words.large)
        digest = fingerprint(cell, run.variables, words.outputs, *packer.modules.values())
        if words.rule:
            self._schedule(words, place, packed, packer, digest)
            return None
        identity = place.identity(words.name)
        result = None if words.again or not identity else self._same(identity, digest, words)
        if result is None:
            result = self.app.send_cell(
                packed,
                packer,
                name=words.name or place.label("") or "cell",
                label=place.label(words.name),
                identity=identity,
                digest=digest,
                countdown=words.countdown,
                **words.options,
            )
        if identity:
            # Once its end was seen here, running the cell again means doing it again.
            result.then(lambda ended: self.app.forget_cell(identity, ended.id))
        handle = words.name or "_task"
        self.shell.user_ns[handle] = result
        self._bring_back(words.outputs, result)
        if words.wait and not in_kernel():
            return self._wait(words, handle, result, None, shown=words.view != "none")
        view = self._show(result, kind=words.view)
        return self._wait(words, handle, result, view, shown=False) if words.wait else None

    def _schedule(self, words: Line, place: Place, packed: bytes, packer: Packer, digest: str) -> None:
        """Let a cell run again and again, with no kernel; say when, and who sees to it."""
        name = place.label(words.name)
        if not name:
            raise UsageError(
                f"%%task: what runs by the clock has a name: %%task NAME --{'every' if words.every else 'cron'} …"
            )
        from nbqueue.notebook.entries import said_of  # noqa: PLC0415 - spares who schedules nothing its loading

        schedule = self.app.beat
        steering = self.app.cell_steering(name, name, **words.options)
        call = schedule.packed_message(steering, pack_body(b"", packed), packer)
        digest = hashlib.sha256(f"{digest}{sorted(words.options.items())}".encode()).hexdigest()
        entry, done = schedule.put_packed(
            name, words.rule, call, zone=words.zone, policy=MISSED[words.missed], digest=digest
        )
        self._say(said_of(entry, done, schedule.leader(), embedded=self.app.link.embedded))

    def _run_of(self, words: Line, line: str, cell: str, place: Place) -> CellRun:
        filename = f"<cell {words.name or place.label('') or 'cell'}>"
        # The line of the magic counts: a traceback then has the numbers that the notebook shows.
        source = "\n" + str(self.shell.transform_cell(cell))  # type: ignore[no-untyped-call]
        variables = capture(read_cell(source, filename), self.shell.user_ns)
        if not words.rule:
            self._keep_from_handle(words.name, variables)
        sources: dict[str, str] = {}
        for value in variables.values():
            sources |= serialization.sources_of(value.function if isinstance(value, Task) else value)
        anchor = FunctionType(_anchor.__code__, self.shell.user_ns, "anchor")
        anchor.__module__ = "__main__"
        return CellRun(source, filename, variables, words.outputs, anchor, sources, f"%%task {line}\n{cell}")

    @staticmethod
    def _keep_from_handle(name: str, variables: dict[str, Any]) -> None:
        """Let no handle take the place of what its cell reads. An earlier handle of this name is no input."""
        value = variables.get(name)
        if isinstance(value, AsyncResult):
            del variables[name]
        elif name in variables:
            kind = type(value).__name__
            raise UsageError(
                f"Not sent: the cell reads {name}, a {kind}, which the task's handle would replace. "
                f"Give the task another name, for example %%task {name}_task"
            )

    def _pack(self, run: CellRun, packer: Packer, *, large: bool) -> bytes:
        try:
            imports = imported_by(run.source)
            packed = serialization.dumps_args((run,), {}, packer=packer, by_value=True, imports=imports)
        except NotPicklable as exc:
            raise UsageError(self._culprit(run) or str(exc)) from exc
        size = len(packed) + packer.size
        if size > LARGE_BYTES and not large:
            table = ", ".join(f"{name} {part / 1e6:,.0f} MB" for name, part in _largest(_sizes(run.variables)))
            raise UsageError(
                f"Not sent: the cell takes along {size / 1e6:,.0f} MB: {table}. "
                "Load them inside the task, or send them all the same with --large."
            )
        return packed

    @staticmethod
    def _culprit(run: CellRun) -> str:
        """Return which variable of a cell can't travel, and why."""
        for name, value in run.variables.items():
            try:
                serialization.dumps_value(value, Packer())
            except Exception as exc:  # noqa: BLE001 - users' classes may raise anything
                what = serialization.explain_unpicklable(name, value) or name
                what = what.replace(f" (of {name})", f" (of cell variable {name})")
                return f"Not sent: {what} can't travel. Open it inside the task. ({exc})"
        return ""

    def _same(self, identity: str, digest: str, words: Line) -> AsyncResult | None:
        """Return the task of this cell if the same code with the same inputs runs, or ended unseen."""
        result = self.app.find_cell(identity, digest)
        if result is None:
            return None
        state = result.state
        status = result.watched.status
        name = words.name or status.name
        if state in states.UNREADY_STATES:
            since = status.started_at or status.sent_at
            doing = "running" if state == states.STARTED else "queued"
            self._say(
                f"{name} is already {doing} ({clock(time.time() - since)}). Watching it; nothing was sent. "
                "To send it anew: %%task --again"
            )
            return result
        if state == states.SUCCESS:
            self._say(f"{name} ended while nobody watched. This is its result; nothing was sent. Anew: %%task --again")
            return result
        return None

    def _bring_back(self, names: Sequence[str], result: AsyncResult) -> None:
        self._latest |= dict.fromkeys(names, result.id)
        if names:
            result.then(lambda ended: self._assign(names, ended))

    def _assign(self, names: Sequence[str], ended: AsyncResult) -> None:
        outputs = ended.outputs
        # Who was sent last has the last word, whoever ends last.
        mine = [name for name in names if name in outputs and self._latest.get(name) == ended.id]
        self.shell.user_ns.update({name: outputs[name] for name in mine})

    def _wait(self, words: Line, handle: str, result: AsyncResult, view: Any, *, shown: bool) -> Any:
        end = watch_in_terminal(result) if shown else None
        try:
            value = result.get()
            # The thread that brings them back may be a moment behind.
            self._assign(words.outputs, result)
        except KeyboardInterrupt:
            self._say(
                f"Stopped watching. {handle} goes on as {result.id[:8]}; cancel it with "
                f"{handle}.revoke(terminate=True) or the button above."
            )
            return None
        else:
            return value
        finally:
            # The cell is about to end; whoever runs it by machine takes no notice of what is drawn later.
            if view is not None:
                view.draw()
            if end is not None:
                end()

    @staticmethod
    def _say(text: str) -> None:
        print(text)  # noqa: T201 - a cell's output


def _anchor() -> None:
    """Stand for the notebook's globals in a pickle; never called."""


def _sizes(variables: Mapping[str, Any]) -> dict[str, int]:
    """Return how many bytes each variable has when it travels alone."""
    sizes = {}
    for name, value in variables.items():
        packer = Packer()
        sizes[name] = len(serialization.dumps_value(value, packer)) + packer.size
    return sizes


def _largest(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])[:5]


__all__ = ["Line", "Place", "TaskMagics", "parse_line"]
