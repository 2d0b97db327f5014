"""Handles on several tasks: of a map, of a group of a canvas, or of whatever was put together.

Source: the names and meanings are those of `celery.result`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from nbqueue import states
from nbqueue.current import current_app
from nbqueue.exceptions import BadMessage, ChordError, TimeoutError, UnknownTask  # noqa: A004 - Celery's name
from nbqueue.handles import AsyncResult, EagerResult, cause_of, error_of, outcome_of
from nbqueue.messages import decoded, member_id
from nbqueue.signing import Signer
from nbqueue.waits import Guard, refuse_inside_a_task, until_ended, wait
from nbqueue.watched import WatchedMap, WatchedTask

if TYPE_CHECKING:
    from nbqueue.app import App

__all__ = ["GroupResult", "ResultSet"]


_SAVED: Final = b"1"  # the form of what is kept of a group


class _Saved(msgspec.Struct):
    """What is kept of a group: `result` is what Celery's clients read, and signed."""

    result: msgspec.Raw
    nbq: str


class _Head(msgspec.Struct, array_like=True):
    """An id, and what came before it."""

    id: str
    parent: _Tree | None


class _Tree(msgspec.Struct, array_like=True):
    """A handle as `as_tuple` tells of it: without members it is of one task."""

    head: _Head
    members: list[_Tree] | None

    def handle(self, app: App | None) -> AsyncResult | GroupResult:
        """Return the handle itself."""
        parent = None if self.head.parent is None else self.head.parent.handle(app)
        if self.members is None:
            return AsyncResult(self.head.id, app, parent=parent)
        group: GroupResult = GroupResult(self.head.id, [member.handle(app) for member in self.members], parent, app=app)
        return group


def sign_saved(found: GroupResult, signer: Signer) -> bytes:
    """Return the JSON text that is kept of a group."""
    text = msgspec.json.encode(found.as_tuple())
    return msgspec.json.encode(_Saved(msgspec.Raw(text), signer.sign("saved", _SAVED, text)))


