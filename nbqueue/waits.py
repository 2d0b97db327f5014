"""Waiting for a task or a map to end: how long, for whom, and what is said meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

from nbqueue.exceptions import BackendUnavailable, TimeoutError  # noqa: A004 - Celery's name
from nbqueue.execute import current_request
from nbqueue.watched import WatchedMap, WatchedTask

EXPLAIN_AFTER_S: Final = 5.0
INTERVAL_S: Final = 0.5  # between two calls of `on_interval`, as in Celery

_joins_allowed: ContextVar[bool] = ContextVar("nbqueue_joins_allowed", default=False)


@contextlib.contextmanager
def allow_join_result() -> Iterator[None]:
    """Let tasks wait for others in this block; see `refuse_inside_a_task`."""
    token = _joins_allowed.set(True)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


@contextlib.contextmanager
def denied_join_result() -> Iterator[None]:
    """Let tasks not wait for others in this block."""
    token = _joins_allowed.set(False)
    try:
        yield
    finally:
        _joins_allowed.reset(token)


def refuse_inside_a_task() -> None:
    """Raise where a task is about to wait for another.

    Raises:
        RuntimeError: this is a task that runs in a worker, and nobody has said that it may.
    """
    request = current_request()
    if request is not None and not request.is_eager and not _joins_allowed.get():
        raise RuntimeError(
            "a task that waits for another holds a child that the other may need, and all may wait for ever. Let it "
            "follow in a chain or chord, or wait inside `with allow_join_result():`"
        )


class Guard:
    """Watches over a wait: says once why nothing happens, and ends it when the backend stays away."""

    def __init__(self, watched: WatchedTask | WatchedMap, backend_timeout_s: float, what: str) -> None:
        self.watched = watched
        self.backend_timeout_s = backend_timeout_s
        self.what = what
        self.started = time.monotonic()
        self.said = False

    def check(self) -> None:
        """Raise or warn if there is reason to."""
        away_s = self.watched.away_s
        if away_s > self.backend_timeout_s:
            raise BackendUnavailable(f"no answer from the backend for {away_s:.0f} s; {self.what} goes on without it")
        if not self.said and self.watched.note and time.monotonic() - self.started > EXPLAIN_AFTER_S:
            self.said = True
            warnings.warn(f"{self.what} waits: {self.watched.note}", stacklevel=4)


def wait(
    watched: WatchedTask | WatchedMap,
    timeout: float | None,
    backend_timeout_s: float,
    what: str,
    *,
    every_s: float = 1.0,
    on_interval: Callable[[], object] | None = None,
) -> None:
    """Wait until something has ended.

    Args:
        watched: what is known of it.
        timeout: seconds; None waits as long as it takes.
        backend_timeout_s: how long a backend that doesn't answer is borne.
        what: words for it.
        every_s: seconds between two calls of `on_interval`.
        on_interval: called while it waits.

    Raises:
        TimeoutError: it has not ended within `timeout`.
        BackendUnavailable: the backend stays away.
    """
    try:
        _wait_until_ended(watched, timeout, backend_timeout_s, what, every_s, on_interval)
    except KeyboardInterrupt as exc:
        exc.add_note(f"Stopped waiting. {what} goes on; cancel it with .revoke(terminate=True).")
        raise


def _wait_until_ended(
    watched: WatchedTask | WatchedMap,
    timeout: float | None,
    backend_timeout_s: float,
    what: str,
    every_s: float,
    on_interval: Callable[[], object] | None,
) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    guard = Guard(watched, backend_timeout_s, what)
    while True:
        left = every_s if deadline is None else min(every_s, deadline - time.monotonic())
        if watched.wait(max(0.0, left)):
            break
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"{what} has not ended within {timeout:g} s; it goes on")
        guard.check()
        if on_interval is not None:
            on_interval()
    trouble = watched.trouble
    if trouble is not None and isinstance(watched, WatchedMap):
        raise trouble


def tell_changes(watched: WatchedTask, what: Callable[[], Any], tell: Callable[[Any], object]) -> Callable[[], None]:
    """Keep what a task comes to be for whoever waits; return what tells it, to be called while waiting.

    Args:
        watched: the task.
        what: returns what is to be told of it now.
        tell: takes that.
    """
    news: queue.SimpleQueue[Any] = queue.SimpleQueue()
    seen: list[Any] = [None]

    def changed() -> None:
        latest = watched.fact or watched.latest
        if latest is not None and latest is not seen[0]:
            seen[0] = latest
            news.put(what())

    unsubscribe = watched.subscribe(changed)
    changed()

    def pass_on() -> None:
        while not news.empty():
            tell(news.get())
        if watched.ended:
            unsubscribe()

    return pass_on


async def until_ended(watched: WatchedTask | WatchedMap) -> None:
    """Wait for an end in a coroutine."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        loop.call_soon_threadsafe(_settle, future)

    watched.when_ended(wake)
    await future


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
