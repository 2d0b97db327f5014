"""What breaks only while messages are on RabbitMQ: the server itself, and its patience."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from nbqueue import chord, states
from nbqueue.amqp import Publisher
from nbqueue.deliveries import QueueSize
from nbqueue.exceptions import SendFailed, SendUncertain
from nbqueue.notebook import beat as magic
from nbqueue.notebook.entries import as_text
from nbqueue.notebook.magics import TaskMagics
from tests import project
from tests.faults.test_connections import far_worker
from tests.faults.test_messages import still_works
from tests.faults.test_processes import runs
from tests.helpers import RedisServer, wait_until
from tests.proxy import Network
from tests.rabbit import RabbitServer
from tests.test_beat_panel import Page
from tests.test_magics import shell
from tests.workers import Site

__all__ = ["shell"]

pytestmark = [pytest.mark.rabbitmq, pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.fixture
def site(rabbit_server: RabbitServer, redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Yield an app with a queue of the test's own; workers are the test's to start."""
    queue = request.node.name[:60]
    with Site(redis_server, by_value=False, broker_url=rabbit_server.url, queue=queue) as made:
        yield made


def test_server_restarted_while_tasks_run_loses_no_outcome_and_no_message(
    site: Site, tmp_path: Path, rabbit_server: RabbitServer
) -> None:
    worker = site.worker()
    began = time.monotonic()
    running = [site.app.send_task("tests.project.note", (str(tmp_path), f"long{n}", 7.0)) for n in range(2)]
    waiting = [site.app.send_task("tests.project.note", (str(tmp_path), f"short{n}")) for n in range(5)]
    delayed = site.app.send_task("tests.project.note", (str(tmp_path), "delayed"), countdown=7)
    wait_until(lambda: len(runs(tmp_path)) == 2, 10, "two to run")
    wait_until(lambda: time.monotonic() - began > 5, 10, "the server to have stored who leads the queue")
    site.app.conf.task_publish_retry = False
    rabbit_server.stop()
    try:
        with pytest.raises((SendFailed, SendUncertain)):
            site.app.send_task("tests.project.add", (1, 2))
        wait_until(lambda: "the server can't be used" in worker.log.read_text(), 15, "the worker to notice")
    finally:
        rabbit_server.start()
    assert [result.get(timeout=30) for result in running] == ["long0", "long1"]
    assert [result.get(timeout=30) for result in waiting] == [f"short{n}" for n in range(5)]
    assert delayed.get(timeout=30) == "delayed"
    assert set(runs(tmp_path).values()) == {1}, "the worker kept what had ended, and none ran twice"
    assert still_works(site)
    wait_until(lambda: site.app.broker.size(site.queue) == QueueSize(0, 0, 0), 20, "copies to be dropped")


def test_copy_that_comes_when_nobody_acknowledges_in_time_is_set_aside(
    site: Site, tmp_path: Path, rabbit_server: RabbitServer
) -> None:
    rabbit_server.evaluate("application:set_env(rabbit, consumer_timeout, 1000).")
    try:
        first, second = site.worker(concurrency=1), site.worker(concurrency=1)
        result = site.app.send_task("tests.project.note", (str(tmp_path), "long", 5.0))
        wait_until(lambda: runs(tmp_path)["long"] == 1, 10, "it to run")
        logs = [first.log, second.log]
        wait_until(lambda: any("timed out" in log.read_text() for log in logs), 30, "the server to lose patience")
    finally:
        rabbit_server.evaluate("application:unset_env(rabbit, consumer_timeout).")
    assert result.get(timeout=20) == "long"
    assert still_works(site)
    wait_until(lambda: site.app.broker.size(site.queue) == QueueSize(0, 0, 0), 20, "the copy to be dropped")
    assert runs(tmp_path)["long"] == 1


def test_server_away_at_send_leaves_no_trace_of_the_task(site: Site) -> None:
    site.app.conf.task_publish_retry = False
    site.app.broker._publisher = Publisher("amqp://guest:guest@127.0.0.1:1//", "test")  # type: ignore[attr-defined]
    sent_at = time.monotonic()
    with pytest.raises(SendFailed, match=r"guest:\*\*\*@127\.0\.0\.1:1"):
        site.app.send_task("tests.project.add", (1, 2))
    assert time.monotonic() - sent_at < 5
    assert not site.streams.client.keys("celery-task-meta-*")


def test_task_whose_acknowledgement_is_lost_with_its_worker_runs_once(site: Site, tmp_path: Path) -> None:
    with Network(site) as network:
        worker = far_worker(site, network)
        network.at("acknowledge", "hold")
        result = site.app.send_task("tests.project.note", (str(tmp_path), "once"))
        assert result.get(timeout=20) == "once"
        assert network.triggered.wait(10)
        worker.kill()
    site.worker(concurrency=1)
    wait_until(lambda: site.streams.counters().get("repeat") == 1, 15, "its message to be known as a repeat")
    wait_until(lambda: site.app.broker.size(site.queue) == QueueSize(0, 0, 0), 15, "it to be dropped")
    assert runs(tmp_path)["once"] == 1