def open_saved(text: bytes, id_: str, signer: Signer) -> _Tree:
    """Return what is kept of a group, once its signature holds and it is the one of this id.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    kept = decoded(_SAVED_TEXT, text)
    signer.verify("saved", kept.nbq, bytes(kept.result))
    tree = decoded(_TREE, kept.result)
    if tree.head.id != id_ or tree.members is None:
        raise BadMessage("place", f"another group under the id {id_[:80]}")
    return tree


class ResultSet:
    """Handles that are waited for together, in an order.

    Args:
        results: of tasks or of groups.
        app: that knows them; the first's, or the current one, if None.
    """

    parent: Any = None

    def __init__(self, results: Iterable[Any] = (), app: App | None = None) -> None:
        self._app = app
        self._parts = list(results)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(str(part) for part in self.results)}]>"

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Any]:
        """Yield the handles in order."""
        return iter(self.results)

    def __getitem__(self, index: int) -> Any:
        return self.results[index]

    def __eq__(self, other: object) -> bool:
        return list(other.results) == list(self.results) if isinstance(other, ResultSet) else NotImplemented

    def __hash__(self) -> int:
        return id(self)  # it can be changed

    @property
    def app(self) -> App:
        """Return the app that knows them."""
        if self._app is None:
            self._app = self._parts[0].app if self._parts else current_app()
        return self._app

    @property
    def results(self) -> list[Any]:
        """Return the handles."""
        return self._parts

    @property
    def children(self) -> list[Any]:
        """Return the handles."""
        return self.results

    @property
    def supports_native_join(self) -> bool:
        """Return True: the ends of many are had at once."""
        return True

    def add(self, result: Any) -> None:
        """Add a handle, if it isn't there yet."""
        if result not in self._parts:
            self._parts.append(result)

    def remove(self, result: Any) -> None:
        """Take a handle out.

        Args:
            result: the handle, or its id.

        Raises:
            KeyError: it isn't there.
        """
        for number, part in enumerate(self._parts):
            if result in (part, part.id):
                del self._parts[number]
                return
        raise KeyError(result)

    def discard(self, result: Any) -> None:
        """Take a handle out if it is there."""
        with contextlib.suppress(KeyError):
            self.remove(result)

    def update(self, results: Iterable[Any]) -> None:
        """Add handles."""
        for result in results:
            self.add(result)

    def clear(self) -> None:
        """Take all handles out."""
        self._parts.clear()

    def completed_count(self) -> int:
        """Return how many tasks have ended with a value."""
        return sum(part.successful() for part in self.results)

    def ready(self) -> bool:
        """Tell whether every task has ended."""
        return all(part.ready() for part in self.results)

    def successful(self) -> bool:
        """Tell whether every task has ended with a value."""
        return all(part.successful() for part in self.results)

    def failed(self) -> bool:
        """Tell whether any task has raised."""
        return any(part.failed() for part in self.results)

    def waiting(self) -> bool:
        """Tell whether any task has yet to end."""
        return not self.ready()

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], object] | None = None) -> None:
        """Raise the error of the first that has failed by now."""
        for part in self.results:
            part.maybe_throw(propagate=propagate, callback=callback)

    maybe_reraise = maybe_throw

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        callback: Callable[[str, Any], object] | None = None,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], object] | None = None,
        **_: object,
    ) -> list[Any]:
        """Wait for every task; return the values in order.

        Args:
            timeout: seconds for all of them together.
            propagate: raise the error of the first that failed; False puts exceptions in the list.
            interval: seconds between two calls of `on_interval`.
            callback: called with id and value of each; nothing is returned then.
            no_ack: taken for Celery's sake.
            on_message: called with a dict at each change; see `AsyncResult.get`.
            disable_sync_subtasks: False lets a task wait for others; see `allow_join_result`.
            on_interval: called while it waits.

        Raises:
            TimeoutError: not all have ended within `timeout`; they go on.
            RuntimeError: a task waits for others.
            Exception: what a task raised.
        """
        del no_ack
        if disable_sync_subtasks:
            refuse_inside_a_task()
        told = {"interval": interval, "on_message": on_message, "on_interval": on_interval}
        values = []
        for number, value in self._each(timeout, propagate, **told):
            if callback is None:
                values.append(value)
            else:
                callback(self.results[number].id, value)
        return values

    join = get
    join_native = get

    def _each(self, timeout: float | None, propagate: bool, **told: Any) -> Iterator[tuple[int, Any]]:
        """Yield number and value of each task in order, waiting for the next."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for number, part in enumerate(self.results):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            failed: ChordError | None = None
            try:
                value = part.get(timeout=left, propagate=propagate, disable_sync_subtasks=False, **told)
            except ChordError as exc:
                failed = exc
            if failed is not None:
                raise cause_of(failed, self.parent, timeout)
            yield number, value

    def as_completed(self, timeout: float | None = None) -> Iterator[Any]:
        """Yield the tasks' handles in the order in which they end.

        Raises:
            TimeoutError: not all have ended within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        left = set(range(len(self.results)))
        guards = _Guards(self.results, self.app.conf.backend_timeout)
        for number, part in enumerate(self.results):
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
            yield self.results[number]

    def iter_native(self, timeout: float | None = None, **_: object) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (id, {"status", "result"}) as the tasks end."""
        for part in self.as_completed(timeout):
            yield part.id, {"status": part.state, "result": part.result}

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the handles in the order in which they end."""
        ended = _Ended(self.results)
        for _ in range(len(self.results)):
            yield self.results[await ended.next()]

    def then(
        self, callback: Callable[[Any], object], on_error: Callable[[Any], object] | None = None, weak: bool = False
    ) -> Self:
        """Call `callback` with this handle once every task has ended; `on_error` instead if one has failed."""
        del weak
        lock, left = threading.Lock(), len(self.results)

        def one_ended(_: object) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = not left
            if last:
                (callback if on_error is None or self.successful() else on_error)(self)

        if not self.results:
            callback(self)
        for part in self.results:
            part.then(one_ended)
        return self

    def __await__(self) -> Generator[Any, None, list[Any]]:
        for part in self.results:
            with contextlib.suppress(Exception):  # told by `get`, in order
                yield from part.__await__()
        return self.get()

    def revoke(self, connection: object = None, *, terminate: bool = False, signal: str | None = None) -> None:
        """Cancel every task that has not ended."""
        for part in self.results:
            if not part.ready():
                part.revoke(connection, terminate=terminate, signal=signal)

    def forget(self) -> None:
        """Drop the kept results and outputs."""
        for part in self.results:
            part.forget()


