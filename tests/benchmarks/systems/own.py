"""nbqueue itself."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nbqueue import App, Executor, chord
from nbqueue.tasks import Task
from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, WAIT_S, Peer, Rows
from tests.rabbit import RabbitServer


def as_in_cells() -> dict[str, Callable[..., Any]]:
    """Return the tasks as a notebook's cells define them: no module has them, so their code travels."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(inspect.getsource(work), "<cell>", "exec"), namespace)
    found: dict[str, Callable[..., Any]] = namespace["TASKS"]
    return found


class Driver(Peer):
    """A worker on a server, tasks sent by value."""

    options: tuple[str, ...] = ()

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.app, self.tasks = self._open()
        self.executor: Executor | None = None

    def _open(self) -> tuple[App, dict[str, Task]]:
        app = App()  # its URL and key come from the environment
        return app, {name: app.task(fn) for name, fn in as_in_cells().items()}

    def start(self) -> None:
        self._start_worker("nbqueue", "worker", "-c", str(CHILDREN), *self.options)

    def call(self, task: str, *args: Any) -> Any:
        return self.tasks[task].delay(*args).get(timeout=WAIT_S)

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        delay = self.tasks[task].delay
        return [delay(*args) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get(timeout=WAIT_S) for handle in handles]

    def map(self, task: str, rows: Rows) -> list[Any]:
        return self.tasks[task].starmap(rows).get(timeout=WAIT_S)

    def enqueue(self, task: str, rows: Rows) -> None:
        self.tasks[task].starmap(rows)

    def pipelined(self, task: str, rows: Rows) -> list[Any] | None:
        pipeline = getattr(self.app, "pipeline", None)
        if pipeline is None:
            return None
        with pipeline():
            handles = self.send(task, rows)
        return self.gather(handles)

    def submitted(self, task: str, rows: Rows) -> list[Any] | None:
        if self.executor is None:
            self.executor = Executor(CHILDREN)
        submit, fn = self.executor.submit, self.tasks[task].function
        return [future.result(WAIT_S) for future in [submit(fn, *args) for args in rows]]

    def chord(self, task: str, rows: Rows) -> int:
        signature = self.tasks[task].s
        return int(chord([signature(*args) for args in rows])(self.tasks["size"].s()).get(timeout=WAIT_S))

    def stop(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
        self.app.close()
        super().stop()


class ByName(Driver):
    """The same, tasks known to the worker by their names."""

    options = ("-A", "tests.benchmarks.systems.by_name")

    def _open(self) -> tuple[App, dict[str, Task]]:
        from tests.benchmarks.systems import by_name

        return by_name.app, by_name.tasks


class OnRabbit(Driver):
    """Messages go through a RabbitMQ node of the session's own; the server it is given is the backend."""

    def _open(self) -> tuple[App, dict[str, Task]]:
        self.broker = RabbitServer()
        self.broker.start()
        os.environ |= {"NBQUEUE_BROKER_URL": self.broker.url, "NBQUEUE_RESULT_BACKEND": self.url}
        return super()._open()

    def stop(self) -> None:
        super().stop()
        self.broker.close()


class Embedded(Driver):
    """Nothing is configured: what `%load_ext nbqueue` in a notebook finds or starts."""

    def _open(self) -> tuple[App, dict[str, Task]]:
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        # as in a terminal, where views are text
        with contextlib.redirect_stdout(io.StringIO()):
            shell.run_line_magic("load_ext", "nbqueue")
        return super()._open()

    def start(self) -> None:
        """Do nothing: the keeper starts a worker for the first task."""

    def stop(self) -> None:
        self.app.close()
        down = [sys.executable, "-m", "nbqueue", "down", "--grace", "1"]
        subprocess.run(down, check=True, stdout=subprocess.DEVNULL)
