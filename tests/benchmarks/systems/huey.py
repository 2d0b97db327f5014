"""Huey. Run as a module, this is its consumer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import huey

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, WAIT_S, Peer, Rows, server_url

POLL_S = 0.002


def make() -> tuple[Any, dict[str, Any]]:
    """Return the queue and its tasks, for client and consumer."""
    queue = huey.RedisHuey("benchmark", url=server_url())
    return queue, {name: queue.task(name=name)(fn) for name, fn in work.TASKS.items()}


class Driver(Peer):
    """A consumer of two processes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.queue, self.tasks = make()

    def start(self) -> None:
        self._start_worker("tests.benchmarks.systems.huey")

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        found = self.tasks[task]
        return [found(*args) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [result.get(blocking=True, timeout=WAIT_S, max_delay=POLL_S, backoff=1.0) for result in handles]

    def map(self, task: str, rows: Rows) -> list[Any]:
        return self.gather(list(self.tasks[task].map(rows)))

    def enqueue(self, task: str, rows: Rows) -> None:
        self.tasks[task].map(rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    make()[0].create_consumer(workers=CHILDREN, worker_type="process").run()