class GroupResult(ResultSet):
    """The handle on a group: of the tasks of a canvas, or of a map, in the order of the calls.

    Args:
        id: of the group, or of the map.
        results: handles of its tasks; None for a map, which knows its own.
        parent: the handle of what came before it.
        app: that knows it; the first handle's, or the current one, if None.
    """

    def __new__(cls, *given: Any, **named: Any) -> Any:
        """Return the handle of a group of handles, or, without `results`, of a map."""
        results = given[1] if len(given) > 1 else named.get("results")
        return super().__new__(MapResult if cls is GroupResult and results is None else cls)

    def __init__(
        self, id: str = "", results: Iterable[Any] | None = None, parent: Any = None, *, app: App | None = None
    ) -> None:
        super().__init__(results or (), app)
        self.id = id
        self.parent = parent

    def __repr__(self) -> str:
        return f"<GroupResult: {self.id} of {len(self)}>"

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, GroupResult) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> Any:
        return GroupResult, (self.id, self.results)

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids, its own and those of its tasks, as `result_from_tuple` takes them."""
        return (self.id, self.parent and self.parent.as_tuple()), [part.as_tuple() for part in self.results]

    def save(self, backend: Any = None) -> None:
        """Keep which tasks it is of, so that `restore` finds them by its id; for as long as results are kept."""
        del backend
        self.app.backend.save(self.id, sign_saved(self, self.app.signer), self.app.conf.result_expires)

    def delete(self, backend: Any = None) -> None:
        """Forget which tasks it is of; their results stay."""
        del backend
        self.app.backend.save(self.id, None, 0.0)

    @classmethod
    def restore(cls, id: str, backend: Any = None, app: App | None = None) -> GroupResult | None:
        """Return the group of an id, saved by any process; None if none is kept.

        Raises:
            BadMessage: what is kept was not written with our key.
        """
        del backend
        app = app or current_app()
        text = app.backend.saved(id)
        if text is None:
            return GroupResult(id, app=app) if app.backend.load_group(id) is not None else None
        found = open_saved(text, id, app.signer).handle(app)
        assert isinstance(found, GroupResult), "it has members"
        return found

    def retry(self, indexes: Sequence[int] | None = None) -> GroupResult:
        """Refuse: a call of a canvas can't be run again by itself."""
        raise UnknownTask("calls of a canvas can't be run again by themselves; send the canvas again")


