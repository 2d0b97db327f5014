"""`nbqueue.worker`: what its loop decides by the clock; real ones are in `tests/end_to_end/` and `tests/faults/`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbqueue import App
from nbqueue.signing import create_key_file
from nbqueue.worker import Worker
from tests.helpers import RedisServer

LEASE_S = 3.0


@pytest.fixture
def worker(redis_server: RedisServer, tmp_path: Path) -> Iterator[Worker]:
    """Yield a worker whose loop doesn't run."""
    create_key_file(tmp_path / "key")
    with App("tests", broker=redis_server.url, key_file=tmp_path / "key", set_as_current=False) as app:
        app.conf.worker_lease = LEASE_S
        made = Worker(app, concurrency=1)
        yield made
        for part in (made._selector, made.broker, made.backend):
            part.close()


@pytest.mark.parametrize(("since_s", "begins"), [(0.0, True), (0.6 * LEASE_S, True), (0.7 * LEASE_S, False)])
def test_nothing_begins_when_two_thirds_of_a_lease_have_passed_without_renewal(
    worker: Worker, since_s: float, begins: bool
) -> None:
    worker._renewed_at = time.monotonic() - since_s
    worker._look()
    assert worker.work._paused is not begins
    worker._renewed_at = time.monotonic()
    worker._timers.clear()
    worker._look()
    assert worker.work._paused is False
