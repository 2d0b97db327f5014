"""`Executor`: the standard library's `concurrent.futures.Executor`, on a queue.

Source: the contract is that of `concurrent.futures.ProcessPoolExecutor`; where it says nothing, ours is told below.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, TypeVar

from nbqueue import prepared, serialization
from nbqueue.app import App
from nbqueue.bindings import own_queue
from nbqueue.brokered import Brokered
from nbqueue.calls import SERIALIZER, Call, CallFuture, Calls, LostCall, Parts, Way
from nbqueue.current import current_app
from nbqueue.exceptions import PayloadTooLarge
from nbqueue.execute import current_request
from nbqueue.launchers.owned import Terms
from nbqueue.messages import MAX_MESSAGE_BYTES
from nbqueue.owner import Owner
from nbqueue.payloads import Packer
from nbqueue.prepared import InitializerFailed
from nbqueue.tasks import Task

__all__ = ["Executor", "InitializerFailed", "LostCall"]

T = TypeVar("T")
CODES_KEPT: Final = 128  # functions whose packed code is at hand
FRESH_S: Final = 0.5  # so long a module is taken to be as it was


class Executor(futures.Executor):
    """Runs calls in worker processes; may be used from any thread.

    Without an app it starts a worker of its own, which ends at `shutdown`, when nobody refers
    to the executor any more, and when this process ends, however that happens. With an app the calls go to the workers
    of that app.

    Calls go straight to a worker of its own, past the broker, and can be cancelled until a process begins them.
    A call whose process dies runs again; after the third death its future raises `LostCall`, and the executor goes on.
    Code travels: functions of notebooks and scripts, lambdas and closures may be submitted too.

    Args:
        max_workers: processes; as many as cores if None.
        broker: the broker's URL; as for `App` if None.
        backend: the backend's URL; as for `App` if None.
        initializer: called once in each process before its first call; if it raises the executor is broken.
        initargs: its arguments.
        app: sends the calls to its own workers, which outlive the executor; the arguments before belong to them then,
            but for the initializer.
        queue: where calls wait for the workers of `app`; its default queue if None.
        max_tasks_per_child: a process is replaced after so many calls.
        settings: more arguments of `App`.

    Raises:
        ValueError: `max_workers` is no number above 0, or goes with `app`.
        TypeError: `initializer` can't be called.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        broker: str | None = None,
        backend: str | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        app: App | None = None,
        queue: str | None = None,
        max_tasks_per_child: int | None = None,
        **settings: Any,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        _check_children(max_tasks_per_child)
        theirs = {"max_workers": max_workers, "broker": broker, "backend": backend, "queue": queue}
        theirs |= {"max_tasks_per_child": max_tasks_per_child, **settings}
        given = [name for name, value in theirs.items() if value is not None and (name == "queue") == (app is None)]
        if given:
            where = "with an app: its workers have their own" if app is not None else "without an app"
            raise ValueError(f"{', '.join(given)} can't be given {where}")
        self._key = secrets.token_hex(6)
        self._max_workers = max_workers or os.cpu_count() or 1
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._codes: dict[tuple[Callable[..., Any], bool], _Code] = {}
        self._app = _own_app(broker, backend, settings) if app is None else app
        if app is None:
            name = f"executor-{self._key}"
            queue = own_queue(f"{name}@{socket.gethostname()}")
            more = max_tasks_per_child or 0
            way: Way = Owner(self._app, Terms(name, self._max_workers, queues=(queue,), max_tasks=more, failures=False))
        else:
            way = Brokered(app)
        self._calls = Calls(self._app, queue or self._app.conf.task_default_queue, way)
        # As the standard library's: what was submitted runs, and then everything is closed.
        weakref.finalize(self, self._calls.close).atexit = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CallFuture:
        """Have `fn(*args, **kwargs)` called; return its future at once.

        What can't be sent, or was not confirmed by the broker, is told by the future: `NotPicklable`, `SendFailed`.

        Raises:
            RuntimeError: the executor is shut down, or of the process that this one is a fork of.
            BrokenExecutor: its initializer has failed.
        """
        return self._submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Yield `fn(*args)` for the tuples that `zip` makes of the iterables, in order.

        Args:
            fn: the function.
            iterables: of its arguments.
            timeout: seconds from now in which each value has to be there.
            chunksize: so many calls travel in one message.
            buffersize: so many messages are under way at most, and the iterables are read no further; None for all.

        Raises:
            TimeoutError: raised by the iterator.
            ValueError: a size is below 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        rows = zip(*iterables, strict=False)
        if chunksize == 1:
            return self._results((self.submit(fn, *row) for row in rows), buffersize, deadline)
        parts = iter(lambda: tuple(itertools.islice(rows, chunksize)), ())
        sent = (self._submit(fn, (part,), {}, in_rows=True) for part in parts)
        found = self._results(sent, buffersize, deadline)
        return itertools.chain.from_iterable(found)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; close everything once the last has ended.

        Args:
            wait: return when that is done.
            cancel_futures: cancel what no worker holds yet.
        """
        self._calls.close()
        if cancel_futures:
            self._calls.cancel_all()
        if wait:
            self._calls.join()

    def _submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, in_rows: bool = False
    ) -> CallFuture:
        calls = self._calls
        calls.check()
        future = CallFuture(calls)
        try:
            calls.open()
            call = self._pack(future, fn, args, kwargs, in_rows)
        except Exception as exc:  # noqa: BLE001 - the future tells it, as in the standard library
            future.set_exception(exc)
            return future
        calls.add(call)
        return future

    def _pack(
        self, future: CallFuture, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], in_rows: bool
    ) -> Call:
        if isinstance(fn, Task) and not fn.bind:
            fn = fn.function
        if not isinstance(fn, FunctionType):
            args = ([(fn, *row) for row in args[0]],) if in_rows else (fn, *args)
            fn = prepared.call
        code = self._codes.get((fn, in_rows)) or self._code(fn, in_rows)
        packer = Packer(spill=self._app.spill)
        whole, digest = code.packed(packer)
        packed = serialization.dumps_args(args, kwargs, SERIALIZER, packer, by_value=True)
        if len(whole) + len(packed) > MAX_MESSAGE_BYTES:
            raise PayloadTooLarge(f"Not sent: a call of {fn.__name__} has {len(packed) / 1e6:,.0f} MB of arguments")
        return Call(future, code.task, digest, whole, packed, packer if packer.blobs else None, code.parts)

    def _code(self, fn: Callable[..., Any], in_rows: bool) -> _Code:
        """Return what sends a function, kept for the next call."""
        run = prepared.in_rows(fn) if in_rows else fn
        if self._initializer is not None:
            run = prepared.prepared(run, self._initializer, self._initargs, self._key)
        task = Task.of(self._app, run, name=f"{fn.__module__}.{fn.__qualname__}", by_value=True)
        if len(self._codes) >= CODES_KEPT:
            self._codes.clear()
        made = self._codes[fn, in_rows] = _Code(task, _is_of_its_module(fn))
        return made

    def _results(self, sent: Iterator[CallFuture], buffersize: int | None, deadline: float | None) -> Iterator[Any]:
        """Send, and return what yields the values; it cancels what is left if it is left before its end."""
        return self._yield_results(deque(itertools.islice(sent, buffersize)), sent, deadline)

    def _yield_results(
        self, waiting: deque[CallFuture], sent: Iterator[CallFuture], deadline: float | None
    ) -> Iterator[Any]:
        try:
            while waiting:
                value = waiting[0].result(None if deadline is None else deadline - time.monotonic())
                del waiting[0]
                waiting.extend(itertools.islice(sent, 1))
                yield value
        finally:
            if waiting:
                self._calls.cancel(waiting, insist=True)


@dataclass(slots=True)
class _Code:
    """What sends a function.

    Args:
        task: has its calls.
        of_module: it travels as a name in its module, so that its pickle changes with that module's file only.
    """

    task: Task
    of_module: bool
    until: float = 0.0
    kept: tuple[bytes, str] = (b"", "")
    parts: Parts | None = None  # of what is kept

    def packed(self, packer: Packer) -> tuple[bytes, str]:
        """Return the code as it is now, and its digest; its large data is in `parts`, or in this call's packer."""
        if not self.of_module:
            return self.task.packed(packer)
        now = time.monotonic()
        if now >= self.until:
            # To look at the files of a module, and of those it imports, takes a hundred times as long as the rest.
            own = Packer(spill=self.task.app.spill)
            self.kept = self.task.packed(own)
            self.parts = Parts(own) if own.blobs else None
            self.until = now + FRESH_S
        return self.kept


def _is_of_its_module(fn: Callable[..., Any]) -> bool:
    """Tell whether a function is found in its module by its name, and that is no notebook or script."""
    module = sys.modules.get(fn.__module__)
    return fn.__module__ != "__main__" and getattr(module, fn.__qualname__, None) is fn


def _check_children(most: int | None) -> None:
    if most is None:
        return
    if not isinstance(most, int):
        raise TypeError("max_tasks_per_child must be an integer")
    if most <= 0:
        raise ValueError("max_tasks_per_child must be >= 1")


def _own_app(broker: str | None, backend: str | None, settings: dict[str, Any]) -> App:
    """Return an app for an executor with workers of its own; inside a task it connects where its worker does."""
    app = App(None, broker, backend, set_as_current=False, by_value=True, **settings)
    app.work_follows = False
    app.blobs_stay = True
    if broker is None and current_request() is not None:
        app.adopt(current_app().link)
    return app
