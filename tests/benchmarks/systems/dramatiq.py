"""Dramatiq. Its workers import this module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, WAIT_S, Peer, Rows, server_url

broker = RedisBroker(url=server_url())
broker.add_middleware(Results(backend=RedisBackend(url=server_url()), store_results=True))
dramatiq.set_broker(broker)
actors = {name: dramatiq.actor(fn, actor_name=name) for name, fn in work.TASKS.items()}


class Driver(Peer):
    """Two worker processes."""

    def start(self) -> None:
        self._start_worker("dramatiq", "tests.benchmarks.systems.dramatiq", "--processes", str(CHILDREN))

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        send = actors[task].send
        return [send(*args) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [message.get_result(block=True, timeout=int(WAIT_S * 1000)) for message in handles]

    def map(self, task: str, rows: Rows) -> list[Any]:
        return list(self._group(task, rows).get_results(block=True, timeout=int(WAIT_S * 1000)))

    def enqueue(self, task: str, rows: Rows) -> None:
        self._group(task, rows)

    def _group(self, task: str, rows: Rows) -> Any:
        message = actors[task].message
        return dramatiq.group([message(*args) for args in rows]).run()
