"""`Task`: a function plus its options, and the ways to call it elsewhere."""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nbqueue import canvas, eager, serialization
from nbqueue.acks import ACK_OPTIONS, Acks
from nbqueue.exceptions import NotPicklable, Retry
from nbqueue.execute import BoundTask, current_request
from nbqueue.groups import Composed, GroupResult
from nbqueue.handles import AsyncResult
from nbqueue.limits import NO_LIMITS, limits_of_call, seconds, size_bytes
from nbqueue.messages import Steering, new_id, python_version
from nbqueue.payloads import Packer, is_whole
from nbqueue.retries import DEFAULTS, RETRY_OPTIONS, RetryOptions
from nbqueue.routing import priority as check_priority
from nbqueue.times import due_time, expiry_time
from nbqueue.travelled import Travelled
from nbqueue.unchanged import Changeable, Snapshot

if TYPE_CHECKING:
    from nbqueue.app import App

__all__ = ["Task"]

OPTIONS: Final = (
    "name", "bind", "queue", "serializer", "ignore_result", "expires", "by_value", "time_limit", "soft_time_limit",
    "memory_limit", "priority", *ACK_OPTIONS, *RETRY_OPTIONS,
)  # fmt: skip
MAP_OPTIONS: Final = frozenset(
    {
        *("queue", "countdown", "eta", "expires", "serializer", "shadow"),
        *("time_limit", "soft_time_limit", "memory_limit", "priority", "exchange", "routing_key"),
    }
)

# What a call in a canvas may be sent with.
_SENT: Final = frozenset(
    {
        *("task_id", "queue", "countdown", "eta", "expires", "serializer", "ignore_result", "shadow"),
        *("time_limit", "soft_time_limit", "memory_limit", "priority", "exchange", "routing_key"),
    }
)


_LOOK_AGAIN: Final = 100


class _Packed(NamedTuple):
    snapshot: Snapshot
    code: bytes
    digest: str


