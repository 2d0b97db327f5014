"""Workers that are started, watched, scaled, restarted and stopped from a program."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from IPython.core.error import UsageError

from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.launchers import local
from nbqueue.launchers.local import LocalWorker, find_worker, log_of
from nbqueue.notebook.workers import Fleet, Rates, as_text, workers
from nbqueue.processes import PidFile
from nbqueue.watcher import Offer, Shift
from tests.helpers import RedisServer, wait_until
from tests.workers import ROOT, Site

pytestmark = pytest.mark.timeout(120)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.fixture
def site(idle_site: Site) -> Iterator[Site]:
    """Yield a server whose workers are all ended in the end."""
    yield idle_site
    for file in (idle_site.app.link.directory / "workers").glob("*.pid"):
        PidFile(file).end(*local._STEPS)


def held_open(folder: str, name: str) -> str:
    (Path(folder) / f"{name}.began").touch()
    while not (Path(folder) / name).exists():
        time.sleep(0.02)
    return name


def pid() -> int:
    return os.getpid()


def offer_of(site: Site, name: str) -> Offer:
    return next(offer for offer, _ in site.app.offers() if offer.name == name)


def gone(site: Site, name: str) -> bool:
    return name not in [offer.name for offer, _ in site.app.offers()]


@pytest.mark.brokers
def test_started_worker_runs_tasks_and_stops(site: Site) -> None:
    started = site.app.start_worker(2)
    assert site.app.task(pid).delay().get(timeout=20) > 0
    offer = offer_of(site, started.name)
    assert (offer.children, len(offer.shifts)) == (2, 2)
    assert "2 children" in started.log.read_text()
    assert find_worker(site.app, started.name) == started
    assert site.app.link.directory.stat().st_mode & 0o077 == 0  # else the embedded server would refuse it later
    assert [started.stop(), started.running] == [True, False]
    assert find_worker(site.app, started.name) is None
    assert gone(site, started.name)


def test_started_workers_bear_names_of_their_own(site: Site) -> None:
    one, two = site.app.start_worker(1), site.app.start_worker(1)
    assert one.name != two.name
    assert one.stop()
    assert site.app.start_worker(1).name == one.name


def test_started_worker_outlives_who_started_it(site: Site) -> None:
    program = "import sys, nbqueue; print(nbqueue.App(broker=sys.argv[1], key_file=sys.argv[2]).start_worker(1).name)"
    run = [sys.executable, "-c", program, site.server.url, str(site.key_file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert find_worker(site.app, ran.stdout.strip()) is not None
    assert site.app.task(pid).delay().get(timeout=20) > 0


def test_worker_that_can_not_start_says_why_and_leaves_nothing(site: Site) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"did not start(.|\n)*no_such_module"):
        site.app.start_worker(1, module="no_such_module")
    assert not any(PidFile(file).held() for file in (site.app.link.directory / "workers").glob("*.pid"))


def test_pool_that_shrinks_lets_what_runs_end_and_one_that_grows_starts_more(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=3)
    task = site.app.task(held_open)
    results = [task.delay(str(tmp_path), name) for name in "abc"]
    wait_until(lambda: len(list(tmp_path.glob("*.began"))) == 3, 20, "all to begin")
    site.app.order("resize", [worker.name], size=1)
    wait_until(lambda: offer_of(site, worker.name).children == 1, 10, "the order to be followed")
    assert offer_of(site, worker.name).busy == 3
    for name in "abc":
        (tmp_path / name).touch()
    assert [result.get(timeout=20) for result in results] == ["a", "b", "c"]
    wait_until(lambda: len(offer_of(site, worker.name).shifts) == 1, 20, "two children to end")
    site.app.order("resize", [worker.name], size=3)
    wait_until(lambda: sum(shift.ready for shift in offer_of(site, worker.name).shifts) == 3, 20, "more children")
    assert worker.process.poll() is None


@pytest.mark.brokers
def test_pool_that_shrinks_under_load_loses_nothing(site: Site) -> None:
    worker = site.worker(concurrency=4)
    results = site.app.task(abs).map(range(3_000))

    def has(size: int) -> bool:
        return offer_of(site, worker.name).children == size

    for size in (1, 4, 2, 3, 1):
        site.app.order("resize", [worker.name], size=size)
        wait_until(partial(has, size), 10, "the order to be followed")
    assert results.get(timeout=60) == list(range(3_000))


def test_task_that_was_claimed_ahead_begins_when_a_child_is_free(site: Site, tmp_path: Path) -> None:
    # A worker that never looks by itself, nor hears that nothing comes, hands out at what happens or not at all.
    patch = "import nbqueue.worker as worker\nworker.LOOK_S, worker.BLOCK_MS = 1e6, 60_000\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    site.worker(concurrency=2, PYTHONPATH=f"{tmp_path}:{ROOT}")
    site.app.task(pid).starmap([()] * 500).get(timeout=20)  # now many are claimed, in the belief that they are quick
    assert site.app.task(nap).map([0.1] * 4).get(timeout=20) == [0.1] * 4


def test_restart_replaces_every_child_after_its_task(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=2)
    result = site.app.task(held_open).delay(str(tmp_path), "a")
    wait_until((tmp_path / "a.began").exists, 20, "it to begin")
    # what it told first may be of children that had no process yet
    wait_until(lambda: all(shift.ready for shift in offer_of(site, worker.name).shifts), 20, "all to be ready")
    before = {shift.pid for shift in offer_of(site, worker.name).shifts}
    site.app.order("restart", [worker.name])
    wait_until(lambda: len({s.pid for s in offer_of(site, worker.name).shifts} & before) == 1, 20, "the idle one to go")
    (tmp_path / "a").touch()
    assert result.get(timeout=20) == "a"
    wait_until(lambda: not {s.pid for s in offer_of(site, worker.name).shifts} & before, 20, "the other to go")
    assert site.app.task(pid).delay().get(timeout=20) not in before


@pytest.mark.brokers
def test_stop_at_once_gives_back_what_runs(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=1)
    result = site.app.task(held_open).delay(str(tmp_path), "a")
    wait_until((tmp_path / "a.began").exists, 20, "it to begin")
    assert "stops at once" in Fleet(site.app).stop([worker.name], now=True)
    assert worker.wait() == 0
    (tmp_path / "a").touch()
    site.worker(concurrency=1)
    assert result.get(timeout=20) == "a"


def test_order_is_for_the_workers_it_names(site: Site) -> None:
    one, two = site.worker(concurrency=1), site.worker(concurrency=1)
    site.app.order("shutdown", [one.name])
    assert one.wait() == 0
    assert two.process.poll() is None
    with pytest.raises(ValueError, match="names its workers"):
        site.app.order("shutdown", [])


def test_scaling_starts_resizes_and_stops_workers_of_this_machine(site: Site) -> None:
    fleet = Fleet(site.app)
    assert "started with 2 children" in fleet.scale(2)
    [first] = fleet.here()
    assert "gets 3 children" in fleet.scale(3)
    wait_until(lambda: [offer.children for offer in fleet.here()] == [3], 10, "three children")
    second = site.app.start_worker(2)
    assert fleet.scale(4) == f"{second.name} gets 1 child"
    wait_until(lambda: [offer.children for offer in fleet.here()] == [3, 1], 10, "one child less")
    assert fleet.scale(2).splitlines()[0] == f"{first.name} gets 2 children"
    wait_until(lambda: [offer.children for offer in fleet.here()] == [2], 20, "one worker less")
    assert "stops" in fleet.scale(0)
    wait_until(lambda: fleet.here() == [], 20, "none")
    assert fleet.scale(0) == "No worker runs on this machine."


def test_magic_names_what_it_can_not_do(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbqueue.notebook.workers.current_app", lambda: site.app)
    for line in ("dance", "start many", "start 0", "scale", "start 1 2"):
        with pytest.raises(UsageError, match="%workers"):
            workers(line)
    with pytest.raises(UsageError, match="there is no worker nobody; there are none"):
        workers("stop nobody")


def test_magic_starts_and_stops(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nbqueue.notebook.workers.current_app", lambda: site.app)
    workers("start 1")
    assert "local-1@" in capsys.readouterr().out
    workers("status")
    assert "0 of 1 child busy" in capsys.readouterr().out
    workers("stop local-1")
    wait_until(lambda: not Fleet(site.app).here(), 20, "it to stop")


def test_text_tells_of_workers_that_are_gone_and_of_what_waits(private_redis: RedisServer) -> None:
    lives = Offer("a@h", "h", 1, "k", ("q",), children=2, busy=1, done=1200, failed=3, memory=50_000_000)
    lives = Offer(
        **{name: getattr(lives, name) for name in lives.__struct_fields__}
        | {"shifts": (Shift(1, 5, 0.5, 100, "id", "train\x1b[31m", 90.0), Shift(2, 6))}
    )
    text = as_text([(lives, 1.0), (Offer("b@h", "h", 2, "k"), 400.0)], {"q": 3}, now=lambda: 100.0)
    assert text.splitlines() == [
        "a@h  1 of 2 children busy  q  1,200 done, 3 failed  50 MB",
        "  child 1: train 0:10",
        "b@h  stopped answering 6:40 ago",
        "3 tasks waiting: q 3",
    ]
    assert as_text([], {}).startswith("No workers yet")


def test_rate_is_that_of_the_last_ten_seconds() -> None:
    rates = Rates()
    offers = [Offer("a", "h", 1, "k", done=done) for done in (0, 10, 30, 30)]
    assert [rates.of(offer, now) for offer, now in zip(offers, (0.0, 1.0, 4.0, 20.0), strict=True)] == [
        None,
        None,
        7.5,
        None,
    ]


def test_log_of_a_name_stays_in_its_folder(site: Site) -> None:
    assert log_of(site.app, "../../etc/passwd").parent == site.app.link.directory / "logs"
    assert isinstance(LocalWorker("a", Path("b"), PidFile(Path("c"))).running, bool)
