"""Many faults at random moments of one map, with a fixed seed: in the end every result is there, and right."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.test_processes import children_of, runs, send_notes
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]

TASKS = 600
CALM = 0.9  # the share of the map after which nothing is broken any more


class Faults:
    """What may go wrong, one method a fault; each leaves at least one worker to go on.

    Args:
        site: with two workers.
        seed: of when and what.
    """

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.random = random.Random(seed)
        self.live = [site.worker(), site.worker()]

    def child_killed(self) -> None:
        if children := [child for worker in self.live for child in children_of(worker)]:
            self.random.choice(children).kill()

    def fork_server_killed(self) -> None:
        for server in psutil.Process(self.random.choice(self.live).pid).children():
            server.kill()

    def worker_killed(self) -> None:
        self._replace(signal.SIGKILL)

    def worker_stopped(self) -> None:
        self._replace(signal.SIGTERM)

    def worker_stopped_at_once(self) -> None:
        self._replace(signal.SIGQUIT)

    def worker_frozen(self) -> None:
        worker = self.random.choice(self.live)
        worker.signal(signal.SIGSTOP)
        self._pass(self.random.uniform(0.5, 4.0))
        worker.signal(signal.SIGCONT)

    def server_frozen(self) -> None:
        self.site.server.sigstop()
        self._pass(self.random.uniform(0.5, 6.0))
        self.site.server.sigcont()

    def server_restarted(self) -> None:
        self.site.server.stop()
        self._pass(self.random.uniform(0.0, 3.0))
        self.site.server.start()

    def connections_cut(self) -> None:
        self.site.server_says("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def scripts_forgotten(self) -> None:
        self.site.server_says("SCRIPT", "FLUSH")

    def _replace(self, number: signal.Signals) -> None:
        worker = self.live.pop(self.random.randrange(2))
        worker.signal(number)
        self.live.append(self.site.worker())
        worker.wait(60)

    def _pass(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() > until, seconds + 5, "the fault to last")


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_whatever_breaks(site: Site, tmp_path: Path, seed: int) -> None:
    faults = Faults(site, seed)
    kinds = [getattr(faults, name) for name in vars(Faults) if not name.startswith("_")]
    results = send_notes(site, tmp_path, TASKS, 0.03)
    happened = []
    while len(results.watched.arrived) < CALM * TASKS:
        before = len(results.watched.arrived)
        kind = faults.random.choice(kinds)
        happened.append(kind.__name__)
        kind()
        # Something ends between two faults, so that no task is hit time and again.
        wait_until(lambda: len(results.watched.arrived) >= min(before + 15, TASKS), 60, f"tasks to end: {happened}")  # noqa: B023
    assert results.get(timeout=60) == [f"t{n}" for n in range(TASKS)], happened
    assert set(runs(tmp_path)) == {f"t{n}" for n in range(TASKS)}
    size = site.app.broker.size("nbqueue")
    wait_until(lambda: site.app.broker.size("nbqueue").claimed == 0, 10, f"nothing to be claimed: {size}")
    for worker in faults.live:
        assert worker.process.poll() is None
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    for worker in site.workers:
        assert "Traceback" not in worker.log.read_text()
