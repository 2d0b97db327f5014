"""Handles: what a caller holds of a task, or of all tasks of a map. They can be had again from an id."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nbqueue import serialization, states
from nbqueue.cellrun import CellResult
from nbqueue.current import current_app
from nbqueue.exceptions import (
    BackendUnavailable,
    Ignore,
    Reject,
    RemoteError,
    TaskRevokedError,
    TimeoutError,  # noqa: A004 - Celery's name
    UnknownTask,
)
from nbqueue.messages import Fact, member_id
from nbqueue.watched import WatchedMap, WatchedTask

if TYPE_CHECKING:
    from nbqueue.app import App

__all__ = ["AsyncResult", "GroupResult"]

_EXPLAIN_AFTER_S: Final = 5.0


class AsyncResult:
    """The handle on one task id.

    Args:
        id: a task's id, sent by any process.
        app: whose broker and backend know it; the current app if None.
    """

    def __init__(
        self,
        id: str,
        app: App | None = None,
        *,
        watched: WatchedTask | None = None,
        parent: AsyncResult | GroupResult | None = None,
    ) -> None:
        self.id = id
        self.parent = parent
        self._app = app
        self._watched = watched

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
        """Return the value, the exception of a task that failed or is to be retried, or None before that."""
        fact = self.watched.fact
        if fact is None:
            latest = self.watched.latest
            retried = latest is not None and latest.facts.state == states.RETRY
            return _error(latest) if latest is not None and retried else self.watched.trouble
        return _outcome(fact, self.app)

    info = result

    @property
    def outputs(self) -> dict[str, Any]:
        """Return the names that a cell was asked to bring back, once it is ready."""
        fact = self.watched.fact
        succeeded = fact is not None and fact.facts.state == states.SUCCESS
        value = serialization.loads(fact.body, self.app.read_blob) if fact is not None and succeeded else None
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
    def queue(self) -> str:
        """Return the queue the task was sent to."""
        return self._facts_or_steering("queue")

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
        *,
        callback: Callable[[str, Any], object] | None = None,
        **_: object,
    ) -> Any:
        """Wait until the task has ended; return its value or raise its error.

        Args:
            timeout: seconds; None waits as long as it takes.
            propagate: False returns the exception instead of raising it.
            interval: taken for Celery's sake; results are pushed.
            callback: called with id and value.

        Raises:
            TimeoutError: it has not ended within `timeout`; the task goes on.
            TaskRevokedError: it was cancelled, or expired.
            UnknownTask: nobody sent it, or nothing is kept of it.
            ResultExpired: it was sent, and nothing is kept of it any more.
            BackendUnavailable: the backend has not answered for longer than `conf.backend_timeout`.
            Exception: what the task raised.
        """
        del interval
        _wait(self.watched, timeout, self.app.conf.backend_timeout, f"task {self.id}")
        value = self.result
        if isinstance(value, BaseException) and self.state != states.SUCCESS and propagate:
            raise value
        if callback is not None:
            callback(self.id, value)
        return value

    wait = get

    def then(self, callback: Callable[[AsyncResult], object]) -> AsyncResult:
        """Call `callback` with this handle once the task has ended, on the watcher's thread or at once."""
        self.watched.when_ended(lambda: callback(self))
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
        yield from _ended(self.watched).__await__()
        return self.get()

    def _facts_or_steering(self, field: str) -> str:
        watched = self.watched
        source = watched.steering or (watched.latest.facts if watched.latest else None)
        return str(getattr(source, field, ""))


