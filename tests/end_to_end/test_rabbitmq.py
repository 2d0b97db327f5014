"""Tasks whose messages go through RabbitMQ, with a Redis backend beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nbqueue import App, states
from nbqueue.deliveries import QueueSize, stream_key
from nbqueue.exceptions import ImproperlyConfigured, TaskRevokedError
from tests.end_to_end.test_calls import double
from tests.end_to_end.test_cli import run
from tests.helpers import RedisServer, wait_until
from tests.rabbit import RabbitServer
from tests.workers import Site

pytestmark = [pytest.mark.rabbitmq]


@pytest.fixture(scope="module")
def site(rabbit_server: RabbitServer) -> Iterator[Site]:
    """Yield a worker of two children on RabbitMQ, for tests that stop neither."""
    with RedisServer() as server, Site(server, broker_url=rabbit_server.url, queue="calls") as made:
        made.worker()
        yield made


@pytest.fixture
def quiet(rabbit_server: RabbitServer, redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Yield an app on RabbitMQ, with a queue of the test's own and no worker."""
    with Site(redis_server, broker_url=rabbit_server.url, queue=request.node.name) as made:
        yield made


def test_map_comes_back_whole(site: Site) -> None:
    assert site.app.task(double).map(range(1000)).get(timeout=30) == [2 * n for n in range(1000)]
    assert site.app.broker.size("calls") == QueueSize(0, 0, 0)


def test_delayed_call_waits_on_the_backend_and_not_in_a_worker(site: Site) -> None:
    sent_at = time.time()
    result = site.app.task(time.time).apply_async(countdown=1.2)
    assert site.app.broker.size("calls") == QueueSize(0, 0, 1)
    late = result.get(timeout=15) - sent_at
    assert late >= 1.2, "never sooner"
    assert late < 6


def test_call_that_waits_or_is_delayed_is_revoked_at_once_and_never_runs(quiet: Site) -> None:
    waiting = quiet.app.task(double).delay(1)
    delayed = quiet.app.task(double).apply_async((1,), countdown=1)
    for result in (waiting, delayed):
        result.revoke()
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
    assert quiet.app.broker.size(quiet.queue) == QueueSize(1, 0, 0), "a message can't be taken out of the queue"
    quiet.worker()
    wait_until(lambda: quiet.streams.counters().get("repeat") == 1, 10, "its message to be dropped")
    assert {result.state for result in (waiting, delayed)} == {states.REVOKED}


def test_higher_priority_runs_first_also_when_it_is_used_for_the_first_time(quiet: Site) -> None:
    task = quiet.app.task(time.time)
    results = [task.apply_async(priority=level) for level in (0, 5, 9)]
    quiet.worker(concurrency=1)
    low, middle, high = (result.get(timeout=15) for result in results)
    assert high < middle < low
    assert task.apply_async(priority=3).get(timeout=10) > low, "found by a worker that waits"


def test_worker_serves_its_queues_in_order(quiet: Site) -> None:
    first, second = f"{quiet.queue} 1", f"{quiet.queue} 2"
    task = quiet.app.task(time.time)
    late = [task.apply_async(queue=second) for _ in range(3)]
    soon = [task.apply_async(queue=first) for _ in range(3)]
    quiet.queue = f"{first},{second}"
    quiet.worker(concurrency=1)
    assert max(result.get(timeout=15) for result in soon) < min(result.get(timeout=15) for result in late)


def test_existing_classic_queue_is_used_as_it_is(quiet: Site, rabbit_server: RabbitServer) -> None:
    with rabbit_server.connect() as connection:
        connection.channel().queue_declare(stream_key(quiet.queue, "n"), durable=True, auto_delete=False)
    result = quiet.app.task(double).delay(2)
    quiet.worker()
    assert result.get(timeout=10) == 4


def test_purge_drops_what_waits_and_what_is_delayed(quiet: Site) -> None:
    task = quiet.app.task(double)
    task.apply_async((1,))
    task.apply_async((1,), priority=4)
    purged = task.apply_async((1,), countdown=1)
    assert quiet.app.broker.purge(quiet.queue) == 3
    quiet.worker()
    assert task.delay(2).get(timeout=10) == 4
    assert purged.state == states.PENDING


def test_status_shows_queues_on_rabbitmq(quiet: Site) -> None:
    task = quiet.app.task(double)
    task.delay(1)
    task.apply_async((1,), countdown=60)
    said = run(quiet, "-b", quiet.broker_url, "--result-backend", quiet.server.url, "status")
    assert said.returncode == 0, said.stderr
    assert f"queue {quiet.queue}: 1 queued, 0 claimed, 1 delayed" in said.stdout


@pytest.mark.parametrize("backend", [None, "memory://"])
def test_rabbitmq_alone_is_not_enough_and_says_what_is_missing(backend: str | None) -> None:
    app = App(broker="amqp://guest:secret@localhost", backend=backend, set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match=r"guest:\*\*\*@.*NBQUEUE_RESULT_BACKEND, to a Redis"):
        app.task(double).delay(1)
    app.close()


def test_canvas_is_refused_before_anything_is_sent_when_a_queue_of_it_can_not_be(quiet: Site) -> None:
    task = quiet.app.task(double)
    with pytest.raises(ImproperlyConfigured, match="so long a name"):
        (task.s(1) | task.s().set(queue="x" * 250)).apply_async()
    assert quiet.app.broker.size(quiet.queue) == QueueSize(0, 0, 0)
