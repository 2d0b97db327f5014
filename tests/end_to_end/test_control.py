"""Remote control: clients ask real workers, and tell them what to do."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from nbqueue.config import mask
from nbqueue.deliveries import CONTROL, reply_key
from nbqueue.exceptions import NBQueueError
from nbqueue.messages import Control, Reply, new_nonce, sign_control, sign_reply
from nbqueue.signing import Signer
from tests.end_to_end.test_cli import options_of, run
from tests.helpers import wait_until
from tests.workers import ROOT, Site, Worker

pytestmark = pytest.mark.timeout(120)
both = pytest.mark.brokers
WAIT_S = 5.0


def hold_the_interpreter(folder: str) -> None:
    """Keep the lock for much longer than any test takes."""
    (Path(folder) / "holds").touch()
    re.match(r"(a+)+b", "a" * 40)


def only(answers: Any) -> Any:
    """Return what the one worker has answered."""
    assert answers is not None
    ((_, answer),) = answers.items()
    return answer


def asked(site: Site, command: str, **arguments: Any) -> Any:
    """Return what the one worker has answered to a command by its name."""
    (answer,) = site.app.control.broadcast(command, arguments, reply=True, timeout=WAIT_S) or [{}]
    return only(answer)


def inspected(site: Site, command: str, *arguments: Any, **named: Any) -> Any:
    return only(getattr(site.app.control.inspect(timeout=WAIT_S), command)(*arguments, **named))


@both
def test_ping_is_answered_in_celerys_form_by_whoever_is_asked(shared_site: Site) -> None:
    worker, control = shared_site.workers[0].name, shared_site.app.control
    assert control.ping(timeout=WAIT_S) == [{worker: {"ok": "pong"}}]
    assert control.inspect(timeout=WAIT_S).ping() == {worker: {"ok": "pong"}}
    assert control.inspect(worker, timeout=WAIT_S).ping() == {"ok": "pong"}
    assert control.inspect([worker], timeout=WAIT_S).ping() == {worker: {"ok": "pong"}}
    assert control.inspect(pattern="w*@test", timeout=WAIT_S).ping() == {worker: {"ok": "pong"}}
    assert control.inspect(pattern=r"w\d+@test", matcher="pcre", timeout=WAIT_S).ping() is not None
    assert control.inspect(pattern="nobody*", timeout=0.2).ping() is None
    assert control.inspect(["nobody@test"], timeout=0.2).ping() is None


def test_answer_comes_as_soon_as_all_who_live_have_answered(shared_site: Site) -> None:
    before = time.monotonic()
    shared_site.app.control.ping(timeout=30)
    assert time.monotonic() - before < 10


def test_callback_gets_each_answer_and_limit_bounds_them(shared_site: Site) -> None:
    second = shared_site.worker()
    seen: list[Any] = []
    answers = shared_site.app.control.ping(timeout=WAIT_S, callback=seen.append)
    assert len(answers) == len(shared_site.workers) == len(seen)
    assert len(shared_site.app.control.ping(timeout=WAIT_S, limit=1)) == 1
    shared_site.app.control.shutdown(destination=[second.name])
    shared_site.workers.remove(second)
    assert second.wait() == 0


@both
def test_worker_answers_while_its_children_hold_the_interpreter(idle_site: Site, tmp_path: Path) -> None:
    worker = idle_site.worker(concurrency=1)
    task = idle_site.app.task(hold_the_interpreter, name="hold")
    sent = task.delay(str(tmp_path))
    waits = idle_site.app.send_task("tests.project.add", (1, 2))
    wait_until((tmp_path / "holds").exists, 10, "the task to begin")
    inspect = idle_site.app.control.inspect(timeout=WAIT_S)
    (active,) = only(inspect.active())
    assert (active["id"], active["name"], active["hostname"]) == (sent.id, "hold", worker.name)
    assert active["worker_pid"] in only(inspect.stats())["pool"]["processes"]
    assert 0 <= time.time() - active["time_start"] < 30
    assert active["delivery_info"]["routing_key"] == idle_site.queue
    assert active["acknowledged"] is False
    queried = only(inspect.query_task(sent.id, "unknown"))
    assert queried == {sent.id: ["active", {**active, "time_start": pytest.approx(active["time_start"], abs=0.1)}]}
    assert [task["id"] for task in only(inspect.reserved())] in ([], [waits.id])
    answers = idle_site.app.control.terminate(sent.id, signal="KILL", reply=True, timeout=WAIT_S)
    assert answers == [{worker.name: {"ok": f"terminate: {sent.id}"}}]
    wait_until(lambda: sent.state == "REVOKED", 10, "it to be stopped")
    assert waits.get(timeout=10) == 3


def last(*_: object, **__: object) -> None:
    time.sleep(60)


@both
def test_arguments_are_told_where_they_are_json_or_their_caller_says_how(idle_site: Site) -> None:
    idle_site.worker(concurrency=3)
    task = idle_site.app.task(last, name="last")
    calls = {
        task.apply_async((1, ["a", None]), {"b": {"c": 2.5}}, serializer="json").id: (
            [1, ["a", None]],
            {"b": {"c": 2.5}},
        ),
        task.apply_async((1,)).id: (None, None),  # a pickle, which workers open in their children only
        task.apply_async((1,), argsrepr="(secret)", serializer="json").id: ("(secret)", None),
    }
    inspect = idle_site.app.control.inspect(timeout=WAIT_S)
    wait_until(lambda: len(only(inspect.active())) == len(calls), 10, "all of them to begin")
    told = {one["id"]: (one["args"], one["kwargs"]) for one in only(inspect.active())}
    assert told == calls
    idle_site.app.control.terminate(list(calls), signal="KILL")


@both
def test_scheduled_tells_what_waits_for_its_time(idle_site: Site) -> None:
    idle_site.worker()
    sent = idle_site.app.task_for("tests.project.add").apply_async((1, 2), countdown=300)
    (found,) = inspected(idle_site, "scheduled")
    assert (found["request"]["id"], found["request"]["name"]) == (sent.id, "tests.project.add")
    assert found["eta"].endswith("+00:00")
    assert inspected(idle_site, "reserved") == []
    idle_site.app.control.revoke([sent.id])
    wait_until(lambda: sent.state == "REVOKED", 5, "it to end")
    assert inspected(idle_site, "scheduled") == []


@both
def test_worker_tells_its_tasks_queues_counters_and_settings(shared_site: Site) -> None:
    shared_site.app.send_task("tests.project.add", (1, 2)).get(timeout=10)
    assert "tests.project.add" in inspected(shared_site, "registered")
    assert any(
        line.startswith("tests.project.linger [time_limit=0.5")
        for line in inspected(shared_site, "registered", "time_limit")
    )
    (queue,) = inspected(shared_site, "active_queues")
    assert (queue["name"], queue["exchange"]["type"]) == (shared_site.queue, "direct")
    stats = inspected(shared_site, "stats")
    assert stats["total"]["tests.project.add"] >= 1
    assert stats["pid"] == shared_site.workers[0].pid
    assert stats["pool"]["max-concurrency"] == 2
    assert len(stats["pool"]["processes"]) == 2
    assert stats["rusage"]["utime"] > 0
    assert "guest:guest" not in json.dumps(stats)
    assert inspected(shared_site, "conf")["worker_lease"] == 2.0
    assert "worker_max_losses" not in inspected(shared_site, "conf")
    assert inspected(shared_site, "conf", with_defaults=True)["worker_max_losses"] == 10
    report = inspected(shared_site, "report")["ok"]
    software, _, *others = report.splitlines()
    assert software == shared_site.app.bugreport().splitlines()[0], "it is the text of `nbqueue report`"
    assert f"broker   -> {mask(shared_site.broker_url)}" in others
    assert f"    NBQUEUE_BROKER_URL={mask(shared_site.broker_url)}" in others
    assert "    worker_lease: 2.0" in others
    assert "guest:guest" not in report
    assert inspected(shared_site, "memsample").endswith("B")
    assert inspected(shared_site, "memdump").endswith("B")
    assert "error" in inspected(shared_site, "objgraph")
    assert "clock" in inspected(shared_site, "clock")


@both
def test_worker_listens_to_one_more_queue_and_to_one_less(idle_site: Site) -> None:
    worker, control = idle_site.worker(), idle_site.app.control
    add = idle_site.app.task_for("tests.project.add")
    first = add.apply_async((1, 2), queue="other")
    assert control.add_consumer("other", reply=True, timeout=WAIT_S) == [{worker.name: {"ok": "add consumer other"}}]
    assert first.get(timeout=10) == 3
    assert [queue["name"] for queue in inspected(idle_site, "active_queues")] == [idle_site.queue, "other"]
    for queue in (idle_site.queue, "other"):
        answer = control.cancel_consumer(queue, destination=[worker.name], reply=True, timeout=WAIT_S)
        assert answer == [{worker.name: {"ok": f"no longer consuming from {queue}"}}]
    # A message may be on its way to a worker that has just stopped listening; what comes later waits.
    add.apply_async((0, 0), queue="other")
    wait_until(lambda: idle_site.app.offers()[0][0].queues == (), 5, "the worker to show that it listens to none")
    waits = add.apply_async((2, 2), queue="other")
    wait_until(lambda: idle_site.app.broker.size("other").queued >= 1, 5, "a call to wait")
    assert waits.state == "PENDING"
    control.add_consumer("other")
    assert waits.get(timeout=10) == 4


def test_pool_grows_shrinks_and_is_replaced(idle_site: Site) -> None:
    worker, control = idle_site.worker(concurrency=1), idle_site.app.control

    def children() -> set[int]:
        found = inspected(idle_site, "stats")["pool"]
        return set(found["processes"]) if len(found["processes"]) == found["max-concurrency"] else set()

    before = wait_until(children, 10, "a child")
    assert control.pool_grow(2, reply=True, timeout=WAIT_S) == [{worker.name: {"ok": "pool will grow"}}]
    wait_until(lambda: len(children()) == 3, 10, "three children")
    control.pool_shrink(2)
    wait_until(lambda: len(children()) == 1, 10, "one child")
    answer = control.pool_shrink(reply=True, timeout=WAIT_S)
    assert answer == [{worker.name: {"error": "a pool of 0 children can't be had"}}]
    control.pool_restart()
    wait_until(lambda: (now := children()) and now.isdisjoint(before), 10, "another child")


def test_time_limit_holds_from_the_next_call_on(idle_site: Site, tmp_path: Path) -> None:
    worker, control = idle_site.worker(), idle_site.app.control
    answer = control.time_limit("tests.project.note", hard=0.3, reply=True, timeout=WAIT_S)
    assert answer == [{worker.name: {"ok": "time limits set successfully"}}]
    sent = idle_site.app.send_task("tests.project.note", (str(tmp_path), "long", 30.0))
    wait_until(lambda: sent.state == "FAILURE", 10, "the limit to end it")
    control.time_limit("tests.project.note")
    assert idle_site.app.send_task("tests.project.note", (str(tmp_path), "long", 0.6)).get(timeout=10) == "long"
    assert control.time_limit("no.such", 1.0, reply=True, timeout=WAIT_S) == [{worker.name: {"error": "unknown task"}}]


@both
def test_shutdown_stops_who_is_named_and_no_other(idle_site: Site) -> None:
    one, other = idle_site.worker(concurrency=1), idle_site.worker(concurrency=1)
    idle_site.app.control.shutdown(destination=[one.name])
    assert one.wait() == 0
    assert idle_site.app.control.ping(timeout=WAIT_S) == [{other.name: {"ok": "pong"}}]


def test_command_that_raises_worker_shutdown_stops_its_worker_once_its_tasks_have_ended(
    idle_site: Site, tmp_path: Path
) -> None:
    worker = idle_site.worker(concurrency=1)
    sent = idle_site.app.send_task("tests.project.note", (str(tmp_path), "long", 1.0))
    wait_until(lambda: sent.state == "STARTED", 10, "it to run")
    assert asked(idle_site, "leave") == {"ok": f"{worker.name} stops"}
    assert worker.wait() == 0
    assert sent.successful()


def test_receiver_that_raises_worker_shutdown_stops_its_worker(idle_site: Site) -> None:
    (idle_site.server.directory / "leaving.py").write_text(
        "from nbqueue.exceptions import WorkerShutdown\n"
        "from nbqueue.signals import task_received\n"
        "from tests.project import app\n"
        "@task_received.connect\n"
        "def leave(**_):\n"
        "    raise WorkerShutdown\n"
    )
    worker = idle_site.worker("-I", "leaving", PYTHONPATH=f"{ROOT}{os.pathsep}{idle_site.server.directory}")
    sent = idle_site.app.send_task("tests.project.add", (1, 2))
    assert worker.wait() == 0
    idle_site.worker()
    assert sent.get(timeout=20) == 3, "nothing is lost"


def test_revoked_tells_what_is_being_revoked(idle_site: Site, tmp_path: Path) -> None:
    idle_site.worker()
    sent = idle_site.app.send_task("tests.project.note", (str(tmp_path), "long", 60.0))
    wait_until(lambda: sent.state == "STARTED", 10, "it to run")
    idle_site.app.control.revoke(sent.id)
    wait_until(lambda: inspected(idle_site, "revoked") == [sent.id], 5, "the worker to know")
    assert [task["id"] for task in inspected(idle_site, "active")] == [sent.id], "without terminate it goes on"
    idle_site.app.control.revoke([sent.id], terminate=True)
    wait_until(sent.ready, 10, "it to end")


def test_commands_of_the_users_own_are_run_beside_the_loop(shared_site: Site) -> None:
    worker, control = shared_site.workers[0].name, shared_site.app.control
    answer = control.broadcast("load", {"factor": 2}, reply=True, timeout=WAIT_S)
    assert answer == [{worker: {"load": 0, "worker": worker}}]
    assert control.inspect(timeout=WAIT_S).request("load") == {worker: {"load": 0, "worker": worker}}
    assert asked(shared_site, "stumble") == {"error": "RuntimeError('over my own feet')"}
    control.broadcast("doze", {"seconds": 30})
    assert control.ping(timeout=WAIT_S), "a command that takes long holds nobody up"
    assert control.broadcast("doze", {"seconds": 0}, reply=True, timeout=WAIT_S) == [{worker: "awake"}]


def test_command_that_is_unknown_or_has_wrong_arguments_is_answered_with_why(shared_site: Site) -> None:
    control = shared_site.app.control
    assert asked(shared_site, "explode")["error"].startswith("there is no command 'explode'; there are active,")
    assert "error" in asked(shared_site, "reply"), "a method of the panel is no command"
    assert "unexpected keyword argument 'm'" in asked(shared_site, "pool_grow", m=1)["error"]
    assert "there is no signal 'NO'" in asked(shared_site, "revoke", task_id="x", signal="NO")["error"]
    with pytest.raises(ValueError, match="no JSON"):
        control.broadcast("ping", {"x": object()})
    with pytest.raises(ValueError, match="can't be sent"):
        control.broadcast("revoke", {"task_id": ["x" * 36] * 1000})
    with pytest.raises(ValueError, match="glob or pcre"):
        control.broadcast("ping", pattern="*", matcher="sql")
    with pytest.raises(ValueError, match="there is no signal"):
        control.revoke("x", signal="SIGNONE")
    with pytest.raises(NBQueueError, match="stamped"):
        control.revoke_by_stamped_headers({"a": "b"})


def command(at: float, **fields: Any) -> Control:
    return Control(order="command", at=at, nonce=new_nonce(), **{"command": "ping", "reply": new_nonce(), **fields})


def refusals(worker: Worker) -> int:
    return worker.log.read_text().count("an order was refused")


def test_command_that_is_forged_old_or_came_before_is_refused(idle_site: Site) -> None:
    worker, backend, signer = idle_site.worker(), idle_site.app.backend, idle_site.app.signer
    good, forged, old = command(time.time()), command(time.time()), command(time.time() - 100)
    text = sign_control(good, signer)
    backend.order(text)
    assert len(backend.replies(good.reply, WAIT_S)) == 1
    backend.order(text)
    backend.order(sign_control(forged, Signer(b"x" * 32)))
    backend.order(sign_control(forged, signer).replace('"ping"', '"shutdown"'))
    backend.order(sign_control(old, signer))
    idle_site.server_says("XADD", CONTROL, "*", "o", "garbage")
    idle_site.server_says("XADD", CONTROL, "*", "p", "garbage")
    wait_until(lambda: refusals(worker) == 6, 10, "six refusals")
    for order in (good, forged, old):
        assert backend.replies(order.reply, 0.01) == []
    assert idle_site.app.control.ping(timeout=WAIT_S) == [{worker.name: {"ok": "pong"}}]


def test_answer_that_is_forged_or_of_another_command_is_not_believed(idle_site: Site) -> None:
    worker, app = idle_site.worker(), idle_site.app
    sent: list[str] = []
    order = app.backend.order

    def intercept(text: str) -> None:
        from nbqueue.messages import open_control

        opened = open_control(text, app.signer)
        sent.append(opened.reply)
        liar = Reply(to=opened.nonce, worker="liar@test", at=time.time())
        late = Reply(to="of another", worker="late@test", at=time.time())
        for lie in (
            sign_reply(liar, b'{"ok":"lie"}', Signer(b"x" * 32)),
            sign_reply(liar, b'{"ok":"lie"}', app.signer).replace(b"liar", b"lies"),
            sign_reply(late, b'{"ok":"lie"}', app.signer),
            b"garbage",
            b"{}",
        ):
            app.backend.reply(opened.reply, lie, 60)
        order(text)

    app.backend.order = intercept  # type: ignore[method-assign]
    assert app.control.ping(timeout=WAIT_S) == [{worker.name: {"ok": "pong"}}]
    app.backend.order = order  # type: ignore[method-assign]
    assert idle_site.server_says("EXISTS", reply_key(sent[0])) == 0


def test_answers_that_nobody_reads_go_by_themselves(idle_site: Site) -> None:
    idle_site.worker()
    order = command(time.time())
    idle_site.app.backend.order(sign_control(order, idle_site.app.signer))
    wait_until(lambda: idle_site.server_says("LLEN", reply_key(order.reply)) == 1, 5, "the answer")
    left_ms = idle_site.server_says("PTTL", reply_key(order.reply))
    assert isinstance(left_ms, int)
    assert 0 < left_ms <= 60_000


@both
def test_purge_drops_what_waits(idle_site: Site) -> None:
    for number in range(3):
        idle_site.app.send_task("tests.project.add", (number, 1))
    assert idle_site.app.control.purge() == 3
    assert idle_site.app.control.discard_all() == 0


# ---- the command line


@both
def test_inspect_and_control_are_commands_that_print_what_workers_answer(shared_site: Site) -> None:
    where, worker = options_of(shared_site), shared_site.workers[0].name
    said = run(shared_site, *where, "inspect", "ping", "-t", "5")
    assert (said.returncode, said.stdout) == (0, f"-> {worker}: OK pong\n\n1 node online.\n"), said.stderr
    said = run(shared_site, "inspect", "active_queues", "--json", *where)
    assert json.loads(said.stdout)[worker][0]["name"] == shared_site.queue
    said = run(shared_site, "control", "-d", worker, "cancel_consumer", "no-such", *where)
    assert said.stdout.startswith(f"-> {worker}: OK no longer consuming from no-such\n")


def test_commands_that_are_not_there_and_workers_that_do_not_answer_are_told_by_exit_code(shared_site: Site) -> None:
    where = options_of(shared_site)
    said = run(shared_site, *where, "inspect", "-d", "nobody@nowhere", "-t", "0.2", "ping")
    assert (said.returncode, said.stderr) == (69, "Error: No nodes replied within time constraint\n")
    said = run(shared_site, *where, "inspect", "shutdown")
    assert said.returncode == 2
    assert "it is one of `nbqueue control`" in said.stderr
    said = run(shared_site, *where, "control", "pool_grow", "1", "2")
    assert said.returncode == 2
    assert "not also 2" in said.stderr
    said = run(shared_site, *where, "control", "time_limit", "no.such", "1")
    assert (said.returncode, said.stdout.splitlines()[0].partition(": ")[2]) == (1, "ERROR unknown task")
    listed = run(shared_site, "-A", "tests.project", "inspect", "--list").stdout
    assert re.search(r"^load +Say how much there is to do\.$", listed, re.MULTILINE)


def test_queues_tell_what_they_are_bound_to(idle_site: Site) -> None:
    directory = idle_site.server.directory
    (directory / "bound.py").write_text(
        "from tests.project import app\n"
        "app.conf.task_queues = {'videos': {'exchange': 'media', 'exchange_type': 'topic', 'routing_key': 'video.#'}}\n"
    )
    path = f"{ROOT}{os.pathsep}{directory}"
    idle_site.worker("-I", "bound", "-Q", "videos,plain", PYTHONPATH=path)
    videos, plain = inspected(idle_site, "active_queues")
    assert (videos["name"], videos["routing_key"]) == ("videos", "video.#")
    assert (videos["exchange"]["name"], videos["exchange"]["type"]) == ("media", "topic")
    assert (plain["name"], plain["exchange"]["name"], plain["routing_key"]) == ("plain", "", "plain")


def test_very_many_ids_are_asked_for_and_revoked_in_parts(shared_site: Site) -> None:
    ids = [f"no-such-task-{number}-{'x' * 36}" for number in range(1000)]
    control, worker = shared_site.app.control, shared_site.workers[0].name
    assert control.inspect(timeout=WAIT_S).query_task(ids) == {worker: {}}
    answers = control.revoke(ids, reply=True, timeout=WAIT_S)
    assert answers is not None
    assert [next(iter(answer)) for answer in answers] == [worker] * 5


@both
def test_list_shows_queues_and_bindings(shared_site: Site) -> None:
    shared_site.app.send_task("tests.project.add", (1, 2)).get(timeout=10)
    where = options_of(shared_site)
    (row,) = json.loads(run(shared_site, *where, "list", "queues", "--json").stdout)
    assert row["queue"] == shared_site.queue
    assert run(shared_site, *where, "list", "bindings").stdout == (
        f"queue {shared_site.queue}  exchange (default)  type direct  routing_key {shared_site.queue}\n"
    )
