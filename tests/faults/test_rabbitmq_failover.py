"""Several addresses of one RabbitMQ: clients and workers go on with the next that answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nbqueue import App, doctor
from nbqueue.amqp import Nodes, cluster_of
from nbqueue.deliveries import QueueSize
from nbqueue.exceptions import SendFailed
from tests.faults.test_processes import runs
from tests.helpers import RedisServer, wait_until
from tests.proxy import Proxy
from tests.rabbit import RabbitServer
from tests.workers import Site, Worker

pytestmark = [pytest.mark.rabbitmq, pytest.mark.faults, pytest.mark.timeout(120)]

NOBODY = "amqp://guest:secret@127.0.0.1:1//"  # where nothing listens


@pytest.fixture
def site(rabbit_server: RabbitServer, redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Site]:
    """Yield an app with a queue of the test's own; workers are the test's to start."""
    queue = request.node.name[:60]
    with Site(redis_server, by_value=False, broker_url=rabbit_server.url, queue=queue) as made:
        yield made


@contextlib.contextmanager
def listed(site: Site, broker: str) -> Iterator[tuple[App, Worker]]:
    """Yield an app and a worker that reach RabbitMQ by these addresses only."""
    worker = site.worker("-B", NBQUEUE_BROKER_URL=broker)
    app = site.new_app(by_value=False, urls=(broker, site.server.url))
    with app:
        yield app, worker


def through(proxy: Proxy) -> str:
    return f"amqp://guest:guest@127.0.0.1:{proxy.port}//"


def way_to(site: Site) -> Proxy:
    parts = urlsplit(site.broker_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Proxy((parts.hostname, parts.port))


def test_node_that_refuses_is_passed_over_by_clients_workers_beat_and_monitors(site: Site, tmp_path: Path) -> None:
    with listed(site, f"{NOBODY};{site.broker_url}") as (app, worker):
        app.conf.task_publish_retry = False
        results = [app.send_task("tests.project.note", (str(tmp_path), f"n{n}")) for n in range(10)]
        assert [result.get(timeout=20) for result in results] == [f"n{n}" for n in range(10)]
        assert app.broker.size(site.queue) == QueueSize(0, 0, 0)
        app.beat.add("often", 0.5, app.signature("tests.project.note", (str(tmp_path), "beat")))
        wait_until(lambda: runs(tmp_path)["beat"] >= 2, 20, "beat to fire")
        app.beat.delete("often")
        assert worker.name in app.control.ping()[0]
        with app.connection() as connection:
            connection.ensure_connection(max_retries=1)
            assert connection.connected
        stats = app.control.inspect().stats()[worker.name]["broker"]
        assert stats["alternates"] == ["amqp://guest:***@127.0.0.1:" + site.broker_url.rpartition(":")[2]]
    assert "secret" not in worker.log.read_text()
    assert "the next node is tried" in worker.log.read_text()


def test_connection_that_breaks_is_followed_by_one_to_the_next_node_though_the_first_answers_again(site: Site) -> None:
    with (
        way_to(site) as first,
        way_to(site) as second,
        listed(site, f"{through(first)};{through(second)}") as (app, worker),
    ):
        add = app.signature("tests.project.add", (1, 2))
        assert add.delay().get(timeout=20) == 3
        assert second.passed["up"] == 0
        first.cut()
        assert add.delay().get(timeout=20) == 3
        used = f"127.0.0.1:{second.port}// is used from now on"
        wait_until(lambda: used in worker.log.read_text(), 10, "the worker to use the second")
        before = first.passed["up"]
        assert add.delay().get(timeout=20) == 3
        assert first.passed["up"] == before


def test_no_node_answers_and_all_are_named_without_their_passwords(site: Site) -> None:
    app = site.new_app(urls=(f"{NOBODY};amqp://me:hunter2@127.0.0.1:2//", site.server.url))
    app.conf.task_publish_retry = False
    with app, pytest.raises(SendFailed) as caught:
        app.send_task("tests.project.add", (1, 2))
    assert "amqp://guest:***@127.0.0.1:1//;amqp://me:***@127.0.0.1:2// can't be used" in str(caught.value)


@pytest.mark.parametrize(
    ("fail", "recover"),
    [
        (Proxy.refuse, Proxy.accept),
        (lambda proxy: proxy.hold("up", "down"), Proxy.release),
    ],
    ids=["refuses", "is silent"],
)
def test_nothing_is_lost_or_runs_twice_when_a_node_fails_while_calls_and_tasks_run(
    site: Site, tmp_path: Path, fail: Callable[[Proxy], None], recover: Callable[[Proxy], None]
) -> None:
    """One node after the other fails, in the middle of calls, tasks and their ends; the first comes back before."""
    names = [f"n{n}" for n in range(400)]
    with contextlib.ExitStack() as stack:
        first, second = way_to(site), way_to(site)
        for proxy in (first, second):
            stack.enter_context(proxy)
        app, worker = stack.enter_context(listed(site, f"{through(first)};{through(second)}"))
        long = [app.send_task("tests.project.note", (str(tmp_path), f"long{n}", 4.0)) for n in range(2)]
        wait_until(lambda: len(runs(tmp_path)) == 2, 20, "two to run")
        results = []
        go_on = threading.Event()

        def call() -> None:
            for name in names:
                results.append(app.send_task("tests.project.note", (str(tmp_path), name), priority=3))
                if len(results) == 300:
                    go_on.wait(60)

        caller = threading.Thread(target=call)
        caller.start()
        wait_until(lambda: len(results) > 50, 30, "calls")
        fail(first)
        wait_until(lambda: second.passed["up"] > 20_000, 60, "both to use the second")
        wait_until(lambda: len(runs(tmp_path)) > 200, 60, "tasks to run on")
        recover(first)
        fail(second)
        go_on.set()
        caller.join(60)
        assert not caller.is_alive()
        values = [result.get(timeout=60) for result in (*long, *results)]
        assert values == ["long0", "long1", *names]
        assert set(runs(tmp_path).values()) == {1}
        recover(second)
        wait_until(lambda: site.app.broker.size(site.queue) == QueueSize(0, 0, 0), 30, "copies to be dropped")
        for proxy in (first, second):
            assert f"127.0.0.1:{proxy.port}// is used from now on" in worker.log.read_text()


def test_servers_that_are_no_cluster_are_not_used_one_for_the_other_and_the_doctor_says_so(
    site: Site, rabbit_server: RabbitServer
) -> None:
    with RabbitServer() as stranger:
        nodes = Nodes(f"{rabbit_server.url};{stranger.url}")
        with nodes.connect(name="test") as connection:
            cluster = cluster_of(connection)
        nodes.failed()
        with nodes.connect(name="test") as connection:
            assert cluster_of(connection) == cluster, "the next is passed over"
        with site.new_app(urls=(f"{rabbit_server.url};{stranger.url}", site.server.url)) as app:
            found = list(doctor.examine(app))
    (wrong,) = [finding for finding in found if finding.level == "broken"]
    assert "different clusters, which don't share their queues" in wrong.text


def test_doctor_and_report_look_at_each_node(site: Site) -> None:
    with site.new_app(urls=(f"{NOBODY};{site.broker_url}", site.server.url)) as app:
        found = list(doctor.examine(app))
        report = app.bugreport()
    assert not [finding for finding in found if finding.level == "broken"]
    (away,) = [finding for finding in found if "another node takes its place" in finding.text]
    assert away.text.startswith("amqp://guest:***@127.0.0.1:1// can't be used")
    assert f"amqp://guest:***@127.0.0.1:1//;amqp://guest:***@{site.broker_url.rpartition('@')[2]}" in report
    with site.new_app(urls=(f"{NOBODY};amqp://guest:secret@127.0.0.1:2//", site.server.url)) as app:
        (wrong,) = [finding for finding in doctor.examine(app) if finding.level == "broken"]
    assert "none of 2 nodes answers" in wrong.text
    assert "secret" not in report + wrong.text


def test_monitor_verifies_the_certificate_of_the_node_that_it_goes_on_with(
    site: Site, rabbit_server: RabbitServer
) -> None:
    nodes = ["amqps://guest:guest@127.0.0.2:1//", f"amqps://guest:guest@localhost:{rabbit_server.tls_port}//"]
    with App("test", broker=nodes, backend=site.server.url, set_as_current=False) as app:
        app.conf.broker_use_ssl = {"ca_certs": str(rabbit_server.certificate)}
        with app.connection() as connection:
            connection.ensure_connection(max_retries=1)
            assert connection.connected
        with app.connection().clone() as connection:
            connection.ensure_connection(max_retries=1)
            assert connection.connected
