"""The handle on one task: what a caller holds of it. It can be had again from an id.

Source: the names and meanings are those of `celery.result`.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from nbqueue import serialization, states
from nbqueue.cellrun import CellResult
from nbqueue.current import current_app
from nbqueue.dependencies import DependencyGraph
from nbqueue.exceptions import (
    BackendUnavailable,
    ChordError,
    Ignore,
    IncompleteStream,
    Reject,
    RemoteError,
    ResultExpired,
    TaskRevokedError,
    TimeoutError,  # noqa: A004
    UnknownTask,
)
from nbqueue.graph import open_graph
from nbqueue.messages import Fact
from nbqueue.waits import INTERVAL_S, refuse_inside_a_task, tell_changes, until_ended, wait
from nbqueue.watched import WatchedTask

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.backends.base import Backend

__all__ = ["AsyncResult", "EagerResult"]


class AsyncResult:
    """The handle on one task id.

    Args:
        id: a task's id, sent by any process.
        app: whose broker and backend know it; the current app if None.
    """

    TimeoutError = TimeoutError  # what `get` raises, for who has no other name for it

    def __init__(
        self,
        id: str,
        app: App | None = None,
        *,
        watched: WatchedTask | None = None,
        parent: Any = None,
    ) -> None:
        self.id = id
        self.parent = parent
        self._app = app
        self._watched = watched
        self._ignored = False

    def __repr__(self) -> str:
        return f"<AsyncResult: {self.id}>"

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return self.id == other.id
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[type[AsyncResult], tuple[str]]:
        return AsyncResult, (self.id,)

    @property
    def app(self) -> App:
        """Return the app that knows this task."""
        if self._app is None:
            self._app = current_app()
        return self._app

    @property
    def backend(self) -> Backend:
        """Return what keeps it."""
        return self.app.backend

    @property
    def task_id(self) -> str:
        """Return the id, as Celery also calls it."""
        return self.id

    @property
    def watched(self) -> WatchedTask:
        """Return what the watcher knows, and follow the task from now on."""
        if self._watched is None:
            self._watched = self.app.watcher.attach(self.id)
        return self._watched

    def follow(self, watched: WatchedTask) -> None:
        """Take what is known of the task from here."""
        self._watched = watched

    @property
    def state(self) -> str:
        """Return the task's state: one of `states`, or the task's own."""
        watched = self.watched
        if watched.fact is not None:
            return watched.fact.facts.state
        if watched.trouble is not None:
            return states.UNKNOWN
        return str(watched.status.state)

    status = state

    @property
    def result(self) -> Any:
        """Return the value, or the exception of a task that failed or is to be retried.

        Before that what goes with a state of the task's own; of one that is STARTED its `pid` and `hostname`; or None.
        """
        fact = self.watched.fact
        if fact is not None:
            return outcome_of(fact, self.app)
        latest = self.watched.latest
        if latest is not None and latest.facts.pid:
            return {"pid": latest.facts.pid, "hostname": latest.facts.worker}
        if latest is None or not latest.body:
            return self.watched.trouble
        return error_of(latest, self.app) if latest.facts.state == states.RETRY else value_of(latest, self.app)

    info = result

    @property
    def outputs(self) -> dict[str, Any]:
        """Return the names that a cell was asked to bring back, once it is ready."""
        fact = self.watched.fact
        succeeded = fact is not None and fact.facts.state == states.SUCCESS
        value = (
            serialization.loads(fact.body, self.app.read_blob, self.app.accepted)
            if fact is not None and succeeded
            else None
        )
        return value.variables if isinstance(value, CellResult) else {}

    @property
    def traceback(self) -> str | None:
        """Return the remote traceback of a task that failed."""
        fact = self.watched.fact
        return fact.failure.traceback if fact is not None and fact.facts.state == states.FAILURE else None

    @property
    def name(self) -> str:
        """Return the task's name."""
        return self._facts_or_steering("task")

    @property
    def args(self) -> tuple[Any, ...] | None:
        """Return what it was called with by position; None unless `result_extended` had that kept, and it is short."""
        return self._call()[0]

    @property
    def kwargs(self) -> dict[str, Any] | None:
        """Return what it was called with by name; see `args`."""
        return self._call()[1]

    def _call(self) -> tuple[tuple[Any, ...] | None, dict[str, Any] | None]:
        fact = self.watched.fact
        if fact is None or not fact.facts.call:
            return None, None
        serializer, _, data = fact.facts.call.partition(":")
        return serialization.loads_args(base64.b64decode(data), serializer, self.app.read_blob, self.app.accepted)

    @property
    def queue(self) -> str:
        """Return the queue the task was sent to, or its last retry, if that went elsewhere."""
        latest = self.watched.latest
        return (latest.facts.queue if latest else "") or self._facts_or_steering("queue")

    @property
    def worker(self) -> str | None:
        """Return the worker that runs or ran it."""
        latest = self.watched.latest
        return (latest.facts.worker if latest else "") or None

    @property
    def retries(self) -> int:
        """Return how often it was retried, or is about to be."""
        latest = self.watched.latest
        return latest.facts.retries if latest else 0

    @property
    def date_done(self) -> datetime | None:
        """Return when it ended."""
        fact = self.watched.fact
        return datetime.fromtimestamp(fact.facts.at, UTC) if fact else None

    @property
    def children(self) -> list[AsyncResult] | None:
        """Return the handles of the calls that it has made, and of those that follow it in a canvas.

        None while nothing is known of it.
        """
        latest = self.watched.latest
        steering = self.watched.steering
        made = self._made(latest.children) if latest is not None else []
        graph = steering.graph if steering is not None else (latest.facts.graph if latest is not None else "")
        if not graph:
            return None if latest is None and steering is None else made
        text = self.app.backend.load_graph(graph)
        if text is None:
            return made
        node = steering.node if steering is not None else latest.facts.node if latest is not None else -1
        drawn = open_graph(text, graph, self.app.signer).graph
        return made + [AsyncResult(drawn.id_of(n), self.app, parent=self) for n in drawn.nodes[node].follow]

    def _made(self, children: Iterable[tuple[str, bool]]) -> list[Any]:
        """Return the handles of calls that it has made."""
        return [
            self.app.GroupResult(id_) if is_map else AsyncResult(id_, self.app, parent=self) for id_, is_map in children
        ]

    @property
    def exists(self) -> bool:
        """Tell whether anything is kept of it."""
        return self.state != states.UNKNOWN

    @property
    def supports_native_join(self) -> bool:
        """Return True: the ends of many are had at once."""
        return True

    @property
    def ignored(self) -> bool:
        """Tell whether nobody wants its value: it was sent so, or has been set; `get` returns None at once if set."""
        steering = None if self._watched is None else self._watched.steering
        return self._ignored or (steering is not None and steering.ignore_result)

    @ignored.setter
    def ignored(self, value: bool) -> None:
        self._ignored = value

    def ready(self) -> bool:
        """Tell whether the task has ended, in whatever way."""
        return self.watched.ended

    def successful(self) -> bool:
        """Tell whether the task ended with a value."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Tell whether the task raised."""
        return self.state == states.FAILURE

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], object] | None = None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        disable_sync_subtasks: bool = True,
        **_: object,
    ) -> Any:
        """Wait until the task has ended; return its value or raise its error.

        Args:
            timeout: seconds; None waits as long as it takes.
            propagate: False returns the exception instead of raising it.
            interval: seconds between two calls of `on_interval`; results are pushed.
            no_ack: taken for Celery's sake.
            follow_parents: where it has ended because a member of its header failed, raise what that raised.
            callback: called with id and value.
            on_message: called with a dict of `task_id`, `status`, `result`, `traceback`, `children` at each change.
            on_interval: called while it waits.
            disable_sync_subtasks: False lets a task wait for another; see `allow_join_result`.

        Raises:
            TimeoutError: it has not ended within `timeout`; the task goes on.
            TaskRevokedError: it was cancelled, or expired.
            UnknownTask: nobody sent it, or nothing is kept of it.
            ResultExpired: it was sent, and nothing is kept of it any more.
            BackendUnavailable: the backend has not answered for longer than `conf.backend_timeout`.
            RuntimeError: a task waits for another.
            Exception: what the task raised.
        """
        del no_ack
        if self._ignored:
            return None
        if disable_sync_subtasks:
            refuse_inside_a_task()
        if on_message is None and on_interval is None:
            wait(self.watched, timeout, self.app.conf.backend_timeout, f"task {self.id}")
        else:
            self._wait_and_tell(timeout, interval, on_message, on_interval)
        value = self.result
        if isinstance(value, BaseException) and self.state != states.SUCCESS and propagate:
            raise cause_of(value, self.parent, timeout) if follow_parents else value
        if callback is not None:
            callback(self.id, value)
        return value

    wait = get

    def _wait_and_tell(
        self,
        timeout: float | None,
        interval: float | None,
        on_message: Callable[[dict[str, Any]], object] | None,
        on_interval: Callable[[], object] | None,
    ) -> None:
        """Wait as `get` does, and tell of changes and of time meanwhile."""
        watched = self.watched
        pass_on = None if on_message is None else tell_changes(watched, self._meta, on_message)
        every_s = INTERVAL_S if interval is None else max(0.01, interval)

        def turn() -> None:
            if pass_on is not None:
                pass_on()
            if on_interval is not None:
                on_interval()

        timeout_s = self.app.conf.backend_timeout
        wait(watched, timeout, timeout_s, f"task {self.id}", every_s=every_s, on_interval=turn)
        if pass_on is not None:
            pass_on()

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], object] | None = None) -> Any:
        """Raise its error if it has failed; return its value, if it has one by now."""
        value = self.result
        if isinstance(value, BaseException) and self.state in states.PROPAGATE_STATES and propagate:
            raise value
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def throw(self, *_: object) -> Any:
        """Raise its error if it has failed."""
        return self.maybe_throw()

    def as_tuple(self) -> tuple[Any, None]:
        """Return ids, its own and that of what came before it, as `result_from_tuple` takes them."""
        return (self.id, self.parent and self.parent.as_tuple()), None

    def as_list(self) -> list[str]:
        """Return its id and those of all that came before it."""
        before = [] if self.parent is None else self.parent.as_list()
        return [self.id, *before]

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Yield (parent, handle) of it and all that follows it in a canvas.

        Raises:
            IncompleteStream: one of them has not ended, unless `intermediate`.
        """
        waiting: deque[tuple[Any, Any]] = deque([(None, self)])
        while waiting:
            parent, one = waiting.popleft()
            yield parent, one
            if not one.ready():
                if not intermediate:
                    raise IncompleteStream(f"task {one.id} has not ended")
                continue
            waiting.extend((one, child) for child in one.children or ())

    @property
    def graph(self) -> DependencyGraph:
        """Return what follows it in a canvas, and what it has called.

        Raises:
            IncompleteStream: one of them has not ended.
        """
        return self.build_graph()

    def build_graph(
        self, intermediate: bool = False, formatter: Callable[[Any], Mapping[str, Any]] | None = None
    ) -> DependencyGraph:
        """Return what follows it, and what it has called.

        Args:
            intermediate: take what is known by now.
            formatter: of `DependencyGraph`.

        Raises:
            IncompleteStream: one of them has not ended, unless `intermediate`.
        """
        graph = DependencyGraph(root=self, formatter=formatter)
        graph.add_arc(self)
        waiting: deque[Any] = deque([self])
        while waiting:
            one = waiting.popleft()
            if not one.ready():
                if not intermediate:
                    raise IncompleteStream(f"task {one.id} has not ended")
                continue
            for child in one.children or ():
                if child not in graph:
                    waiting.append(child)
                graph.add_edge(one, child)
        return graph

    def collect(
        self, intermediate: bool = False, timeout: float | None = None, **options: Any
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (handle, value) of it and all that follows it in a canvas, waiting for each.

        Args:
            intermediate: taken for Celery's sake.
            timeout: seconds for each.
            options: of `get`.
        """
        del intermediate
        waiting: deque[Any] = deque([self])
        while waiting:
            one = waiting.popleft()
            yield one, one.get(timeout=timeout, **options)
            waiting.extend(one.children or ())

    def get_leaf(self) -> Any:
        """Return the value of what follows last."""
        value = None
        for _, one in self.iterdeps(intermediate=True):
            value = one.get()
        return value

    def then(
        self, callback: Callable[[Any], object], on_error: Callable[[Any], object] | None = None, weak: bool = False
    ) -> AsyncResult:
        """Call `callback` with this handle once the task has ended, on the watcher's thread or at once.

        Args:
            callback: takes the handle.
            on_error: called instead if it has not ended with a value.
            weak: taken for Celery's sake.
        """
        del weak

        def ended() -> None:
            (callback if on_error is None or self.successful() else on_error)(self)

        self.watched.when_ended(ended)
        return self

    def revoke(self, connection: object = None, *, terminate: bool = False, signal: str | None = None) -> None:
        """Cancel the task: queued, it ends now; running, it goes on unless `terminate`.

        Args:
            connection: taken for Celery's sake.
            terminate: stop it while it runs: interrupted first, ended by force 6 s later.
            signal: the first signal to send, instead of SIGINT.
        """
        del connection
        self.app.revoke([self], terminate=terminate, signal=signal or "")

    def retry(self) -> AsyncResult:
        """Run the task again if it failed, with the same arguments and id; if it waits for a retry, at once.

        Raises:
            UnknownTask: its message is no longer kept, or it has not failed.
        """
        self.app.retry([self])
        return self

    def forget(self) -> None:
        """Drop the kept result and output of a task that has ended."""
        self.app.backend.forget([self.id])

    def __await__(self) -> Generator[Any, None, Any]:
        yield from until_ended(self.watched).__await__()
        return self.get()

    def _meta(self) -> dict[str, Any]:
        """Return what Celery calls the meta of a task."""
        return {
            "task_id": self.id,
            "status": self.state,
            "result": self.result,
            "traceback": self.traceback,
            "children": self.children if self.ready() else [],
        }

    def _facts_or_steering(self, field: str) -> str:
        watched = self.watched
        source = watched.steering or (watched.latest.facts if watched.latest else None)
        return str(getattr(source, field, ""))


