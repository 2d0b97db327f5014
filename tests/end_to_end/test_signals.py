"""Signals are sent in the process where Celery sends them, with its arguments."""

from __future__ import annotations

import ast
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbqueue import App, Task, chord, group, signals
from nbqueue.beat import Beat
from nbqueue.exceptions import PayloadTooLarge
from tests.hand import put
from tests.helpers import wait_until
from tests.workers import ROOT, Site, Worker

pytestmark = pytest.mark.timeout(120)
Line = dict[str, Any]


class Lines:
    """What the worker's receivers have written."""

    def __init__(self, site: Site) -> None:
        self.file = site.server.directory / "signals"

    def all(self) -> list[Line]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def of(self, name: str) -> list[Line]:
        return [line for line in self.all() if line["signal"] == name]

    def about(self, id_: str) -> list[str]:
        return [line["signal"] for line in self.all() if line.get("task_id") == id_]

    def one(self, name: str, id_: str = "") -> Line:
        return wait_until(
            lambda: next((line for line in self.of(name) if id_ in ("", line.get("task_id"))), {}), 10, name
        )


@pytest.fixture
def lines(idle_site: Site) -> Lines:
    return Lines(idle_site)


def start(site: Site, lines: Lines, *options: str) -> Worker:
    return site.worker("-I", "tests.signalled", *options, concurrency=1, TESTS_SIGNALS=str(lines.file))


def test_signals_of_a_task_are_sent_in_its_child_and_in_the_supervisor(idle_site: Site, lines: Lines) -> None:
    worker, app = start(idle_site, lines), idle_site.app
    good = app.send_task("tests.project.add", (1, 2))
    assert good.get(timeout=10) == 3
    lines.one("task_postrun", good.id)
    assert lines.about(good.id) == ["task_received", "task_prerun", "task_postrun"]
    (success,) = lines.of("task_success")
    assert (success["sender"], success["result"]) == ("tests.project.add", 3)
    before, after = lines.one("task_prerun", good.id), lines.one("task_postrun", good.id)
    assert (before["args"], before["kwargs"], before["sender"]) == ("(1, 2)", "{}", "tests.project.add")
    assert (after["retval"], after["state"]) == (3, "SUCCESS")
    assert before["process"] == after["process"] != worker.pid
    assert lines.one("task_received", good.id)["process"] == worker.pid
    bad = app.send_task("tests.project.add", (1, "2"))
    wait_until(bad.failed, 10, "it to fail")
    failure = lines.one("task_failure", bad.id)
    assert failure["exception"].startswith("TypeError(")
    assert "ErrorInfo" in failure["einfo"]
    assert lines.one("task_postrun", bad.id)["state"] == "FAILURE"
    moody = app.send_task("tests.project.moody", (1,))
    moody.get(timeout=10)
    assert "ConnectionError" in lines.one("task_retry", moody.id)["reason"]
    assert [line["state"] for line in lines.of("task_postrun") if line["task_id"] == moody.id] == ["RETRY", "SUCCESS"]
    rejected = app.send_task("tests.signalled.rejects")
    assert lines.one("task_postrun", rejected.id)["state"] == "REJECTED"


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools_answer_and_send_signals_as_well(idle_site: Site, lines: Lines, pool: str) -> None:
    worker = idle_site.worker("-E", "-I", "tests.signalled", "-P", pool, concurrency=2, TESTS_SIGNALS=str(lines.file))
    app = idle_site.app
    long = app.send_task("tests.project.note", (str(idle_site.server.directory), "long", 60.0))
    wait_until(lambda: long.state == "STARTED", 10, "it to run")
    ((_, (active,)),) = (app.control.inspect(timeout=5).active() or {}).items()
    assert active["id"] == long.id
    ((_, stats),) = (app.control.inspect(timeout=5).stats() or {}).items()
    assert active["worker_pid"] in stats["pool"]["processes"]
    long.revoke(terminate=True)
    wait_until(long.ready, 15, "it to end")
    good = app.send_task("tests.project.add", (1, 2))
    assert good.get(timeout=10) == 3
    assert lines.one("task_postrun", good.id)["state"] == "SUCCESS"
    assert {line["sender"] for line in lines.of("worker_process_init")} == {worker.name}
    assert lines.one("task_revoked", long.id)["process"] == worker.pid


