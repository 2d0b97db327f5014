"""Events: what monitors made for Celery get to see."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nbqueue import App, chord
from tests.end_to_end.test_cli import options_of, run
from tests.helpers import passed, wait_until
from tests.workers import ROOT, Site

pytestmark = [pytest.mark.timeout(120)]
both = pytest.mark.brokers
Event = dict[str, Any]


class Watch:
    """What a receiver has got so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, uuid: str) -> list[str]:
        return [str(event["type"]) for event in self.events if event.get("uuid") == uuid]

    def one(self, type: str, uuid: str = "") -> Event:
        found = [event for event in self.events if event["type"] == type and uuid in ("", event.get("uuid"))]
        return found[0] if found else {}

    def has(self, type: str, count: int) -> bool:
        return len([event for event in self.events if event["type"] == type]) == count

    def until(self, type: str, uuid: str = "") -> Event:
        return wait_until(lambda: self.one(type, uuid), 15, f"{type}")


@contextmanager
def watching(app: App, handler: Callable[[Event], object] | None = None) -> Iterator[Watch]:
    """Read events in a thread, as a monitor does in a process of its own."""
    watch = Watch()
    reads = threading.Event()

    def handle(event: Event) -> None:
        watch.events.append(event)
        if handler is not None:
            handler(event)

    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": handle})
        ready = receiver.on_consume_ready

        def on_ready(*args: Any, **options: Any) -> None:
            ready(*args, **options)
            reads.set()

        receiver.on_consume_ready = on_ready  # type: ignore[method-assign]
        thread = threading.Thread(target=receiver.capture, kwargs={"timeout": None})
        thread.start()
        try:
            assert reads.wait(10)
            yield watch
        finally:
            receiver.should_stop = True
            thread.join(10)


@both
def test_events_tell_of_a_task_from_its_sending_to_its_end(idle_site: Site) -> None:
    app = idle_site.app
    app.conf.task_send_sent_event = True
    state = app.events.State()
    with watching(app, state.event) as watch:
        worker = idle_site.worker("-E", concurrency=1)
        online = watch.until("worker-online")
        assert (online["hostname"], online["sw_ident"], online["freq"]) == (worker.name, "nbqueue", 2.0)
        assert online["pid"] == worker.pid
        sent = app.send_task("tests.project.add", (1, 2))
        done = watch.until("task-succeeded", sent.id)
        watch.until("task-sent", sent.id)  # from another process, so it may come later
        own = [type_ for type_ in watch.of(sent.id) if type_ != "task-sent"]
        assert own == ["task-received", "task-started", "task-succeeded"]
        assert (done["result"], done["hostname"]) == ("3", worker.name)
        assert 0 <= done["runtime"] < 5
        received = watch.one("task-received", sent.id)
        assert (received["name"], received["retries"], received["root_id"]) == ("tests.project.add", 0, sent.id)
        spoken = app.send_task("tests.project.add", (3, 4), serializer="json")
        watch.until("task-succeeded", spoken.id)
        told = watch.one("task-received", spoken.id)
        assert (told["args"], told["kwargs"]) == ("(3, 4)", "{}")
        assert watch.one("task-sent", sent.id)["queue"] == idle_site.queue
        clocks = [event["clock"] for event in watch.events if event["hostname"] == worker.name]
        assert clocks == sorted(clocks)
        fails = app.send_task("tests.project.add", (1, "2"))
        failed = watch.until("task-failed", fails.id)
        assert failed["exception"].startswith("TypeError(")
        assert "in add" in failed["traceback"]
        again = app.send_task("tests.project.moody", (1,))
        watch.until("task-succeeded", again.id)
        assert [type_ for type_ in watch.of(again.id) if type_ != "task-sent"] == [
            *("task-received", "task-started", "task-retried"),
            *("task-received", "task-started", "task-succeeded"),
        ]
        assert "not in the mood" in watch.one("task-retried", again.id)["exception"]
        watch.until("worker-heartbeat")
        task = state.tasks[sent.id]
        assert (task.state, task.name, task.result) == ("SUCCESS", "tests.project.add", "3")
        assert task.worker is state.workers[worker.name]
        assert state.workers[worker.name].alive
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        watch.until("worker-offline")
        assert not state.workers[worker.name].alive


