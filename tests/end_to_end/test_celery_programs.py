"""Celery's own programs see workers of nbqueue, and by default can only look."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery
from kombu.pidbox import Mailbox

from tests.helpers import wait_until
from tests.workers import ROOT, Site

pytestmark = [pytest.mark.timeout(120), pytest.mark.brokers]
FLOWER_ASKS = ("stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked", "conf")


def celery(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Celery's command line on the site's broker."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NBQUEUE_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "celery", "-b", site.broker_url, *words],
        cwd=site.server.directory,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def asked(site: Site, command: str, **arguments: Any) -> dict[str, Any]:
    """Return what the worker answers to a command, asked as Celery's client does, over a connection of its own."""
    name = site.workers[0].name

    def answered() -> dict[str, Any]:
        with kombu.Connection(site.broker_url) as connection:
            mailbox = Mailbox("celery", type="fanout", accept=["json"], serializer="json", queue_exclusive=False)
            client = mailbox(connection)
            said = client._broadcast(command, arguments, [name], reply=True, timeout=5, limit=1)
        return {worker: answer for each in said or () for worker, answer in each.items()}

    return wait_until(answered, 30, f"an answer to {command}")


def loaded(site: Site) -> bool:
    """Tell whether the worker has loaded kombu."""
    ((answer,),) = (one.values() for one in site.app.control.broadcast("loaded", reply=True, timeout=5) or ())
    return bool(answer["kombu"])


def test_celery_inspect_sees_workers_and_tasks(shared_site: Site, tmp_path: Path) -> None:
    worker = shared_site.workers[0].name
    assert asked(shared_site, "ping") == {worker: {"ok": "pong"}}
    said = celery(shared_site, "inspect", "ping", "-d", worker, "-t", "5")
    assert f"->  {worker}: OK" in said.stdout
    assert "1 node online." in said.stdout
    assert loaded(shared_site) is shared_site.on_rabbitmq, "who asks on Redis would wait for it"
    assert "tests.project.add" in asked(shared_site, "registered")[worker]
    sent = shared_site.app.send_task("tests.project.note", (str(tmp_path), "long", 60.0))
    wait_until(lambda: sent.state == "STARTED", 10, "it to run")
    (active,) = asked(shared_site, "active")[worker]
    assert (active["id"], active["name"]) == (sent.id, "tests.project.note")
    refused = celery(shared_site, "control", "terminate", "KILL", sent.id, "-t", "5", "-d", worker)
    assert "terminate is not for everyone" in refused.stdout + refused.stderr
    assert sent.state == "STARTED"
    sent.revoke(terminate=True)
    wait_until(sent.ready, 10, "it to end")


def test_worker_answers_all_that_flower_asks_side_by_side(idle_site: Site, tmp_path: Path) -> None:
    worker = idle_site.worker("-E", concurrency=1)
    running = idle_site.app.send_task("tests.project.note", (str(tmp_path), "long", 60.0))
    delayed = idle_site.app.send_task("tests.project.add", (3, 4), countdown=600)
    wait_until(lambda: running.state == "STARTED", 10, "it to run")
    with Celery(broker=idle_site.broker_url, set_as_current=False) as app, ThreadPoolExecutor(8) as threads:
        # a connection each, as Flower's threads have, and its time-out several times over
        def said(method: str) -> Any:
            inspect = app.control.inspect(timeout=10, destination=[worker.name])
            return getattr(inspect, method)(**({"safe": True} if method == "active" else {}))[worker.name]

        for _ in range(3):
            answers = dict(zip(FLOWER_ASKS, threads.map(said, FLOWER_ASKS), strict=True))
        app.control.revoke(delayed.id)  # which Flower's button sends; here it may not
    assert answers["stats"]["pid"] == worker.pid
    assert answers["stats"]["pool"]["max-concurrency"] == 1
    assert [queue["name"] for queue in answers["active_queues"]] == [idle_site.queue]
    assert "tests.project.add" in answers["registered"]
    assert [one["request"]["id"] for one in answers["scheduled"]] == [delayed.id]
    assert [one["id"] for one in answers["active"]] == [running.id]
    assert answers["reserved"] == answers["revoked"] == []
    assert answers["conf"]["worker_send_task_events"] is True
    assert loaded(idle_site) is idle_site.on_rabbitmq, "loading kombu took longer than Flower waits"
    running.revoke(terminate=True)


def test_worker_that_serves_celery_obeys_it(idle_site: Site, tmp_path: Path) -> None:
    worker = idle_site.worker("--serve-celery", concurrency=1)
    wait_until(lambda: "may give this worker Celery's commands" in worker.log.read_text(), 5, "a warning")
    sent = idle_site.app.send_task("tests.project.note", (str(tmp_path), "long", 60.0))
    waits = idle_site.app.send_task("tests.project.add", (1, 2))
    wait_until(lambda: sent.state == "STARTED", 10, "it to run")
    asked(idle_site, "ping")
    answer = asked(idle_site, "revoke", task_id=[waits.id])[worker.name]
    assert answer == {"ok": f"tasks {waits.id} flagged as revoked"}
    wait_until(lambda: waits.state == "REVOKED", 10, "a task that waits to be revoked")
    asked(idle_site, "terminate", signal="KILL", task_id=[sent.id])
    wait_until(lambda: sent.state == "REVOKED", 10, "a task that runs to be stopped")
    assert asked(idle_site, "pool_grow", n=1)[worker.name] == {"ok": "pool will grow"}
    wait_until(lambda: idle_site.app.offers()[0][0].children == 2, 10, "two children")


def test_monitors_and_workers_meet_where_settings_say(idle_site: Site) -> None:
    (idle_site.server.directory / "elsewhere.py").write_text(
        "from tests.project import app\napp.conf.update(control_exchange='orders', event_exchange='news')\n"
    )
    path = f"{ROOT}{os.pathsep}{idle_site.server.directory}"
    worker = idle_site.worker("-E", "-I", "elsewhere", concurrency=1, PYTHONPATH=path)
    seen: dict[str, Any] = {}
    with Celery(broker=idle_site.broker_url, set_as_current=False) as app:
        app.conf.update(control_exchange="orders", event_exchange="news")
        inspect = app.control.inspect(timeout=10, destination=[worker.name])
        wait_until(lambda: inspect.ping() == {worker.name: {"ok": "pong"}}, 30, "an answer")
        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"task-succeeded": seen.update})

            def told() -> bool:
                idle_site.app.send_task("tests.project.add", (1, 2))
                with contextlib.suppress(TimeoutError):  # nothing was told for a second
                    for _ in receiver.itercapture(timeout=1, wakeup=False):
                        if seen:
                            break
                return bool(seen)

            wait_until(told, 30, "an event of a task")
    assert seen["hostname"] == worker.name


def test_worker_without_remote_control_answers_nobody(idle_site: Site) -> None:
    (idle_site.server.directory / "quiet.py").write_text(
        "from tests.project import app\napp.conf.worker_enable_remote_control = False\n"
    )
    idle_site.worker("-I", "quiet", PYTHONPATH=f"{ROOT}{os.pathsep}{idle_site.server.directory}")
    assert idle_site.app.control.ping(timeout=1) == []
    said = celery(idle_site, "inspect", "ping", "-t", "1")
    assert "No nodes replied within time constraint" in said.stdout + said.stderr
