"""Remote control while workers hang, die, or their server does."""

from __future__ import annotations

import signal
import time

import pytest

from nbqueue.exceptions import BackendUnavailable
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


def test_those_who_live_answer_while_another_hangs_or_has_died(idle_site: Site) -> None:
    lives, hangs, dies = (idle_site.worker(concurrency=1) for _ in range(3))
    hangs.signal(signal.SIGSTOP)
    dies.kill()
    before = time.monotonic()
    assert idle_site.app.control.ping(timeout=1.0) == [{lives.name: {"ok": "pong"}}]
    assert time.monotonic() - before < 5
    hangs.signal(signal.SIGCONT)
    wait_until(lambda: len(idle_site.app.control.ping(timeout=1.0)) == 2, 15, "it to answer again")


def test_command_is_followed_once_however_often_the_server_goes_away(idle_site: Site) -> None:
    worker, control = idle_site.worker(concurrency=1), idle_site.app.control
    control.pool_grow(1, reply=True, timeout=5)
    for _ in range(2):
        idle_site.server.kill()
        idle_site.server.start()
        wait_until(lambda: control.ping(timeout=1.0), 20, "it to answer again")
    assert control.inspect([worker.name], timeout=5).stats()[worker.name]["pool"]["max-concurrency"] == 2
    assert worker.log.read_text().count("2 children instead of 1") == 1


def test_question_to_a_server_that_is_away_says_so(idle_site: Site) -> None:
    idle_site.server.kill()
    with pytest.raises(BackendUnavailable):
        idle_site.app.control.ping()


def test_command_that_was_given_while_nobody_could_hear_it_for_a_minute_is_not_followed(idle_site: Site) -> None:
    worker = idle_site.worker(concurrency=1, TESTS_CLOCK_SKEW_S="90")
    assert idle_site.app.control.ping(timeout=0.5) == []
    wait_until(lambda: "an order 90 s old" in worker.log.read_text(), 5, "a refusal")
    assert worker.process.poll() is None


def test_worker_with_very_many_tasks_tells_of_them(idle_site: Site) -> None:
    """Of thousands of delayed tasks the soonest are told, in an answer that is read at once."""
    add = idle_site.app.task_for("tests.project.add")
    with idle_site.app.pipeline():
        for number in range(3_000):
            add.apply_async((number, 1), countdown=1_000 + number)
    idle_site.worker(concurrency=1)
    before = time.monotonic()
    ((_, found),) = (idle_site.app.control.inspect(timeout=10).scheduled() or {}).items()
    assert len(found) == 1_000
    assert found[0]["eta"] == min(task["eta"] for task in found)
    assert {task["request"]["name"] for task in found} == {"tests.project.add"}
    assert time.monotonic() - before < 5