class GroupResult:
    """The handle on all tasks of one map, in the order of the calls."""

    def __init__(self, id: str, app: App | None = None, *, watched: WatchedMap | None = None) -> None:
        self.id = id
        self._app = app
        self._watched = watched
        self._results: list[AsyncResult] | None = None

    def __repr__(self) -> str:
        return f"<GroupResult: {self.id} of {len(self)}>"

    def __len__(self) -> int:
        return self.watched.size

    def __iter__(self) -> Iterator[Any]:
        """Yield the values in the order of the calls, each as soon as it is there."""
        for result in self.results:
            yield result.get()

    def __getitem__(self, index: int) -> AsyncResult:
        return self.results[index]

    @property
    def app(self) -> App:
        """Return the app that knows this map."""
        if self._app is None:
            self._app = current_app()
        return self._app

    @property
    def watched(self) -> WatchedMap:
        """Return what the watcher knows, and follow the map from now on."""
        if self._watched is None:
            self._watched = self.app.watch_group(self.id)
        return self._watched

    @property
    def results(self) -> list[AsyncResult]:
        """Return the handle of each member."""
        if self._results is None:
            watched = self.watched
            self._results = [Member(self, index) for index in range(watched.size)]
        return self._results

    children = results

    def completed_count(self) -> int:
        """Return how many members have ended with a value, at constant cost."""
        return len(self.watched.arrived) - self.watched.failed

    def ready(self) -> bool:
        """Tell whether every member has ended."""
        return self.watched.ended

    def successful(self) -> bool:
        """Tell whether every member has ended with a value."""
        return self.ready() and not self.watched.failed

    def failed(self) -> bool:
        """Tell whether any member has ended without a value."""
        return bool(self.watched.failed)

    def waiting(self) -> bool:
        """Tell whether any member has yet to end."""
        return not self.ready()

    def get(self, timeout: float | None = None, propagate: bool = True, **_: object) -> list[Any]:
        """Wait for every member; return the values in the order of the calls.

        Args:
            timeout: seconds for all of them together.
            propagate: raise the first error as soon as it is known; False puts exceptions in the list.

        Raises:
            TimeoutError: not all have ended within `timeout`; they go on.
            Exception: what the member raised that failed first.
        """
        watched = self.watched
        if propagate:
            deadline = None if timeout is None else time.monotonic() + timeout
            for index in self._arrivals(deadline):
                fact = watched.facts[index]
                if fact is not None and fact.facts.state != states.SUCCESS:
                    raise _error(fact)
        else:
            _wait(watched, timeout, self.app.conf.backend_timeout, f"map {self.id}")
        return [_outcome(fact, self.app) for fact in watched.facts if fact is not None]

    join = get
    join_native = get

    def as_completed(self, timeout: float | None = None) -> Iterator[AsyncResult]:
        """Yield the members' handles in the order in which they end.

        Raises:
            TimeoutError: not all have ended within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        results = self.results
        for index in self._arrivals(deadline):
            yield results[index]

    def iter_native(self, timeout: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (id, {"status", "result"}) as the members end."""
        for result in self.as_completed(timeout):
            yield result.id, {"status": result.state, "result": result.result}

    def then(self, callback: Callable[[GroupResult], object]) -> GroupResult:
        """Call `callback` with this handle once every member has ended."""
        self.watched.when_ended(lambda: callback(self))
        return self

    def revoke(self, connection: object = None, *, terminate: bool = False, signal: str | None = None) -> None:
        """Cancel every member that has not ended; see `AsyncResult.revoke`."""
        del connection
        facts = self.watched.facts
        waiting = [result for result, fact in zip(self.results, facts, strict=True) if fact is None]
        self.app.revoke(waiting, terminate=terminate, signal=signal or "")

    def retry(self, indexes: Sequence[int] | None = None) -> GroupResult:
        """Run members again that failed, with the same arguments and in the same place.

        Args:
            indexes: which of them; None for all.

        Raises:
            UnknownTask: none of their messages is kept any more, or none has failed.
        """
        results = self.results
        chosen = self.watched.failures() if indexes is None else indexes
        self.app.retry([results[index] for index in chosen])
        return self

    def forget(self) -> None:
        """Drop the kept results and outputs."""
        self.app.backend.forget([result.id for result in self.results])

    def __await__(self) -> Generator[Any, None, list[Any]]:
        yield from _ended(self.watched).__await__()
        return self.get()

    def _arrivals(self, deadline: float | None) -> Iterator[int]:
        """Yield indexes as members end, waiting for the next."""
        watched = self.watched
        seen, arrived = 0, watched.arrived
        before: set[int] = set()  # what came in a list that a retry has replaced
        guard = _Guard(watched, self.app.conf.backend_timeout, f"map {self.id}")
        with watched.subscribing():
            while True:
                if watched.arrived is not arrived:
                    before |= set(arrived[:seen])
                    seen, arrived = 0, watched.arrived
                while seen < len(arrived):
                    seen += 1
                    if arrived[seen - 1] not in before:
                        yield arrived[seen - 1]
                if watched.trouble is not None:
                    raise watched.trouble
                if seen >= watched.size:
                    return
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"{watched.size - seen:,} of {watched.size:,} tasks have not ended; they go on")
                with watched.news:
                    if len(watched.arrived) == seen:
                        watched.news.wait(1.0 if left is None else min(1.0, left))
                guard.check()