class MapResult(GroupResult):
    """The handle on all tasks of one map: told of them together, at a cost that doesn't grow with their number."""

    def __init__(
        self,
        id: str = "",
        results: None = None,
        parent: Any = None,
        *,
        app: App | None = None,
        watched: WatchedMap | None = None,
    ) -> None:
        super().__init__(id, results, parent, app=app)
        self._watched = watched
        self._results: list[AsyncResult] | None = None

    def __reduce__(self) -> Any:
        return GroupResult, (self.id,)

    def __len__(self) -> int:
        return self.watched.size

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

    def _each(self, timeout: float | None, propagate: bool, **told: Any) -> Iterator[tuple[int, Any]]:
        """Yield number and value of each member once all have ended; raise the first error as soon as it is known."""
        if told["on_message"] is not None or told["on_interval"] is not None:
            yield from super()._each(timeout, propagate, **told)
            return
        watched = self.watched
        if propagate:
            deadline = None if timeout is None else time.monotonic() + timeout
            for index in self._arrivals(deadline):
                fact = watched.facts[index]
                if fact is not None and fact.facts.state != states.SUCCESS:
                    raise error_of(fact, self.app)
        else:
            wait(watched, timeout, self.app.conf.backend_timeout, f"map {self.id}")
        # All values first: one that can't be had is told before anything is made of the others.
        yield from enumerate([outcome_of(fact, self.app) for fact in watched.facts if fact is not None])

    def as_completed(self, timeout: float | None = None) -> Iterator[AsyncResult]:
        """Yield the members' handles in the order in which they end.

        Raises:
            TimeoutError: not all have ended within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        results = self.results
        for index in self._arrivals(deadline):
            yield results[index]

    def then(
        self, callback: Callable[[Any], object], on_error: Callable[[Any], object] | None = None, weak: bool = False
    ) -> Self:
        """Call `callback` with this handle once every member has ended; `on_error` instead if one has failed."""
        del weak

        def ended() -> None:
            (callback if on_error is None or self.successful() else on_error)(self)

        self.watched.when_ended(ended)
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
        yield from until_ended(self.watched).__await__()
        return self.get()

    def _arrivals(self, deadline: float | None) -> Iterator[int]:
        """Yield indexes as members end, waiting for the next."""
        watched = self.watched
        seen, arrived = 0, watched.arrived
        before: set[int] = set()  # what came in a list that a retry has replaced
        guard = Guard(watched, self.app.conf.backend_timeout, f"map {self.id}")
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


class Member(AsyncResult):
    """A member of a map: what is known of it stands in the map, unless someone looks closer."""

    def __init__(self, group: MapResult, index: int) -> None:
        super().__init__(member_id(group.id, index), group.app)
        self.group = group
        self.index = index

    def look_anew(self) -> None:
        """Ask the map again how this member stands."""
        self._watched = None

    @property
    def state(self) -> str:
        """Return its state; what it said before anybody followed it alone is in its record only."""
        watched = self.watched
        if watched.fact is None and watched.latest is None:
            self.app.watcher.look(watched)
        return super().state

    status = state

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


class _Ended:
    """Tells a coroutine which of several has ended next."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[int] = asyncio.Queue()
        for number, part in enumerate(parts):
            part.then(functools.partial(self._put, number))

    def _put(self, number: int, _: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, number)

    async def next(self) -> int:
        """Return the number of the next."""
        return await self._queue.get()


class Groups:
    """The groups of an app, by their ids.

    Args:
        app: where they are looked for.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    def __call__(self, id: str) -> MapResult:
        """Return the handle on a map sent before, by anyone."""
        return MapResult(id, app=self.app)

    def restore(self, id: str, backend: Any = None) -> GroupResult | None:
        """Return a group that was saved, by any process; None if none is kept.

        Raises:
            BadMessage: what is kept was not written with our key.
        """
        return GroupResult.restore(id, backend, self.app)


def result_from_tuple(found: Any, app: App | None = None) -> AsyncResult | GroupResult:
    """Return the handle that `as_tuple` made a tuple of."""
    if isinstance(found, AsyncResult | GroupResult):
        return found
    if isinstance(found, str):
        return AsyncResult(found, app)
    return msgspec.convert(found, _Tree).handle(app)


class _Guards:
    """Watches over a wait for several."""

    def __init__(self, parts: Iterable[AsyncResult | GroupResult], backend_timeout_s: float) -> None:
        self._guards = [
            Guard(leaf.watched, backend_timeout_s, f"task {leaf.id}") for part in parts for leaf in _leaves(part)
        ]

    def check(self) -> None:
        """Raise or warn if there is reason to, of the first that has not ended."""
        for guard in self._guards:
            if not guard.watched.ended:
                guard.check()
                return


def _leaves(part: Any) -> Iterator[AsyncResult | MapResult]:
    if isinstance(part, EagerResult):
        return
    if isinstance(part, ResultSet) and not isinstance(part, MapResult):
        for inner in part.results:
            yield from _leaves(inner)
    else:
        yield part


def _put(ended: queue.SimpleQueue[int], number: int, _: object) -> None:
    ended.put(number)


_SAVED_TEXT = msgspec.json.Decoder(_Saved)
_TREE = msgspec.json.Decoder(_Tree)
