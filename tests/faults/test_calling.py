"""States of a task's own, and the children it has, when workers are killed and the server is away."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from nbqueue import Task
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]


def report(self: Task, folder: str) -> list[Any]:
    """Say at which attempt it is, and end once it may."""
    attempt = self.request.attempt
    while not (Path(folder) / f"go.{attempt}").exists():
        self.update_state(state="PROGRESS", meta={"attempt": attempt, "child": os.getpid()})
        time.sleep(0.02)
    return [attempt, self.request.delivery_info["redelivered"]]


def test_state_of_a_lost_attempt_gives_way_to_that_of_the_next(site: Site, tmp_path: Path) -> None:
    worker = site.worker()
    result = site.app.task(report, bind=True, by_value=True).delay(str(tmp_path))
    wait_until(lambda: result.state == "PROGRESS", 15, "the state of the first attempt")
    os.kill(result.info["child"], 9)
    wait_until(lambda: result.state == "PROGRESS" and result.info["attempt"] == 2, 20, "that of the second")
    worker.kill()
    site.worker()
    wait_until(lambda: result.state == "PROGRESS" and result.info["attempt"] == 3, 30, "that of the third")
    (tmp_path / "go.3").touch()
    assert result.get(timeout=20) == [3, True]


def test_states_told_while_the_server_is_away_neither_stop_a_task_nor_come_after_its_end(
    site: Site, tmp_path: Path
) -> None:
    site.worker()
    result = site.app.task(report, bind=True, by_value=True).delay(str(tmp_path))
    wait_until(lambda: result.state == "PROGRESS", 15, "the state of the task's own")
    site.server.kill()
    time_away = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > time_away, 5, "many states to be told to nobody")
    (tmp_path / "go.1").touch()
    site.server.start()
    assert result.get(timeout=30)[0] == 1
    assert site.new_app().AsyncResult(result.id).state == "SUCCESS"
