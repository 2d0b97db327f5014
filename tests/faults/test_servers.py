"""The server dies, restarts or stands still: tasks go on, outcomes arrive, nothing runs twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbqueue.exceptions import TaskRevokedError
from tests.faults.test_processes import runs, send_notes
from tests.helpers import wait_until
from tests.workers import LEASE_S, Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]


def test_server_killed_and_restarted_mid_map_loses_nothing(site: Site, tmp_path: Path) -> None:
    site.worker()
    results = send_notes(site, tmp_path, 150, 0.03)
    wait_until(lambda: len(results.watched.arrived) > 30, 20, "part of the map")
    # What was acknowledged in the last second may not be on disk yet: that much the file promises.
    site.server.kill()
    site.server.start()
    assert results.get(timeout=60) == [f"t{n}" for n in range(150)]


def test_server_restarted_in_order_runs_nothing_twice(site: Site, tmp_path: Path) -> None:
    site.worker()
    long = site.app.send_task("tests.project.note", (str(tmp_path), "long", 4.0))
    wait_until(lambda: runs(tmp_path)["long"] == 1, 10, "it to run")
    site.server.stop()
    site.server.start()
    assert long.get(timeout=30) == "long"
    assert runs(tmp_path)["long"] == 1


def test_server_frozen_for_longer_than_the_lease_runs_nothing_twice(site: Site, tmp_path: Path) -> None:
    site.worker()
    site.worker()
    long = site.app.send_task("tests.project.note", (str(tmp_path), "long", 1.0))
    wait_until(lambda: runs(tmp_path)["long"] == 1, 10, "it to run")
    site.server.sigstop()
    # Its end falls into the freeze, and is kept until the server answers again.
    frozen_s = 10.0
    assert frozen_s > LEASE_S
    with pytest.raises(Exception, match="has not ended"):
        long.get(timeout=frozen_s)
    site.server.sigcont()
    assert long.get(timeout=30) == "long"
    assert runs(tmp_path)["long"] == 1
    assert site.app.send_task("tests.project.add", (1, 2)).get(timeout=20) == 3


def test_server_whose_memory_is_wiped_is_served_on(site: Site) -> None:
    site.worker()
    assert site.app.send_task("tests.project.add", (1, 2)).get(timeout=10) == 3
    site.server.flush()
    assert site.app.send_task("tests.project.add", (3, 4)).get(timeout=20) == 7


@pytest.mark.parametrize("wiped", [False, True], ids=["restarted", "wiped"])
def test_worker_follows_orders_and_a_session_its_tasks_after_the_server_was_away(
    site: Site, tmp_path: Path, wiped: bool
) -> None:
    worker = site.worker(concurrency=1)
    site.app.send_task("tests.project.add", (1, 2)).get(timeout=10)
    site.server.restart()
    if wiped:
        site.server.flush()
    long = site.app.send_task("tests.project.note", (str(tmp_path), "long", 60.0))
    wait_until(lambda: runs(tmp_path)["long"] == 1, 20, "it to run")
    site.app.revoke([long], terminate=True)
    with pytest.raises(TaskRevokedError):
        long.get(timeout=20)
    site.app.order("shutdown", [worker.name])
    assert worker.wait() == 0


def test_send_during_a_short_outage_arrives_once(site: Site, tmp_path: Path) -> None:
    site.worker()
    site.app.send_task("tests.project.add", (1, 2)).get(timeout=10)
    site.server.stop()
    site.server.start()
    result = site.app.send_task("tests.project.note", (str(tmp_path), "sent"))
    assert result.get(timeout=20) == "sent"
    assert runs(tmp_path)["sent"] == 1
