"""What breaks while messages are on RabbitMQ: workers, children, the server itself, and what somebody else sends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import amqp
import pytest

from nbqueue import states
from nbqueue.deadletters import DeadLetters
from nbqueue.deliveries import QueueSize, stream_key
from nbqueue.exceptions import SendFailed, SendUncertain, WorkerLostError
from nbqueue.messages import Message, pack_body
from nbqueue.signing import Signer
from tests.end_to_end.test_cli import run
from tests.faults.test_messages import still_works
from tests.faults.test_processes import children_of, runs, send_notes
from tests.helpers import RedisServer, wait_until
from tests.rabbit import RabbitServer
from tests.workers import Site

pytestmark = [pytest.mark.rabbitmq, pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.fixture
def site(rabbit_server: RabbitServer, redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Yield an app with a queue of the test's own; workers are the test's to start."""
    queue = request.node.name[:60]
    with Site(redis_server, by_value=False, broker_url=rabbit_server.url, queue=queue) as made:
        yield made


def put(server: RabbitServer, queue: str, body: bytes, **headers: object) -> None:
    """Write to a queue what nbqueue wouldn't."""
    with server.connect() as connection, connection.channel() as channel:
        channel.basic_publish(amqp.Message(body, application_headers=headers), "", stream_key(queue, "n"))


def test_worker_killed_while_it_runs_tasks_loses_nothing(site: Site, tmp_path: Path) -> None:
    worker = site.worker()
    results = send_notes(site, tmp_path, 40, 0.05)
    wait_until(lambda: len(results.watched.arrived) > 10, 30, "part of the map")
    orphans = children_of(worker)
    worker.kill()
    wait_until(lambda: not [p for p in orphans if p.is_running()], 5, "the children to end with it")
    site.worker()
    assert results.get(timeout=60) == [f"t{n}" for n in range(40)]
    assert sum(runs(tmp_path).values()) <= 40 + 2, "only what ran runs again"
    wait_until(lambda: site.app.broker.size(site.queue) == QueueSize(0, 0, 0), 10, "nothing to be left")


def test_task_that_ends_its_child_is_given_up_kept_and_sent_again(site: Site, tmp_path: Path) -> None:
    site.worker(concurrency=1)
    assert site.app.send_task("tests.project.deadly", (str(tmp_path), "tough", 2)).get(timeout=30) == "tough"
    result = site.app.send_task("tests.project.deadly", (str(tmp_path), "poison", 3))
    with pytest.raises(WorkerLostError, match="ended its child 3 times"):
        result.get(timeout=30)
    assert [(letter.id, letter.queue) for letter in DeadLetters(site.app).list()] == [(result.id, site.queue)]
    broker = ("-b", site.broker_url, "--result-backend", site.server.url)
    assert run(site, *broker, "dead", "requeue", result.id).stdout == f"{result.id}: sent\n"
    again = site.new_app().AsyncResult(result.id)
    assert again.get(timeout=20) == "poison"
    assert DeadLetters(site.app).list() == []


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


def test_warm_stop_gives_back_at_once_what_has_not_begun(site: Site, tmp_path: Path) -> None:
    first = site.worker()
    results = send_notes(site, tmp_path, 12, 0.3)
    wait_until(lambda: runs(tmp_path), 10, "a task to run")
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    site.worker()
    assert results.get(timeout=60) == [f"t{n}" for n in range(12)]
    assert sum(runs(tmp_path).values()) == 12, "none ran twice"


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


def test_worker_that_stood_still_keeps_its_task_or_drops_its_outcome(site: Site, tmp_path: Path) -> None:
    first = site.worker(concurrency=1)
    result = site.app.send_task("tests.project.note", (str(tmp_path), "frozen", 1.0))
    wait_until(lambda: runs(tmp_path)["frozen"] == 1, 10, "it to run")
    first.signal(signal.SIGSTOP)
    site.worker(concurrency=1)
    assert result.get(timeout=40) == "frozen"
    first.signal(signal.SIGCONT)
    wait_until(lambda: "was lost" in first.log.read_text(), 15, "the first to see that it is late")
    assert runs(tmp_path)["frozen"] == 2
    assert result.state == states.SUCCESS
    wait_until(lambda: site.app.broker.size(site.queue) == QueueSize(0, 0, 0), 10, "nothing to be left")


def test_message_that_does_not_verify_is_refused_and_one_of_another_key_left_to_others(
    site: Site, tmp_path: Path, rabbit_server: RabbitServer
) -> None:
    site.worker()
    genuine = site.app.send_task("tests.project.note", (str(tmp_path), "genuine", 1.0))
    put(rabbit_server, site.queue, b"\x80\x05garbage", id="forged", nbq="1.deadbeef.mac.{}")
    put(rabbit_server, site.queue, b"no header at all")
    steering = genuine.watched.steering
    assert steering is not None
    good = Message.sign(steering, pack_body(b"", b"\x80\x05."), site.app.signer)
    put(rabbit_server, site.queue, b"another body", id=genuine.id, nbq=good.header)
    other = Message.sign(steering, pack_body(b"", b"\x80\x05."), Signer(b"f" * 32))
    put(rabbit_server, site.queue, other.body, id="other", nbq=other.header)

    def counted() -> bool:
        counters = site.streams.counters()
        return sum(n for name, n in counters.items() if name.startswith("refused:")) >= 2 and "put off" in counters

    wait_until(counted, 15, "them to be judged")
    assert genuine.get(timeout=10) == "genuine"
    assert still_works(site)
    assert runs(tmp_path)["genuine"] == 1


def test_server_away_at_send_leaves_no_trace_of_the_task(site: Site) -> None:
    site.app.conf.task_publish_retry = False
    site.app.broker._publisher.url = "amqp://guest:guest@127.0.0.1:1//"  # type: ignore[attr-defined]
    sent_at = time.monotonic()
    with pytest.raises(SendFailed, match=r"guest:\*\*\*@127\.0\.0\.1:1"):
        site.app.send_task("tests.project.add", (1, 2))
    assert time.monotonic() - sent_at < 5
    assert not site.streams.client.keys("celery-task-meta-*")
