"""`Task`: a function plus its options, and the ways to call it elsewhere."""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self, cast

from nbqueue import canvas, contents, eager, retries, serialization
from nbqueue.acks import ACK_OPTIONS, Acks
from nbqueue.callbacks import HOOKS, ErrorInfo
from nbqueue.current import current_app
from nbqueue.defaults import Defaults
from nbqueue.exceptions import NotPicklable, SendFailed
from nbqueue.extras import EXTRAS, NO_EXTRAS, Extras
from nbqueue.groups import GroupResult, MapResult
from nbqueue.handles import AsyncResult
from nbqueue.limits import NO_LIMITS, check_order, limits_of_call, seconds, size_bytes
from nbqueue.messages import Steering, new_id, python_version
from nbqueue.models import Modelled
from nbqueue.payloads import Packer, is_whole
from nbqueue.rates import NO_RATE, lock_name, per_second
from nbqueue.request import Loaded, Running
from nbqueue.retries import DEFAULTS, RETRY_OPTIONS, RetryOptions
from nbqueue.routing import priority as check_priority
from nbqueue.times import due_time, expiry_time
from nbqueue.travelled import Travelled
from nbqueue.unchanged import Changeable, Snapshot

if TYPE_CHECKING:
    from nbqueue.app import App

__all__ = ["Task"]

OPTIONS: Final = (
    "name", "bind", "queue", "serializer", "compression", "ignore_result", "store_errors_even_if_ignored",
    "track_started", "trail", "send_events", "typing", "throws", "expires", "by_value", "time_limit",
    "soft_time_limit", "memory_limit", "priority", "exchange", "routing_key", "rate_limit", "lock",
    "resultrepr_maxsize", "shadow_name",
    *HOOKS, *ACK_OPTIONS, *RETRY_OPTIONS,
)  # fmt: skip
_OPTIONS: Final = frozenset(OPTIONS)
_METHODS: Final = frozenset({*HOOKS, "shadow_name"})
MAP_OPTIONS: Final = frozenset(
    {
        *("queue", "countdown", "eta", "expires", "serializer", "shadow"),
        *("time_limit", "soft_time_limit", "memory_limit", "priority", "exchange", "routing_key"),
        *EXTRAS,
    }
)

# What a call in a canvas may be sent with.
_SENT: Final = frozenset(
    {
        *("task_id", "queue", "countdown", "eta", "expires", "serializer", "ignore_result", "shadow"),
        *("time_limit", "soft_time_limit", "memory_limit", "priority", "exchange", "routing_key"),
        *EXTRAS,
    }
)


_RETRIES: Final = frozenset(RETRY_OPTIONS)
_LOOK_AGAIN: Final = 100


class _Packed(NamedTuple):
    snapshot: Snapshot
    code: bytes
    digest: str
    form: tuple[str, ...]  # of its values