class Composed(GroupResult):
    """The handle on a group of a canvas: of handles, in the order of its tasks."""

    def __init__(
        self,
        id: str,
        app: App,
        results: Sequence[AsyncResult | GroupResult],
        parent: AsyncResult | GroupResult | None = None,
    ) -> None:
        super().__init__(id, app)
        self.parent = parent
        self._parts = list(results)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def results(self) -> list[Any]:
        """Return the handle of each task."""
        return self._parts

    children = results

    def completed_count(self) -> int:
        """Return how many tasks have ended with a value."""
        return sum(part.successful() for part in self._parts)

    def ready(self) -> bool:
        """Tell whether every task has ended."""
        return all(part.ready() for part in self._parts)

    def successful(self) -> bool:
        """Tell whether every task has ended with a value."""
        return all(part.successful() for part in self._parts)

    def failed(self) -> bool:
        """Tell whether any task has raised."""
        return any(part.failed() for part in self._parts)

    def get(self, timeout: float | None = None, propagate: bool = True, **_: object) -> list[Any]:
        """Wait for every task; return the values in order.

        Args:
            timeout: seconds for all of them together.
            propagate: raise the error of the first that failed; False puts exceptions in the list.

        Raises:
            TimeoutError: not all have ended within `timeout`; they go on.
            Exception: what a task raised.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        values = []
        for part in self._parts:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            values.append(part.get(timeout=left, propagate=propagate))
        return values

    join = get
    join_native = get

    def as_completed(self, timeout: float | None = None) -> Iterator[Any]:
        """Yield the tasks' handles in the order in which they end.

        Raises:
            TimeoutError: not all have ended within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        left = set(range(len(self._parts)))
        guards = _Guards(self._parts, self.app.conf.backend_timeout)
        for number, part in enumerate(self._parts):
            part.then(functools.partial(_put, ended, number))
        while left:
            wait_s = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            try:
                number = ended.get(timeout=max(0.0, wait_s))
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"{len(left):,} of {len(self):,} tasks have not ended; they go on") from None
                guards.check()
                continue
            left.discard(number)
            yield self._parts[number]

    def then(self, callback: Callable[[GroupResult], object]) -> GroupResult:
        """Call `callback` with this handle once every task has ended."""
        lock, left = threading.Lock(), len(self._parts)

        def one_ended(_: object) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = not left
            if last:
                callback(self)

        for part in self._parts:
            part.then(one_ended)
        return self

    def retry(self, indexes: Sequence[int] | None = None) -> GroupResult:
        """Refuse: a call of a canvas can't be run again by itself."""
        raise UnknownTask("calls of a canvas can't be run again by themselves; send the canvas again")

    def __await__(self) -> Generator[Any, None, list[Any]]:
        for part in self._parts:
            with contextlib.suppress(Exception):  # told by `get`, in order
                yield from part.__await__()
        return self.get()

    def revoke(self, connection: object = None, *, terminate: bool = False, signal: str | None = None) -> None:
        """Cancel every task that has not ended."""
        for part in self._parts:
            if not part.ready():
                part.revoke(connection, terminate=terminate, signal=signal)

    def forget(self) -> None:
        """Drop the kept results and outputs."""
        for part in self._parts:
            part.forget()


