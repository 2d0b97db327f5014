"""Beats that are killed, frozen, doubled and cut off: each due time is sent once."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from nbqueue import states
from nbqueue.exceptions import BackendUnavailable, SendFailed
from nbqueue.execute import BoundTask
from nbqueue.periodic import send_outbox
from nbqueue.server import Wire
from tests.helpers import RedisServer, wait_until
from tests.homes import Home
from tests.workers import ROOT, Site

pytestmark = pytest.mark.faults


def nothing() -> None:
    """Do nothing."""


def note_worker(self: BoundTask, folder: str) -> None:
    """Leave a file that names worker and task, for each run."""
    (Path(folder) / f"{self.request.hostname} {time.time_ns()} {self.request.id}").touch()


class Beats:
    """Beat processes on a site, by name."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *, skew_s: float = 0.0) -> None:
        """Start one, on a machine whose clock is so far off."""
        site = self.site
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NBQUEUE_BROKER_URL": site.broker_url,
            **({"NBQUEUE_RESULT_BACKEND": site.server.url} if site.on_rabbitmq else {}),
            "NBQUEUE_KEY_FILE": str(site.key_file),
            "TESTS_CLOCK_SKEW_S": str(skew_s),
        }
        with (site.server.directory / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "nbqueue", "-A", "tests.project", "beat", "-n", name, "-l", "debug"],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def leader(self) -> str:
        found = self.site.app.beat.leader()
        return "" if found is None else found.name

    def wait_for_leader(self, *, other_than: str = "", timeout_s: float = 15.0) -> str:
        wait_until(lambda: self.leader() not in ("", other_than), timeout_s, "a beat to lead")
        return self.leader()

    def wait_for_standby(self, number: int) -> None:
        def standby() -> int:
            found = self.site.app.beat.leader()
            return -1 if found is None else found.standby

        wait_until(lambda: standby() == number, 15, f"{number} beats to stand by")

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def beats(site: Site) -> Iterator[Beats]:
    made = Beats(site)
    yield made
    made.end()


def sent(site: Site) -> Counter[str]:
    """Return how often each id was sent: no worker takes any."""
    with site.server.client() as client:
        entries: Any = client.xrange(f"nbq:{{{site.queue}}}:n")
    return Counter(fields[b"i"].decode() for _, fields in entries)


def check_once(site: Site, name: str) -> None:
    """Assert that each due time was sent once, and that none is missing."""
    entry = site.app.beat.get(name)
    found = sent(site)
    assert set(found.values()) == {1}
    assert len(found) == entry.count
    assert [run.id for run in entry.runs if run.id] == list(found)[-len(entry.runs) :]


def test_three_beats_send_each_due_time_once(site: Site, beats: Beats) -> None:
    for name in ("a", "b", "c"):
        beats.start(name)
    beats.wait_for_standby(2)
    site.app.beat.add("often", 0.25, site.app.task(nothing))
    wait_until(lambda: site.app.beat.get("often").count >= 12, 15, "a dozen firings")
    site.app.beat.pause("often")
    check_once(site, "often")
    entry = site.app.beat.get("often")
    steps = [(b.due_at - a.due_at).total_seconds() for a, b in itertools.pairwise(entry.runs)]
    assert sum(round(step / 0.25) - 1 for step in steps) == sum(run.missed for run in entry.runs[1:])


def test_leader_that_is_killed_is_followed_within_seconds(site: Site, beats: Beats) -> None:
    beats.start("a")
    beats.wait_for_leader()
    beats.start("b")
    beats.wait_for_standby(1)
    site.app.beat.add("often", 0.5, site.app.task(nothing), policy="all")
    wait_until(lambda: site.app.beat.get("often").count >= 2, 15, "firings")
    beats.processes["a"].kill()
    began = time.monotonic()
    assert beats.wait_for_leader(other_than="a") == "b"
    assert time.monotonic() - began < 10.0
    count = site.app.beat.get("often").count
    wait_until(lambda: site.app.beat.get("often").count > count + 8, 15, "missed firings to be made good")
    site.app.beat.pause("often")
    check_once(site, "often")
    due = [run.due_at.timestamp() for run in site.app.beat.get("often").runs]
    assert all(round(b - a, 3) == 0.5 for a, b in itertools.pairwise(due))


@pytest.mark.brokers
def test_broadcast_runs_once_in_each_worker_at_each_due_time_when_the_leader_of_three_is_killed(
    site: Site, beats: Beats, tmp_path: Path
) -> None:
    site.app.config_from_object("tests.bound")
    workers = [site.worker("-Q", "everybody", concurrency=1, CELERY_CONFIG_MODULE="tests.bound") for _ in range(2)]
    for name in ("a", "b", "c"):
        beats.start(name)
    beats.wait_for_standby(2)
    task = site.app.task(note_worker, bind=True, by_value=True, queue="everybody")
    site.app.beat.add("often", 0.5, task.s(str(tmp_path)), policy="all")
    wait_until(lambda: site.app.beat.get("often").count >= 3, 15, "firings")
    killed = beats.leader()
    beats.processes[killed].kill()
    beats.wait_for_leader(other_than=killed)
    count = site.app.beat.get("often").count
    wait_until(lambda: site.app.beat.get("often").count > count + 8, 15, "missed firings to be made good")
    site.app.beat.pause("often")
    entry = site.app.beat.get("often")

    def ran() -> dict[str, int]:
        return Counter(path.name.partition(" ")[0] for path in tmp_path.iterdir())

    wait_until(lambda: ran() == {one.name: entry.count for one in workers}, 15, "each to have run each once")
    ids = [path.name.rpartition(" ")[2] for path in tmp_path.iterdir()]
    assert len(ids) == len(set(ids)) == 2 * entry.count
    assert {run.id for run in entry.runs} <= set(ids)
    assert {run.state for run in site.app.beat.get("often").runs} == {states.SUCCESS}


