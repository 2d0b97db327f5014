"""Workers stop, begin anew and say where they are, while tasks run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests import project
from tests.faults.test_processes import children_of, runs
from tests.helpers import wait_until
from tests.workers import ROOT, Site, Worker

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]

OLD = """
import pathlib, time
from nbqueue import App

app = App("changing", set_as_current=False)
app.conf.update(worker_lease=2.0, worker_renewal=0.5)

@app.task(name="changing.which")
def which(folder, name, seconds=0.0):
    (pathlib.Path(folder) / f"{name}.{time.time_ns()}").touch()
    time.sleep(seconds)
    return "old"
"""


def changing(site: Site, folder: Path, text: str = OLD) -> tuple[Worker, Path]:
    """Return a worker of a module that lies in a folder, and the module."""
    folder.mkdir()
    module = folder / "changing.py"
    module.write_text(text)
    path = f"{ROOT}{os.pathsep}{folder}"
    return site.worker("-A", "changing", concurrency=2, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1"), module


def test_worker_begins_anew_with_new_code_once_what_runs_has_ended(site: Site, tmp_path: Path) -> None:
    worker, module = changing(site, tmp_path / "code")
    notes = tmp_path / "notes"
    notes.mkdir()
    started_at = psutil.Process(worker.pid).create_time()
    running = site.app.send_task("changing.which", (str(notes), "runs", 4.0))
    wait_until(lambda: runs(notes)["runs"] == 1, 15, "it to run")
    module.write_text(OLD.replace('return "old"', 'return "new"'))
    worker.signal(signal.SIGHUP)
    results = [site.app.send_task("changing.which", (str(notes), f"t{n}", 0.01)) for n in range(40)]
    wait_until(lambda: "begins anew" in worker.log.read_text(), 30, "it to have tried the new code")
    assert running.get(timeout=30) == "old"
    values = [result.get(timeout=30) for result in results]
    assert set(values) <= {"old", "new"}
    assert site.app.send_task("changing.which", (str(notes), "after")).get(timeout=30) == "new"
    assert set(runs(notes).values()) == {1}, "none ran twice"
    assert psutil.Process(worker.pid).create_time() == started_at, "it is the same process"
    assert worker.process.poll() is None


def test_pool_restart_with_reload_brings_new_code(site: Site, tmp_path: Path) -> None:
    worker, module = changing(site, tmp_path / "code")
    assert site.app.send_task("changing.which", (str(tmp_path), "before")).get(timeout=30) == "old"
    module.write_text(OLD.replace('return "old"', 'return "new"'))
    answer = site.app.control.pool_restart(reload=True, reply=True, timeout=10)
    assert answer == [{worker.name: {"ok": "reload started"}}]
    wait_until(lambda: worker.log.read_text().count("2 children, queues") == 2, 30, "it to begin anew")
    assert site.app.send_task("changing.which", (str(tmp_path), "after")).get(timeout=30) == "new"
    assert worker.process.poll() is None


def test_worker_goes_on_with_the_old_code_when_the_new_is_broken(site: Site, tmp_path: Path) -> None:
    worker, module = changing(site, tmp_path / "code")
    notes = tmp_path / "notes"
    notes.mkdir()
    module.write_text("def broken(:")
    worker.signal(signal.SIGHUP)
    wait_until(lambda: "can't be used" in worker.log.read_text(), 15, "it to see that")
    assert "SyntaxError" in worker.log.read_text()
    assert site.app.send_task("changing.which", (str(notes), "after")).get(timeout=15) == "old"


def test_worker_killed_while_it_ends_for_new_code_loses_nothing(site: Site, tmp_path: Path) -> None:
    worker, _ = changing(site, tmp_path / "code")
    notes = tmp_path / "notes"
    notes.mkdir()
    result = site.app.send_task("changing.which", (str(notes), "runs", 3.0))
    wait_until(lambda: runs(notes)["runs"] == 1, 15, "it to run")
    worker.signal(signal.SIGHUP)
    wait_until(lambda: "stopping once" in worker.log.read_text(), 15, "it to stop")
    worker.kill()
    path = f"{ROOT}{os.pathsep}{tmp_path / 'code'}"
    site.worker("-A", "changing", PYTHONPATH=path)
    assert result.get(timeout=30) == "old"
    assert runs(notes)["runs"] == 2


def test_soft_stop_waits_for_what_runs_for_so_long_and_a_cold_one_no_longer(site: Site, tmp_path: Path) -> None:
    code = OLD.replace("worker_lease=2.0", "worker_lease=2.0, worker_soft_shutdown_timeout=1.5")
    worker, _ = changing(site, tmp_path / "code", code)
    notes = tmp_path / "notes"
    notes.mkdir()
    short = site.app.send_task("changing.which", (str(notes), "short", 1.0))
    long = site.app.send_task("changing.which", (str(notes), "long", 20.0))
    wait_until(lambda: len(runs(notes)) == 2, 15, "both to run")
    worker.signal(signal.SIGQUIT)
    began = time.monotonic()
    assert worker.wait() == 0
    assert time.monotonic() - began < 10.0
    assert short.get(timeout=5) == "old"
    assert long.state in ("STARTED", "PENDING")
    assert site.app.broker.size(site.queue).claimed == 0, "it went back"


def test_term_is_taken_for_quit_where_the_environment_says_so(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=1, REMAP_SIGTERM="SIGQUIT")
    site.app.send_task("tests.project.note", (str(tmp_path), "long", 60.0))
    wait_until(lambda: runs(tmp_path)["long"] == 1, 15, "it to run")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def hold_the_interpreter(folder: str) -> None:
    (Path(folder) / "held").touch()
    sum(range(10**13))


def test_stacks_of_supervisor_and_children_are_shown_also_of_one_that_holds_the_interpreter(
    site: Site, tmp_path: Path
) -> None:
    worker = site.worker(concurrency=2)
    site.app.task(hold_the_interpreter, by_value=True).delay(str(tmp_path))
    wait_until((tmp_path / "held").exists, 15, "it to run")
    worker.signal(signal.SIGUSR1)

    def shown() -> bool:
        text = worker.log.read_text()
        return "in _turn" in text and "in hold_the_interpreter" in text and text.count("receive_frame") >= 1

    wait_until(shown, 15, "the stacks of all three")
    assert len(children_of(worker)) == 2, "nobody ended of it"
    note = site.app.task(project.note.run, name="tests.project.note")
    assert note.delay(str(tmp_path), "after").get(timeout=15) == "after"
