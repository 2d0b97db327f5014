"""RQ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
import rq

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, WAIT_S, Peer, Rows, server_url

AT_ONCE = 1_000


class Driver(Peer):
    """A pool of two workers that don't fork."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.queue = rq.Queue(connection=redis.Redis.from_url(server_url()))

    def start(self) -> None:
        pool = ("worker-pool", "default", "-n", str(CHILDREN), "-u", server_url(), "-q", "-w", "rq.SimpleWorker")
        self._start_worker("rq.cli", *pool)

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        return [self.queue.enqueue(work.TASKS[task], *args) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [value_of(job) for job in handles]

    def map(self, task: str, rows: Rows) -> list[Any]:
        return self.gather(self._enqueue(task, rows))

    def enqueue(self, task: str, rows: Rows) -> None:
        self._enqueue(task, rows)

    def _enqueue(self, task: str, rows: Rows) -> list[Any]:
        jobs: list[Any] = []
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            jobs += self.queue.enqueue_many([rq.Queue.prepare_data(work.TASKS[task], args) for args in part])
        return jobs


def value_of(job: Any) -> Any:
    result = job.latest_result(timeout=int(WAIT_S))
    if result.type != result.Type.SUCCESSFUL:
        raise RuntimeError(result.exc_string)
    return result.return_value
