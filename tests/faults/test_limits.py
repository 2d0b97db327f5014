"""Limits hold while the server is away."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil
import pytest

from nbqueue.exceptions import TimeLimitExceeded
from tests.faults.test_processes import children_of, runs, send_notes
from tests.helpers import wait_until
from tests.pools import alive
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(60)]


def linger(folder: str) -> None:
    (Path(folder) / "pid").write_text(str(os.getpid()))
    time.sleep(600)


def test_task_is_ended_at_its_limit_while_the_server_is_away(site: Site, tmp_path: Path) -> None:
    site.worker(concurrency=1)
    result = site.app.task(linger, by_value=True, time_limit=4.0).delay(str(tmp_path))
    pid = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 10, "it to begin"))
    site.server.kill()
    wait_until(lambda: not alive(pid), 15, "its child to be ended")
    site.server.start()
    with pytest.raises(TimeLimitExceeded, match="4 s"):
        result.get(timeout=30)


def test_nothing_is_lost_when_children_are_replaced_and_killed(site: Site, tmp_path: Path) -> None:
    worker = site.worker("--max-tasks-per-child", "4")
    results = send_notes(site, tmp_path, 100, 0.02)
    for share in range(10, 70, 10):
        wait_until(lambda: len(results.watched.arrived) >= share, 20, "tasks to end")  # noqa: B023
        with contextlib.suppress(psutil.NoSuchProcess):  # it was just being replaced
            wait_until(lambda: children_of(worker), 5, "a child")[0].kill()
    assert results.get(timeout=60) == [f"t{n}" for n in range(100)]
    assert sum(runs(tmp_path).values()) <= 100 + 6, "only what a killed child was at runs again"
