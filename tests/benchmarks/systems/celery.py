"""Celery. Run as a module, this is its worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import celery
from celery.result import ResultSet

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, URL, WAIT_S, Peer, Rows


def make_app(url: str) -> Any:
    """Return Celery's app with the tasks, for client and worker."""
    app = celery.Celery("benchmark", broker=url, backend=url, set_as_current=True)
    app.conf.update(
        worker_prefetch_multiplier=64,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"priority_steps": [0]},
        task_serializer="pickle",  # arrays travel too
        result_serializer="pickle",
        accept_content=["pickle", "json"],
    )
    for name, fn in work.TASKS.items():
        app.task(fn, name=name)
    app.finalize()
    return app


class Driver(Peer):
    """A worker of two processes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.tasks = make_app(url).tasks

    def start(self) -> None:
        self._start_worker("tests.benchmarks.systems.celery")

    def call(self, task: str, *args: Any) -> Any:
        return self.tasks[task].delay(*args).get(timeout=WAIT_S)

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        delay = self.tasks[task].delay
        return [delay(*args) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        values: list[Any] = ResultSet(handles).join_native(timeout=WAIT_S)
        return values

    def map(self, task: str, rows: Rows) -> list[Any]:
        values: list[Any] = self._group(task, rows).get(timeout=WAIT_S)
        return values

    def enqueue(self, task: str, rows: Rows) -> None:
        self._group(task, rows)

    def chord(self, task: str, rows: Rows) -> int:
        header = [self.tasks[task].s(*args) for args in rows]
        return int(celery.chord(header)(self.tasks["size"].s()).get(timeout=WAIT_S))

    def _group(self, task: str, rows: Rows) -> Any:
        return celery.group(self.tasks[task].s(*args) for args in rows).apply_async()


if __name__ == "__main__":
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR")
    make_app(os.environ[URL]).worker_main(["worker", "-P", "prefork", "-c", str(CHILDREN), "-O", "fair", *quiet])