class EagerResult(AsyncResult):
    """The handle on a call that ran here, in this process. It has ended.

    Args:
        id: of the call.
        ret_value: its value, or the exception it raised.
        state: in which it ended.
        traceback: of that exception.
        name: of the task.
        app: whose task it is.
        parent: the handle of what came before it.
        call: its arguments.
    """

    def __init__(
        self,
        id: str,
        ret_value: Any,
        state: str,
        traceback: str | None = None,
        name: str = "",
        *,
        app: App | None = None,
        parent: Any = None,
        call: tuple[tuple[Any, ...] | None, dict[str, Any] | None] = (None, None),
    ) -> None:
        super().__init__(id, app, watched=WatchedTask(id), parent=parent)
        self._called = call
        self._value, self._state, self._traceback, self._name = ret_value, state, traceback, name
        self._at = datetime.now(UTC)
        self.followers: list[AsyncResult] = []

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"

    def __reduce__(self) -> Any:
        return EagerResult, (self.id, self._value, self._state, self._traceback, self._name)

    @property
    def state(self) -> str:
        """Return the state in which it ended."""
        return self._state

    status = state

    @property
    def result(self) -> Any:
        """Return its value, or the exception it raised."""
        return self._value

    info = result

    @property
    def traceback(self) -> str | None:
        """Return the traceback of that exception."""
        return self._traceback

    @property
    def name(self) -> str:
        """Return the task's name."""
        return self._name

    @property
    def date_done(self) -> datetime:
        """Return when it ended."""
        return self._at

    def _call(self) -> tuple[tuple[Any, ...] | None, dict[str, Any] | None]:
        return self._called

    @property
    def children(self) -> list[AsyncResult]:
        """Return the handles of the calls that followed it."""
        return self.followers

    @property
    def exists(self) -> bool:
        """Return True."""
        return True

    @property
    def outputs(self) -> dict[str, Any]:
        """Return nothing: it was no cell."""
        return {}

    def ready(self) -> bool:
        """Return True: it ran before there was a handle."""
        return True

    def get(self, timeout: float | None = None, propagate: bool = True, *_: object, **more: Any) -> Any:
        """Return its value, or raise what it raised; `timeout` means nothing here.

        Raises:
            Exception: what it raised.
        """
        del timeout
        if self._state == states.SUCCESS:
            if callback := more.get("callback"):
                callback(self.id, self._value)
            return self._value
        if isinstance(self._value, BaseException) and propagate:
            raise cause_of(self._value, self.parent) if more.get("follow_parents", True) else self._value
        return self._value

    wait = get

    def then(
        self, callback: Callable[[Any], object], on_error: Callable[[Any], object] | None = None, weak: bool = False
    ) -> EagerResult:
        """Call `callback`, or `on_error` if it has raised, with this handle."""
        del weak
        (callback if on_error is None or self.successful() else on_error)(self)
        return self

    def revoke(self, *_: object, **__: object) -> None:
        """Say that it is revoked; it has run already."""
        self._state = states.REVOKED

    def retry(self) -> NoReturn:
        """Refuse: it ran here."""
        raise RuntimeError("a call that ran in this process is run again by calling its task")

    def forget(self) -> None:
        """Do nothing: nobody keeps it."""

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        return self.get()


