"""Exchanges, broadcasts and workers' own queues, on Redis and on RabbitMQ."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from nbqueue import App, group
from nbqueue.broker import ServerBroker
from nbqueue.exceptions import ImproperlyConfigured, SendFailed
from nbqueue.execute import BoundTask
from tests.helpers import wait_until
from tests.workers import Site, Worker

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(60)]


def encode(self: BoundTask) -> str:
    return self.request.queue


def reload(self: BoundTask, folder: str) -> str:
    (Path(folder) / f"{self.request.queue.replace('/', ' ')}.{time.time_ns()}").touch()
    return str(self.request.queue)


@pytest.fixture
def bound(idle_site: Site) -> App:
    idle_site.app.config_from_object("tests.bound")
    return idle_site.app


def worker(site: Site, *options: str) -> Worker:
    return site.worker(*options, concurrency=1, CELERY_CONFIG_MODULE="tests.bound")


def test_key_leads_to_the_queue_that_is_bound_for_it(idle_site: Site, bound: App) -> None:
    worker(idle_site)
    task = bound.task(encode, bind=True)
    assert task.delay().get(timeout=20) == "video"
    assert task.apply_async(exchange="media", routing_key="media.audio.mp3").get(timeout=20) == "audio"
    assert task.apply_async(routing_key="media.audio").get(timeout=20) == "audio"
    with pytest.raises(ImproperlyConfigured, match="no queue is bound to exchange 'media'"):
        task.apply_async(exchange="media", routing_key="text")


def test_fanout_sends_a_copy_to_each_queue(idle_site: Site, bound: App, tmp_path: Path) -> None:
    sent = bound.task(reload, bind=True).apply_async((str(tmp_path),), exchange="news", task_id="mine")
    assert sent.id == "mine"
    assert [bound.broker.size(queue).queued for queue in ("paper", "radio")] == [1, 1]
    worker(idle_site)
    assert sent.get(timeout=20) == "paper"
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 10, "the other copy to run")


def test_what_can_not_be_copied_is_refused(bound: App) -> None:
    task = bound.task(encode, bind=True, queue="everybody")
    with pytest.raises(ImproperlyConfigured, match="a map can't go to several queues at once"):
        task.map([1])
    with pytest.raises(ImproperlyConfigured, match="a canvas can't go to several queues at once"):
        group(task.s(), task.s())()
    with pytest.raises(ImproperlyConfigured, match="an entry of the schedule can't go to several queues at once"):
        bound.beat.add("often", 3600.0, task.s())
    bound.beat.close()


def test_broadcast_runs_once_in_every_worker_that_listens(idle_site: Site, bound: App, tmp_path: Path) -> None:
    task = bound.task(reload, bind=True)
    with pytest.raises(SendFailed, match="no worker listens to the broadcast 'everybody'"):
        task.delay(str(tmp_path))
    first, second, deaf = worker(idle_site), worker(idle_site, "-Q", "everybody"), worker(idle_site, "-Q", "video")
    assert task.delay(str(tmp_path)).get(timeout=20).startswith("everybody/")
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 10, "both to have run it")
    ran = {path.name.rpartition(".")[0] for path in tmp_path.iterdir()}
    assert ran == {f"everybody {first.name}.dq", f"everybody {second.name}.dq"}
    assert deaf.process.poll() is None
    # A worker of all queues takes none of what is meant for another.
    everything = idle_site.worker("--all-queues", concurrency=1)
    offer = next(offer for offer, _ in bound.offers() if offer.name == everything.name)
    assert not [queue for queue in offer.queues if queue.startswith("everybody")]
    second.signal(signal.SIGTERM)
    assert second.wait() == 0
    assert isinstance(bound.broker, ServerBroker)
    assert f"everybody/{second.name}.dq" not in bound.broker.queues()
    assert f"everybody/{first.name}.dq" in bound.broker.queues()


def test_worker_has_a_queue_of_its_own(idle_site: Site, bound: App) -> None:
    one, other = worker(idle_site), worker(idle_site)
    task = bound.task(encode, bind=True, name="where")
    for target in (one, other, one):
        assert task.apply_async(queue=f"{target.name}.dq").get(timeout=20) == f"{target.name}.dq"
