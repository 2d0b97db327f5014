"""Many faults at random moments of one map, with a fixed seed: in the end every result is there, and right."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.chaos import CHILDREN, Faults, pause
from tests.faults.test_processes import runs, send_notes
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]

TASKS = 600
CALM = 0.9  # the share of the map after which nothing is broken any more


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_whatever_breaks(site: Site, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    faults = Faults(site, chance, lambda _: site.worker(concurrency=CHILDREN), 2, pause)
    results = send_notes(site, tmp_path, TASKS, 0.03)
    happened = []
    while len(results.watched.arrived) < CALM * TASKS:
        before = len(results.watched.arrived)
        kind = chance.choice(faults.kinds)
        happened.append(kind.__name__)
        kind()
        # Something ends between two faults, so that no task is hit time and again.
        wait_until(lambda: len(results.watched.arrived) >= min(before + 15, TASKS), 60, f"tasks to end: {happened}")  # noqa: B023
    assert results.get(timeout=60) == [f"t{n}" for n in range(TASKS)], happened
    counted = runs(tmp_path)
    assert set(counted) == {f"t{n}" for n in range(TASKS)}
    assert sum(counted.values()) - TASKS <= faults.in_flight, "what was in flight when something broke, at most"
    size = site.app.broker.size("nbqueue")
    wait_until(lambda: site.app.broker.size("nbqueue").claimed == 0, 10, f"nothing to be claimed: {size}")
    assert not faults.wrong()
    for worker in faults.workers:
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
