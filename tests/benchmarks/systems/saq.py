"""SAQ. Its workers import this module."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis import asyncio as aioredis
from saq.queue.redis import RedisQueue

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, Peer, Rows, server_url

POLL_S = 0.002
AT_ONCE = 100
# retries: a worker that starts sweeps jobs that another one has just taken, and these would end as aborted
OPTIONS: dict[str, Any] = {"timeout": 120, "retries": 3}

queue = RedisQueue(aioredis.from_url(server_url()), dump=pickle.dumps, load=pickle.loads)


def wrapped(fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def run(_: Any, *, args: tuple[Any, ...]) -> Any:
        return fn(*args)

    return run


settings = {
    "queue": queue,
    "functions": [(name, wrapped(fn)) for name, fn in work.TASKS.items()],
    "concurrency": 10,
}


class Driver(Peer):
    """Two worker processes, and an event loop of the client's."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(queue.connect())

    def start(self) -> None:
        self._start_worker("saq", "tests.benchmarks.systems.saq.settings", "--workers", str(CHILDREN), "-q")

    def call(self, task: str, *args: Any) -> Any:
        return self.loop.run_until_complete(queue.apply(task, poll_interval=POLL_S, args=args, **OPTIONS))

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        async def all_of_them() -> list[Any]:
            return [await queue.enqueue(task, args=args, **OPTIONS) for args in rows]

        return self.loop.run_until_complete(all_of_them())

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return self.loop.run_until_complete(self._gather(handles))

    def map(self, task: str, rows: Rows) -> list[Any]:
        return self.gather(self._enqueue(task, rows))

    def enqueue(self, task: str, rows: Rows) -> None:
        self._enqueue(task, rows)

    def stop(self) -> None:
        super().stop()
        self.loop.run_until_complete(queue.disconnect())

    def _enqueue(self, task: str, rows: Rows) -> list[Any]:
        async def in_parts() -> list[Any]:
            jobs: list[Any] = []
            for start in range(0, len(rows), AT_ONCE):
                part = rows[start : start + AT_ONCE]
                jobs += await asyncio.gather(*(queue.enqueue(task, args=args, **OPTIONS) for args in part))
            return jobs

        return self.loop.run_until_complete(in_parts())

    async def _gather(self, handles: Sequence[Any]) -> list[Any]:
        """Ask for all that have not ended, wait a little, ask again."""
        values: dict[str, Any] = {}
        left = [job.key for job in handles]
        while left:
            for start in range(0, len(left), 500):
                for job in await queue.jobs(left[start : start + 500]):
                    if job.completed:
                        if job.status != "complete":
                            raise RuntimeError(f"{job.status}: {job.error}")
                        values[job.key] = job.result
            left = [key for key in left if key not in values]
            await asyncio.sleep(POLL_S if left else 0)
        return [values[job.key] for job in handles]