class Task(Running):
    """A named function that workers can run. Calling it runs it here and now.

    Options are given where it is declared (`@app.task(queue="gpu")`), or stand as attributes in a class of one's own,
    which is named by `base=`, or has a method `run` and is registered with `app.register_task`. They may be set later,
    too. Methods named in `nbqueue.callbacks` are called before and after it runs.

    Args:
        name: unique among the app's tasks; the function's module and name if empty.
        bind: pass the task itself as the first argument.
        queue: where its calls wait; the app's default queue if None.
        serializer: of arguments, one of `nbqueue.contents.SERIALIZERS`; as `task_serializer` says if None.
        compression: of arguments, one of `nbqueue.contents.COMPRESSIONS`; as `task_compression` says if None.
        ignore_result: keep no value.
        store_errors_even_if_ignored: accepted; errors are kept in any case.
        track_started: accepted; a task that runs for longer than 0.1 s is STARTED in any case.
        trail: note the calls that it makes as its children.
        send_events: tell monitors of it, where events are sent at all.
        typing: check arguments where a call is made; as `App.strict_typing` says if None.
        throws: errors that are expected of it: workers log them as news, in one line, and no others so.
        expires: seconds, or an instant, after which a call that has not started is dropped.
        by_value: send the code with each call, so that the worker need not have it. None decides: yes for
            functions of a notebook or script, and for `@task` without an app of one's own.
        time_limit: seconds after which a running call is ended by force and fails with `TimeLimitExceeded`.
        soft_time_limit: seconds after which `SoftTimeLimitExceeded` is raised in it.
        memory_limit: bytes, or a text such as "2 GB"; a running call whose child uses more is ended by force and fails
            with `MemoryLimitExceeded`.
        priority: 0 to 9, which is the soonest; as a route or `conf.task_default_priority` says if None.
        exchange: with the next in place of `queue`, as in `apply_async`.
        routing_key: for the exchange.
        rate_limit: of all its calls, in all workers: tasks a second, or a text such as "10/m"; those over it wait.
        lock: of all calls with a lock of this name, of whatever task, one runs at a time in all workers.
        acks_late: and what else there is of acknowledgement, as `nbqueue.acks.Acks` says it.
        max_retries: and what else there is of retries, as `nbqueue.retries.RetryOptions` says it.
    """

    OperationalError: ClassVar = SendFailed

    name: str = ""
    bind: bool = False
    by_value: bool = False
    queue: str | None = None
    serializer: str | None = None
    compression: str | None = None
    ignore_result: bool | None = None
    store_errors_even_if_ignored: bool | None = None
    track_started: bool | None = None
    trail: bool = True
    send_events: bool = True
    typing: bool | None = None
    throws: Any = ()
    expires: float | datetime | None = None
    time_limit: Any = None
    soft_time_limit: Any = None
    memory_limit: Any = None
    priority: int | None = None
    exchange: Any = None
    routing_key: str | None = None
    rate_limit: float | str | None = None
    lock: str | None = None
    resultrepr_maxsize: int = 1024
    acks_late: bool | None = None
    acks_on_failure_or_timeout: bool | None = None
    acks_on_failure: bool | None = None
    acks_on_timeout: bool | None = None
    reject_on_worker_lost: bool | None = None
    retry_on_worker_lost: bool | None = None
    max_retries: int | None = DEFAULTS.max_retries
    default_retry_delay: float = DEFAULTS.default_retry_delay
    autoretry_for: Any = DEFAULTS.autoretry_for
    dont_autoretry_for: Any = DEFAULTS.dont_autoretry_for
    retry_kwargs: Mapping[str, Any] = DEFAULTS.retry_kwargs
    retry_backoff: float = DEFAULTS.retry_backoff
    retry_backoff_max: float = DEFAULTS.retry_backoff_max
    retry_jitter: bool = DEFAULTS.retry_jitter

    # What follows from them.
    function: Callable[..., Any]  # takes the task first if `bind`
    given: Mapping[str, Any] = {}  # options that it was declared with, for code that refers to it elsewhere
    acks: Acks | None = None
    rate: float = NO_RATE  # tasks a second
    retry_options: RetryOptions = DEFAULTS
    _app: App | None = None
    _is_whole = False  # there is more to it than its function and options
    _typed = True
    _shadows = False
    _loaded: Loaded | None = None
    _packed: _Packed | None = None
    _look_in = 0  # calls until it is looked at again whether its code can be kept

    def __class_getitem__(cls, _: object) -> type[Self]:
        return cls

    @classmethod
    def of(cls, app: App | None, run: Callable[..., Any] | None, **options: Any) -> Self:
        """Return a task of this class.

        Args:
            app: whose broker it is sent through; the current app if None.
            run: its function; the method `run` of this class if None.
            options: as the class lists them.

        Raises:
            TypeError: an option doesn't exist, or this can't be a task.
            ImproperlyConfigured: an option can't be used.
        """
        task = cls()
        task.declare(app, run, options)
        return task

    def declare(self, app: App | None, run: Callable[..., Any] | None, options: Mapping[str, Any]) -> None:
        """Be the task of a function, or of this class's own method `run`; see `of`."""
        own, kind = vars(self), type(self)
        wrong = sorted(name for name in options if name not in _OPTIONS and not hasattr(self, name))
        if wrong or (wrong := sorted(name for name in options if name not in _OPTIONS and hasattr(Task, name))):
            raise TypeError(
                f"a task has no option {', '.join(wrong)}; it has {', '.join(OPTIONS)}, "
                "and those that a class of one's own has as attributes: base="
            )
        own["_app"] = app
        own["function"] = function = checked(run) if run is not None else _method(kind)
        own["given"] = {name: value for name, value in options.items() if name not in ("name", "bind", "by_value")}
        for name, value in options.items():
            own[name] = MethodType(value, self) if name in _METHODS and value is not None else value
        if run is None:
            own["bind"] = True
        elif not self.bind:
            _refuse_method(run)
            own["run"] = function
        else:
            own["run"] = MethodType(function, self)
        own["name"] = self.name or named(function if run is not None else kind, app)
        if options.get("by_value") is None:
            module = (function if run is not None else kind).__module__
            own["by_value"] = module == "__main__" or (app is not None and app.by_value)
        if kind is not Task or not _METHODS.isdisjoint(options):
            own["_is_whole"] = True
            own["_shadows"] = _is_changed(self, "shadow_name")
        functools.update_wrapper(self, function if run is not None else kind, updated=())
        if options or self._is_whole:
            self._settle()
        if app is not None and not app.strict_typing and self.typing is None:
            own["_typed"] = False
        if kind is not Task:
            kind.on_bound(app)

    def _settle(self) -> None:
        """Check the options, and do what follows from them."""
        own = vars(self)
        for name, check in (("time_limit", seconds), ("soft_time_limit", seconds), ("memory_limit", size_bytes)):
            own[name] = check(name, self.given[name] if name in self.given else getattr(self, name) or None)
        own["priority"] = check_priority(self.priority)
        own["rate"], own["lock"] = per_second(self.rate_limit), lock_name(self.lock) or None
        if self.serializer is not None:
            own["serializer"] = contents.serializer(self.serializer)
        contents.compression(self.compression)
        own["throws"] = retries.exceptions("throws", self.throws)
        own["acks"] = Acks.of_options({name: getattr(self, name) for name in ACK_OPTIONS})
        own["retry_options"] = RetryOptions.of(**{name: getattr(self, name) for name in RETRY_OPTIONS})
        own["_typed"] = self.typing is not False
        own["_loaded"] = own["_packed"] = None

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in _OPTIONS and "function" in vars(self):
            self.given = {**self.given, name: value}
            if name in _METHODS:
                vars(self).update(_is_whole=True, _shadows=_is_changed(self, "shadow_name"))
            self._settle()

    def __repr__(self) -> str:
        return f"<@task: {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here, in this process."""
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work: the function that this task was made of, or a method of one's own class."""
        raise NotImplementedError(f"task {self.name or type(self).__name__} has no method run")

    def __reduce__(self) -> Any:
        if not self._is_whole:
            return Travelled, (self.function, self.name, self.bind, self.by_value, self.given)
        function = None if self.function is getattr(type(self), "run", None) else self.function
        own = {"name": self.name, "bind": self.bind, "by_value": self.by_value}
        return _remade, (type(self), function, {**self.given, **own})

    @property
    def app(self) -> App:
        """Return the app that sends it."""
        found = self._app
        return current_app() if found is None else found

    @property
    def backend(self) -> Any:
        """Return what keeps its results."""
        return self.app.backend

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether this process has no function of it."""
        return self.function is elsewhere

    @property
    def loaded(self) -> Loaded:
        """Return it as it is called where it runs."""
        if self._loaded is None:
            ways = self._ways()
            found = Loaded(
                self.function,
                self.retry_options,
                self.bind,
                self,
                *ways,
                self.trail,
                {},
                self.app.defaults.form,
                self.throws,
            )
            vars(self)["_loaded"] = found
        assert self._loaded is not None
        return self._loaded

    def _ways(self) -> tuple[bool, bool]:
        """Tell whether it has hooks, and a way of its own to be called."""
        if not self._is_whole:
            return False, False
        return any(_is_changed(self, name) for name in HOOKS), _is_changed(self, "__call__")

    # ---- what a class of one's own may change

    @classmethod
    def on_bound(cls, app: App | None) -> None:
        """Is called when a task of this class has got its app."""

    def before_start(self, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Is called before it runs; an error here is the task's."""

    def on_success(self, retval: Any, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Is called after it has returned, and before anybody is told (Celery: after)."""

    def on_failure(
        self, exc: BaseException, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: ErrorInfo
    ) -> None:
        """Is called after it has raised; not if its child was lost or ended by force."""

    def on_retry(
        self, exc: BaseException, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: ErrorInfo
    ) -> None:
        """Is called when it is to run again."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: Any
    ) -> None:
        """Is called after the others, once it has ended."""

    def shadow_name(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]) -> str | None:
        """Return the name that a call is shown under; None for the task's own."""

    # ---- calling it

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Send a call with these arguments; return its handle once the broker has it."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: object = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        queue: str | None = None,
        countdown: float | None = None,
        eta: datetime | str | None = None,
        expires: float | datetime | str | None = None,
        retry: bool | None = None,
        retry_policy: Mapping[str, Any] | None = None,
        serializer: str | None = None,
        ignore_result: bool | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        memory_limit: int | str | None = None,
        priority: int | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        throw: bool | None = None,
        **more: Any,
    ) -> AsyncResult:
        """Send a call; return its handle once the broker has it.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            task_id: the id to use; while a task of this id lives, sending it again is an error.
            producer: accepted; calls go by the app's own connections.
            link: a signature, or several, that get the value.
            link_error: a signature, or several, that are told of a failure.
            shadow: the name to show instead of the task's.
            queue: where it waits.
            countdown: seconds before it may start.
            eta: the instant, with its zone, before which it must not start.
            expires: seconds from now, or an instant: dropped if it has not started by then.
            retry: try again when the broker can't be reached; `conf.task_publish_retry` if None.
            retry_policy: `max_retries` (None: as often as it takes), and `interval_start`, `interval_step` and
                `interval_max`, seconds.
            serializer: of the arguments: `cloudpickle`, `pickle` or `json`.
            ignore_result: keep no value.
            time_limit: seconds after which it is ended by force.
            soft_time_limit: seconds after which `SoftTimeLimitExceeded` is raised in it.
            memory_limit: bytes, or a text such as "2 GB", that its child may use.
            priority: 0 to 9, which is the soonest.
            exchange: with the next in place of `queue`: it goes to what `task_queues` binds to this exchange
            routing_key: for this key; the default ones where None.
            throw: raise what it fails with, where `task_always_eager` has it run here.
            more: what `nbqueue.extras.Extras` says; anything else is an error.

        Raises:
            TypeError: the arguments don't fit the function, or an option doesn't exist.
            NotPicklable: code or arguments can't travel; names what.
            SendFailed: the broker can't be reached.
            SendUncertain: it went away before it confirmed.
        """
        extras = Extras.of(more) if more else NO_EXTRAS
        args, kwargs, app = tuple(args or ()), dict(kwargs or {}), self.app
        if shadow is None and self._shadows:
            options = {name: value for name, value in locals().items() if name in _SENT and value is not None}
            shadow = self.shadow_name(args, kwargs, options)
        if app.conf.task_always_eager:
            more |= {"task_id": task_id, "queue": queue, "ignore_result": ignore_result, "priority": priority}
            return self.apply(args, kwargs, link, link_error, throw=throw, **more)
        if link or link_error:
            given = {name: value for name, value in locals().items() if name in _SENT and value is not None}
            given.update((name, value) for name, value in more.items() if name in EXTRAS)
            linked: AsyncResult = self.signature(args, kwargs, link=link, link_error=link_error, **given).apply_async()
            return linked
        self._check_arguments(args, kwargs)
        packer = Packer(spill=app.spill)
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
            extras=extras,
            call=(args, kwargs),
        )
        ignore = self.ignore_result if ignore_result is None else ignore_result
        told = app.publication(steering, (args, kwargs), task_id) if app.is_watched else None
        if told is not None:
            steering, task_id = told.begin(), told.id
        sent = app.sender.send(
            steering,
            code,
            self.dumps_args(args, kwargs, steering.serializer, packer, extras.compression),
            packer,
            task_id=task_id,
            ignore_result=app.conf.task_ignore_result if ignore is None else ignore,
            retry=retry,
            retry_policy=retry_policy,
            add_to_parent=extras.add_to_parent,
        )
        if told is not None:
            told.end()
        return sent

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

    def map(self, iterable: Iterable[Any], **options: Any) -> MapResult:
        """Send one call for each element at once; return a live group with the results in order.

        Celery's `map`, one message that runs them in sequence, is another thing.
        """
        return self._send_map(((element,) for element in iterable), options)

    def starmap(self, iterable: Iterable[Iterable[Any]], **options: Any) -> MapResult:
        """Send one call for each tuple of arguments at once; return a live group with the results in order."""
        return self._send_map((tuple(element) for element in iterable), options)

    def signature(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> canvas.Signature:
        """Return a call that is not sent yet; see `nbqueue.canvas.Signature`."""
        return canvas.Signature(self, args, kwargs, options, **more)

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

    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, queue: str | None = None, **options: Any
    ) -> canvas.Signature:
        """Return a call like one that runs, not sent yet, with other arguments and options where they are given.

        Args:
            request: of the call that runs; the task's own if None.
            args: positional arguments.
            kwargs: keyword arguments.
            queue: where it waits.
            options: of `apply_async`.
        """
        found = self.request if request is None else request
        given = found.as_execution_options() if hasattr(found, "as_execution_options") else {}
        given |= {**options, **({"queue": queue} if queue else {})}
        return self.signature(found.args if args is None else args, found.kwargs if kwargs is None else kwargs, **given)

    subtask_from_request = signature_from_request

    def _send_map(self, calls: Iterable[tuple[Any, ...]], options: dict[str, Any]) -> MapResult:
        if wrong := sorted(options.keys() - MAP_OPTIONS):
            raise TypeError(f"map has no option {', '.join(wrong)}; it has {', '.join(sorted(MAP_OPTIONS))}")
        if self.app.conf.task_always_eager:
            ended = [eager.run(self.app, self, args, {}, options) for args in calls]
            return cast("MapResult", GroupResult(new_id(), ended, app=self.app))  # but for what is to be followed
        packer = Packer(spill=self.app.spill)
        steering, code = self._steering(packer, **options)
        how, squeezed = steering.serializer, self.compression_of(options.get("compression"))
        packed = [self.dumps_args(args, {}, how, packer, squeezed) for args in calls]
        return self.app.sender.send_map(steering, code, packed, packer)

    def _steering(
        self,
        packer: Packer,
        *,
        queue: str | None = None,
        countdown: float | None = None,
        eta: datetime | str | None = None,
        expires: float | datetime | str | None = None,
        serializer: str | None = None,
        shadow: str | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        memory_limit: int | str | None = None,
        priority: int | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        extras: Extras = NO_EXTRAS,
        call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
        **more: Any,
    ) -> tuple[Steering, bytes]:
        if more:
            extras = Extras.of(more)
        app, by_value = self.app, self.by_value
        defaults = app.defaults
        now = round(time.time(), 3)  # what a message says of its time takes less room so
        due = due_time(now, countdown, eta)
        given = self.priority if priority is None else check_priority(priority)
        queue = queue or (self.queue if exchange is None and routing_key is None else None)
        if queue is None:
            exchange = self.exchange if exchange is None else exchange
            routing_key = self.routing_key if routing_key is None else routing_key
        where, level = app.destination(
            self.name, *call, queue=queue, priority=given, exchange=exchange, routing_key=routing_key
        )
        code, digest = self._code(packer) if by_value else (b"", "")
        # What travels with its code brings its app's settings; what goes by name finds its worker's.
        limits = NO_LIMITS.with_those_of(self).with_those_of(limits_of_call(time_limit, soft_time_limit, memory_limit))
        check_order(self.name, limits)
        if by_value:
            limits = defaults.limits.with_those_of(limits)
        how = serializer or self.serializer
        steering = Steering(
            id="",
            nonce="",
            task=self.name,
            queue=where,
            sent_at=now,
            code=digest,
            python=python_version() if code else "",
            session=app.session,
            name=shadow or "",
            eta=due,
            expires=expiry_time(now, self.expires if expires is None else expires, due),
            bind=self.bind,
            serializer=contents.serializer(how) if how else defaults.serializer,
            time_limit=limits.time_limit,
            soft_time_limit=limits.soft_time_limit,
            memory_limit=limits.memory_limit,
            priority=level,
            acks=self._sent_acks(defaults) if by_value else self.acks,
            unheard=not self.send_events,
            extended=defaults.extended,
            rate_limit=self.rate or (defaults.rate if by_value else NO_RATE),
            lock=self.lock or "",
        )
        return (steering if extras is NO_EXTRAS else extras.on(steering)), code

    def dumps_args(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        serializer: str,
        packer: Packer,
        compression: str | None = None,
    ) -> bytes:
        """Return the arguments of a call, packed; see `serialization.dumps_args`."""
        if serializer not in contents.PICKLES and isinstance(self.function, Modelled):
            args, kwargs = self.function.dump(args, kwargs, bind=self.bind)
        squeezed = self.compression_of(compression)
        return serialization.dumps_args(args, kwargs, serializer, packer, by_value=self.by_value, compression=squeezed)

    def compression_of(self, given: str | None) -> str:
        """Return how the arguments of a call are compressed: as it says, or its task, or the settings."""
        found = self.compression if given is None else given
        return contents.compression(found) if found is not None else self.app.conf.task_compression

    def _sent_acks(self, defaults: Defaults) -> Acks | None:
        """Return what a message that brings its code says of itself; None for nothing but the defaults."""
        found = defaults.sent_acks if self.acks is None else self.acks.or_else(defaults.acks).as_sent()
        options = self.retry_options
        return found and found.retried_as(options.max_retries, options.default_retry_delay)

    def packed(self, packer: Packer) -> tuple[bytes, str]:
        """Return the function as it is now, packed, and the digest of that; for who sends calls in a way of its own.

        Raises:
            NotPicklable: it can't travel.
        """
        return self._code(packer)

    def _code(self, packer: Packer) -> tuple[bytes, str]:
        """Return the function as it is now, packed, and the digest of that."""
        packed = self._packed
        if packed is not None and packed.form == self.app.defaults.form and packed.snapshot.holds():
            return packed.code, packed.digest
        beside, fixed = self._beside()
        try:
            code = serialization.dumps_code(self.function, packer, beside)
        except NotPicklable:
            raise
        except Exception as exc:
            raise NotPicklable(f"Not sent: the code of {self.name} can't travel: {exc}") from exc
        digest = serialization.digest(code)
        own = vars(self)
        own["_packed"] = None
        if fixed and is_whole(code) and self._look_in <= 0:
            try:
                own["_packed"] = _Packed(Snapshot(self.function, Task), code, digest, self.app.defaults.form)
            except Changeable:
                own["_look_in"] = _LOOK_AGAIN
        own["_look_in"] = self._look_in - 1
        return code, digest

    def _beside(self) -> tuple[Any, bool]:
        """Return what travels beside its function, and whether that stays the same.

        Nothing, or how it is retried, or what `Loaded` holds of it beside the function.
        """
        options, form = self.retry_options, self.app.defaults.form
        if self._is_whole:
            _check_makeable(type(self))
            return (options, self.bind, self, *self._ways(), self.trail, {}, form, self.throws), False
        traits = {name: value for name, value in self.given.items() if _is_simple(value)} if self.bind else {}
        if traits.keys() <= _RETRIES and self.trail and not form and not self.throws:
            return (None, True) if options == DEFAULTS else (options, False)
        fixed = options == DEFAULTS and not self.throws
        return (options, self.bind, None, False, False, self.trail, traits, form, self.throws), fixed

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._typed:
            return
        fewest, most = _arity(self.function)
        if not kwargs and fewest <= len(args) + self.bind <= most:
            return
        signature = _signature(self.function)
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


