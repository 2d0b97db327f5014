"""Beat with real workers: what is due is sent and run, with nobody else there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nbqueue import chord
from tests.helpers import wait_until
from tests.workers import ROOT, Site

pytestmark = pytest.mark.brokers


def add(x: int, y: int) -> int:
    return x + y


def test_worker_sends_what_is_due_and_runs_it(idle_site: Site) -> None:
    site = idle_site
    site.worker("-B", concurrency=1)
    task = site.app.task(add, queue=site.queue)
    site.app.beat.add("often", 0.5, task.s(1, 2))
    site.app.beat.add("joined", 1.0, chord([task.s(1, 1), task.s(2, 2)], site.app.task(sum, queue=site.queue).s()))

    def ended(name: str) -> int:
        return sum(run.state == "SUCCESS" for run in site.app.beat.get(name).runs)

    wait_until(lambda: ended("often") >= 3 and ended("joined") >= 2, 20, "runs to end")
    for name, value in (("often", 3), ("joined", 6)):
        run = next(run for run in site.app.beat.get(name).runs if run.state == "SUCCESS")
        assert site.app.AsyncResult(run.id).get(timeout=10) == value
    site.app.beat.delete("often")
    site.app.beat.delete("joined")


def test_beat_of_a_project_sends_what_its_settings_say(idle_site: Site, tmp_path: Path) -> None:
    site = idle_site
    site.worker(concurrency=1)
    (tmp_path / "proj.py").write_text(
        f"""from nbqueue import App
app = App("proj")
app.conf.beat_schedule = {{
    "sums": {{"task": "tests.project.add", "schedule": 0.5, "args": (16, 16), "options": {{"queue": "{site.queue}"}}}},
}}
"""
    )
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NBQUEUE_BROKER_URL": site.broker_url,
        **({"NBQUEUE_RESULT_BACKEND": site.server.url} if site.on_rabbitmq else {}),
        "NBQUEUE_KEY_FILE": str(site.key_file),
    }
    pid_file = tmp_path / "beat.pid"
    command = [sys.executable, "-m", "nbqueue", "-A", "proj", "beat", "--pidfile", str(pid_file), "-f", "beat.log"]
    command += ["-s", "beat.db", "--max-interval", "5", "--enable-remote-control"]  # without meaning here
    with subprocess.Popen(command, cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: [entry.name for entry in site.app.beat.list()] == ["sums"], 15, "the entry")
            wait_until(lambda: site.app.beat.get("sums").count >= 2, 15, "two firings")
            assert int(pid_file.read_text()) == process.pid
            assert site.app.AsyncResult(site.app.beat.get("sums").runs[0].id).get(timeout=15) == 32
        finally:
            process.terminate()
        assert process.wait(10) == 0
    assert "sums: tests.project.add was sent as" in (tmp_path / "beat.log").read_text()
    assert not pid_file.exists()
    assert site.app.beat.leader() is None
    site.app.beat.delete("sums")
