"""`App`: the one façade. It holds settings, tasks, broker, backend and watcher, and sends."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, tzinfo
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import msgspec

from nbqueue import canvas, contents, declaring, eager, finding, signals
from nbqueue import result as results
from nbqueue.annotations import annotate
from nbqueue.backends.base import Backend, Label
from nbqueue.blobs import Blobs, BlobStore
from nbqueue.codes import Codes
from nbqueue.config import Environment, Settings, scheme_of
from nbqueue.configuration import Configuration, from_environment, zone
from nbqueue.current import Shared, app_or_default, join, set_current_app
from nbqueue.defaults import Defaults, defaults_of
from nbqueue.deliveries import KEEPER_WAKE, RECORDS, QueueSize
from nbqueue.exceptions import (
    ImproperlyConfigured,
    UnknownTask,
)
from nbqueue.expand import expand
from nbqueue.limits import limits_of_call
from nbqueue.link import Link, resolve
from nbqueue.log import Logs
from nbqueue.messages import (
    CELL_TASK,
    Control,
    Steering,
    new_nonce,
    open_group,
    python_version,
    sign_control,
)
from nbqueue.payloads import Packer, Ref, Spilled
from nbqueue.pipeline import Pipeline
from nbqueue.request import current_request, get_current_task
from nbqueue.routing import Call, Route, Router, check_queue, find_route, named, routers
from nbqueue.routing import priority as check_priority
from nbqueue.sending import Sender
from nbqueue.signals import Signal
from nbqueue.signing import Signer
from nbqueue.spread import Spread
from nbqueue.tasks import Task, elsewhere
from nbqueue.times import due_time, expiry_time
from nbqueue.watched import WatchedMap
from nbqueue.watcher import Offer, Watcher, known_offers

if TYPE_CHECKING:
    from nbqueue.broker import Broker
    from nbqueue.control import Control as RemoteControl
    from nbqueue.emitter import Emitter
    from nbqueue.events import Events
    from nbqueue.launchers.local import LocalBeat, LocalWorker
    from nbqueue.periodic import Configured, Schedule
    from nbqueue.publishing import Publication
    from nbqueue.selected import Amqp

__all__ = ["App", "app_or_default"]

F = TypeVar("F", bound=Callable[..., Any])


class App:
    """Holds one of each: settings, tasks, broker, backend, watcher. Connects when something is first sent or asked.

    Args:
        main: the name that stands for `__main__` in task names.
        broker: the broker's URL, or those of a RabbitMQ cluster's nodes; without one the environment, a connection file
            or the embedded server decides.
        backend: the backend's URL; a Redis broker is its own.
        include: modules with tasks, imported by workers.
        key_file: the file with the signing key.
        connection_file: a file with all of it, as `nbqueue connect --export` writes it.
        config_source: as `config_from_object` takes it.
        namespace: of that.
        changes: settings, by their names.
        set_as_current: be the app that `@task` uses from now on.
        by_value: functions of modules travel with their code too.
        strict_typing: arguments are checked where a call is made, unless its task says otherwise.
        task_cls: the class of its tasks, or where it is, as `proj.tasks:Ours`; `Task` if None.
        settings: more of them; other arguments of Celery's app are accepted.
    """

    def __init__(
        self,
        main: str | None = None,
        broker: str | Sequence[str] | None = None,
        backend: str | None = None,
        *,
        include: str | Sequence[str] = (),
        key_file: str | Path | None = None,
        connection_file: str | Path | None = None,
        config_source: Any = None,
        namespace: str | None = None,
        changes: Mapping[str, Any] | None = None,
        set_as_current: bool = True,
        by_value: bool = False,
        strict_typing: bool = True,
        task_cls: type[Task] | str | None = None,
        **settings: Any,
    ) -> None:
        self.main = main
        own: dict[str, Any] = {"broker_url": broker, "result_backend": backend, "include": include or None}
        own |= {"key_file": key_file and str(key_file), "connection_file": connection_file and str(connection_file)}
        given = {name: value for name, value in own.items() if value is not None}
        self._configuration = Configuration({**(changes or {}), **settings, **given}, config_source, namespace or "")
        self.by_value = by_value
        self.work_follows = True  # False: this one doesn't send, so a server that it has to start gets no worker yet
        self.blobs_stay = False  # True: its workers see the same files, wherever the server is
        self.show: Callable[[results.MapResult], object] | None = None  # a notebook's view of maps
        self.session = new_nonce()
        self.tasks: dict[str, Task] = {}
        self._configuration.settings.when_set("task_annotations", self.annotate)
        self.strict_typing = strict_typing
        self.Task = declaring.class_of(task_cls)  # the class of its tasks that name no `base`; may be set
        self._discovery = declaring.Discovery()
        self._defaults: Defaults | None = None
        self._routes: tuple[Any, tuple[Router, ...]] = (None, ())
        self.spread = Spread()
        self.sender = Sender(self)
        self._lock = threading.RLock()
        self._link: Link | None = None
        self._broker: Broker | None = None
        self._backend: Backend | None = None
        self._watcher: Watcher | None = None
        self._emitter: Emitter | None = None
        self._blobs: Blobs | None = None
        self._codes: Codes | None = None
        self._signer: Signer | None = None
        self._schedule: Schedule | None = None
        self.periodic: list[Configured] = []  # what `add_periodic_task` added
        # Options of one's own, `click.Option`s, by command; those of `preload` are for all commands.
        self.user_options: defaultdict[str, set[Any]] = defaultdict(set)
        self.on_configure = Signal("app.on_configure")
        self.on_after_configure = Signal("app.on_after_configure")
        self.on_after_finalize = Signal("app.on_after_finalize")
        self.finalized = False
        for shared in join(self):
            self.share(shared)
        if set_as_current:
            set_current_app(self)
        self.on_init()

    def __repr__(self) -> str:
        return f"<App {self.main or '__main__'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def on_init(self) -> None:
        """Is called once the app is made; does nothing, and is there for an app of one's own class."""

    def set_current(self) -> None:
        """Be the app that `@task`, signatures and handles use when none is named."""
        set_current_app(self)

    set_default = set_current

    # ---- settings

    @cached_property
    def conf(self) -> Settings:
        """Return the settings; the first to ask has them read from where `config_from_object` says."""
        return self._configuration.complete()

    def annotate(self, task: Task | None = None) -> None:
        """Let a task, or all there are, have what `task_annotations` says of it."""
        if (annotations := self._configuration.settings.task_annotations) is not None:
            for one in list(self.tasks.values()) if task is None else [task]:
                annotate(one, annotations)

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take settings from a module, object or dict, or from what has this name; see `Configuration.use`."""
        self._configuration.use(obj, namespace=namespace or "", silent=silent, force=force)

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> bool:
        """Take settings from the module that a variable of the environment names; tell whether it names one.

        Raises:
            ImproperlyConfigured: it isn't set, and must be.
        """
        named = from_environment(variable_name, silent=silent)
        if named is not None:
            self.config_from_object(named, silent=silent, force=force)
        return named is not None

    def add_defaults(self, fun: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Take settings that hold where nothing else says anything; a function is called when they are needed."""
        self._configuration.add_defaults(fun)

    @cached_property
    def amqp(self) -> Amqp:
        """Return Celery's place of queues; `app.amqp.queues.select_add` is for `celeryd_after_setup`."""
        from nbqueue.selected import Amqp, Queues  # few ask

        return Amqp(Queues(self.conf))

    @property
    def log(self) -> Logs:
        """Logging, as far as programs of Celery ask for it."""
        return Logs()

    @property
    def timezone(self) -> tzinfo:
        """Return the zone of times that say none."""
        return zone(self.conf)

    def now(self) -> datetime:
        """Return the time, in the zone of the settings."""
        return datetime.now(self.timezone)

    # ---- tasks

    @overload
    def task(self, run: Callable[..., Any], **options: Any) -> Task: ...

    @overload
    def task(self, run: None = None, **options: Any) -> Callable[[Callable[..., Any]], Task]: ...

    def task(
        self, run: Callable[..., Any] | None = None, **options: Any
    ) -> Task | Callable[[Callable[..., Any]], Task]:
        """Make a function a task; used as `@app.task` or `@app.task(queue="gpu")`.

        See `Task` for the options, and `nbqueue.models` for `pydantic=True`.
        """

        def register(function: Callable[..., Any]) -> Task:
            return declaring.made(self, function, options)

        return register if run is None else register(run)

    def gen_task_name(self, name: str, module: str) -> str:
        """Return the name of a task that is given none; an app of one's own class may have another way.

        Args:
            name: of its function, with the names of what that stands in.
            module: in which it stands; `__main__` for a script or notebook, which are called what this app is.
        """
        return f"{self.main if module == '__main__' and self.main else module}.{name}"

    def register_task(self, task: Task | type[Task], **options: Any) -> Task:
        """Register a task of a class of one's own, derived from `Task`, with a method `run`."""
        return declaring.registered(self, task, options)

    def share(self, shared: Shared) -> Task:
        """Have a task of what `@shared_task` declares."""
        return declaring.share(self, shared)

    def autodiscover_tasks(
        self, packages: declaring.Packages = None, related_name: str | None = "tasks", force: bool = False
    ) -> None:
        """Let workers import the modules of tasks in these packages, if they have one.

        Args:
            packages: their names, or a function that returns them; those of Django's applications if None.
            related_name: the module in each; None for the package itself.
            force: import them here and now.
        """
        self._discovery.add(packages, related_name)
        if force:
            self.import_modules()

    def import_modules(self) -> list[str]:
        """Import what `autodiscover_tasks` looks for, as a worker does; return the modules' names."""
        return self._discovery.run()

    @property
    def current_task(self) -> Any:
        """Return the task that runs in this thread; None where none does."""
        return get_current_task()

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> results.AsyncResult:
        """Send a call of a task by its name alone; the worker must have it. Options as `Task.apply_async`."""
        return self.task_for(name).apply_async(args, kwargs, **options)

    def task_for(self, name: str, run: Callable[..., Any] | None = None, **options: Any) -> Task:
        """Return the task of a name: one that is registered here, else one that the worker must have.

        Args:
            name: of the task.
            run: its function, if that is at hand.
            options: of `Task`, with that.
        """
        if run is not None:
            return Task.of(self, run, name=name, **{"by_value": True, **options})
        return self.tasks.get(name) or Task.of(self, elsewhere, name=name, by_value=False)

    def signature(self, *args: Any, **options: Any) -> canvas.Signature:
        """Return a call that is not sent yet: `app.signature("tasks.add", args=(2, 2), countdown=10)`."""
        return canvas.signature(*args, app=self, **options)

    def series(self, task: Task, *, starred: bool) -> Task:
        """Return a task that runs another for each of its elements, one after the other."""
        if not task.by_value:
            return Task.of(self, elsewhere, name=canvas.XSTARMAP if starred else canvas.XMAP, by_value=False)
        run = task if task.bind else task.function
        return Task.of(self, canvas.in_series(run, starred=starred), name=task.name, by_value=True)

    def send_canvas(
        self,
        found: canvas.Signature,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        throw: bool | None = None,
    ) -> Any:
        """Send a canvas: its graph once, and the messages of its first calls. Workers go on from there.

        Args:
            found: any signature.
            args: for its first calls.
            kwargs: for its first calls.
            options: of `Task.apply_async`, for its first calls.
            throw: raise what it fails with, where `task_always_eager` has it run here.

        Returns:
            The handle of a call, or a `GroupResult`.

        Raises:
            ImproperlyConfigured: this broker can't run it.
            SendFailed: the broker can't be reached.
            SendUncertain: it went away before it confirmed; some of the first calls may run.
        """
        if self.conf.task_always_eager:
            return eager.run_canvas(self, found, args, kwargs, options, throw)
        return self.sender.send_plan(expand(found, args, kwargs, options))

    def run_canvas(
        self,
        found: canvas.Signature,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        throw: bool | None = None,
    ) -> Any:
        """Run a canvas here and now; return its handle."""
        return eager.run_canvas(self, found, args, kwargs, options, throw)

    def group_result(self, id: str, members: Sequence[Any]) -> results.GroupResult:
        """Return the handle of a group of handles."""
        return results.GroupResult(id, members, app=self)

    @property
    def defaults(self) -> Defaults:
        """Return what the settings say of calls that say nothing themselves."""
        found, conf = self._defaults, self.conf
        if found is None or found.version != conf.version:
            found = self._defaults = defaults_of(conf)
        return found

    def destination(
        self,
        name: str,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: Any = None,
        priority: int | None = None,
        exchange: Any = None,
        routing_key: str | None = None,
    ) -> tuple[str, int]:
        """Return the queue and priority of a call: those given, else of the first route for it, else the defaults.

        Where several queues, or a broadcast, are meant, that is a name that only `send` understands.

        Raises:
            ImproperlyConfigured: that queue isn't known, and `task_create_missing_queues` is off; or no queue is bound
                to the exchange for this key.
        """
        conf = self.conf
        route = Route()
        if queue is not None and not isinstance(queue, str):
            queue = named("queue", queue)
        if exchange is not None and not isinstance(exchange, str):
            exchange = named("exchange", exchange)
        if conf.task_routes is not None and (queue is None or priority is None):
            if self._routes[0] is not conf.task_routes:
                self._routes = (conf.task_routes, routers(conf.task_routes))
            options = {"queue": queue, "priority": priority, "exchange": exchange, "routing_key": routing_key}
            route = find_route(self._routes[1], Call(name, args, kwargs or {}, options))
        if queue is None and (exchange is not None or routing_key is not None):
            queue = self.spread.bound(conf, route, exchange, routing_key)
        elif queue is None and route.queue is None and (route.exchange is not None or route.routing_key is not None):
            queue = self.spread.bound(conf, route, None, None)
        queue = queue or route.queue or conf.task_default_queue
        if not conf.task_create_missing_queues and queue not in self.spread:
            check_queue(queue, conf.task_queues or (conf.task_default_queue,))
        found = route.priority if priority is None else priority
        if found is None and conf.task_inherit_parent_priority and (request := current_request()) is not None:
            found = request.delivery_info["priority"]
        return queue, conf.task_default_priority if found is None else found

    @property
    def accepted(self) -> frozenset[str]:
        """Return the serializers whose values are loaded here."""
        return contents.accepts(self.conf.result_accept_content or self.conf.accept_content)

    # ---- what it is connected to

    @property
    def link(self) -> Link:
        """Return where this app is connected to, finding or starting it at first use."""
        if (found := self._link) is not None:
            return found
        with self._lock:
            if self._link is None:
                self._link = resolve(self.conf, Environment.read(), work_follows=self.work_follows)
            return self._link

    @property
    def signer(self) -> Signer:
        """Return what signs and verifies with this app's key."""
        if (found := self._signer) is not None:
            return found
        with self._lock:
            if self._signer is None:
                self._signer = Signer(self.link.key)
            return self._signer

    @property
    def broker(self) -> Broker:
        """Return the broker, connected at first use."""
        if (found := self._broker) is not None:
            return found
        with self._lock:
            if self._broker is None:
                self._broker = self.open_broker("nbq-client")
            return self._broker

    @property
    def backend(self) -> Backend:
        """Return the backend, connected at first use."""
        if (found := self._backend) is not None:
            return found
        with self._lock:
            if self._backend is None:
                self._backend = self.open_backend("nbq-client")
            return self._backend

    @property
    def blobs(self) -> Blobs:
        """Return where large data is kept: files of this machine, and the backend if others may need it."""
        with self._lock:
            if self._blobs is None:
                travel = self.link.blobs_travel and not self.blobs_stay
                self._blobs = Blobs(BlobStore(self.link.blobs), self.backend if travel else None)
            return self._blobs

    def spill(self, data: memoryview) -> Spilled | None:
        """Begin to write a large buffer of a call that is being packed."""
        return self.blobs.store.spill(data)

    def read_blob(self, ref: Ref) -> memoryview:
        """Return large data that a result names."""
        return self.blobs.read(ref)

    @property
    def codes(self) -> Codes:
        """Return which code is kept in the backend."""
        if (found := self._codes) is not None:
            return found
        with self._lock:
            if self._codes is None:
                self._codes = Codes(lambda: self.backend, self.signer)
            return self._codes

    @property
    def watcher(self) -> Watcher:
        """Return the listening thread of this app's session."""
        if (found := self._watcher) is not None:
            return found
        with self._lock:
            if self._watcher is None:
                self._watcher = Watcher(self.backend, self.signer, self.session, self._is_empty)
            return self._watcher

    def _is_empty(self, queue: str) -> bool:
        """Tell whether a queue has nothing at all; False where that takes another server than the backend's."""
        link = self.link
        return link.broker_url == link.backend_url and self.broker.size(queue) == QueueSize(0, 0, 0)

    @property
    def beat(self) -> Schedule:
        """Return the schedule: its entries, and what adds, changes, pauses and removes them."""
        with self._lock:
            if self._schedule is None:
                from nbqueue.periodic import Schedule  # few apps look at it, and it needs the client of a server

                self._schedule = Schedule(self)
            return self._schedule

    def finalize(self) -> None:
        """Tell those who are connected to `on_after_configure` and its kin, once; workers and beats do so first."""
        with self._lock:
            if self.finalized:
                return
            self.finalized = True
        for signal in (self.on_configure, self.on_after_configure, self.on_after_finalize):
            signal.send(sender=self)

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> str:
        """Let beats of this app send a call again and again; return the name of its entry.

        Args:
            schedule: a `crontab`, a `timedelta`, or a number of seconds.
            sig: a signature.
            args: in front of its own.
            kwargs: beside its own.
            name: of the entry; of the call if None.
            options: of `Task.apply_async`, and `policy`, as `Schedule.add` takes it.
        """
        from nbqueue.periodic import periodic  # see `beat`

        made = periodic(self, schedule, sig, args, kwargs, name, **options)
        self.periodic.append(made)
        return made.name

    @property
    def joined(self) -> bool:
        """Tell whether broker and backend are one Redis, so that a record and an ack are one step."""
        return self.link.joined

    def adopt(self, link: Link) -> None:
        """Be connected to `link` from now on, whatever the settings say: as the tasks of a worker are."""
        self.close()
        self._configuration.complete()  # its tasks may have options from there
        with self._lock:
            self._link, self._signer, self._codes = link, None, None

    def open_broker(self, name: str) -> Broker:
        """Return a new connection to the broker; `name` is what the server shows of it."""
        from nbqueue.brokers import open_broker  # redis costs 0.1 s; children that only declare tasks need none

        link, failures = self.link, self.conf.result_failure_expires
        return open_broker(
            link.broker_url,
            backend_url=link.backend_url,
            name=name,
            records=RECORDS if self.joined else "",
            record_ttl_ms=int(self.conf.result_expires * 1000),
            failure_ttl_ms=None if failures is None else int(failures * 1000),
            wake_key=KEEPER_WAKE if link.embedded else "",
        )

    def open_backend(self, name: str) -> Backend:
        """Return a new connection to the backend."""
        url = self.link.backend_url
        if url is None:
            raise ImproperlyConfigured(
                "this broker keeps no results: give the app a backend, such as redis://localhost"
            )
        if scheme_of(url) == "memory":
            from nbqueue.backends.memory import MemoryBackend  # rarely used, so not loaded with every app

            return MemoryBackend()
        from nbqueue.backends.redis import RedisBackend  # see `open_broker`

        return RedisBackend(url, name=name, record_ttl_s=self.conf.result_expires)

    def close(self) -> None:
        """Give up threads and connections. Tasks go on; handles can be had again by id."""
        with self._lock:
            parts = (self._watcher, self._broker, self._backend, self._schedule, self._emitter)
            self._watcher = self._broker = self._backend = self._blobs = self._schedule = self._emitter = None
        for part in parts:
            if part is not None:
                part.close()

    # ---- sending

    def pipeline(self) -> AbstractContextManager[Pipeline]:
        """Send what this thread calls in a `with` block while it goes on; confirmed together when the block ends.

        A call returns at once with its handle, which may be waited for in the block too. Maps are sent as ever.

        Raises:
            SendFailed: at the end of the block: some calls were not sent. Their handles raise `UnknownTask`.
            SendUncertain: the broker went away before it answered; of some calls it isn't known.
        """
        return self.sender.pipeline()

    def send_cell(
        self,
        run: bytes,
        packer: Packer | None = None,
        *,
        name: str,
        label: str = "",
        identity: str = "",
        digest: str = "",
        countdown: float | None = None,
        **options: Any,
    ) -> results.AsyncResult:
        """Send a cell of a notebook.

        Args:
            run: packed arguments: one `execute.CellRun`.
            packer: holds what they name of large data.
            name: what views call it.
            label: by which `attach` finds it.
            identity: of notebook and cell; by which the same cell finds it again.
            digest: of code and inputs.
            countdown: seconds before it may start.
            options: of `cell_steering`.
        """
        steering = self.cell_steering(name, label, **options)
        due = due_time(steering.sent_at, countdown, None)
        steering = msgspec.structs.replace(
            steering,
            identity=identity,
            digest=digest,
            session=self.session,
            eta=due,
            expires=expiry_time(steering.sent_at, None, due),
        )
        result = self.sender.send(steering, b"", run, packer)
        self.backend.label(Label(result.id, label, identity, steering.sent_at))
        return result

    def cell_steering(
        self,
        name: str,
        label: str = "",
        *,
        queue: str | None = None,
        priority: int | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        memory_limit: int | str | None = None,
        max_retries: int = 0,
    ) -> Steering:
        """Return what steers a cell of a notebook: all but its id and what one sending has of its own.

        Args:
            name: what views call it.
            label: by which `attach` finds it.
            queue: where it waits.
            priority: 0 to 9, which is the soonest.
            time_limit: seconds after which it is ended by force.
            soft_time_limit: seconds after which `SoftTimeLimitExceeded` is raised in it.
            memory_limit: bytes, or a text such as "2 GB", that its child may use.
            max_retries: how often it runs again after an error, 1, 2, 4, … seconds later.
        """
        limits = self.defaults.limits.with_those_of(limits_of_call(time_limit, soft_time_limit, memory_limit))
        where, priority = self.destination(CELL_TASK, queue=queue, priority=check_priority(priority))
        return Steering(
            id="",
            nonce="",
            task=CELL_TASK,
            name=name,
            queue=where,
            sent_at=time.time(),
            python=python_version(),
            label=label,
            priority=priority,
            time_limit=limits.time_limit,
            soft_time_limit=limits.soft_time_limit,
            memory_limit=limits.memory_limit,
            max_retries=max_retries,
            acks=self.defaults.sent_acks,
        )

    # ---- finding again

    def AsyncResult(self, id: str) -> results.AsyncResult:  # noqa: N802 - Celery's name
        """Return the handle on a task sent before, by anyone."""
        return results.AsyncResult(id, self)

    @property
    def GroupResult(self) -> results.Groups:  # noqa: N802 - Celery's name
        """Return what finds groups again: `app.GroupResult(id)` a map, `app.GroupResult.restore(id)` a saved group."""
        return results.Groups(self)

    def ResultSet(self, handles: Iterable[Any] = (), /) -> results.ResultSet:  # noqa: N802 - Celery's name
        """Return handles as one that is waited for together."""
        return results.ResultSet(handles, self)

    def watch_group(self, id_: str) -> WatchedMap:
        """Follow a map by its id.

        Raises:
            UnknownTask: nobody sent it, or nothing is kept of it.
        """
        text = self.backend.load_group(id_)
        if text is None:
            raise UnknownTask(f"nobody sent a map {id_}, or nothing is kept of it any more")
        return self.watcher.attach_map(open_group(text, self.signer)[0])

    def attach(self, label_or_id: str) -> results.AsyncResult | results.MapResult:
        """Return the handle on a task or map by its id, or on the newest task with a label.

        Raises:
            UnknownTask: neither is known.
            AmbiguousLabel: several tasks with this label are alive; names them.
        """
        return finding.attach(self, label_or_id)

    def find_cell(self, identity: str, digest: str) -> results.AsyncResult | None:
        """Return the newest task of a cell if it was sent with the same code and inputs."""
        id_ = self.backend.identified(identity)
        if id_ is None:
            return None
        result = results.AsyncResult(id_, self)
        latest = result.watched.latest
        return result if latest is not None and latest.facts.digest == digest else None

    def forget_cell(self, identity: str, id_: str) -> None:
        """Let the same cell send anew: the end of its task was seen."""
        self.backend.unidentify(identity, id_)

    # ---- revoking

    def revoke(self, results: Sequence[results.AsyncResult], *, terminate: bool = False, signal: str = "") -> None:
        """Cancel tasks: those that nobody runs end now; workers are told of the others.

        Args:
            results: their handles.
            terminate: stop those that run: interrupted, then ended by force.
            signal: the first signal, instead of SIGINT.
        """
        finding.revoke(self, results, terminate=terminate, signal=signal)

    def retry(self, results: Sequence[results.AsyncResult]) -> int:
        """Run tasks again that failed or were given up, and at once those that wait for their retry.

        They keep id, arguments and place in their map; handles wait for the new end.

        Returns:
            How many of them run again.

        Raises:
            UnknownTask: none does: they have not failed, or their messages are kept no more.
        """
        from nbqueue.again import Again  # see `open_broker`

        return Again(self.broker, self.blobs, self.signer).run(results, self.watcher)

    def order(self, what: str, workers: Sequence[str], *, size: int = 0, terminate: bool = False) -> None:
        """Tell workers to `shutdown`, `restart` their children or `resize` their pools; they follow within a moment.

        Args:
            what: the order.
            workers: their names.
            size: children of each.
            terminate: don't wait for what runs; it runs again elsewhere.
        """
        if not workers:
            raise ValueError(f"an order to {what} names its workers")
        order = Control(
            order=what,
            at=time.time(),
            nonce=new_nonce(),
            workers=tuple(workers),
            size=size,
            terminate=terminate,
        )
        self.backend.order(sign_control(order, self.signer))

    @property
    def events(self) -> Events:
        """Return what reads and sends Celery's events: `app.events.Receiver(connection, handlers={...})`."""
        from nbqueue.events import Events  # needed by few, and above this layer

        return Events(self)

    @property
    def emitter(self) -> Emitter:
        """Return what sends events of this client, made at first use."""
        with self._lock:
            if self._emitter is None:
                from nbqueue.emitter import Emitter  # few clients send any

                host = socket.gethostname()
                name = f"gen{os.getpid()}@{host}"
                self._emitter = Emitter(self.link.broker_url, name, "nbq-client", self.conf.event_exchange)
            return self._emitter

    def connection(self, url: str | None = None) -> Any:
        """Return a `kombu.Connection` to the broker's server, for events and the like; tasks don't go this way.

        Args:
            url: of another server.
        """
        from nbqueue.stock import kombu_connection  # loads kombu

        return kombu_connection(url or self.link.broker_url)

    connection_for_read = connection_for_write = connection

    @property
    def is_watched(self) -> bool:
        """Tell whether anybody wants to hear of calls that are sent."""
        conf = self.conf
        return bool(
            signals.before_task_publish.receivers
            or signals.after_task_publish.receivers
            or conf.task_send_sent_event
            or conf.worker_send_task_events
        )

    def publication(
        self, steering: Steering, call: tuple[tuple[Any, ...], Mapping[str, Any]], task_id: str | None
    ) -> Publication:
        """Return what tells of a call before and after it is sent.

        Args:
            steering: of the call, everything but its id.
            call: its arguments.
            task_id: what its caller wants as its id.
        """
        from nbqueue.publishing import Publication, described  # few clients tell anything

        return Publication(described(steering, *call), call, task_id)

    @property
    def control(self) -> RemoteControl:
        """Return what asks workers and tells them what to do: `app.control.inspect().active()` and the like."""
        from nbqueue.control import Control as RemoteControl  # needed by few, and above this layer

        return RemoteControl(self)

    def start_worker(self, concurrency: int = 0, *, queues: Sequence[str] = (), module: str = "") -> LocalWorker:
        """Start a worker process on this machine, which outlives this one; return a handle with `stop()`.

        Args:
            concurrency: children; as many as cores if 0.
            queues: which it listens to; the default queue if empty, all of them on the embedded server.
            module: what `-A` would name, for tasks by name.
        """
        from nbqueue.launchers import local  # needed by few, and above this layer

        return local.start_worker(self, concurrency, queues=queues, module=module)

    def start_beat(self, *, module: str = "") -> LocalBeat:
        """Start a process on this machine that sends what is due, and outlives this one; return a handle with `stop()`.

        Args:
            module: what `-A` would name, for entries in its settings.
        """
        from nbqueue.launchers import local  # see `start_worker`

        return local.start_beat(self, module=module)

    def start(self, argv: Sequence[str] | None = None) -> None:
        """Run the command line for this app: `app.start(["worker", "-l", "info"])`; this process's words if None.

        Raises:
            SystemExit: in the end, with the exit code.
        """
        from nbqueue.cli import main  # above this layer, and few call it

        main(argv, app=self)

    def worker_main(self, argv: Sequence[str] | None = None) -> None:
        """Run a worker for this app: `app.worker_main(["worker", "-l", "info"])`; this process's words if None.

        Raises:
            SystemExit: in the end, with the exit code.
            ValueError: the words have no `worker` among them.
        """
        words = sys.argv[1:] if argv is None else list(argv)
        if "worker" not in words:
            raise ValueError("worker_main needs the word 'worker' among its arguments, as app.worker_main(['worker'])")
        self.start(words)

    def bugreport(self) -> str:
        """Return what a report of a defect should say: versions, machine, servers and settings, without secrets."""
        from nbqueue.installed import report  # above this layer, and few call it

        return report(self)

    def offers(self) -> list[tuple[Offer, float]]:
        """Return what each worker says of itself, and how many seconds ago it said so."""
        now = self.backend.now()
        return [(offer, max(0.0, now - at)) for offer, at in known_offers(self.backend, self.signer)]
