"""Outages that last, and servers that answer but refuse: workers bear them, and every wait ends."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from nbqueue.dispatch import OVERRUN_S
from nbqueue.exceptions import BackendUnavailable, NBQueueError, SendFailed
from tests.faults.test_messages import still_works
from tests.faults.test_processes import runs, send_notes
from tests.helpers import passed, wait_until
from tests.workers import LEASE_S, Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(90)]


def wait_for_outage(site: Site) -> None:
    """Wait until every worker has noticed that the server is away."""
    wait_until(
        lambda: all("the server can't be used" in worker.log.read_text() for worker in site.workers),
        15,
        "workers to notice",
    )


@pytest.mark.parametrize(
    ("setting", "bad", "good"),
    [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")],
    ids=["out of memory", "no writes"],
)
def test_server_that_refuses_writes_is_waited_for(
    site: Site, tmp_path: Path, setting: str, bad: str, good: str
) -> None:
    worker = site.worker()
    long = site.app.send_task("tests.project.note", (str(tmp_path), "long", 1.0))
    wait_until(lambda: runs(tmp_path)["long"] == 1, 10, "it to run")
    site.server_says("CONFIG", "SET", setting, bad)
    site.app.conf.task_publish_retry = False
    with pytest.raises(SendFailed):
        site.app.send_task("tests.project.add", (1, 2))
    with pytest.raises(NBQueueError):
        site.app.task(str).map(range(3))
    wait_for_outage(site)
    assert worker.process.poll() is None
    site.server_says("CONFIG", "SET", setting, good)
    assert long.get(timeout=20) == "long"
    assert runs(tmp_path)["long"] == 1
    assert still_works(site)


@pytest.mark.slow
def test_worker_that_comes_back_late_keeps_its_task(site: Site, tmp_path: Path) -> None:
    site.worker()
    long = site.app.send_task("tests.project.note", (str(tmp_path), "long", 14.0))
    wait_until(lambda: runs(tmp_path)["long"] == 1, 10, "it to run")
    site.server.stop()
    away = time.monotonic()
    wait_until(lambda: time.monotonic() - away > 4 * LEASE_S, 10, "an outage longer than the lease")
    site.server.start()
    # This one is there before the other has tried again, and finds a claim that lapsed long ago.
    site.worker()
    assert long.get(timeout=30) == "long"
    assert runs(tmp_path)["long"] == 1


@pytest.mark.slow
def test_wait_ends_when_the_server_stays_away_and_can_be_taken_up_again(site: Site, tmp_path: Path) -> None:
    site.worker()
    site.app.conf.backend_timeout = 1.5
    result = site.app.send_task("tests.project.note", (str(tmp_path), "long", 1.0))
    results = send_notes(site, tmp_path, 3, 1.0)
    wait_until(lambda: runs(tmp_path)["long"] == 1, 10, "it to run")
    site.server.kill()
    for handle in (result, results):
        with pytest.raises(BackendUnavailable, match="goes on without it"):
            handle.get(timeout=20)
    site.server.start()
    site.app.conf.backend_timeout = 60.0
    assert result.get(timeout=20) == "long"
    assert results.get(timeout=20) == ["t0", "t1", "t2"]


def test_calls_without_a_server_fail_with_our_own_errors(site: Site) -> None:
    site.app.conf.task_publish_retry = False
    sent = site.app.send_task("tests.project.add", (1, 2))
    site.server.kill()
    task = site.app.task(str)
    with pytest.raises(SendFailed):
        site.app.send_task("tests.project.add", (1, 2))
    for call in (lambda: task.map([1]), sent.revoke, sent.forget, lambda: site.app.attach("mine")):
        with pytest.raises(NBQueueError):
            call()


@pytest.mark.slow
def test_warm_stop_during_an_outage_waits_to_store_what_has_ended(site: Site, tmp_path: Path) -> None:
    worker = site.worker()
    result = site.app.send_task("tests.project.note", (str(tmp_path), "long", 1.0))
    wait_until(lambda: runs(tmp_path)["long"] == 1, 10, "it to run")
    site.server.stop()
    wait_for_outage(site)
    worker.signal(signal.SIGTERM)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 1.5, 3, "the task to have ended")
    assert worker.process.poll() is None, "its outcome has no place yet"
    site.server.start()
    assert worker.wait() == 0
    assert result.get(timeout=10) == "long"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 30.0], ids=["outcome not stored", "task running"])
def test_cold_stop_during_an_outage_ends_and_the_task_runs_elsewhere(
    site: Site, tmp_path: Path, seconds: float
) -> None:
    worker = site.worker()
    result = site.app.send_task("tests.project.note", (str(tmp_path), "lost", seconds))
    wait_until(lambda: runs(tmp_path)["lost"] == 1, 10, "it to run")
    site.server.stop()
    wait_for_outage(site)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.5, 3, "the short one to have ended")
    worker.signal(signal.SIGQUIT)
    assert worker.wait(15) == 0, worker.log.read_text()
    site.server.start()
    site.worker()
    wait_until(lambda: runs(tmp_path)["lost"] == 2, 20, "another worker to run it")
    if seconds < 1:
        assert result.get(timeout=10) == "lost"


def quick_then_slow(folder: str, name: str, seconds: float) -> None:
    if seconds:
        (Path(folder) / f"{name}.{time.time_ns()}").touch()
        time.sleep(seconds)
        (Path(folder) / "ended" / name).touch()


def test_nothing_begins_that_may_be_somebody_elses_by_now(site: Site, tmp_path: Path) -> None:
    worker, ended = site.worker(concurrency=1), tmp_path / "ended"
    ended.mkdir()
    task = site.app.task(quick_then_slow, by_value=True)
    task.starmap([(str(tmp_path), f"q{n}", 0.0) for n in range(400)]).get(timeout=20)
    # Claimed in the belief that they are quick, and taken back from the child behind the first.
    results = task.starmap([(str(tmp_path), f"t{n}", 0.1 if n else 4.0) for n in range(10)])
    wait_until(lambda: runs(tmp_path)["t0"], 10, "the first to begin")
    assert site.app.broker.size("nbqueue").claimed > 1
    passed(10 * OVERRUN_S)  # else the worker hangs at the server before it has taken them back
    site.server.sigstop()
    wait_until((ended / "t0").exists, 10, "the first to end, which makes room for the next")
    wait_for_outage(site)
    passed(1.0)
    assert set(runs(tmp_path)) == {"t0", "ended"}
    site.server.sigcont()
    results.get(timeout=40)
    assert set(runs(tmp_path).values()) == {1}
    assert worker.process.poll() is None