@pytest.mark.parametrize(
    ("point", "action"),
    [("settle", "hold"), ("settle", "hold answer"), ("publish", "hold"), ("publish", "hold answer")],
    ids=["before the record", "after the record", "before the body is sent", "after the body is sent"],
)
def test_body_of_a_chord_runs_once_wherever_the_worker_of_the_last_member_dies(
    site: Site, tmp_path: Path, point: Literal["settle", "publish"], action: Literal["hold", "hold answer"]
) -> None:
    note = site.app.task(project.note.run, name="tests.project.note")
    with Network(site) as network:
        worker = far_worker(site, network)
        first, last = note.si(str(tmp_path), "first"), note.si(str(tmp_path), "last", 1.0)
        result = chord([first, last])(note.si(str(tmp_path), "body"))
        wait_until(lambda: result.parent[1].state == states.STARTED, 20, "the last to be shown as running")
        network.at(point, action)
        assert network.triggered.wait(10)
        worker.kill()
    site.worker(concurrency=1)
    assert result.get(timeout=30) == "body"
    wait_until(lambda: site.app.broker.size(site.queue) == QueueSize(0, 0, 0), 20, "copies to be dropped")
    counted = runs(tmp_path)
    assert counted["body"] == 1
    assert counted["last"] == (2 if point == "settle" and action == "hold" else 1)


def test_schedule_is_changed_while_the_server_is_away_and_what_was_to_run_runs_once_when_it_is_back(
    site: Site, tmp_path: Path, rabbit_server: RabbitServer, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(magic, "current_app", lambda: site.app)
    magics = TaskMagics(shell, site.app, show=lambda *_, **__: None)
    worker = site.worker("-B", concurrency=1)
    schedule = site.app.beat

    def schedule_cell(name: str, every: str) -> None:
        note = f"import pathlib, time\npathlib.Path({str(tmp_path)!r}, f'{name}.{{time.time_ns()}}').touch()\n{name!r}"
        magics.task(f"{name} --every {every} -q {shlex.quote(site.queue)}", note)

    for name, every in (("often", "1s"), ("asked", "1h"), ("gone", "1h"), ("paused", "1h")):
        schedule_cell(name, every)
    began = time.monotonic()
    wait_until(lambda: runs(tmp_path)["often"] >= 2, 20, "runs by the clock")
    wait_until(lambda: time.monotonic() - began > 5, 10, "the server to have stored who leads the queue")
    rabbit_server.stop()
    try:
        wait_until(lambda: "nothing can be sent for now" in worker.log.read_text(), 10, "a firing that can't be sent")
        with pytest.raises(
            UsageError, match=r"of entry 'asked' is kept, .* by the beat that leads .*: amqp://guest:\*\*\*@"
        ):
            magic.beat("run asked")
        page = Page(site.app, monkeypatch)
        assert page.says("run", name="asked")["text"].count("is kept") == 1
        magic.beat("pause paused")
        magic.beat("delete gone")
        schedule_cell("new", "1s")
        wait_until(lambda: worker.log.read_text().count("nothing can be sent for now") >= 5, 40, "more tries")
        assert schedule.leader() is not None
        assert "leads" in as_text(schedule.list(), schedule.leader())
        asked = [run.id for run in schedule.get("asked").runs]
        assert [run.state for run in schedule.get("asked").runs] == [states.PENDING, states.PENDING]
        assert [site.app.AsyncResult(id_).state for id_ in asked] == [states.PENDING, states.PENDING]
        assert not runs(tmp_path)["asked"]
    finally:
        rabbit_server.start()
    assert [site.app.AsyncResult(id_).get(timeout=30) for id_ in asked] == ["asked", "asked"]
    assert site.app.backend.labelled("asked") == asked[::-1]
    wait_until(lambda: runs(tmp_path)["new"] >= 2, 20, "what was added meanwhile")
    before = runs(tmp_path)["often"]
    wait_until(lambda: runs(tmp_path)["often"] >= before + 2, 20, "the clock to go on")
    for name in ("often", "new"):
        schedule.pause(name)
    fired = [run.id for name in ("often", "new", "asked") for run in schedule.get(name).runs if run.id]
    for id_ in fired:
        site.app.AsyncResult(id_).get(timeout=20)
    assert sum(runs(tmp_path).values()) == len(fired), "each firing ran once"
    assert worker.log.read_text().count("leads\n") == 1
