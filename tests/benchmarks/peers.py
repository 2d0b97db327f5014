"""The systems that are compared, and what a session asks of each."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from tests.environment import rabbitmq_binary

CHILDREN: Final = 2
WAIT_S: Final = 120.0
URL: Final = "BENCHMARK_URL"  # the variable that tells workers of other systems where their server is
# Kinds of sessions, each measured by a process of its own; see `session`.
HOT: Final = "hot"
CALLS: Final = "calls"
BACKLOG: Final = "backlog"
COMPUTE: Final = "compute"
DATA: Final = "data"
FIRST: Final = "first"
KINDS: Final = (HOT, CALLS, BACKLOG, COMPUTE, DATA, FIRST)
Rows = Sequence[tuple[Any, ...]]


class Peer(ABC):
    """One system, driven from this process, with two processes that run the tasks of `work`.

    Args:
        url: of the server that is its own; a system that needs none takes no notice.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._worker: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Start what runs tasks, without waiting for it."""

    @abstractmethod
    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        """Send calls one by one, each confirmed before the next; return their handles."""

    @abstractmethod
    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """Wait for the results of what was sent."""

    def call(self, task: str, *args: Any) -> Any:
        """Run one task and wait for its result."""
        return self.gather(self.send(task, [args]))[0]

    def map(self, task: str, rows: Rows) -> list[Any]:
        """Run many calls, in the way that is fastest here, and wait for all results."""
        return self.gather(self.send(task, rows))

    def enqueue(self, task: str, rows: Rows) -> None:
        """Send many calls, in the way that is fastest here."""
        self.send(task, rows)

    def pipelined(self, task: str, rows: Rows) -> list[Any] | None:
        """Run calls sent one by one that are confirmed later, and wait for all; None where there is no such way."""
        return None

    def submitted(self, task: str, rows: Rows) -> list[Any] | None:
        """Run calls submitted one by one to an executor, and wait for all; None where there is none."""
        return None

    def chord(self, task: str, rows: Rows) -> int:
        """Run many calls and one that gets all their values; return how many these were."""
        return int(self.call("size", self.map(task, rows)))

    def share(self, data: Any) -> Any:
        """Return what is passed to many tasks that read the same data."""
        return data

    def stop(self) -> None:
        """End what was started."""
        if self._worker is not None:
            self._worker.terminate()
            try:
                self._worker.wait(10)
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()

    def _start_worker(self, *words: str) -> None:
        self._worker = subprocess.Popen([sys.executable, "-m", *words], stdin=subprocess.DEVNULL)


class System(NamedTuple):
    """How a system is found, and what it can do.

    Args:
        package: that has to be installed.
        module: of `systems`, or `module:Class`.
        about: how it is driven.
        kinds: of sessions it takes part in.
        server: whether it needs one.
        appendonly: whether that keeps a file.
        program: finds another program that it needs.
    """

    package: str
    module: str
    about: str
    kinds: tuple[str, ...]
    server: bool = True
    appendonly: bool = False
    program: Callable[[], str | None] | None = None

    @property
    def installed(self) -> bool:
        """Tell whether it can be measured here."""
        program = self.program is None or self.program()
        return bool(program) and importlib.util.find_spec(self.package) is not None

    def open(self, url: str) -> Peer:
        """Import it and return it, connected."""
        module, _, name = self.module.partition(":")
        found = importlib.import_module(f"tests.benchmarks.systems.{module}")
        peer: Peer = getattr(found, name or "Driver")(url)
        return peer


QUEUES: Final = (HOT, CALLS, BACKLOG, COMPUTE)
CLUSTERS: Final = (HOT, CALLS, COMPUTE, DATA, FIRST)
SYSTEMS: Final[dict[str, System]] = {
    "nbqueue": System(
        "nbqueue", "own", "`python -m nbqueue worker -c 2`, the task's code sent by value", (*QUEUES, DATA)
    ),
    "nbqueue, file": System(
        "nbqueue", "own", "the same, the server with its append-only file", (HOT, CALLS, BACKLOG), appendonly=True
    ),
    "nbqueue, by name": System(
        "nbqueue", "own:ByName", "the same as the first, the task in a module given with `-A`", (HOT, CALLS, BACKLOG)
    ),
    "nbqueue, RabbitMQ": System(
        "nbqueue",
        "own:OnRabbit",
        "the same as the first, messages on RabbitMQ's quorum queues; the server whose memory is shown is its Redis",
        (HOT, CALLS, BACKLOG),
        program=rabbitmq_binary,
    ),
    "nbqueue, embedded": System(
        "nbqueue",
        "own:Embedded",
        "nothing configured: the embedded server, and the worker that its keeper starts",
        (DATA, FIRST),
        server=False,
    ),
    "ProcessPoolExecutor": System(
        "concurrent.futures",
        "pool",
        "two processes, `map` with chunksize 1; no server, keeps nothing",
        (HOT, CALLS, COMPUTE, DATA),
        server=False,
    ),
    "Celery": System(
        "celery",
        "celery",
        "`worker -P prefork -c 2 -O fair` without gossip, mingle, heartbeat and events, prefetch multiplier 64, early"
        " acknowledgement, one priority step; a map is a `group`; of 200 tasks on 20 MB 10 were run",
        (*QUEUES, DATA),
    ),
    "dramatiq": System("dramatiq", "dramatiq", "`--processes 2`, Redis broker and results; a map is a `group`", QUEUES),
    "huey": System(
        "huey",
        "huey",
        "`-w 2 -k process`, results asked for every 2 ms, `TaskWrapper.map`; acknowledges nothing",
        QUEUES,
    ),
    "SAQ": System(
        "saq", "saq", "`--workers 2`, pickle, results asked for every 2 ms; a map is a gather of 100 at a time", QUEUES
    ),
    "RQ": System("rq", "rq", "`worker-pool -n 2` of `SimpleWorker`, which doesn't fork; `enqueue_many`", QUEUES),
    "Ray": System(
        "ray",
        "ray",
        "`init(num_cpus=2)` without a dashboard; sends confirm nothing; 20 MB shared by `put`",
        CLUSTERS,
        server=False,
    ),
    "Dask": System(
        "distributed",
        "dask",
        "a scheduler and two worker processes of one thread; sends confirm nothing; 20 MB shared by `scatter`",
        CLUSTERS,
        server=False,
    ),
    "ipyparallel": System(
        "ipyparallel",
        "ipyparallel",
        "`Cluster(n=2)`, load-balanced view; sends confirm nothing; 20 MB shared by `push`",
        CLUSTERS,
        server=False,
    ),
}


def server_url() -> str:
    """Return, in a worker of another system, where its server is; as redis-py writes it."""
    return os.environ[URL].replace("redis+socket://", "unix://")
