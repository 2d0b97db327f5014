"""Limits hold while the server is away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nbqueue.exceptions import TimeLimitExceeded
from tests.helpers import wait_until
from tests.pools import alive
from tests.workers import Site

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]


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
