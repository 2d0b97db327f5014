"""dask.distributed: a scheduler and two single-threaded workers, each a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed import Client, LocalCluster

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, Peer, Rows


class Driver(Peer):
    """A local cluster, as `Client()` makes it."""

    def start(self) -> None:
        self.cluster = LocalCluster(n_workers=CHILDREN, threads_per_worker=1, processes=True, dashboard_address=None)
        self.client = Client(self.cluster)

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        submit, fn = self.client.submit, work.TASKS[task]
        return [submit(fn, *args, pure=False) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(list(handles)))

    def map(self, task: str, rows: Rows) -> list[Any]:
        return self.gather(self.client.map(work.TASKS[task], *zip(*rows, strict=True), pure=False))

    def share(self, data: Any) -> Any:
        return self.client.scatter(data, broadcast=True)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()