def checked(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that can be a task's.

    Raises:
        TypeError: it can't; says what to do instead.
    """
    name = getattr(run, "__qualname__", repr(run))
    if isinstance(run, staticmethod | classmethod):
        raise TypeError(f"{name} is a {type(run).__name__}: make a task of a plain function, outside of the class")
    if isinstance(run, type) and run.__module__ != "builtins":  # `str` and its kin are functions enough
        raise TypeError(f"{name} is a class; app.register_task makes a task of a class with a method run")
    if inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run):
        raise TypeError(
            f"{name} is a generator, and a task has one result: return a list, tell how far it is with progress(), "
            "or send a call for each element with map()"
        )
    if not hasattr(run, "__qualname__") or not hasattr(run, "__module__"):
        raise TypeError(f"{run!r} has no name of its own: wrap it in a function, and make a task of that")
    return run


def _refuse_method(run: Callable[..., Any]) -> None:
    """Refuse a function that stands in a class and wants its object: nobody could pass it one.

    Raises:
        TypeError: it does.
    """
    scope, _, _ = getattr(run, "__qualname__", "").rpartition(".")
    first = next(iter(getattr(getattr(run, "__code__", None), "co_varnames", ())), "")
    if scope and not scope.endswith("<locals>") and first in ("self", "cls") and not inspect.ismethod(run):
        raise TypeError(
            f"{run.__qualname__} is a method, and a task gets no object: make a task of a function that takes the "
            "object as an argument, or a class of tasks with a method run"
        )


def _method(kind: type[Task]) -> Callable[..., Any]:
    found: Callable[..., Any] = kind.run
    if found is Task.run:
        raise TypeError(f"{kind.__qualname__} has no method run, which does the work of a class of tasks")
    return found


def _is_changed(task: Task, name: str) -> bool:
    """Tell whether a task has a method of its own in place of the one that all have."""
    return name in vars(task) or getattr(type(task), name) is not getattr(Task, name)


def _is_simple(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) < 100 and all(_is_simple(part) for part in value)
    return value is None or type(value) in (bool, int, float, str)


def _check_makeable(kind: type[Task]) -> None:
    """Refuse a class of tasks that can't be made anew in a worker.

    Raises:
        NotPicklable: it takes arguments.
    """
    try:
        inspect.signature(kind).bind()
    except TypeError as exc:
        raise NotPicklable(
            f"Not sent: {kind.__qualname__} is made anew in each worker, without arguments: {exc}; have it find by "
            "itself what it needs"
        ) from None
    except ValueError:  # it has no signature
        return


def _remade(kind: type[Task], function: Callable[..., Any] | None, options: dict[str, Any]) -> Task:
    """Return a task that has travelled."""
    return kind.of(None, function, **options)


def named(run: Callable[..., Any], app: App | None) -> str:
    """Return the name a function has as a task: as its app says, else its module's and its own."""
    if app is None:
        return f"{run.__module__}.{run.__qualname__}"
    return app.gen_task_name(run.__qualname__, run.__module__)
