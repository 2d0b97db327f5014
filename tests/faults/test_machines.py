"""Machines whose clock is wrong, that sleep, or whose server has no room; and code of another Python."""

from __future__ import annotations

import signal
import time
import uuid
from pathlib import Path

import psutil
import pytest

from nbqueue.deliveries import QueueSize
from nbqueue.exceptions import PythonMismatch
from nbqueue.messages import Steering
from tests.faults.test_messages import counted, still_works
from tests.faults.test_outages import wait_for_outage
from tests.faults.test_processes import runs, send_notes
from tests.hand import put
from tests.helpers import passed, wait_until
from tests.workers import LEASE_S, Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(60)]


def leave_a_note(folder: str, seconds: float) -> str:
    (Path(folder) / f"limited.{time.monotonic_ns()}").touch()
    time.sleep(seconds)
    return "limited"


@pytest.mark.parametrize(
    "skew_s", ["7200", pytest.param("-7200", marks=pytest.mark.slow)], ids=["two hours fast", "two hours slow"]
)
def test_worker_whose_clock_is_wrong_runs_everything_once_and_when_it_is_due(
    site: Site, tmp_path: Path, skew_s: str
) -> None:
    site.worker(TESTS_CLOCK_SKEW_S=skew_s)
    site.worker()
    due = time.time() + 2.0
    later = site.app.send_task("tests.project.note", (str(tmp_path), "later"), countdown=2.0)
    long = site.app.send_task("tests.project.note", (str(tmp_path), "long", 2 * LEASE_S))
    results = send_notes(site, tmp_path, 40, 0.05)
    assert results.get(timeout=30) == [f"t{n}" for n in range(40)]
    assert (later.get(timeout=20), long.get(timeout=20)) == ("later", "long")
    assert set(runs(tmp_path).values()) == {1}
    (began,) = tmp_path.glob("later.*")
    assert began.stat().st_mtime >= due - 0.1


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0], ids=["forwards", "backwards"])
def test_clock_that_jumps_while_tasks_run_makes_nothing_run_twice_or_fail(
    site: Site, tmp_path: Path, jump_s: float
) -> None:
    clock, notes = tmp_path / "clock", tmp_path / "notes"
    notes.mkdir()
    worker = site.worker(TESTS_CLOCK_FILE=str(clock))
    site.worker()
    limited = site.app.task(leave_a_note, by_value=True, time_limit=60.0).delay(str(notes), 2 * LEASE_S)
    wait_until(lambda: runs(notes)["limited"] == 1, 10, "it to run")
    results = send_notes(site, notes, 40, 0.1)
    wait_until(lambda: len(results.watched.arrived) >= 5, 20, "some to end")
    clock.write_text(str(jump_s))
    assert results.get(timeout=30) == [f"t{n}" for n in range(40)]
    assert limited.get(timeout=20) == "limited"
    assert set(runs(notes).values()) == {1}
    assert worker.process.poll() is None


def test_machine_that_slept_for_longer_than_the_lease_runs_nothing_twice(site: Site, tmp_path: Path) -> None:
    workers = [site.worker(concurrency=1), site.worker(concurrency=1)]
    sent = [site.app.send_task("tests.project.note", (str(tmp_path), f"t{n}", 1.5)) for n in range(4)]
    wait_until(lambda: len(runs(tmp_path)) == 2, 10, "two to run")
    asleep = [process for worker in workers for process in psutil.Process(worker.pid).children(recursive=True)]
    asleep += [psutil.Process(worker.pid) for worker in workers]
    site.server.sigstop()
    for process in asleep:
        process.send_signal(signal.SIGSTOP)
    passed(2 * LEASE_S)
    for process in reversed(asleep):  # those who reap wake first
        process.send_signal(signal.SIGCONT)
    site.server.sigcont()
    assert [result.get(timeout=30) for result in sent] == [f"t{n}" for n in range(4)]
    assert set(runs(tmp_path).values()) == {1}


def test_worker_begins_nothing_while_the_server_has_no_room_for_results(site: Site, tmp_path: Path) -> None:
    worker = site.worker()
    results = send_notes(site, tmp_path, 30, 0.3)
    wait_until(lambda: len(results.watched.arrived) >= 4, 20, "some to end")
    site.server_says("CONFIG", "SET", "maxmemory", "1")
    wait_for_outage(site)
    passed(0.5)
    begun = len(runs(tmp_path))
    passed(1.0)
    assert len(runs(tmp_path)) == begun
    assert worker.process.poll() is None
    site.server_says("CONFIG", "SET", "maxmemory", "0")
    assert results.get(timeout=30) == [f"t{n}" for n in range(30)]
    assert set(runs(tmp_path).values()) == {1}


def test_worker_warns_of_a_server_that_may_drop_tasks(site: Site) -> None:
    site.server_says("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    site.server_says("CONFIG", "SET", "appendonly", "no")
    worker = site.worker()
    wait_until(lambda: "set it to noeviction" in worker.log.read_text(), 10, "the warning")
    wait_until(lambda: "set appendonly to yes" in worker.log.read_text(), 10, "the other warning")


def test_code_of_another_python_is_not_loaded(site: Site) -> None:
    site.worker()
    steering = Steering(
        id="", nonce="", task="t", queue="nbqueue", sent_at=time.time(), code="digest", python="2.7", session=""
    )
    result = site.app.sender.send(steering, b"\x80\x05cthis\nisnt\n.", b"\x80\x05.", task_id=str(uuid.uuid4()))
    with pytest.raises(PythonMismatch, match=r"sent from Python 2\.7, worker w\d+@test runs 3\."):
        result.get(timeout=20)
    assert still_works(site)


@pytest.mark.slow
@pytest.mark.parametrize("idle", [True, False], ids=["idle worker", "busy queue"])
def test_element_of_200_megabytes_is_refused_and_the_worker_lives(site: Site, idle: bool) -> None:
    worker = site.worker() if idle else None
    size_mb = 100 if site.on_rabbitmq else 200  # the most that RabbitMQ takes is 128
    put(site, [{"i": "large", "h": "1.garbage", "b": bytes(size_mb << 20)}])
    worker = worker or site.worker()
    wait_until(lambda: counted(site, "refused:format") == 1, 30, "it to be refused")
    assert still_works(site)
    assert worker.process.poll() is None
    wait_until(lambda: site.app.broker.size("nbqueue") == QueueSize(0, 0, 0), 10, "it to be gone")
    with site.server.client() as client:
        assert client.memory_usage("nbq:quarantine") < 20_000
    wait_until(lambda: psutil.Process(worker.pid).memory_info().rss < 400 << 20, 20, "its memory to be given back")