def test_error_of_a_receiver_harms_no_task(idle_site: Site, lines: Lines) -> None:
    start(idle_site, lines)
    sent = idle_site.app.send_task("tests.signalled.headers", (), {"stumble": True})
    assert sent.get(timeout=10) is None
    assert any("has raised" in text for _, _, text in sent.watched.status.log.chunks)


def test_tasks_that_are_revoked_unknown_or_garbage_are_told_in_the_supervisor(idle_site: Site, lines: Lines) -> None:
    worker, app = start(idle_site, lines), idle_site.app
    sent = app.send_task("tests.project.note", (str(idle_site.server.directory), "long", 60.0))
    wait_until(lambda: sent.state == "STARTED", 10, "it to run")
    sent.revoke(terminate=True)
    told = lines.one("task_revoked", sent.id)
    assert (told["terminated"], told["expired"], told["process"]) == (True, False, worker.pid)
    unknown = app.send_task("no.such.task")
    wait_until(unknown.failed, 10, "it to fail")
    told = lines.one("task_unknown")
    assert (told["name"], told["id"]) == ("no.such.task", unknown.id)
    assert "NotRegistered" in told["exc"]
    assert not lines.of("task_internal_error")
    put(idle_site, [{"i": "x", "h": b"garbage", "b": b""}])
    assert "BadMessage" in lines.one("task_rejected")["exc"]


def test_life_of_a_worker_is_told_in_its_order(idle_site: Site, lines: Lines) -> None:
    worker = start(idle_site, lines, "-E")
    lines.one("heartbeat_sent")
    lines.one("worker_process_init")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    order = [line["signal"] for line in lines.all() if line["process"] == worker.pid]
    once = list(dict.fromkeys(order))
    assert [name for name in once if name != "heartbeat_sent"] == [
        *("after_setup_logger", "after_setup_task_logger", "celeryd_init", "celeryd_after_setup", "worker_init"),
        *("worker_before_create_process", "worker_ready", "worker_shutting_down", "worker_shutdown"),
    ]
    assert lines.one("celeryd_init")["sender"] == worker.name
    assert lines.one("worker_shutting_down")["how"] == "Warm"
    assert {lines.one(f"worker_process_{name}")["sender"] for name in ("init", "shutdown")} == {worker.name}
    (began,) = lines.of("worker_process_init")
    (ended,) = lines.of("worker_process_shutdown")
    assert began["process"] == ended["process"] == ended["pid"] != worker.pid


def test_beat_tells_that_it_begins_and_whether_beside_a_worker(idle_site: Site, lines: Lines) -> None:
    worker = start(idle_site, lines, "-B")
    assert lines.one("beat_init")["process"] == lines.one("beat_embedded_init")["process"] == worker.pid
    lines.file.unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "nbqueue", "-A", "tests.signalled:app", "beat", "-b", idle_site.broker_url],
        cwd=ROOT,
        env={**os.environ, "NBQUEUE_KEY_FILE": str(idle_site.key_file), "TESTS_SIGNALS": str(lines.file)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: any(line["process"] == process.pid for line in lines.of("beat_init")), 15, "beat_init")
    finally:
        process.terminate()
        process.wait(15)
    own = [line["signal"] for line in lines.all() if line["process"] == process.pid]
    assert own == ["user_preload_options", "after_setup_logger", "after_setup_task_logger", "beat_init"]


def test_settings_that_celeryd_init_changes_hold(idle_site: Site, lines: Lines) -> None:
    start(idle_site, lines)
    ((_, conf),) = (idle_site.app.control.inspect(timeout=5).conf() or {}).items()
    assert conf["worker_max_losses"] == 7


def test_worker_listens_to_a_queue_that_a_receiver_of_celeryd_after_setup_adds(idle_site: Site, lines: Lines) -> None:
    worker = start(idle_site, lines, "-Q", "nbqueue,other")
    sent = idle_site.app.send_task("tests.project.add", (1, 2), queue=f"{worker.name}.own")
    assert sent.get(timeout=10) == 3
    ((_, queues),) = (idle_site.app.control.inspect(timeout=5).active_queues() or {}).items()
    assert [queue["name"] for queue in queues] == ["nbqueue", "other", f"{worker.name}.own"]


