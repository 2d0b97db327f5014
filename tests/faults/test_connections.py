"""Networks that cut, delay and swallow: between client, worker and server, at every point where it could matter."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from nbqueue import App, states
from nbqueue.deliveries import QueueSize
from nbqueue.exceptions import BackendUnavailable, TaskRevokedError, UnknownTask
from tests.faults.test_messages import counted, still_works
from tests.faults.test_processes import runs, send_notes
from tests.helpers import wait_until
from tests.proxy import Network
from tests.workers import LEASE_S, ROOT, Site, Worker

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(90)]


@pytest.fixture
def network(site: Site) -> Iterator[Network]:
    with Network(site) as made:
        yield made


@pytest.fixture
def far_app(site: Site, network: Network) -> Iterator[App]:
    """Yield an app that reaches the servers through the network."""
    with site.new_app(by_value=False, urls=network.urls) as app:
        yield app


def far_worker(site: Site, network: Network, *options: str, concurrency: int = 1) -> Worker:
    broker, backend = network.urls
    return site.worker(*options, concurrency=concurrency, NBQUEUE_BROKER_URL=broker, NBQUEUE_RESULT_BACKEND=backend)


def note_both(folder: str, name: str, seconds: float) -> str:
    """Leave a file at the beginning and one at the end."""
    import time
    from pathlib import Path

    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    time.sleep(seconds)
    (Path(folder) / f"{name}-ended.{time.time_ns()}").touch()
    return name


def claimed(site: Site) -> int:
    return site.app.broker.size("nbqueue").claimed


def test_call_whose_confirmation_is_lost_runs_once(site: Site, network: Network, far_app: App, tmp_path: Path) -> None:
    site.app.send_task("tests.project.add", (1, 2))
    network.at("publish", "cut answer")
    result = far_app.send_task("tests.project.note", (str(tmp_path), "once"))
    assert network.cuts == 1
    # RabbitMQ knows no repeats: who claims them does.
    assert site.app.broker.size("nbqueue").queued == (3 if site.on_rabbitmq else 2)
    site.worker()
    assert result.get(timeout=20) == "once"
    assert runs(tmp_path)["once"] == 1


def test_map_whose_confirmation_is_lost_runs_each_call_once(
    site: Site, network: Network, far_app: App, tmp_path: Path
) -> None:
    task = far_app.task(note_both, by_value=True)
    task.starmap([(str(tmp_path), "first", 0.0)])  # the server knows the script from now on
    network.at("publish", "cut answer")
    results = task.starmap([(str(tmp_path), f"t{n}", 0.0) for n in range(20)])
    assert network.cuts == 1
    site.worker()
    assert results.get(timeout=20) == [f"t{n}" for n in range(20)]
    if not site.on_rabbitmq:  # where nobody knows how many it had before the cut
        wait_until(lambda: counted(site, "repeat") == 20, 10, "the copies to be dropped")
    wait_until(lambda: site.app.broker.size("nbqueue") == QueueSize(0, 0, 0), 10, "nothing to be left")
    assert set(runs(tmp_path).values()) == {1}


@pytest.mark.parametrize("what", ["hold", "hold answer"])
def test_worker_killed_around_its_claim_loses_nothing(
    site: Site, network: Network, tmp_path: Path, what: Literal["hold", "hold answer"]
) -> None:
    lost = far_worker(site, network)
    assert still_works(site)
    network.at("claim", what)
    results = [site.app.send_task("tests.project.note", (str(tmp_path), f"t{n}")) for n in range(3)]
    assert network.triggered.wait(10)
    lost.kill()
    site.worker(concurrency=1)
    assert [result.get(timeout=20) for result in results] == ["t0", "t1", "t2"]
    assert set(runs(tmp_path).values()) <= {1, 2}
    assert sum(runs(tmp_path).values()) <= 3 + 1, "only what its child was at runs again"
    assert claimed(site) == 0


def test_calls_that_were_claimed_and_not_judged_before_a_cut_run(site: Site, network: Network, tmp_path: Path) -> None:
    far_worker(site, network)
    assert still_works(site)
    network.at("judge", "cut")
    results = send_notes(site, tmp_path, 5, 0.0)
    assert network.triggered.wait(10)
    assert results.get(timeout=20) == [f"t{n}" for n in range(5)]
    assert set(runs(tmp_path).values()) == {1}
    wait_until(lambda: claimed(site) == 0, 5, "nothing to be claimed")


@pytest.mark.parametrize("killed", [True, False], ids=["worker killed", "connection cut"])
@pytest.mark.parametrize("what", ["hold", "hold answer"])
def test_outcome_counts_from_the_moment_it_is_stored_and_not_before(
    site: Site, network: Network, tmp_path: Path, killed: bool, what: Literal["hold", "hold answer"]
) -> None:
    worker = far_worker(site, network)
    result = site.app.task(note_both, by_value=True).delay(str(tmp_path), "task", 1.0)
    wait_until(lambda: result.state == states.STARTED, 10, "it to be shown as running")
    network.at("settle", what)
    assert network.triggered.wait(10)
    if what == "hold answer":
        assert result.get(timeout=20) == "task"
    if killed:
        worker.kill()
    network.cut()
    network.release()
    if killed:
        site.worker(concurrency=1)
    assert result.get(timeout=20) == "task"
    assert still_works(site)
    assert runs(tmp_path)["task"] == (2 if killed and what == "hold" else 1)
    wait_until(lambda: claimed(site) == 0, 5, "nothing to be claimed")


@pytest.mark.slow
def test_worker_whose_network_swallows_everything_stores_its_outcome_later(
    site: Site, network: Network, tmp_path: Path
) -> None:
    worker = far_worker(site, network)
    result = site.app.task(note_both, by_value=True).delay(str(tmp_path), "once", 1.0)
    wait_until(lambda: runs(tmp_path)["once"] == 1, 10, "it to run")
    network.hold()
    wait_until(lambda: "can't be used" in worker.log.read_text(), 20, "the worker to notice")
    assert not result.ready()
    network.release()
    assert result.get(timeout=20) == "once"
    assert runs(tmp_path)["once"] == 1
    assert still_works(site)


@pytest.mark.slow
def test_worker_cut_off_for_longer_than_its_lease_gives_way(site: Site, network: Network, tmp_path: Path) -> None:
    lost = far_worker(site, network)
    result = site.app.send_task("tests.project.note", (str(tmp_path), "taken", 3 * LEASE_S))
    wait_until(lambda: runs(tmp_path)["taken"] == 1, 10, "it to run")
    other = site.worker(concurrency=1)
    network.hold()
    wait_until(lambda: runs(tmp_path)["taken"] == 2, 20, "the other to take it")
    network.release()
    assert result.get(timeout=30) == "taken"
    assert result.worker == other.name
    wait_until(lambda: "was lost" in lost.log.read_text(), 15, "the first to see that it lost the task")


def test_wait_ends_when_the_network_swallows_everything_and_goes_on_after(
    site: Site, network: Network, far_app: App
) -> None:
    far_app.conf.backend_timeout = 1.0
    result = far_app.send_task("tests.project.add", (1, 2))
    with pytest.raises(Exception, match="has not ended"):
        result.get(timeout=0.5)
    network.hold()
    with (
        pytest.warns(UserWarning, match="waits: No answer from the backend"),
        pytest.raises(BackendUnavailable, match="goes on without it"),
    ):
        result.get(timeout=30)
    site.worker()
    network.release()
    far_app.conf.backend_timeout = 60.0
    assert result.get(timeout=30) == 3


@pytest.mark.slow
def test_slow_network_delays_and_breaks_nothing(site: Site, tmp_path: Path) -> None:
    with Network(site, delay_s=0.02) as network, site.new_app(by_value=False, urls=network.urls) as app:
        far_worker(site, network, concurrency=2)
        results = app.task(note_both, by_value=True).starmap([(str(tmp_path), f"t{n}", 0.0) for n in range(30)])
        assert results.get(timeout=30) == [f"t{n}" for n in range(30)]
        assert sum(runs(tmp_path).values()) == 60


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_network_that_cuts_anywhere_loses_nothing(
    site: Site, network: Network, far_app: App, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    far_worker(site, network, concurrency=2)
    task = far_app.task(note_both, by_value=True)
    results = [task.starmap([(str(tmp_path), f"t{n}", 0.02) for n in range(100)])]
    while network.cuts < 12 and not results[0].ready():
        before = network.cuts
        network.cut_somewhere(chance, 6_000)
        wait_until(lambda: network.cuts > before or results[0].ready(), 20, "a cut")  # noqa: B023
    network.cut_no_more()
    assert results[0].get(timeout=40) == [f"t{n}" for n in range(100)]
    began = {name: times for name, times in runs(tmp_path).items() if "ended" not in name}
    assert len(began) == 100
    assert sum(began.values()) <= 100 + 2 * network.cuts


SENDER = """
import sys
from tests.workers import App
from tests.project import note
broker, backend, key_file, folder = sys.argv[1:]
app = App("tests", broker=broker, backend=backend, key_file=key_file, set_as_current=False)
task = app.task(note.run, name="tests.project.note")
calls = [(folder, f"t{n}", 0.0) for n in range(3_000)]
print("ready", flush=True)
task.starmap(calls)
"""


def test_map_whose_sender_dies_in_the_middle_ends_for_those_who_wait(
    site: Site, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", SENDER, *network.urls, str(site.key_file), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as sender:
        assert sender.stdout is not None
        sender.stdout.readline()
        wait_until(lambda: site.app.broker.size("nbqueue").queued >= 500, 20, "the first calls", interval_s=0.0)
        sender.kill()
    seen: list[int] = []

    def come() -> bool:
        seen.append(site.app.broker.size("nbqueue").queued)
        return seen[-5:] == [seen[-1]] * 5

    wait_until(come, 10, "what was under way to have come", interval_s=0.1)
    sent = seen[-1]
    assert sent < 3_000, "it was sent in full before it could be killed"
    (key,) = site.streams.client.keys("nbq:group:*")
    group = site.app.GroupResult(key.decode().removeprefix("nbq:group:"))
    site.worker()
    wait_until(lambda: group.completed_count() == sent, 40, "what was sent to run")
    for name, seconds in (("SENDING_S", 1.0), ("CHECK_S", 0.1), ("BLOCK_S", 0.05)):
        monkeypatch.setattr(f"nbqueue.watcher.{name}", seconds)
    with pytest.raises(UnknownTask, match=r"stopped after [\d,]+ of its 3,000 calls") as caught:
        group.get(timeout=20)
    said = int(str(caught.value).partition("stopped after ")[2].partition(" ")[0].replace(",", ""))
    # RabbitMQ may have any part of what was to be confirmed next.
    assert sent - 500 <= said <= sent if site.on_rabbitmq else said == sent
    assert group[sent - 1].get(timeout=5) == f"t{sent - 1}"
    with site.new_app() as other, pytest.raises(UnknownTask, match="stopped after"):
        other.AsyncResult(f"{group.id}-{sent}").get(timeout=20)
    assert sum(runs(tmp_path).values()) == sent


def test_ten_thousand_calls_wait_at_the_server_and_not_in_a_slow_worker(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=2)
    task = site.app.task(note_both, by_value=True)
    results = task.starmap([(str(tmp_path), f"t{n}", 0.2) for n in range(10_000)])
    wait_until(lambda: len(results.watched.arrived) >= 4, 30, "some to end")
    assert claimed(site) <= 4
    began = time.monotonic()
    results.revoke()
    values = results.get(timeout=30, propagate=False)
    assert time.monotonic() - began < 30
    ended = [value for value in values if isinstance(value, str)]
    assert len(ended) + sum(isinstance(value, TaskRevokedError) for value in values) == 10_000
    assert sum("ended" in name for name in runs(tmp_path)) == len(ended)
    assert worker.process.poll() is None
    wait_until(lambda: claimed(site) == 0, 10, "nothing to be claimed")
