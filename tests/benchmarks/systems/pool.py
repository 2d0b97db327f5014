"""`ProcessPoolExecutor`: what two processes and pipes can do when nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, WAIT_S, Peer, Rows


class Driver(Peer):
    """A pool of this process."""

    def start(self) -> None:
        self._pool = ProcessPoolExecutor(CHILDREN)

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        submit, fn = self._pool.submit, work.TASKS[task]
        return [submit(fn, *args) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.result(WAIT_S) for handle in handles]

    def map(self, task: str, rows: Rows) -> list[Any]:
        return list(self._pool.map(work.TASKS[task], *zip(*rows, strict=True), timeout=WAIT_S, chunksize=1))

    def pipelined(self, task: str, rows: Rows) -> list[Any] | None:
        return self.gather(self.send(task, rows))

    def submitted(self, task: str, rows: Rows) -> list[Any] | None:
        return self.pipelined(task, rows)

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)