def test_receiver_of_setup_logging_takes_the_place_of_ours(idle_site: Site) -> None:
    directory = idle_site.server.directory
    (directory / "own_logging.py").write_text(
        "import logging\n"
        "from nbqueue import signals\n"
        "from tests.project import app\n"
        "@signals.setup_logging.connect\n"
        "def setup(loglevel, **_):\n"
        "    logging.basicConfig(format='OWN %(message)s', level=loglevel)\n"
    )
    worker = idle_site.worker("-I", "own_logging", PYTHONPATH=f"{ROOT}{os.pathsep}{directory}")
    wait_until(lambda: f"OWN {worker.name}: 2 children" in worker.log.read_text(), 5, "a line in the user's own form")
    assert "INFO/nbqueue" not in worker.log.read_text()


# ---- in the client


@pytest.fixture
def told() -> Iterator[list[Line]]:
    """Connect to the signals of publishing."""
    seen: list[Line] = []

    def receive(signal: signals.Signal, sender: str, **named: Any) -> None:
        seen.append({"signal": signal.name, "sender": sender, **named})

    for one in signals.OF_CLIENT:
        one.connect(receive)
    yield seen
    for one in signals.OF_CLIENT:
        one.disconnect(receive)


def test_publishing_is_told_before_and_after_and_headers_may_be_added(
    idle_site: Site, lines: Lines, told: list[Line]
) -> None:
    start(idle_site, lines)

    def add(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = "me"

    signals.before_task_publish.connect(add, sender="tests.signalled.headers")
    sent = idle_site.app.send_task("tests.signalled.headers", (False,), queue="nbqueue")
    assert sent.get(timeout=10) == {"trace": "me"}
    before, after = told
    assert (before["signal"], after["signal"]) == ("before_task_publish", "after_task_publish")
    assert before["sender"] == "tests.signalled.headers"
    assert before["headers"]["id"] == after["headers"]["id"] == sent.id
    assert before["headers"]["task"] == "tests.signalled.headers"
    assert before["body"][:2] == ((False,), {})
    assert before["routing_key"] == "nbqueue"
    assert before["headers"]["argsrepr"] == "(False,)"
    signals.before_task_publish.disconnect(add, sender="tests.signalled.headers")


def test_each_call_of_a_map_and_of_a_canvas_is_told(idle_site: Site, told: list[Line]) -> None:
    add = idle_site.app.task_for("tests.project.add")
    sent = add.starmap([(1, 2), (3, 4)])
    ids = [line["headers"]["id"] for line in told if line["signal"] == "after_task_publish"]
    assert ids == [result.id for result in sent.results]
    told.clear()
    (add.s(1, 2) | add.s(3)).apply_async()
    assert [line["signal"] for line in told] == ["before_task_publish", "after_task_publish"]


def test_headers_may_be_added_to_the_first_calls_of_a_canvas(idle_site: Site, lines: Lines, told: list[Line]) -> None:
    start(idle_site, lines)

    def add(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = headers["id"]

    signals.before_task_publish.connect(add)
    try:
        task = idle_site.app.task_for("tests.signalled.headers")
        sent = group(task.s().set(headers={"own": 1}), task.s()).apply_async()
        ids = [result.id for result in sent.results]
        assert sent.get(timeout=10) == [{"own": 1, "trace": ids[0]}, {"trace": ids[1]}]
    finally:
        signals.before_task_publish.disconnect(add)
    with pytest.raises(TypeError, match="object"):
        signals_that_break(task)
    with pytest.raises(PayloadTooLarge, match="Not sent: name"):
        signals_that_break(task, "x" * 7_000)


def signals_that_break(task: Task, value: object = object()) -> None:
    def receive(headers: dict[str, Any], **_: Any) -> None:
        headers["broken"] = value

    signals.before_task_publish.connect(receive)
    try:
        group(task.s(), task.s()).apply_async()
    finally:
        signals.before_task_publish.disconnect(receive)


@pytest.mark.brokers
def test_what_beat_sends_is_told_in_it_and_headers_may_be_added(
    idle_site: Site, lines: Lines, told: list[Line]
) -> None:
    start(idle_site, lines)
    app = idle_site.app
    task = app.task_for("tests.signalled.headers")

    def add(headers: dict[str, Any], **_: Any) -> None:
        headers["trace"] = headers["id"]
        if headers.get("own"):
            headers["object"] = object()

    def ids(signal: str) -> list[str]:
        return [line["headers"]["id"] for line in told if line["signal"] == signal]

    signals.before_task_publish.connect(add)
    try:
        app.beat.add("often", 0.2, task.s())
        with Beat(app, sync=False) as beat:

            def fired() -> bool:
                beat.turn()
                return app.beat.get("often").count >= 2

            wait_until(fired, 10, "two firings")
        runs = [run.id for run in app.beat.get("often").runs]
        app.beat.delete("often")
        assert ids("before_task_publish") == ids("after_task_publish") == runs
        assert [app.AsyncResult(id_).get(timeout=10) for id_ in runs] == [{"trace": id_} for id_ in runs]
        told.clear()
        app.beat.add("joined", 3600.0, chord([task.s(), task.s().set(headers={"own": 1})], task.si()))
        last = app.AsyncResult(app.beat.run_now("joined"))
        last.get(timeout=10)
        assert len(set(ids("before_task_publish"))) == 2, "the first calls; its body is sent by the worker"
        assert ids("before_task_publish") == ids("after_task_publish")
        found = [app.AsyncResult(id_).get(timeout=10) for id_ in ids("after_task_publish")]
        assert found == [{"trace": ids("after_task_publish")[0]}, {"own": 1}], "what can't travel is left out"
        app.beat.delete("joined")
    finally:
        signals.before_task_publish.disconnect(add)
        app.beat.close()


# ---- in a worker that sends what follows


def published(lines: Lines, worker: Worker) -> dict[str, list[str]]:
    """Return what was told of publishing in a worker's supervisor, by ids."""
    found: dict[str, list[str]] = {}
    for line in lines.all():
        if line["signal"].endswith("_task_publish") and line["process"] == worker.pid:
            found.setdefault(ast.literal_eval(line["headers"])["id"], []).append(line["signal"])
    return found


BOTH = ["before_task_publish", "after_task_publish"]


@pytest.mark.brokers
def test_what_follows_in_a_canvas_is_told_in_the_worker_that_sends_it(idle_site: Site, lines: Lines) -> None:
    worker, app = start(idle_site, lines), idle_site.app
    add = app.task_for("tests.project.add")
    last = (add.s(1, 2) | add.s(3) | add.s(4)).apply_async()
    assert last.get(timeout=10) == 10
    assert last.parent is not None
    expected = {last.id: BOTH, last.parent.id: BOTH}
    wait_until(lambda: published(lines, worker) == expected, 10, "the steps of the chain")
    (line, *_) = [line for line in lines.of("after_task_publish") if last.id in line["headers"]]
    assert (line["sender"], line["routing_key"], line["body"][:8]) == (
        "tests.project.add",
        idle_site.queue,
        "((), {},",
    )
    assert ast.literal_eval(line["headers"])["parent_id"] == last.parent.id
    # Each member of a header might be the last; the body is told once, when it was sent.
    body = chord(add.s(n, n) for n in range(10))(app.task_for("tests.signalled.headers").s())
    body.get(timeout=10)
    wait_until(lambda: published(lines, worker) == expected | {body.id: BOTH}, 10, "the body of the chord")
    expected[body.id] = BOTH
    linked = add.s(1, 1).set(link=add.s(1).set(task_id="linked")).apply_async()
    assert linked.get(timeout=10) == 2
    errback = app.task_for("tests.signalled.noted").s().set(task_id="told")
    add.apply_async((1, "2"), link_error=errback)
    expected |= {"linked": BOTH, "told": BOTH}
    wait_until(lambda: published(lines, worker) == expected, 10, "a callback and an errback")


@pytest.mark.brokers
def test_retries_and_what_takes_the_place_of_a_task_are_told_in_the_worker(idle_site: Site, lines: Lines) -> None:
    worker, app = start(idle_site, lines), idle_site.app
    moody = app.send_task("tests.project.moody", (1,))
    moody.get(timeout=10)
    wait_until(lambda: published(lines, worker) == {moody.id: BOTH}, 10, "the retry")
    (line,) = lines.of("after_task_publish")
    headers = ast.literal_eval(line["headers"])
    assert headers["retries"] == 1
    assert headers["eta"]
    replaced = app.send_task("tests.signalled.gives_way", (1,))
    assert replaced.get(timeout=10) == 2
    wait_until(lambda: replaced.id in published(lines, worker), 10, "what took its place")
    sent = app.task_for("tests.project.moody").map([1, 1])
    sent.get(timeout=10)
    wait_until(
        lambda: all(published(lines, worker).get(one.id) == BOTH for one in sent.results), 10, "those of members"
    )


@pytest.mark.brokers
def test_receiver_in_a_worker_may_add_headers_to_what_that_sends(idle_site: Site, lines: Lines) -> None:
    worker, app = start(idle_site, lines), idle_site.app
    add, headers = app.task_for("tests.project.add"), app.task_for("tests.signalled.headers")
    at_last = app.task_for("tests.signalled.headers_at_last")
    assert (add.si(1, 1) | headers.si()).apply_async().get(timeout=10) == {"worker": worker.pid}
    # They stay through a retry, and others may come.
    assert at_last.delay(1).get(timeout=10) == {"worker": worker.pid, "again": 1}
    found = (add.si(1, 1) | at_last.si(2).set(headers={"own": "mine"})).apply_async()
    assert found.get(timeout=10) == {"own": "mine", "worker": worker.pid, "again": 2}
    # What can't travel is left out, and harms nobody.
    broken = (add.si(1, 1) | headers.si().set(headers={"broken": True})).apply_async()
    assert broken.get(timeout=10) == {"broken": True}
    assert "goes without the headers that a receiver has added" in worker.log.read_text()
    # The body of a chord is told once it was sent, so nothing can be added.
    assert chord([add.si(1, 1), add.si(1, 1)])(headers.si()).get(timeout=10) is None


def test_call_that_can_not_be_sent_is_not_told_as_sent(told: list[Line], tmp_path: Path) -> None:
    with App(broker=f"redis+socket://{tmp_path}/nobody", set_as_current=False) as app:
        app.conf.task_publish_retry = False
        with pytest.raises(Exception, match="nobody"):
            app.send_task("x")
    assert [line["signal"] for line in told] == ["before_task_publish"]


def test_eager_calls_send_the_signals_of_a_task_here() -> None:
    seen: list[str] = []

    def receive(signal: signals.Signal, **_: Any) -> None:
        seen.append(signal.name)

    with App("here", set_as_current=False) as app:
        app.conf.task_always_eager = True
        half = app.task(lambda number: 1 / number, name="half")
        for one in signals.OF_TASK:
            one.connect(receive, sender=half)
        half.delay(2)
        half.delay(0)
        logging.getLogger("nbqueue").debug("%s", half)
    assert seen == ["task_prerun", "task_success", "task_postrun", "task_prerun", "task_failure", "task_postrun"]


def test_arguments_are_told_as_text_where_monitors_are_wanted(idle_site: Site, tmp_path: Path) -> None:
    app = idle_site.app
    app.conf.worker_send_task_events = True
    idle_site.worker(concurrency=1)
    sent = app.send_task("tests.project.note", (str(tmp_path),), {"name": "long", "seconds": 60.0})
    wait_until(lambda: sent.state == "STARTED", 10, "it to run")
    ((_, (active,)),) = (app.control.inspect(timeout=5).active() or {}).items()
    assert active["args"] == f"({str(tmp_path)!r},)"
    assert active["kwargs"] == "{'name': 'long', 'seconds': 60.0}"
    sent.revoke(terminate=True)
    wait_until(sent.ready, 10, "it to end")