def cause_of(error: BaseException, before: Any, timeout: float | None = None) -> BaseException:
    """Return what a member of a header has raised, if that is why something has ended; else the error itself.

    Args:
        error: what it has ended with.
        before: the handle of what came before it, or None.
        timeout: seconds to look in.
    """
    while isinstance(error, ChordError) and before is not None:
        try:
            before.get(timeout, disable_sync_subtasks=False)
        except (TimeoutError, UnknownTask, ResultExpired, BackendUnavailable):
            break  # nothing is known of it any more
        except Exception as exc:  # noqa: BLE001 - whatever it raised
            error = exc  # that of a header again, maybe, whose members are further up
        before = before.parent
    return error


def value_of(fact: Fact, app: App) -> Any:
    """Return the value that an end has."""
    value = serialization.loads(fact.body, app.read_blob, app.accepted) if fact.body else None
    return value.value if isinstance(value, CellResult) else value


def error_of(fact: Fact, app: App) -> BaseException:
    """Return the exception of an end without a value."""
    facts = fact.facts
    if facts.state in (states.FAILURE, states.RETRY):
        return serialization.load_exception(fact.failure, app.accepted)
    if facts.state == states.REVOKED:
        return TaskRevokedError(facts.error or "cancelled")
    if facts.state in (states.IGNORED, states.REJECTED):
        return (Ignore if facts.state == states.IGNORED else Reject)(facts.error)
    return RemoteError(facts.state, facts.error)


def outcome_of(fact: Fact, app: App) -> Any:
    """Return the value that an end has, or the exception."""
    return value_of(fact, app) if fact.facts.state == states.SUCCESS else error_of(fact, app)