class Member(AsyncResult):
    """A member of a map: what is known of it stands in the map, unless someone looks closer."""

    def __init__(self, group: GroupResult, index: int) -> None:
        super().__init__(member_id(group.id, index), group.app)
        self.group = group
        self.index = index

    def look_anew(self) -> None:
        """Ask the map again how this member stands."""
        self._watched = None

    @property
    def watched(self) -> WatchedTask:
        """Return what is known of this member, and follow it alone from now on."""
        if self._watched is None:
            fact = self.group.watched.facts[self.index]
            if fact is None:
                self._watched = self.app.watcher.watch(
                    WatchedTask(self.id, self.group.watched.steering.member(self.index))
                )
                # It may have ended between the look and the watch; then nobody would tell this one.
                fact = self.group.watched.facts[self.index]
            else:
                self._watched = WatchedTask(self.id, self.group.watched.steering.member(self.index))
            if fact is not None:
                self._watched.add(fact)
                self.app.watcher.unwatch(self._watched)
        return self._watched


def _value(fact: Fact, app: App) -> Any:
    value = serialization.loads(fact.body, app.read_blob) if fact.body else None
    return value.value if isinstance(value, CellResult) else value


def _error(fact: Fact) -> BaseException:
    facts = fact.facts
    if facts.state in (states.FAILURE, states.RETRY):
        return serialization.load_exception(fact.failure)
    if facts.state == states.REVOKED:
        return TaskRevokedError(facts.error or "cancelled")
    if facts.state in (states.IGNORED, states.REJECTED):
        return (Ignore if facts.state == states.IGNORED else Reject)(facts.error)
    return RemoteError(facts.state, facts.error)


def _outcome(fact: Fact, app: App) -> Any:
    return _value(fact, app) if fact.facts.state == states.SUCCESS else _error(fact)


class _Guard:
    """Watches over a wait: says once why nothing happens, and ends it when the backend stays away."""

    def __init__(self, watched: WatchedTask | WatchedMap, backend_timeout_s: float, what: str) -> None:
        self.watched = watched
        self.backend_timeout_s = backend_timeout_s
        self.what = what
        self.started = time.monotonic()
        self.said = False

    def check(self) -> None:
        """Raise or warn if there is reason to."""
        away = self.watched.unreachable_since
        now = time.monotonic()
        if away is not None and now - away > self.backend_timeout_s:
            raise BackendUnavailable(
                f"no answer from the backend for {now - away:.0f} s; {self.what} goes on without it"
            )
        if not self.said and self.watched.note and now - self.started > _EXPLAIN_AFTER_S:
            self.said = True
            warnings.warn(f"{self.what} waits: {self.watched.note}", stacklevel=4)


class _Guards:
    """Watches over a wait for several."""

    def __init__(self, parts: Iterable[AsyncResult | GroupResult], backend_timeout_s: float) -> None:
        self._guards = [
            _Guard(leaf.watched, backend_timeout_s, f"task {leaf.id}") for part in parts for leaf in _leaves(part)
        ]

    def check(self) -> None:
        """Raise or warn if there is reason to, of the first that has not ended."""
        for guard in self._guards:
            if not guard.watched.ended:
                guard.check()
                return


def _leaves(part: AsyncResult | GroupResult) -> Iterator[AsyncResult | GroupResult]:
    if isinstance(part, Composed):
        for inner in part.results:
            yield from _leaves(inner)
    else:
        yield part


def _put(ended: queue.SimpleQueue[int], number: int, _: object) -> None:
    ended.put(number)


def _wait(watched: WatchedTask | WatchedMap, timeout: float | None, backend_timeout_s: float, what: str) -> None:
    try:
        _wait_until_ended(watched, timeout, backend_timeout_s, what)
    except KeyboardInterrupt as exc:
        exc.add_note(f"Stopped waiting. {what} goes on; cancel it with .revoke(terminate=True).")
        raise


def _wait_until_ended(
    watched: WatchedTask | WatchedMap, timeout: float | None, backend_timeout_s: float, what: str
) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    guard = _Guard(watched, backend_timeout_s, what)
    while True:
        left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
        if watched.wait(max(0.0, left)):
            break
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"{what} has not ended within {timeout:g} s; it goes on")
        guard.check()
    trouble = watched.trouble
    if trouble is not None and isinstance(watched, WatchedMap):
        raise trouble


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _ended(watched: WatchedTask | WatchedMap) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        loop.call_soon_threadsafe(_settle, future)

    watched.when_ended(wake)
    await future
