"""What a worker answers when it is asked how it is: functions of the supervisor that change nothing, in Celery's forms.

Nothing here unpickles: of arguments the text is told that came with the call, or themselves where they are JSON.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from nbqueue.config import mask, nodes_of
from nbqueue.deliveries import REVOKED
from nbqueue.dispatch import Held
from nbqueue.exceptions import BadMessage
from nbqueue.herald import shown_call
from nbqueue.limits import shown_size
from nbqueue.memory import rss_bytes
from nbqueue.messages import open_fact
from nbqueue.spread import bindings_of
from nbqueue.times import iso

if TYPE_CHECKING:
    from nbqueue.worker import Worker

SCHEDULED_MOST: Final = 1_000  # delayed tasks told of, the soonest first; a queue may have millions
REVOKED_MOST: Final = 10_000
_TASK_INFO: Final = ("exchange", "routing_key", "rate_limit")


def info(held: Held, worker: Worker) -> dict[str, Any]:
    """Return what is told of a task that a worker holds."""
    s = held.steering
    runs = held.child and worker.work.runs(held)
    child = worker.pool.children.get(held.child)
    args, kwargs = _arguments(held)
    began = round(time.time() - time.monotonic() + worker.work.since(held.child), 3) if runs else None
    return {
        "id": s.id,
        "name": s.task,
        "args": args,
        "kwargs": kwargs,
        "type": s.task,
        "hostname": worker.name,
        "time_start": began,
        "acknowledged": held.acks.late is False,
        "delivery_info": {
            "exchange": "",
            "routing_key": s.queue,
            "priority": s.priority,
            "redelivered": held.delivery.attempt > 1,
        },
        "worker_pid": child.pid if runs and child is not None else None,
    }


def _arguments(held: Held) -> tuple[Any, Any]:
    """Return what is shown of a task's arguments: what its caller says, or themselves where they are JSON."""
    s, found = held.steering, shown_call(held)
    if found is None:
        return s.argsrepr or None, s.kwargsrepr or None
    return list(found[0]), found[1]


def active(worker: Worker) -> list[dict[str, Any]]:
    """Return the tasks that run."""
    return [info(held, worker) for held in list(worker.work.held.values()) if _is_active(held, worker)]


def reserved(worker: Worker) -> list[dict[str, Any]]:
    """Return the tasks that are claimed, and have not begun."""
    return [info(held, worker) for held in list(worker.work.held.values()) if not _is_active(held, worker)]


def query_task(worker: Worker, ids: Sequence[str] | str = ()) -> dict[str, Any]:
    """Return state and what is told of those tasks that this worker holds."""
    found = {}
    for id_ in (ids,) if isinstance(ids, str) else ids:
        if (held := worker.work.by_id.get(id_)) is not None:
            found[id_] = ("active" if _is_active(held, worker) else "reserved", info(held, worker))
    return found


def _is_active(held: Held, worker: Worker) -> bool:
    return bool(held.child) and worker.work.runs(held)


def scheduled(worker: Worker) -> list[dict[str, Any]]:
    """Return the delayed tasks of this worker's queues, the soonest first."""
    waiting = [
        (due_s, queue, id_)
        for queue in worker.queues
        for id_, due_s in worker.broker.streams.delayed(queue, SCHEDULED_MOST)
    ]
    waiting = sorted(waiting)[:SCHEDULED_MOST]
    names = _names_of([id_ for _, _, id_ in waiting], worker)
    return [
        {
            "eta": iso(due_s),
            "priority": 6,
            "request": {
                "id": id_,
                "name": names.get(id_, ""),
                "args": None,
                "kwargs": None,
                "type": names.get(id_, ""),
                "hostname": worker.name,
                "time_start": None,
                "acknowledged": False,
                "delivery_info": {"exchange": "", "routing_key": queue, "priority": 0, "redelivered": False},
                "worker_pid": None,
            },
        }
        for due_s, queue, id_ in waiting
    ]


def _names_of(ids: Sequence[str], worker: Worker) -> dict[str, str]:
    """Return the names of tasks by their records: members of maps have none yet."""
    names = {}
    for id_, text in zip(ids, worker.backend.load(ids), strict=True):
        if text is None:
            continue
        try:
            facts = open_fact(text, worker.signer, kind="record").facts
        except BadMessage:
            continue
        if facts.id == id_:
            names[id_] = facts.task
    return names


def revoked(worker: Worker, told: Iterable[str] = ()) -> list[str]:
    """Return the ids of tasks that are being revoked: marked at the server, or told to this worker."""
    _, marks = worker.broker.streams.client.hscan(REVOKED, count=REVOKED_MOST)
    return sorted({*(id_.decode(errors="replace") for id_ in marks), *told})