class Task:
    """A named function that workers can run. Calling it runs it here and now.

    Args:
        app: whose broker it is sent through.
        run: the function itself.
        name: unique among the app's tasks; the function's module and name if None.
        bind: pass the task itself as the first argument.
        queue: where its calls wait; the app's default queue if None.
        serializer: of arguments: `cloudpickle`, `pickle` or `json`.
        ignore_result: keep no value.
        expires: seconds, or an instant, after which a call that has not started is dropped.
        by_value: send the code with each call, so that the worker need not have it. None decides: yes for
            functions of a notebook or script, and for `@task` without an app of one's own.
        time_limit: seconds after which a running call is ended by force and fails with `TimeLimitExceeded`.
        soft_time_limit: seconds after which `SoftTimeLimitExceeded` is raised in it.
        memory_limit: bytes, or a text such as "2 GB"; a running call whose child uses more is ended by force and fails
            with `MemoryLimitExceeded`.
        priority: 0 to 9, which is the soonest; as a route or `conf.task_default_priority` says if None.
        more: `acks_late`, `acks_on_failure_or_timeout`, `reject_on_worker_lost`, as `nbqueue.acks.Acks` says them; and
            `max_retries`, `autoretry_for` and the other options of `nbqueue.retries.RetryOptions`.
    """

    def __init__(
        self,
        app: App,
        run: Callable[..., Any],
        *,
        name: str | None = None,
        bind: bool = False,
        queue: str | None = None,
        serializer: str | None = None,
        ignore_result: bool | None = None,
        expires: float | datetime | None = None,
        by_value: bool | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        memory_limit: int | str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> None:
        self.app = app
        self.run = run
        self.given: Mapping[str, Any] = {}  # options that it was declared with, for code that refers to it elsewhere
        self.name = name or named(run, app.main)
        self.bind = bind
        self.queue = queue
        self.serializer = serializer
        self.ignore_result = ignore_result
        self.expires = expires
        self.time_limit = seconds("time_limit", time_limit)
        self.soft_time_limit = seconds("soft_time_limit", soft_time_limit)
        self.priority = check_priority(priority)
        self.memory_limit = size_bytes("memory_limit", memory_limit)
        self.acks = Acks.of_options(more)
        self.retry_options = RetryOptions.of(**more)
        self._packed: _Packed | None = None
        self._look_in = 0  # calls until it is looked at again whether its code can be kept
        self.by_value = app.by_value or run.__module__ == "__main__" if by_value is None else by_value
        functools.update_wrapper(self, run, updated=())

    def __repr__(self) -> str:
        return f"<@task: {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here, in this process."""
        return self.run(self, *args, **kwargs) if self.bind else self.run(*args, **kwargs)

    def __reduce__(self) -> Any:
        return Travelled, (self.run, self.name, self.bind, self.by_value, self.given)

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether this process has no function of it."""
        return self.run is elsewhere

    @property
    def max_retries(self) -> int | None:
        """Return how often a call may be retried; None for as often as it likes."""
        return self.retry_options.max_retries

    @property
    def default_retry_delay(self) -> float:
        """Return the seconds until a retry that says nothing else."""
        return self.retry_options.default_retry_delay

    def retry(self, *, exc: BaseException | None = None, **options: Any) -> Retry:
        """Run the task again later, if it runs in a worker: as `BoundTask.retry`. Called here and now, it just fails.

        Raises:
            Retry: it will run again, or would in a worker; there `exc` is raised here instead.
        """
        request = current_request()
        if request is not None and request.task == self.name:
            return BoundTask(self.name, request).retry(exc=exc, **options)
        raise exc or Retry(f"{self.name} would be retried in a worker")

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Send a call with these arguments; return its handle once the broker has it."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str | None = None,
        queue: str | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        retry: bool | None = None,
        retry_policy: Mapping[str, float] | None = None,
        serializer: str | None = None,
        ignore_result: bool | None = None,
        shadow: str | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        memory_limit: int | str | None = None,
        priority: int | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        link: Any = None,
        link_error: Any = None,
        **unknown: Any,
    ) -> AsyncResult:
        """Send a call; return its handle once the broker has it.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            task_id: the id to use; while a task of this id lives, sending it again is an error.
            queue: where it waits.
            countdown: seconds before it may start.
            eta: the instant, with its zone, before which it must not start.
            expires: seconds from now, or an instant: dropped if it has not started by then.
            retry: try again when the broker can't be reached; `conf.task_publish_retry` if None.
            retry_policy: `max_retries`, `interval_start`, `interval_step`, `interval_max` (seconds).
            serializer: of the arguments: `cloudpickle`, `pickle` or `json`.
            ignore_result: keep no value.
            shadow: the name to show instead of the task's.
            time_limit: seconds after which it is ended by force.
            soft_time_limit: seconds after which `SoftTimeLimitExceeded` is raised in it.
            memory_limit: bytes, or a text such as "2 GB", that its child may use.
            priority: 0 to 9, which is the soonest.
            exchange: with the next in place of `queue`: it goes to what `task_queues` binds to this exchange
            routing_key: for this key; the default ones where None.
            link: a signature, or several, that get the value.
            link_error: a signature, or several, that are told of a failure.
            unknown: anything else is an error.

        Raises:
            TypeError: the arguments don't fit the function, or an option doesn't exist.
            NotPicklable: code or arguments can't travel; names what.
            SendFailed: the broker can't be reached.
            SendUncertain: it went away before it confirmed.
        """
        if unknown:
            raise TypeError(f"apply_async has no option {', '.join(sorted(unknown))}")
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        if self.app.conf.task_always_eager:
            return self.apply(args, kwargs, link, link_error, task_id=task_id, queue=queue, ignore_result=ignore_result)
        if link or link_error:
            given = {name: value for name, value in locals().items() if name in _SENT and value is not None}
            linked: AsyncResult = self.signature(args, kwargs, link=link, link_error=link_error, **given).apply_async()
            return linked
        self._check_arguments(args, kwargs)
        packer = Packer(spill=self.app.spill)
        steering, code = self._steering(
            packer,
            queue=queue,
            countdown=countdown,
            eta=eta,
            expires=expires,
            serializer=serializer,
            shadow=shadow,
            time_limit=time_limit,
            soft_time_limit=soft_time_limit,
            memory_limit=memory_limit,
            priority=priority,
            exchange=exchange,
            routing_key=routing_key,
            call=(args, kwargs),
        )
        ignore = self.ignore_result if ignore_result is None else ignore_result
        return self.app.send(
            steering,
            code,
            serialization.dumps_args(args, kwargs, steering.serializer, packer, by_value=self.by_value),
            packer,
            task_id=task_id,
            ignore_result=self.app.conf.task_ignore_result if ignore is None else ignore,
            retry=retry,
            retry_policy=retry_policy,
        )

    def apply(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int = 0,
        throw: bool | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Run a call here and now; return a handle on it, as on one that a worker ran.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            link: a signature, or several, that get the value.
            link_error: a signature, or several, that are told of a failure.
            task_id: the id to use.
            retries: how often it counts as retried.
            throw: raise what it fails with; as `conf.task_eager_propagates` says if None.
            options: of `apply_async`; most mean nothing here.
        """
        given = {**options, "task_id": task_id} if task_id else options
        if link or link_error:
            found = self.signature(args, kwargs, link=link, link_error=link_error, **given)
            linked: AsyncResult = eager.run_canvas(self.app, found, (), {}, {}, throw)
            return linked
        result = eager.run(self.app, self, tuple(args or ()), dict(kwargs or {}), given, retried=retries)
        if self.app.conf.task_eager_propagates if throw is None else throw:
            result.get()
        return result

    def map(self, iterable: Iterable[Any], **options: Any) -> GroupResult:
        """Send one call for each element at once; return a live group with the results in order.

        Celery's `map`, one message that runs them in sequence, is another thing.
        """
        return self._send_map(((element,) for element in iterable), options)

    def starmap(self, iterable: Iterable[Iterable[Any]], **options: Any) -> GroupResult:
        """Send one call for each tuple of arguments at once; return a live group with the results in order."""
        return self._send_map((tuple(element) for element in iterable), options)

    def signature(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> canvas.Signature:
        """Return a call that is not sent yet; see `nbqueue.canvas.Signature`."""
        return canvas.Signature(self, args, kwargs, options)

    subtask = signature

    def s(self, *args: Any, **kwargs: Any) -> canvas.Signature:
        """Return a call with these arguments that is not sent yet."""
        return canvas.Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> canvas.Signature:
        """Return a call with these arguments that takes nothing from calls before it."""
        return canvas.Signature(self, args, kwargs, immutable=True)

    def chunks(self, it: Iterable[Iterable[Any]], n: int) -> canvas.chunks:
        """Return calls with these tuples of arguments, in messages of `n` calls each."""
        return canvas.chunks(self.s(), it, n)

    def xmap(self, it: Iterable[Any]) -> canvas.xmap:
        """Return one message that calls the task for each element: Celery's `map`."""
        return canvas.xmap(self.s(), it)

    def xstarmap(self, it: Iterable[Iterable[Any]]) -> canvas.xstarmap:
        """Return one message that calls the task for each tuple of arguments: Celery's `starmap`."""
        return canvas.xstarmap(self.s(), it)

    def steering_of(
        self, packer: Packer, call: tuple[tuple[Any, ...], dict[str, Any]], options: dict[str, Any]
    ) -> tuple[Steering, bytes]:
        """Return the steering that calls of a canvas share, and their code.

        Raises:
            TypeError: an option doesn't exist.
        """
        if wrong := sorted(options.keys() - _SENT):
            raise TypeError(f"a call in a canvas has no option {', '.join(wrong)}")
        return self._steering(packer, call=call, **options)

    def AsyncResult(self, task_id: str) -> AsyncResult:  # noqa: N802 - Celery's name
        """Return the handle on a call sent before."""
        return self.app.AsyncResult(task_id)

    def _send_map(self, calls: Iterable[tuple[Any, ...]], options: dict[str, Any]) -> GroupResult:
        if wrong := sorted(options.keys() - MAP_OPTIONS):
            raise TypeError(f"map has no option {', '.join(wrong)}; it has {', '.join(sorted(MAP_OPTIONS))}")
        if self.app.conf.task_always_eager:
            return Composed(new_id(), [eager.run(self.app, self, args, {}, options) for args in calls], app=self.app)
        packer = Packer(spill=self.app.spill)
        steering, code = self._steering(packer, **options)
        packed = [
            serialization.dumps_args(args, {}, steering.serializer, packer, by_value=self.by_value) for args in calls
        ]
        return self.app.send_map(steering, code, packed, packer)

    def _steering(
        self,
        packer: Packer,
        *,
        queue: str | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        serializer: str | None = None,
        shadow: str | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        memory_limit: int | str | None = None,
        priority: int | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> tuple[Steering, bytes]:
        now = round(time.time(), 3)  # what a message says of its time takes less room so
        due = due_time(now, countdown, eta)
        given = self.priority if priority is None else check_priority(priority)
        queue = queue or (self.queue if exchange is None and routing_key is None else None)
        where, level = self.app.destination(
            self.name, *call, queue=queue, priority=given, exchange=exchange, routing_key=routing_key
        )
        code, digest = self._code(packer) if self.by_value else (b"", "")
        # What travels with its code brings its app's settings; what goes by name finds its worker's.
        limits = (
            (self.app.default_limits if self.by_value else NO_LIMITS)
            .with_those_of(self)
            .with_those_of(limits_of_call(time_limit, soft_time_limit, memory_limit))
        )
        return Steering(
            id="",
            nonce="",
            task=self.name,
            queue=where,
            sent_at=now,
            code=digest,
            python=python_version() if code else "",
            session=self.app.session,
            name=shadow or "",
            eta=due,
            expires=expiry_time(now, self.expires if expires is None else expires, due),
            bind=self.bind,
            serializer=serialization.check_serializer(serializer or self.serializer or "cloudpickle"),
            time_limit=limits.time_limit,
            soft_time_limit=limits.soft_time_limit,
            memory_limit=limits.memory_limit,
            priority=level,
            acks=self._sent_acks(),
        ), code

    def _sent_acks(self) -> Acks | None:
        """Return what a message says of itself; None for nothing but the defaults."""
        if not self.by_value:
            return self.acks
        defaults = self.app.default_acks
        return (defaults if self.acks is None else self.acks.or_else(defaults)).as_sent()

    def _code(self, packer: Packer) -> tuple[bytes, str]:
        """Return the function as it is now, packed, and the digest of that."""
        packed = self._packed
        if packed is not None and packed.snapshot.holds():
            return packed.code, packed.digest
        try:
            options = None if self.retry_options == DEFAULTS else self.retry_options
            code = serialization.dumps_code(self.run, packer, options)
        except NotPicklable:
            raise
        except Exception as exc:
            raise NotPicklable(f"Not sent: the code of {self.name} can't travel: {exc}") from exc
        digest = serialization.digest(code)
        self._packed = None
        if options is None and is_whole(code) and self._look_in <= 0:
            try:
                self._packed = _Packed(Snapshot(self.run, Task), code, digest)
            except Changeable:
                self._look_in = _LOOK_AGAIN
        self._look_in -= 1
        return code, digest

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        fewest, most = _arity(self.run)
        if not kwargs and fewest <= len(args) + self.bind <= most:
            return
        signature = _signature(self.run)
        if signature is None:
            return
        try:
            signature.bind(*((self, *args) if self.bind else args), **kwargs)
        except TypeError as exc:
            raise TypeError(f"{self.name}: {exc}") from None


def elsewhere(*_: Any, **__: Any) -> Any:
    """Stand for the function of a task that only workers have."""
    raise NotImplementedError("this task is known here by its name only")


@functools.lru_cache(maxsize=1024)
def _signature(run: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(run)
    except (TypeError, ValueError):
        return None


@functools.lru_cache(maxsize=1024)
def _arity(run: Callable[..., Any]) -> tuple[int, float]:
    """Return how few and how many arguments without names a function takes; (1, 0) if that alone doesn't tell."""
    signature = _signature(run)
    fewest, most = 0, 0.0
    for parameter in signature.parameters.values() if signature is not None else ():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            fewest += parameter.default is parameter.empty
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = math.inf
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            return 1, 0
    return fewest, most


def named(run: Callable[..., Any], main: str | None) -> str:
    """Return the name a function has as a task: its module's and its own."""
    module = run.__module__
    if module == "__main__" and main:
        module = main
    return f"{module}.{run.__qualname__}"
