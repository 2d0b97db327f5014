"""ipyparallel: a controller and two engines."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from typing import Any

import ipyparallel

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, WAIT_S, Peer, Rows


class Driver(Peer):
    """A cluster of this process."""

    def start(self) -> None:
        self.cluster = ipyparallel.Cluster(
            n=CHILDREN, log_level=logging.ERROR, controller_ip="127.0.0.1", profile_dir=tempfile.mkdtemp()
        )
        self.client = self.cluster.start_and_connect_sync()
        self.view = self.client.load_balanced_view()

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        apply, fn = self.view.apply_async, work.TASKS[task]
        return [apply(fn, *args) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get(WAIT_S) for handle in handles]

    def map(self, task: str, rows: Rows) -> list[Any]:
        return list(self.view.map_async(work.TASKS[task], *zip(*rows, strict=True)).get(WAIT_S))

    def share(self, data: Any) -> Any:
        self.client[:].push({"shared": data}, block=True)
        return ipyparallel.Reference("shared")

    def stop(self) -> None:
        self.cluster.stop_cluster_sync()