def registered(worker: Worker, taskinfoitems: Sequence[str] = ()) -> list[str]:
    """Return the tasks that go by name, each with the attributes that are asked for."""
    wanted = [item for item in taskinfoitems or _TASK_INFO if not item.startswith("_")]
    said = []
    for name, task in sorted(worker.app.tasks.items()):
        found = [f"{item}={getattr(task, item)}" for item in wanted if getattr(task, item, None)]
        said.append(f"{name} [{' '.join(found)}]" if found else name)
    return said


def active_queues(worker: Worker) -> list[dict[str, Any]]:
    """Return the queues that a worker listens to, with what `task_queues` binds them to."""
    return [_queue(name, bindings_of(worker.conf, name)) for name in worker.queues]


def _queue(name: str, bindings: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    exchange, kind, key = bindings[0]
    said: dict[str, Any] = dict.fromkeys(_OF_QUEUES)
    said |= {"name": name, "routing_key": key, "exchange": dict.fromkeys(_OF_EXCHANGES)}
    said["exchange"] |= {"name": exchange, "type": kind, "durable": True, "passive": False, "auto_delete": False}
    said["bindings"] = [{"exchange": one, "routing_key": its} for one, _, its in bindings]
    return said | {"durable": True, "exclusive": False, "auto_delete": False, "no_ack": False}


_OF_QUEUES: Final = (
    *("name", "exchange", "routing_key", "queue_arguments", "binding_arguments", "consumer_arguments", "durable"),
    *("exclusive", "auto_delete", "no_ack", "alias", "bindings", "no_declare", "expires", "message_ttl", "max_length"),
    *("max_length_bytes", "max_priority"),
)
_OF_EXCHANGES: Final = ("name", "type", "arguments", "durable", "passive", "auto_delete", "delivery_mode", "no_declare")


def stats(worker: Worker, totals: dict[str, int], clock: int) -> dict[str, Any]:
    """Return counters, processes and limits.

    Args:
        worker: this one.
        totals: how often each task has run here.
        clock: of events.
    """
    limits = worker.terms.limits
    return {
        "total": totals,
        "pid": os.getpid(),
        "clock": str(clock),
        "uptime": int(time.time() - worker.adverts.started_at),
        "pool": {
            "implementation": f"{type(worker.pool).__module__}:{type(worker.pool).__qualname__}",
            "max-concurrency": worker.concurrency,
            "processes": sorted(child.pid for child in worker.pool.children.values() if child.pid),
            "max-tasks-per-child": worker.conf.worker_max_tasks_per_child or "N/A",
            "put-guarded-by-semaphore": False,
            "timeouts": [limits.soft_time_limit, limits.time_limit],
        },
        "broker": _broker(worker),
        "prefetch_count": len(worker.work.held) + max(0, worker.work.room()),
        "rusage": _rusage(),
    }


def _broker(worker: Worker) -> dict[str, Any]:
    first, *others = [mask(node) for node in nodes_of(worker.app.link.broker_url)]
    parts = urlsplit(first)
    return {
        "hostname": parts.hostname or parts.path,
        "userid": parts.username,
        "virtual_host": (parts.path.strip("/") if parts.hostname else "") or "/",
        "port": parts.port,
        "insist": False,
        "ssl": parts.scheme in ("rediss", "amqps"),
        "transport": parts.scheme,
        "connect_timeout": 5,
        "transport_options": {},
        "login_method": None,
        "uri_prefix": None,
        "heartbeat": 0.0,
        "failover_strategy": str(worker.conf.broker_failover_strategy or "round-robin"),
        "alternates": others,
    }


def _rusage() -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {name.removeprefix("ru_"): getattr(used, f"ru_{name}") for name in _RUSAGE}


_RUSAGE: Final = (
    *("utime", "stime", "maxrss", "ixrss", "idrss", "isrss", "minflt", "majflt", "nswap", "inblock", "oublock"),
    *("msgsnd", "msgrcv", "nsignals", "nvcsw", "nivcsw"),
)


def conf(worker: Worker, *, with_defaults: bool) -> dict[str, Any]:
    """Return settings, without passwords: those that differ from the defaults, or all."""
    return worker.conf.table(with_defaults=with_defaults)


def memory(worker: Worker) -> int:
    """Return the bytes of memory that the supervisor and its children use."""
    pids = [os.getpid(), *worker.pids()]
    return sum(rss_bytes(pid) for pid in pids)


def memory_text(samples: Sequence[tuple[float, int]]) -> str:
    """Return samples (Unix seconds, bytes) as lines of text."""
    return "\n".join(
        f"{datetime.fromtimestamp(at, UTC).isoformat(timespec='seconds')}  {shown_size(size)}" for at, size in samples
    )
