"""What is compared, each behind the same few calls. A session starts one of them, with two processes that run tasks.

Run as a module with a URL, this is Celery's worker.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from abc import ABC, abstractmethod
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbqueue import App
    from nbqueue.tasks import Task

CHILDREN: Final = 2
WAIT_S: Final = 60.0


def noop(x: int) -> int:
    return x


class Peer(ABC):
    """One system, driven from this process; `url` is the server that is its own, if it needs one."""

    package: ClassVar[str]
    has_server: ClassVar[bool] = True
    appendonly: ClassVar[bool] = False
    about: ClassVar[str]

    def __init__(self, url: str) -> None:
        self.url = url
        self._worker: subprocess.Popen[bytes] | None = None

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.package) is not None

    @abstractmethod
    def start(self) -> None:
        """Start what runs tasks, without waiting for it."""

    @abstractmethod
    def call(self, x: int) -> int:
        """Run one task and wait for its result."""

    @abstractmethod
    def map(self, n: int) -> list[int]:
        """Run n tasks and wait for all results."""

    @abstractmethod
    def send(self, n: int) -> Sequence[Any]:
        """Send n tasks one by one, each confirmed before the next."""

    @abstractmethod
    def gather(self, handles: Sequence[Any]) -> list[int]:
        """Wait for the results of what was sent."""

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.terminate()
            try:
                self._worker.wait(10)
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()

    def _start_worker(self, *words: str) -> None:
        self._worker = subprocess.Popen([sys.executable, "-m", *words], stdin=subprocess.DEVNULL)


class Nbqueue(Peer):
    package = "nbqueue"
    about = "`python -m nbqueue worker -c 2`, the task's code sent by value"
    worker_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._app, self._noop = self._open()

    def _open(self) -> tuple[App, Task]:
        from nbqueue import App

        app = App(by_value=True)
        return app, app.task(noop)

    def start(self) -> None:
        self._start_worker("nbqueue", "worker", "-c", str(CHILDREN), *self.worker_options)

    def call(self, x: int) -> int:
        value: int = self._noop.delay(x).get(timeout=WAIT_S)
        return value

    def map(self, n: int) -> list[int]:
        return self._noop.map(range(n)).get(timeout=WAIT_S)

    def send(self, n: int) -> Sequence[Any]:
        delay = self._noop.delay
        return [delay(x) for x in range(n)]

    def gather(self, handles: Sequence[Any]) -> list[int]:
        return [handle.get(timeout=WAIT_S) for handle in handles]

    def stop(self) -> None:
        self._app.close()
        super().stop()


class NbqueueFile(Nbqueue):
    about = "the same, the server with its append-only file"
    appendonly = True


class NbqueueByName(Nbqueue):
    about = "the same as the first, the task in a module given with `-A`"
    worker_options = ("-A", "tests.benchmarks.by_name")

    def _open(self) -> tuple[App, Task]:
        from tests.benchmarks import by_name

        return by_name.app, by_name.noop


class Pool(Peer):
    package = "concurrent.futures"
    has_server = False
    about = "`ProcessPoolExecutor(2)`, `map` with chunksize 1; no server, keeps nothing"

    def start(self) -> None:
        self._pool = ProcessPoolExecutor(CHILDREN)

    def call(self, x: int) -> int:
        return self._pool.submit(noop, x).result(WAIT_S)

    def map(self, n: int) -> list[int]:
        return list(self._pool.map(noop, range(n), timeout=WAIT_S, chunksize=1))

    def send(self, n: int) -> Sequence[Any]:
        submit = self._pool.submit
        return [submit(noop, x) for x in range(n)]

    def gather(self, handles: Sequence[Any]) -> list[int]:
        return [handle.result(WAIT_S) for handle in handles]

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class Celery(Peer):
    package = "celery"
    about = (
        "`worker -P prefork -c 2 -O fair` without gossip, mingle, heartbeat and events, prefetch multiplier 64, early"
        " acknowledgement, one priority step; a map is a `group`"
    )

    def __init__(self, url: str) -> None:
        super().__init__(url)
        from celery import group  # may be missing

        self._group: Callable[[Any], Any] = group
        self._noop = celery_app(url).tasks["noop"]

    def start(self) -> None:
        self._start_worker("tests.benchmarks.peers", self.url)

    def call(self, x: int) -> int:
        value: int = self._noop.delay(x).get(timeout=WAIT_S)
        return value

    def map(self, n: int) -> list[int]:
        values: list[int] = self._group(self._noop.s(x) for x in range(n)).apply_async().get(timeout=WAIT_S)
        return values

    def send(self, n: int) -> Sequence[Any]:
        delay = self._noop.delay
        return [delay(x) for x in range(n)]

    def gather(self, handles: Sequence[Any]) -> list[int]:
        from celery.result import ResultSet

        values: list[int] = ResultSet(handles).join_native(timeout=WAIT_S)
        return values


SYSTEMS: Final[dict[str, type[Peer]]] = {
    "nbqueue": Nbqueue,
    "nbqueue, file": NbqueueFile,
    "nbqueue, by name": NbqueueByName,
    "ProcessPoolExecutor": Pool,
    "Celery": Celery,
}


def celery_app(url: str) -> Any:
    """Return Celery's app with the one task, for client and worker."""
    import celery

    app = celery.Celery("benchmark", broker=url, backend=url, set_as_current=True)
    app.conf.update(
        worker_prefetch_multiplier=64,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"priority_steps": [0]},
    )
    app.task(noop, name="noop")
    app.finalize()
    return app


if __name__ == "__main__":
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR")
    celery_app(sys.argv[1]).worker_main(["worker", "-P", "prefork", "-c", str(CHILDREN), "-O", "fair", *quiet])