@both
def test_worker_tells_what_it_sends_after_its_tasks(idle_site: Site) -> None:
    app = idle_site.app
    worker = idle_site.worker("-E", "-I", "tests.sends_sent_events", concurrency=1)
    with watching(app) as watch:
        watch.until("worker-heartbeat")
        add = app.task_for("tests.project.add")
        body = chord([add.s(1, 2), add.s(3, 4)])(add.si(5, 6))
        sent = watch.until("task-sent", body.id)
        assert (sent["hostname"], sent["name"], sent["queue"]) == (worker.name, "tests.project.add", idle_site.queue)
        again = app.send_task("tests.project.moody", (1,))
        assert watch.until("task-sent", again.id)["retries"] == 1
        watch.until("task-succeeded", again.id)
        # Those that this process sends aren't told, as it has not asked for that.
        assert [event["uuid"] for event in watch.events if event["type"] == "task-sent"] == [body.id, again.id]


@both
def test_events_tell_what_was_revoked_expired_and_stopped(idle_site: Site, tmp_path: Path) -> None:
    app = idle_site.app
    note = app.task_for("tests.project.note")
    idle_site.worker("-E", concurrency=1)
    with watching(app) as watch:
        runs = note.delay(str(tmp_path), "long", 60.0)
        started = watch.until("task-started", runs.id)
        late = note.apply_async((str(tmp_path), "late"), expires=0.2)
        passed(0.3)
        runs.revoke(terminate=True)
        stopped = watch.until("task-revoked", runs.id)
        assert (stopped["terminated"], stopped["expired"]) == (True, False)
        assert stopped["timestamp"] >= started["timestamp"]
        expired = watch.until("task-revoked", late.id)
        assert (expired["terminated"], expired["expired"]) == (False, True)


def test_events_are_off_until_somebody_turns_them_on(idle_site: Site) -> None:
    app = idle_site.app
    worker = idle_site.worker(concurrency=1)
    with watching(app) as watch:
        watch.until("worker-heartbeat")
        assert app.send_task("tests.project.add", (1, 2)).get(timeout=10) == 3
        enabled = [{worker.name: {"ok": "task events enabled"}}]
        assert app.control.enable_events(reply=True, timeout=5) == enabled
        second = app.send_task("tests.project.add", (1, 2))
        watch.until("task-succeeded", second.id)
        app.control.disable_events(reply=True, timeout=5)
        assert app.send_task("tests.project.add", (1, 2)).get(timeout=10) == 3
        app.control.heartbeat()
        assert {event["uuid"] for event in watch.events if "uuid" in event} == {second.id}
        assert app.control.disable_events(reply=True, timeout=5) == [
            {worker.name: {"ok": "task events already disabled"}}
        ]


def test_map_tells_of_each_member_in_few_messages(idle_site: Site) -> None:
    app = idle_site.app
    app.conf.task_send_sent_event = True
    idle_site.worker("-E")
    with watching(app) as watch:
        sent = app.task_for("tests.project.add").starmap([(n, 1) for n in range(500)])
        assert sum(sent.get(timeout=20)) == 500 * 501 // 2
        for type_ in ("task-sent", "task-received", "task-started", "task-succeeded"):
            wait_until(partial(watch.has, type_, 500), 10, type_)


def test_events_of_ones_own_are_received(idle_site: Site) -> None:
    with watching(idle_site.app) as watch:
        with idle_site.app.events.default_dispatcher(hostname="me@here") as dispatcher:
            dispatcher.send("mine-one", value=1)
        assert watch.until("mine-one")["hostname"] == "me@here"
        with (
            idle_site.app.connection() as connection,
            idle_site.app.events.Dispatcher(connection, hostname="I", groups=["mine"]) as own,
        ):
            own.send("yours-two")
            own.send("mine-two", value=2)
        assert watch.until("mine-two")["value"] == 2
        assert not watch.one("yours-two")


def test_task_sends_events_of_its_own_or_none_at_all(idle_site: Site) -> None:
    app = idle_site.app
    idle_site.worker("-E", "-I", "tests.signalled", concurrency=1)
    with watching(app) as watch:
        silent = app.send_task("tests.signalled.is_silent")
        silent.get(timeout=10)
        speaks = app.send_task("tests.signalled.speaks")
        assert watch.until("task-speaking", speaks.id)["words"] == 3
        watch.until("task-succeeded", speaks.id)
        assert watch.of(silent.id) == []