def test_broadcast_that_nobody_listens_to_counts_as_missed(site: Site, beats: Beats) -> None:
    site.app.config_from_object("tests.bound")
    site.app.beat.add("often", 0.25, site.app.task(nothing, by_value=True, queue="everybody"))
    beats.start("a")
    wait_until(lambda: len(site.app.beat.get("often").runs) >= 3, 15, "due times")
    entry = site.app.beat.get("often")
    assert (entry.count, {run.state for run in entry.runs}) == (0, {"MISSED"})
    assert all(run.missed for run in entry.runs)
    log = (site.server.directory / "a.log").read_text()
    assert "often: not sent: no worker listens to the broadcast 'everybody'" in log


def test_leader_that_was_frozen_sends_nothing_twice(site: Site, beats: Beats) -> None:
    beats.start("a")
    beats.wait_for_leader()
    beats.start("b")
    beats.wait_for_standby(1)
    site.app.beat.add("often", 0.25, site.app.task(nothing))
    wait_until(lambda: site.app.beat.get("often").count >= 2, 15, "firings")
    beats.processes["a"].send_signal(signal.SIGSTOP)
    assert beats.wait_for_leader(other_than="a") == "b"
    count = site.app.beat.get("often").count
    wait_until(lambda: site.app.beat.get("often").count >= count + 2, 15, "firings of the other")
    beats.processes["a"].send_signal(signal.SIGCONT)
    beats.wait_for_standby(1)
    assert beats.leader() == "b"
    site.app.beat.pause("often")
    check_once(site, "often")


@pytest.mark.parametrize("skew_s", [-7200.0, 7200.0])
def test_beat_whose_clock_is_wrong_sends_when_it_is_due(site: Site, beats: Beats, skew_s: float) -> None:
    beats.start("a", skew_s=skew_s)
    beats.wait_for_leader()
    added_at = site.app.backend.now()
    site.app.beat.add("often", 0.25, site.app.signature("tests.project.add", (1, 2)), expires=60.0)
    wait_until(lambda: site.app.beat.get("often").count >= 4, 15, "firings")
    site.app.beat.pause("often")
    check_once(site, "often")
    ended_at = site.app.backend.now()
    assert all(added_at < run.due_at.timestamp() <= ended_at for run in site.app.beat.get("often").runs)
    site.worker(concurrency=1)
    runs = site.app.beat.get("often").runs
    assert [site.app.AsyncResult(run.id).get(timeout=15) for run in runs] == [3] * len(runs)


def test_leader_goes_on_when_the_server_was_restarted(site: Site, beats: Beats) -> None:
    beats.start("a")
    beats.wait_for_leader()
    site.app.beat.add("often", 0.25, site.app.task(nothing))
    wait_until(lambda: site.app.beat.get("often").count >= 2, 15, "firings")
    site.server.stop()
    site.server.start()

    def count() -> int:
        try:
            return site.app.beat.get("often").count
        except (BackendUnavailable, SendFailed):
            return 0

    before = count()
    wait_until(lambda: count() >= before + 3, 20, "firings after the restart")
    site.app.beat.pause("often")
    check_once(site, "often")


def test_firing_between_the_record_and_the_queue_is_sent_by_the_next_leader(site: Site) -> None:
    """Where queues are elsewhere, a beat may end between the two: what it has fired waits in the outbox."""
    with RedisServer() as backend, Site(backend, broker_url=site.server.url) as apart:
        apart.app.beat.add("once", 3600.0, apart.app.task(nothing))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nbqueue.periodic.send_outbox", _killed)
            with pytest.raises(KeyboardInterrupt):
                apart.app.beat.run_now("once")
        timetable = apart.app.beat.timetable
        (waiting,) = timetable.outbox()
        assert not sent(site)
        assert apart.app.AsyncResult(waiting.id).state == states.PENDING

        assert send_outbox(timetable, apart.app.broker.publish) == 1
        assert send_outbox(timetable, apart.app.broker.publish) == 0
        apart.app.broker.publish([waiting])  # as one that was not noted as sent
        assert sent(site) == {waiting.id: 1}


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


_ADD: Final = """
from nbqueue import App
app = App(by_value=True)
def job():
    print("ran")
    return 42
job.__module__ = "__main__"
app.beat.add("alone", "every 1 s", app.task(job))
"""


def test_what_is_scheduled_runs_when_nobody_is_there(tmp_path: Path) -> None:
    with Home() as home:
        subprocess.run([sys.executable, "-c", _ADD], env=home.variables, cwd=ROOT, check=True)
        data = str(home.places.data)

        def runs() -> int:
            done = Wire(home.places.socket, "nbq-test")
            try:
                found = done.call("HGET", "nbq:beat:stands", "alone")
            finally:
                done.close()
            return 0 if found is None else len(json.loads(base64.b64decode(json.loads(found)["body"]))["runs"])

        wait_until(lambda: runs() >= 2, 30, f"two runs of what is in {data}")
        worker = home.places.worker.pid()
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        before = runs()
        wait_until(lambda: runs() >= before + 2, 30, "the keeper to start another")
        said = subprocess.run(
            [
                sys.executable,
                "-c",
                "from nbqueue import App; e = App(by_value=True).beat.get('alone'); print(e.runs[0])",
            ],
            env=home.variables,
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert "state='SUCCESS'" in said
