"""Ray: one local node of two processors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import ray

from tests.benchmarks import work
from tests.benchmarks.peers import CHILDREN, WAIT_S, Peer, Rows

STORE_BYTES = 4 * 10**9


class Driver(Peer):
    """A cluster of this process."""

    def start(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(
            num_cpus=CHILDREN,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=STORE_BYTES,
            _temp_dir=tempfile.gettempdir(),
            _node_ip_address="127.0.0.1",
        )
        self.tasks = {name: ray.remote(fn) for name, fn in work.TASKS.items()}
        self._count = ray.remote(lambda *values: len(values))

    def send(self, task: str, rows: Rows) -> Sequence[Any]:
        remote = self.tasks[task].remote
        return [remote(*args) for args in rows]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(ray.get(list(handles), timeout=WAIT_S))

    def chord(self, task: str, rows: Rows) -> int:
        return int(ray.get(self._count.remote(*self.send(task, rows)), timeout=WAIT_S))

    def share(self, data: Any) -> Any:
        return ray.put(data)

    def stop(self) -> None:
        ray.shutdown()
