"""`State`: what events have told of workers and tasks, as Celery's monitors keep it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from nbqueue import states

T = TypeVar("T")

FREQ_S: Final = 60.0  # between two heartbeats, of a worker that doesn't say
EXPIRE_WINDOW: Final = 200  # percent of that, after which a worker without a heartbeat is offline
HEARTBEATS_KEPT: Final = 4
TASK_EVENT_TO_STATE: Final = {
    "sent": states.PENDING,
    "received": states.RECEIVED,
    "started": states.STARTED,
    "succeeded": states.SUCCESS,
    "failed": states.FAILURE,
    "retried": states.RETRY,
    "revoked": states.REVOKED,
    "rejected": states.REJECTED,
}
# What happens later in the life of a task has the higher number; a custom state happens while it runs.
_ORDER: Final = {
    states.PENDING: 0,
    states.RECEIVED: 1,
    states.STARTED: 3,
    states.RETRY: 4,
    states.REJECTED: 5,
    states.REVOKED: 5,
    states.FAILURE: 6,
    states.SUCCESS: 6,
}
_CUSTOM: Final = 2
# What only the event of receiving a task knows, and may tell late.
_OF_RECEIVED: Final = frozenset(
    {"name", "args", "kwargs", "retries", "eta", "expires", "root_id", "parent_id"},
)


class Newest(OrderedDict[str, T]):
    """A dict that forgets what was set first when it has more than `limit` entries."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: str, value: T) -> None:
        super().__setitem__(key, value)
        if len(self) > self.limit:
            self.popitem(last=False)


