"""Remote control: what clients ask of workers and tell them, and what they wait for in answer.

`Control` and `Inspect` have Celery's names. Commands go as signed orders (`nbqueue/orders.py`); what workers do about
them is in `nbqueue/panel.py`. `control_command` and `inspect_command` make commands of one's own:

    @inspect_command(args=[("factor", int)])
    def load(state, factor=1):
        return {"load": factor * len(state.active())}
"""

from __future__ import annotations

import fnmatch
import re
import signal as signals
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nbqueue import messages
from nbqueue.backends.base import chunks
from nbqueue.exceptions import BadMessage, ImproperlyConfigured, NBQueueError
from nbqueue.messages import new_nonce, open_control, open_reply, sign_control
from nbqueue.watcher import live_offers

if TYPE_CHECKING:
    from nbqueue.app import App

__all__ = ["Command", "Control", "Inspect", "commands", "control_command", "flatten_reply", "inspect_command"]

IDS_AT_ONCE: Final = 200  # in one order, which has a bound
MATCHERS: Final = ("glob", "pcre")
Answer = dict[str, Any]  # {worker's name: what it answers}


# ---- commands


@dataclass(frozen=True)
class Command:
    """What is known of a command by its name.

    Args:
        name: under which it is asked for.
        kind: `inspect` for one that changes nothing, else `control`.
        help: one line.
        args: names of its arguments on the command line, and what makes a value of a word.
        variadic: the argument that takes all words that are left.
        signature: how these are shown.
        default_timeout: seconds that the command line waits for answers.
        run: of the user's own: called with a `State` and the arguments.
        needs: how many words it can't do without.
    """

    name: str
    kind: str
    help: str
    args: tuple[tuple[str, Callable[[str], Any]], ...] = ()
    variadic: str = ""
    signature: str = ""
    default_timeout: float = 1.0
    run: Callable[..., Any] | None = None
    needs: int = 0

    def arguments(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the arguments that words of the command line stand for.

        Raises:
            ValueError: there are too few or too many, or one is of the wrong kind.
        """
        if len(words) < self.needs:
            raise ValueError(f"something is missing after {' '.join([self.name, *words])}")
        found: dict[str, Any] = {}
        for (name, convert), word in zip(self.args, words, strict=False):
            try:
                found[name] = convert(word)
            except ValueError as exc:
                kind = {int: "whole number", float: "number"}.get(convert)  # type: ignore[call-overload]
                raise ValueError(f"{word!r} is no {kind}" if kind else str(exc)) from None
        rest = list(words[len(self.args) :])
        if self.variadic:
            found[self.variadic] = rest
        elif rest:
            raise ValueError(f"{self.name} takes {self.signature or 'no arguments'}, not also {' '.join(rest)}")
        return found


def truth(word: str) -> bool:
    """Return what a word such as `yes` or `0` says.

    Raises:
        ValueError: it says neither.
    """
    found = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
    if word.lower() not in found:
        raise ValueError(f"{word!r} is neither true nor false")
    return found[word.lower()]


_BUILT_IN: Final = {
    command.name: command
    for command in (
        Command("active", "inspect", "Tasks that run."),
        Command("active_queues", "inspect", "Queues that workers listen to."),
        Command("clock", "inspect", "The workers' logical clocks."),
        Command("conf", "inspect", "Settings.", (("with_defaults", truth),), signature="[with_defaults=no]"),
        Command("memdump", "inspect", "The memory of workers and their children, over time.", (("samples", int),)),
        Command("memsample", "inspect", "The memory that workers use."),
        Command("objgraph", "inspect", "Not supported: needs a debugger in the worker."),
        Command("ping", "inspect", "Who is there."),
        Command("query_task", "inspect", "What workers know of tasks.", variadic="ids", signature="ID ...", needs=1),
        Command(
            "registered", "inspect", "Tasks by name.", variadic="taskinfoitems", signature="[rate_limit|time_limit|...]"
        ),
        Command("report", "inspect", "Versions and settings, for reports of defects."),
        Command("reserved", "inspect", "Tasks that workers have claimed and not begun."),
        Command("revoked", "inspect", "Tasks that are being revoked."),
        Command("scheduled", "inspect", "Tasks that wait for their time, on the queues of each worker."),
        Command("stats", "inspect", "Counters, processes and limits of workers."),
        Command(
            "add_consumer",
            "control",
            "Listen to one more queue.",
            (("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)),
            signature="QUEUE [EXCHANGE [TYPE [ROUTING_KEY]]]",
            needs=1,
        ),
        Command("autoscale", "control", "Change the bounds of autoscaling.", (("max", int), ("min", int))),
        Command(
            "cancel_consumer", "control", "Listen to a queue no more.", (("queue", str),), signature="QUEUE", needs=1
        ),
        Command("disable_events", "control", "Send no events of tasks."),
        Command("enable_events", "control", "Send events of tasks."),
        Command("heartbeat", "control", "Send a heartbeat event now."),
        Command("pool_grow", "control", "Add children.", (("n", int),), signature="[N=1]"),
        Command("pool_restart", "control", "Replace the children."),
        Command("pool_shrink", "control", "Take children away.", (("n", int),), signature="[N=1]"),
        Command(
            "rate_limit",
            "control",
            "Limit how often a task runs.",
            (("task_name", str), ("rate_limit", str)),
            signature="TASK RATE, such as 5/s, 5/m or 5/h",
            needs=2,
        ),
        Command("revoke", "control", "Revoke tasks by id.", variadic="task_id", signature="ID ...", needs=1),
        Command("shutdown", "control", "Stop workers once their tasks have ended."),
        Command(
            "terminate",
            "control",
            "Revoke tasks, and stop those that run.",
            (("signal", str),),
            "task_id",
            signature="SIGNAL ID ...",
            needs=2,
        ),
        Command(
            "time_limit",
            "control",
            "Limit how long a task runs.",
            (("task_name", str), ("soft", float), ("hard", float)),
            signature="TASK SOFT_S [HARD_S]",
            needs=2,
        ),
    )
}
# What users' modules declare when they are imported, as Celery's users know it.
_OWN: Final[dict[str, Command]] = {}
# Older names that Celery's monitors use.
ALIASES: Final = {
    "dump_active": "active",
    "dump_conf": "conf",
    "dump_reserved": "reserved",
    "dump_revoked": "revoked",
    "dump_schedule": "scheduled",
    "dump_tasks": "registered",
}


def commands(kind: str = "") -> dict[str, Command]:
    """Return what is known of commands by their names; of one kind if that is given."""
    return {name: one for name, one in (_BUILT_IN | _OWN).items() if kind in ("", one.kind)}


def inspect_command(run: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a function a command that changes nothing; see `control_command`."""
    return _command("inspect", run, options)


def control_command(run: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a function a command for workers, which have its module by `-A` or `include`.

    It is called in the worker's own process, in a thread, with a `nbqueue.panel.State` and its arguments. These are
    JSON, and so is what it returns. Used as `@control_command` or with options:

    Args:
        run: the function.
        options: `name`; `args`, the names of arguments on the command line with their types; `variadic`, the one that
            takes all words that are left; `signature`, how they are shown; `help`; `default_timeout`.
    """
    return _command("control", run, options)


def _command(kind: str, run: Callable[..., Any] | None, options: dict[str, Any]) -> Any:
    known = {"name", "args", "variadic", "signature", "help", "default_timeout", "alias", "visible"}
    if wrong := sorted(options.keys() - known):
        raise TypeError(f"a command has no option {', '.join(wrong)}; it has {', '.join(sorted(known))}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = options.get("name") or function.__name__
        for one in filter(None, (name, options.get("alias"))):
            if one in _BUILT_IN:
                raise ImproperlyConfigured(f"{one} is a command of nbqueue's own; give yours another name")
            _OWN[one] = Command(
                one,
                kind,
                options.get("help") or (function.__doc__ or "").strip().partition("\n")[0],
                tuple((word, convert) for word, convert in options.get("args") or ()),
                options.get("variadic") or "",
                options.get("signature") or "",
                options.get("default_timeout") or 1.0,
                function,
            )
        return function

    return register if run is None else register(run)


# ---- clients


def matches(name: str, pattern: str, matcher: str) -> bool:
    """Tell whether a worker's name fits a pattern of either kind; no pattern fits every name.

    Raises:
        ValueError: there is no such kind, or the pattern can't be read.
    """
    if not pattern:
        return True
    if matcher not in MATCHERS:
        raise ValueError(f"a pattern is read as {' or '.join(MATCHERS)}, not as {matcher!r}")
    if matcher == "glob":
        return fnmatch.fnmatchcase(name, pattern)
    try:
        return re.match(pattern, name) is not None
    except re.error as exc:
        raise ValueError(f"{pattern!r} is no regular expression: {exc}") from None


def flatten_reply(answers: Iterable[Answer]) -> Answer:
    """Return the answers of several workers as one dict, by their names."""
    return {name: value for answer in answers for name, value in answer.items()}


def signal_name(signal: str | int | None) -> str:
    """Return a signal's name: of `SIGTERM`, `TERM` or 15; empty for None.

    Raises:
        ValueError: there is no such signal.
    """
    if signal is None or signal == "":
        return ""
    try:
        if isinstance(signal, int):
            return signals.Signals(signal).name
        name = signal.upper()
        return signals.Signals[name if name.startswith("SIG") else f"SIG{name}"].name
    except (KeyError, ValueError):
        raise ValueError(f"there is no signal {signal!r}") from None


class Control:
    """Tells workers what to do, over the signed stream of orders; `app.control` is one.

    Methods take `destination` (names of workers; all if None), `reply` (return what they answer), `timeout` (seconds),
    `limit` (of answers), `callback` (called with each) and `pattern` with `matcher` (`glob` or `pcre`).
    """

    def __init__(self, app: App) -> None:
        self.app = app

    def inspect(
        self,
        destination: Sequence[str] | str | None = None,
        timeout: float = 1.0,
        callback: Callable[[Answer], object] | None = None,
        connection: object = None,
        app: App | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Inspect:
        """Return what asks workers, and changes nothing."""
        return Inspect(destination, timeout, callback, connection, app or self.app, limit, pattern, matcher)

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Sequence[str] | str | None = None,
        connection: object = None,
        reply: bool = False,
        timeout: float = 1.0,
        limit: int | None = None,
        callback: Callable[[Answer], object] | None = None,
        channel: object = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra: Any,
    ) -> list[Answer] | None:
        """Give workers a command.

        Args:
            command: its name.
            arguments: JSON.
            destination: names of workers; all if None.
            connection: taken for Celery's sake.
            reply: wait for answers, until every worker that lives has given one.
            timeout: seconds to wait at most.
            limit: of answers.
            callback: called with each answer as it comes.
            channel: taken for Celery's sake.
            pattern: for workers whose names fit.
            matcher: how that is read: `glob`, the default, or `pcre`.
            extra: further arguments.

        Returns:
            A dict with one worker's name and its answer for each; None unless `reply`.

        Raises:
            BackendUnavailable: the server can't be reached.
            ValueError: the arguments are no JSON, or too much of it.
        """
        del connection, channel
        names = (destination,) if isinstance(destination, str) else tuple(destination or ())
        matcher = (matcher or "glob") if pattern else ""
        matches("", pattern or "", matcher)
        order = messages.Control(
            order="command",
            at=time.time(),
            nonce=new_nonce(),
            workers=names,
            command=command,
            arguments={**(arguments or {}), **extra},
            pattern=pattern or "",
            matcher=matcher,
            reply=new_nonce() if reply else "",
        )
        try:
            text = sign_control(order, self.app.signer)
            open_control(text, self.app.signer)
        except TypeError as exc:
            raise ValueError(f"arguments of {command} are no JSON: {exc}") from None
        except BadMessage as exc:
            raise ValueError(f"arguments of {command} can't be sent: {exc}") from None
        awaited = set(names)
        backend = self.app.backend
        if reply and not names:
            offers = live_offers(backend, self.app.signer, backend.now())
            awaited = {offer.name for offer in offers if matches(offer.name, pattern or "", matcher)}
        backend.order(text)
        return self._answers(order, awaited, timeout, limit, callback) if reply else None

    def _answers(
        self,
        order: messages.Control,
        awaited: set[str],
        timeout: float,
        limit: int | None,
        callback: Callable[[Answer], object] | None,
    ) -> list[Answer]:
        """Return answers until all that are awaited have come, or time is up. What isn't signed is none."""
        found: list[Answer] = []
        deadline = time.monotonic() + timeout
        while awaited and (limit is None or len(found) < limit) and (left := deadline - time.monotonic()) > 0:
            for text in self.app.backend.replies(order.reply, left):
                try:
                    answer, body = open_reply(text, order.nonce, self.app.signer)
                    value = msgspec.json.decode(body)
                except (BadMessage, msgspec.DecodeError):
                    continue
                awaited.discard(answer.worker)
                found.append({answer.worker: value})
                if callback is not None:
                    callback(found[-1])
        return found[:limit]

    def purge(self, connection: object = None) -> int:
        """Drop all messages that wait on the queues of this app's settings; return how many."""
        del connection
        conf = self.app.conf
        return sum(self.app.broker.purge(queue) for queue in conf.task_queues or (conf.task_default_queue,))

    discard_all = purge

    def ping(self, destination: Sequence[str] | None = None, timeout: float = 1.0, **options: Any) -> list[Answer]:
        """Return `{name: {"ok": "pong"}}` for each worker that is there."""
        return self.broadcast("ping", destination=destination, reply=True, timeout=timeout, **options) or []

    def revoke(
        self,
        task_id: str | Iterable[str],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str | int | None = None,
        **options: Any,
    ) -> list[Answer] | None:
        """Cancel tasks by id: what waits ends now, wherever it is; what runs goes on unless `terminate`.

        Args:
            task_id: one, or several.
            destination: whose answers are waited for; a task is revoked whoever has it.
            terminate: stop those that run.
            signal: the first one to send; SIGINT if None. SIGTERM and SIGKILL follow after 3 s each.
            options: as `broadcast` takes them.
        """
        ids = [task_id] if isinstance(task_id, str) else [str(one) for one in task_id]
        name = signal_name(signal)
        self.app.revoke([self.app.AsyncResult(id_) for id_ in ids], terminate=terminate, signal=name)
        if not options.get("reply"):
            return None
        found: list[Answer] = []
        for part in chunks(ids, IDS_AT_ONCE):
            arguments = {"task_id": part, "terminate": terminate, "signal": name}
            found += self.broadcast("revoke", arguments, destination, **options) or ()
        return found

    def terminate(
        self,
        task_id: str | Iterable[str],
        destination: Sequence[str] | None = None,
        signal: str | int | None = None,
        **options: Any,
    ) -> list[Answer] | None:
        """Cancel tasks by id, also those that run; see `revoke`."""
        return self.revoke(task_id, destination, terminate=True, signal=signal, **options)

    def revoke_by_stamped_headers(self, headers: Any, **options: Any) -> Any:
        """Raise: nbqueue has no stamps.

        Raises:
            NBQueueError: always.
        """
        del headers, options
        raise NBQueueError("tasks have no stamped headers here; revoke them by id, or a whole group by its handle")

    def rate_limit(
        self, task_name: str, rate_limit: float | str | None, destination: Sequence[str] | None = None, **options: Any
    ) -> list[Answer] | None:
        """Limit how often a task runs, by its name: a number a second, or a text such as `"100/m"`; None: no limit."""
        arguments = {"task_name": task_name, "rate_limit": rate_limit}
        return self.broadcast("rate_limit", arguments, destination, **options)

    def time_limit(
        self,
        task_name: str,
        soft: float | None = None,
        hard: float | None = None,
        destination: Sequence[str] | None = None,
        **options: Any,
    ) -> list[Answer] | None:
        """Limit how long a task may run, by its name, from its next call on; None for both: as it was declared."""
        arguments = {"task_name": task_name, "soft": soft, "hard": hard}
        return self.broadcast("time_limit", arguments, destination, **options)

    def add_consumer(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str = "direct",
        routing_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        **more: Any,
    ) -> list[Answer] | None:
        """Have workers listen to one more queue."""
        binding = {"exchange": exchange, "exchange_type": exchange_type, "routing_key": routing_key}
        arguments = {"queue": queue, **binding, **(options or {})}
        return self.broadcast("add_consumer", arguments, destination, **more)

    def cancel_consumer(
        self, queue: str, destination: Sequence[str] | None = None, **options: Any
    ) -> list[Answer] | None:
        """Have workers listen to a queue no more; what they have claimed of it they run."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **options)

    def enable_events(self, destination: Sequence[str] | None = None, **options: Any) -> list[Answer] | None:
        """Have workers send events of tasks."""
        return self.broadcast("enable_events", {}, destination, **options)

    def disable_events(self, destination: Sequence[str] | None = None, **options: Any) -> list[Answer] | None:
        """Have workers send no events of tasks."""
        return self.broadcast("disable_events", {}, destination, **options)

    def pool_grow(self, n: int = 1, destination: Sequence[str] | None = None, **options: Any) -> list[Answer] | None:
        """Have workers add `n` children each."""
        return self.broadcast("pool_grow", {"n": n}, destination, **options)

    def pool_shrink(self, n: int = 1, destination: Sequence[str] | None = None, **options: Any) -> list[Answer] | None:
        """Have workers take `n` children away each, after the tasks they are at."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **options)

    def autoscale(
        self, max: int, min: int, destination: Sequence[str] | None = None, **options: Any
    ) -> list[Answer] | None:
        """Change the bounds between which workers scale themselves."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **options)

    def shutdown(self, destination: Sequence[str] | None = None, **options: Any) -> list[Answer] | None:
        """Stop workers once their tasks have ended."""
        return self.broadcast("shutdown", {}, destination, **options)

    def pool_restart(
        self,
        modules: Sequence[str] | None = None,
        reload: bool = False,
        reloader: object = None,
        destination: Sequence[str] | None = None,
        **options: Any,
    ) -> list[Answer] | None:
        """Replace the children of workers, each after the task it is at.

        Args:
            modules: their code is read anew: as with `reload`, which reads all of it.
            reload: once what runs has ended the worker begins anew with the code on disk, as at HUP, if it can be used.
            reloader: taken for Celery's sake.
            destination: names of workers; all if None.
            options: as `broadcast` takes them.
        """
        del reloader
        arguments = {"modules": list(modules or ()), "reload": reload}
        return self.broadcast("pool_restart", arguments, destination, **options)

    def heartbeat(self, destination: Sequence[str] | None = None, **options: Any) -> list[Answer] | None:
        """Have workers send a heartbeat event now."""
        return self.broadcast("heartbeat", {}, destination, **options)


class Inspect:
    """Asks workers how they are; each question returns `{name: answer}`, or None if nobody has answered.

    Args:
        destination: names of workers; all if None. Of one name that isn't in a list, its answer alone is returned.
        timeout: seconds to wait at most; less, once every worker that lives has answered.
        callback: called with each answer as it comes.
        connection: taken for Celery's sake.
        app: whose workers.
        limit: of answers.
        pattern: for workers whose names fit.
        matcher: how that is read: `glob` or `pcre`.
    """

    def __init__(
        self,
        destination: Sequence[str] | str | None = None,
        timeout: float = 1.0,
        callback: Callable[[Answer], object] | None = None,
        connection: object = None,
        app: App | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        del connection
        if app is None:
            raise TypeError("whose workers? Use app.control.inspect()")
        self.app = app
        self.destination = destination
        self.timeout = timeout
        self.callback = callback
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher

    def request(self, command: str, **arguments: Any) -> Any:
        """Ask a command, also one of the user's own."""
        answers = self.app.control.broadcast(
            command,
            arguments,
            self.destination,
            reply=True,
            timeout=self.timeout,
            limit=self.limit,
            callback=self.callback,
            pattern=self.pattern,
            matcher=self.matcher,
        )
        found = flatten_reply(answers or ())
        if isinstance(self.destination, str):
            return found.get(self.destination)
        return found or None

    _request = request  # what Celery's users call for commands of their own

    def ping(self, destination: Sequence[str] | str | None = None) -> Any:
        """Return `{"ok": "pong"}` of each."""
        if destination is not None:
            self.destination = destination
        return self.request("ping")

    def active(self, safe: bool | None = None) -> Any:
        """Return the tasks that run: a list of dicts."""
        del safe
        return self.request("active")

    def reserved(self, safe: bool | None = None) -> Any:
        """Return the tasks that are claimed and have not begun."""
        del safe
        return self.request("reserved")

    def scheduled(self, safe: bool | None = None) -> Any:
        """Return the tasks that wait for their time in the broker, on the queues that each worker listens to."""
        del safe
        return self.request("scheduled")

    def revoked(self) -> Any:
        """Return the ids of tasks that are being revoked."""
        return self.request("revoked")

    def registered(self, *taskinfoitems: str) -> Any:
        """Return the names of tasks, with the attributes that are asked for."""
        return self.request("registered", taskinfoitems=taskinfoitems)

    registered_tasks = registered

    def active_queues(self) -> Any:
        """Return the queues that are listened to."""
        return self.request("active_queues")

    def stats(self) -> Any:
        """Return counters, processes and limits."""
        return self.request("stats")

    def query_task(self, *ids: str | Sequence[str]) -> Any:
        """Return `{id: [state, dict]}` of those tasks that are known; state is `active` or `reserved`."""
        flat = [id_ for one in ids for id_ in ((one,) if isinstance(one, str) else one)]
        if len(flat) <= IDS_AT_ONCE:
            return self.request("query_task", ids=flat)
        found: dict[str, Any] = {}
        for part in chunks(flat, IDS_AT_ONCE):
            answer = self.request("query_task", ids=part) or {}
            if isinstance(self.destination, str):
                found |= answer
            else:
                for worker, tasks in answer.items():
                    found.setdefault(worker, {}).update(tasks)
        return found or None

    def conf(self, with_defaults: bool = False) -> Any:
        """Return settings, those that differ from the defaults or all; without passwords."""
        return self.request("conf", with_defaults=with_defaults)

    def report(self) -> Any:
        """Return `{"ok": text}`, for reports of defects."""
        return self.request("report")

    def clock(self) -> Any:
        """Return `{"clock": number}`."""
        return self.request("clock")

    def memsample(self) -> Any:
        """Return the memory that each worker uses, as text."""
        return self.request("memsample")

    def memdump(self, samples: int = 10) -> Any:
        """Return what `memsample` has returned before, as text."""
        return self.request("memdump", samples=samples)

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Any:
        """Return `{"error": text}`: workers don't draw their objects."""
        return self.request("objgraph", num=n, max_depth=max_depth, type=type)

    def hello(self, from_node: str, revoked: object = None) -> Any:
        """Return `{"revoked": [], "clock": number}`: workers have nothing to tell each other at their start."""
        del revoked
        return self.request("hello", from_node=from_node)
