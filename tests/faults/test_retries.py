"""Workers die around retries: every task runs each of its retries, and none forks into two."""

from __future__ import annotations

import functools
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


def note_and_retry(self: BoundTask, folder: str, number: int, other: str = "") -> int:
    """Leave a file for each run, and run four times, by turns in another queue if there is one."""
    (Path(folder) / f"{number}.{self.request.retries}.{time.time_ns()}").touch()
    time.sleep(0.02)
    if self.request.retries < RETRIES:
        there = other.removesuffix(".other") if self.request.queue == other else other
        self.retry(countdown=0.1 if number % 2 else 0, queue=there or None)
    return number


@pytest.mark.parametrize("moves", [False, True])
def test_no_retry_is_lost_or_doubled_when_workers_are_killed(site: Site, tmp_path: Path, moves: bool) -> None:
    other = f"{site.queue}.other" if moves else ""
    listen = ("-Q", f"{site.queue},{other}") if moves else ()
    site.worker(*listen)
    victims = [site.worker(*listen), site.worker(*listen)]
    task = site.app.task(note_and_retry, bind=True, by_value=True)
    results = task.starmap([(str(tmp_path), number, other) for number in range(TASKS)])
    for share, victim in zip((0.3, 0.6), victims, strict=True):
        wait_until(lambda: len(list(tmp_path.iterdir())) > share * TASKS * (RETRIES + 1), 30, "runs")  # noqa: B023
        victim.kill()
    assert results.get(timeout=60) == list(range(TASKS))
    runs = Counter(tuple(path.name.split(".")[:2]) for path in tmp_path.iterdir())
    assert set(runs) == {(str(n), str(k)) for n in range(TASKS) for k in range(RETRIES + 1)}
    assert sum(runs.values()) <= TASKS * (RETRIES + 1) + 2 * 2, "only what a killed child was at runs again"
    for queue in (site.queue, other) if moves else (site.queue,):
        wait_until(functools.partial(_is_empty, site, queue), 20, f"copies in {queue} to be looked at")


def _is_empty(site: Site, queue: str) -> bool:
    size = site.app.broker.size(queue)
    return (size.queued, size.claimed, size.delayed) == (0, 0, 0)