class Worker:
    """One worker. Its attributes are the fields of its newest event: `active`, `processed`, `loadavg` and so on.

    Args:
        hostname: its name.
        fields: of an event.
    """

    pid: int | None = None
    freq: float = FREQ_S
    clock: int = 0
    active: int | None = None
    processed: int | None = None
    loadavg: Any = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None

    def __init__(self, hostname: str, **fields: Any) -> None:
        self.hostname = hostname
        self.heartbeats: list[float] = []  # when the last of them came, Unix seconds
        self.update(fields)

    def __repr__(self) -> str:
        return f"<Worker: {self.hostname} ({self.status_string} clock:{self.clock})>"

    def __eq__(self, other: object) -> bool:
        return self.hostname == other.hostname if isinstance(other, Worker) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.hostname)

    def event(
        self,
        type_: str | None,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Fold in one event; whatever a worker says shows that it lives."""
        self.update(fields or {})
        if type_ == "offline":
            self.heartbeats = []
        elif local_received and timestamp:
            self.heartbeats = sorted([*self.heartbeats, local_received])[-HEARTBEATS_KEPT:]

    def update(self, fields: Mapping[str, Any], **more: Any) -> None:
        """Take fields."""
        for name, value in {**fields, **more}.items():
            if name not in _NOT_FIELDS:
                setattr(self, name, value)

    @property
    def id(self) -> str:
        """Return name and process id."""
        return f"{self.hostname}.{self.pid}"

    @property
    def heartbeat_expires(self) -> float:
        """Return when it counts as offline unless another event comes."""
        return self.heartbeats[-1] + float(self.freq) * EXPIRE_WINDOW / 100

    @property
    def alive(self) -> bool:
        """Tell whether it has been heard of lately."""
        return bool(self.heartbeats) and time.time() < self.heartbeat_expires

    @property
    def status_string(self) -> str:
        """Return ONLINE or OFFLINE."""
        return "ONLINE" if self.alive else "OFFLINE"


# Events may have any field; these are what the objects themselves are.
_NOT_FIELDS: Final = frozenset(
    {
        *("id", "heartbeats", "heartbeat_expires", "alive", "status_string", "event", "update", "ready", "origin"),
        *("info", "as_dict", "root", "parent", "children", "cluster_state", "uuid", "hostname", "worker", "client"),
        *("__class__", "__dict__"),
    }
)


_UNKNOWN: Final[Any] = None


class Task:
    """One task. Its attributes are the fields of its events; `received`, `started` and so on say when they came.

    Args:
        uuid: its id.
        cluster_state: where its relatives are.
        fields: of events.
    """

    name: str | None = None
    state: str = states.PENDING
    clock: int = 0
    timestamp: float | None = None
    exchange: str | None = None
    routing_key: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    worker: Worker | None = None
    client: str | None = None

    _fields = (
        *("uuid", "name", "state", "received", "sent", "started", "rejected", "succeeded", "failed", "retried"),
        *("revoked", "args", "kwargs", "eta", "expires", "retries", "worker", "result", "exception", "timestamp"),
        *("runtime", "traceback", "exchange", "routing_key", "clock", "client", "root_id", "parent_id"),
    )
    _info_fields = (
        *("args", "kwargs", "retries", "result", "eta", "runtime", "expires", "exception", "exchange", "routing_key"),
        *("root_id", "parent_id"),
    )

    def __init__(self, uuid: str, cluster_state: State | None = None, **fields: Any) -> None:
        self.received = self.sent = self.started = self.rejected = _UNKNOWN
        self.succeeded = self.failed = self.retried = self.revoked = _UNKNOWN
        self.args = self.kwargs = self.retries = self.result = self.exception = self.traceback = _UNKNOWN
        self.eta = self.expires = self.runtime = _UNKNOWN
        self.uuid = uuid
        self.cluster_state = cluster_state
        for name, value in fields.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"<Task: {self.name}({self.uuid}) {self.state} clock:{self.clock}>"

    def __eq__(self, other: object) -> bool:
        return self.uuid == other.uuid if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.uuid)

    def event(
        self,
        type_: str,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Fold in one event, also one that comes after what follows it."""
        del local_received
        found = dict(fields or {})
        state = TASK_EVENT_TO_STATE.get(type_)
        if state is not None:
            setattr(self, type_, timestamp)
        else:
            state = type_.upper()
        retried = states.RETRY in (state, self.state)  # which begins anew
        if not retried and _ORDER.get(state, _CUSTOM) < _ORDER.get(self.state, _CUSTOM):
            # It comes late: what it alone can tell is taken, what later ones have told stays.
            kept = _OF_RECEIVED if state == states.RECEIVED else found.keys() - {"timestamp", "clock", "local_received"}
            found = {name: value for name, value in found.items() if name in kept}
        else:
            found |= {"state": state, "timestamp": timestamp}
        for name, value in found.items():
            if name not in _NOT_FIELDS:
                setattr(self, name, value)

    def info(self, fields: Any = None, extra: Any = None) -> dict[str, Any]:
        """Return what is known of it, of these fields or those that people want to see."""
        names = [*(self._info_fields if fields is None else fields), *(extra or ())]
        return {name: getattr(self, name) for name in names if getattr(self, name, None) is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return all that is known of it, with its relatives' ids."""
        found = {name: getattr(self, name) for name in self._fields}
        return {
            **found,
            "root": self.root_id,
            "parent": self.parent_id,
            "children": [task.id for task in self.children],
        }

    @property
    def id(self) -> str:
        """Return its id."""
        return self.uuid

    @property
    def origin(self) -> str | None:
        """Return which worker has told of it, or else which client."""
        return self.client if self.worker is None else self.worker.id

    @property
    def ready(self) -> bool:
        """Tell whether it has ended."""
        return self.state in states.READY_STATES

    @property
    def parent(self) -> Task | None:
        """Return the task that has sent it, if that is known."""
        return self._relative(self.parent_id)

    @property
    def root(self) -> Task | None:
        """Return the task that it all began with, if that is known."""
        return self._relative(self.root_id)

    @property
    def children(self) -> set[Task]:
        """Return the tasks that it has sent, as far as they are known."""
        if self.cluster_state is None:
            return set()
        return {task for _, task in self.cluster_state.itertasks() if task.parent_id == self.uuid}

    def _relative(self, id_: str | None) -> Task | None:
        if not id_ or self.cluster_state is None:
            return None
        return self.cluster_state.tasks.get(id_)


class Index:
    """The tasks of a state by something that is known of them.

    Args:
        state: which.
        of: returns what a task is found by.
    """

    def __init__(self, state: State, of: Callable[[Task], str | None]) -> None:
        self._state = state
        self._of = of

    def __call__(self, key: str, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Task]]:
        """Yield ids and tasks of one key, the newest first."""
        found = [item for item in self._state.tasks_by_time(reverse=reverse) if self._of(item[1]) == key]
        yield from found[:limit]

    def __getitem__(self, key: str) -> set[Task]:
        return {task for _, task in self._state.itertasks() if self._of(task) == key}

    def __iter__(self) -> Iterator[str]:
        return iter({key for _, task in self._state.itertasks() if (key := self._of(task)) is not None})


Handler = Callable[[str, dict[str, Any]], Any]


class State:
    """What events have told so far; give each to `event`.

    Args:
        callback: called with this and each event before it is folded in.
        max_workers_in_memory: what was heard of first is forgotten beyond.
        max_tasks_in_memory: likewise.
        on_node_join: called with a worker that is new.
        on_node_leave: called with a worker that says that it goes.
    """

    def __init__(
        self,
        callback: Callable[[State, dict[str, Any]], object] | None = None,
        max_workers_in_memory: int = 5_000,
        max_tasks_in_memory: int = 10_000,
        on_node_join: Callable[[Worker], object] | None = None,
        on_node_leave: Callable[[Worker], object] | None = None,
    ) -> None:
        self.event_callback = callback
        self.on_node_join = on_node_join
        self.on_node_leave = on_node_leave
        self.max_workers_in_memory = max_workers_in_memory
        self.max_tasks_in_memory = max_tasks_in_memory
        self.workers: Newest[Worker] = Newest(max_workers_in_memory)
        self.tasks: Newest[Task] = Newest(max_tasks_in_memory)
        self.handlers: dict[str, Handler] = {}  # for events of other groups than `task` and `worker`
        self.event_count = 0
        self.task_count = 0
        self._seen_types: set[str] = set()
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<State: events={self.event_count} tasks={self.task_count}>"

    def event(self, event: dict[str, Any]) -> Any:
        """Fold in one event; return the task or worker that it is about with whether that is new, and what happened.

        An event without the fields that every one of its kind has is passed over, and None returned.
        """
        with self._lock:
            self.event_count += 1
            if self.event_callback is not None:
                self.event_callback(self, event)
            group, _, subject = str(event.get("type", "")).partition("-")
            if (handler := self.handlers.get(group)) is not None:
                return handler(subject, event), subject
            if group == "worker" and {"hostname", "timestamp"} <= event.keys():
                return self._worker_event(subject, event), subject
            if group == "task" and {"uuid", "hostname", "timestamp"} <= event.keys():
                return self._task_event(subject, event), subject
            return None

    def get_or_create_worker(self, hostname: str, **fields: Any) -> tuple[Worker, bool]:
        """Return a worker, and whether it is new."""
        known = self.workers.get(hostname)
        if known is not None:
            known.update(fields)
            return known, False
        made = self.workers[hostname] = Worker(hostname, **fields)
        return made, True

    def get_or_create_task(self, uuid: str) -> tuple[Task, bool]:
        """Return a task, and whether it is new."""
        known = self.tasks.get(uuid)
        if known is not None:
            return known, False
        made = self.tasks[uuid] = Task(uuid, cluster_state=self)
        return made, True

    def freeze_while(self, fun: Callable[..., T], *args: Any, clear_after: bool = False, **kwargs: Any) -> T:
        """Call a function while no event is folded in."""
        with self._lock:
            try:
                return fun(*args, **kwargs)
            finally:
                if clear_after:
                    self.clear()

    def clear(self, ready: bool = True) -> None:
        """Forget workers and tasks; with `ready` only the tasks that have ended."""
        with self._lock:
            self.workers.clear()
            self.clear_tasks(ready)
            self.event_count = self.task_count = 0

    def clear_tasks(self, ready: bool = True) -> None:
        """Forget tasks; with `ready` only those that have ended."""
        with self._lock:
            for uuid in [uuid for uuid, task in self.tasks.items() if task.ready or not ready]:
                del self.tasks[uuid]

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, Task]]:
        """Yield ids and tasks, in the order in which they were first heard of."""
        with self._lock:
            found = list(self.tasks.items())
        yield from found[:limit]

    def tasks_by_time(self, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Task]]:
        """Yield ids and tasks, those with the newest event first; the other way round without `reverse`."""
        found = sorted(self.itertasks(), key=lambda item: (item[1].clock, item[1].timestamp or 0.0), reverse=reverse)
        yield from found[:limit]

    tasks_by_timestamp = tasks_by_time

    @property
    def tasks_by_type(self) -> Index:
        """Return the tasks by their names: `tasks_by_type["add"]` is a set, `tasks_by_type("add")` goes by time."""
        return Index(self, lambda task: task.name)

    @property
    def tasks_by_worker(self) -> Index:
        """Return the tasks by their workers' names, likewise."""
        return Index(self, lambda task: task.worker.hostname if task.worker is not None else None)

    def task_types(self) -> list[str]:
        """Return the names of all tasks seen."""
        return sorted(self._seen_types)

    def alive_workers(self) -> list[Worker]:
        """Return the workers that have been heard of lately."""
        with self._lock:
            return [worker for worker in self.workers.values() if worker.alive]

    def _worker_event(self, subject: str, event: dict[str, Any]) -> tuple[Worker, bool]:
        known = self.workers.get(event["hostname"])
        worker = known or Worker(event["hostname"])
        if known is None and subject != "offline":
            self.workers[worker.hostname] = worker
        worker.event(subject, event["timestamp"], event.get("local_received"), event)
        created = known is None and subject != "offline"
        if self.on_node_join is not None and (created or subject == "online"):
            self.on_node_join(worker)
        if subject == "offline" and self.on_node_leave is not None:
            self.on_node_leave(worker)
            self.workers.pop(worker.hostname, None)
        return worker, created

    def _task_event(self, subject: str, event: dict[str, Any]) -> tuple[Task, bool]:
        task, created = self.get_or_create_task(event["uuid"])
        timestamp, received = event["timestamp"], event.get("local_received")
        if subject == "sent":
            task.client = event["hostname"]  # a client's, which is no worker
        else:
            task.worker, _ = self.get_or_create_worker(event["hostname"])
            task.worker.event(None, timestamp, received)
        if subject == "received":
            self.task_count += 1
        task.event(subject, timestamp, received, event)
        if task.name is not None:
            self._seen_types.add(task.name)
        return task, created