def test_events_go_on_after_the_server_was_away(idle_site: Site) -> None:
    idle_site.worker("-E", concurrency=1)
    app = idle_site.app
    with watching(app) as watch:
        watch.until("worker-heartbeat")
    idle_site.server.kill()
    idle_site.server.start()
    with watching(app) as watch:
        sent = wait_until(lambda: app.send_task("tests.project.add", (1, 2)), 10, "a call to be sent")
        watch.until("task-succeeded", sent.id)


@contextmanager
def program(site: Site, *words: str, ready: str = "") -> Iterator[Callable[[], str]]:
    """Run a program that prints events; yield what returns all that it has printed."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NBQUEUE_")}
    output = site.server.directory / "printed"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "-W", "ignore", "-m", *words],
            cwd=ROOT,
            env={**variables, "PYTHONPATH": str(ROOT), "NBQUEUE_KEY_FILE": str(site.key_file)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield output.read_text
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@both
def test_celery_events_prints_events_of_our_workers(idle_site: Site) -> None:
    worker = idle_site.worker("-E", concurrency=1)
    with program(idle_site, "celery", "-b", idle_site.broker_url, "events", "--dump") as printed:
        wait_until(lambda: "heartbeat" in printed(), 20, "celery to print a heartbeat")
        sent = idle_site.app.send_task("tests.project.add", (1, 2))
        wait_until(lambda: "task succeeded" in printed(), 15, "celery to print an end")
    assert re.search(rf"{worker.name} \[.*\] task received: tests\.project\.add\({sent.id}\)", printed())


@both
def test_nbqueue_events_prints_them_too(idle_site: Site) -> None:
    worker = idle_site.worker("-E", concurrency=1)
    with program(idle_site, "nbqueue", *options_of(idle_site), "events", "--dump") as printed:
        wait_until(lambda: "worker-heartbeat" in printed(), 20, "a heartbeat")
        sent = idle_site.app.send_task("tests.project.add", (1, 2))
        wait_until(lambda: "task-succeeded" in printed(), 15, "an end")
    assert re.search(rf"^{worker.name} \[.*\] task-succeeded: \({sent.id}\) result='3'", printed(), re.MULTILINE)
    with program(idle_site, "nbqueue", *options_of(idle_site), "events", "--json", "--limit", "2") as printed:
        wait_until(lambda: printed().count("\n") == 2, 20, "two lines")
        assert json.loads(printed().splitlines()[0])["hostname"] == worker.name


def test_camera_takes_pictures_of_what_events_told(idle_site: Site, tmp_path: Path) -> None:
    (tmp_path / "shots.py").write_text(
        "from nbqueue.events.snapshot import Polaroid\n\n"
        "class Cam(Polaroid):\n"
        "    clear_after = True\n\n"
        "    def on_shutter(self, state):\n"
        "        if state.event_count:\n"
        "            print(state.event_count > 0, [task.state for task in state.tasks.values()], flush=True)\n"
    )
    idle_site.worker("-E", concurrency=1)
    words = ("--workdir", str(tmp_path), "events", "-c", "shots.Cam", "--frequency", "0.2")
    with program(idle_site, "nbqueue", *options_of(idle_site), *words) as printed:
        wait_until(lambda: "True []" in printed(), 20, "a heartbeat in a picture")
        idle_site.app.send_task("tests.project.add", (1, 2))
        wait_until(lambda: "SUCCESS" in printed(), 15, "an end in a picture")
    wrong = run(idle_site, *options_of(idle_site), "events", "-c", "json.Cam")
    assert (wrong.returncode, "json.Cam is no class" in wrong.stderr) == (2, True)


@both
def test_task_that_travelled_sends_no_events_where_it_is_not_to(idle_site: Site) -> None:
    idle_site.worker("-E", concurrency=1)
    with watching(idle_site.app) as watch:
        quiet = idle_site.app.task(abs, send_events=False, name="quiet").delay(1)
        assert quiet.get(timeout=20) == 1
        result = idle_site.app.task(abs, name="heard").delay(2)
        watch.until("task-succeeded", result.id)
        assert watch.of(quiet.id) == []
