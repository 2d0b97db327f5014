"""Workers die around retries: every task runs each of its retries, and none forks into two."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from nbqueue.execute import BoundTask
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]

TASKS = 40
RETRIES = 3


def note_and_retry(self: BoundTask, folder: str, number: int) -> int:
    """Leave a file for each run, and run four times."""
    (Path(folder) / f"{number}.{self.request.retries}.{time.time_ns()}").touch()
    time.sleep(0.02)
    if self.request.retries < RETRIES:
        self.retry(countdown=0.1 if number % 2 else 0)
    return number


def test_no_retry_is_lost_or_doubled_when_workers_are_killed(site: Site, tmp_path: Path) -> None:
    site.worker()
    victims = [site.worker(), site.worker()]
    task = site.app.task(note_and_retry, bind=True, by_value=True)
    results = task.starmap([(str(tmp_path), number) for number in range(TASKS)])
    for share, victim in zip((0.3, 0.6), victims, strict=True):
        wait_until(lambda: len(list(tmp_path.iterdir())) > share * TASKS * (RETRIES + 1), 30, "runs")  # noqa: B023
        victim.kill()
    assert results.get(timeout=60) == list(range(TASKS))
    runs = Counter(tuple(path.name.split(".")[:2]) for path in tmp_path.iterdir())
    assert set(runs) == {(str(n), str(k)) for n in range(TASKS) for k in range(RETRIES + 1)}
    assert sum(runs.values()) <= TASKS * (RETRIES + 1) + 2 * 2, "only what a killed child was at runs again"
    size = site.app.broker.size("nbqueue")
    assert (size.queued, size.claimed, size.delayed) == (0, 0, 0)
