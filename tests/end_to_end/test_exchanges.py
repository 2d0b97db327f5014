"""Exchanges, broadcasts and workers' own queues, on Redis and on RabbitMQ."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from nbqueue import App, chord, group
from nbqueue.broker import ServerBroker
from nbqueue.exceptions import ImproperlyConfigured, SendFailed
from nbqueue.execute import BoundTask
from nbqueue.periodic import configured
from tests.helpers import wait_until
from tests.workers import Site, Worker

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(60)]


def encode(self: BoundTask) -> str:
    return self.request.queue


def reload(self: BoundTask, folder: str) -> str:
    (Path(folder) / f"{self.request.queue.replace('/', ' ')}.{time.time_ns()}").touch()
    return str(self.request.queue)


def values(found: object) -> object:
    return found


def fails() -> None:
    raise ValueError("it fails")


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


def ran(folder: Path) -> Counter[str]:
    """Return how often each queue's worker has run what leaves a file there."""
    return Counter(path.name.rpartition(".")[0] for path in folder.iterdir())


def test_map_is_sent_to_each_queue_as_a_whole(idle_site: Site, bound: App, tmp_path: Path) -> None:
    task = bound.task(reload, bind=True)
    with pytest.raises(SendFailed, match="no worker listens to the broadcast 'everybody'"):
        task.map([str(tmp_path)])
    workers = [worker(idle_site), worker(idle_site, "-Q", "everybody")]
    sent = task.map([str(tmp_path)] * 3)
    (queue,) = set(sent.get(timeout=20))
    assert queue in {f"everybody/{one.name}.dq" for one in workers}
    expected = {f"everybody {one.name}.dq": 3 for one in workers}
    wait_until(lambda: ran(tmp_path) == expected, 10, "both to have run all of it")


def test_first_copy_of_a_call_counts_in_a_canvas(idle_site: Site, bound: App, tmp_path: Path) -> None:
    task, where = bound.task(reload, bind=True), bound.task(encode, bind=True)
    listen = [worker(idle_site), worker(idle_site)]
    everybody = {f"everybody {one.name}.dq": 1 for one in listen}
    header = [task.si(str(tmp_path)), where.si()]
    body = chord(header)(bound.task(values, name="values").s())
    first, other = body.get(timeout=20)
    assert (first.replace("/", " ") in everybody, other) == (True, "video")
    wait_until(lambda: ran(tmp_path) == everybody, 10, "each worker to have run it")
    assert [call.id for call in header] == [None, None]
    # What is known beforehand may come later too; what follows it follows once.
    folder = tmp_path / "news"
    folder.mkdir()
    last = (where.si() | task.si(str(folder)).set(exchange="news") | bound.task(values, name="values").s()).delay()
    assert last.get(timeout=20) == "paper"
    wait_until(lambda: ran(folder) == {"paper": 1, "radio": 1}, 10, "the other copy to run")
    errors = tmp_path / "errors"
    errors.mkdir()
    errback = task.si(str(errors)).set(exchange="news")
    bound.task(fails).apply_async(link_error=errback)
    wait_until(lambda: ran(errors) == {"paper": 1, "radio": 1}, 10, "both errbacks")


def test_broadcast_that_is_sent_later_is_refused(bound: App) -> None:
    task, where = bound.task(reload, bind=True), bound.task(encode, bind=True)
    for canvas in (where.s() | task.s(), chord([where.s(), where.s()], task.s())):
        with pytest.raises(ImproperlyConfigured, match="goes to the broadcast 'everybody', which only the first calls"):
            canvas.apply_async()
    with pytest.raises(ImproperlyConfigured, match="who listens later isn't known yet; send it from within a task"):
        bound.beat.add("often", 3600.0, group(task.s("x"), where.s()))
    bound.beat.close()


def test_entry_of_the_schedule_is_for_every_worker_that_listens(idle_site: Site, bound: App, tmp_path: Path) -> None:
    """As in Celery's user guide: an entry whose options name an exchange that a broadcast is bound to."""
    bound.conf.beat_schedule = {
        "news": {
            "task": bound.task(reload, bind=True, name="reload"),
            "schedule": 3600.0,
            "args": (str(tmp_path),),
            "options": {"exchange": "everybody"},
        }
    }
    bound.beat.sync(configured(bound), "tests")
    with pytest.raises(SendFailed, match="no worker listens to the broadcast 'everybody'"):
        bound.beat.run_now("news")
    listen = [worker(idle_site), worker(idle_site, "-Q", "everybody"), worker(idle_site, "-Q", "video")]
    id_ = bound.beat.run_now("news")
    assert bound.AsyncResult(id_).get(timeout=20).startswith("everybody/")
    expected = {f"everybody {one.name}.dq": 1 for one in listen[:2]}
    wait_until(lambda: ran(tmp_path) == expected, 10, "both to have run it")
    several = tmp_path / "several"
    several.mkdir()
    bound.beat.add("copies", 3600.0, bound.task(reload, bind=True).s(str(several)).set(exchange="news"))
    bound.beat.run_now("copies")
    wait_until(lambda: ran(several) == {"paper": 1, "radio": 1}, 10, "both copies to run")


def test_broadcast_runs_once_in_every_worker_that_listens(idle_site: Site, bound: App, tmp_path: Path) -> None:
    task = bound.task(reload, bind=True)
    with pytest.raises(SendFailed, match="no worker listens to the broadcast 'everybody'"):
        task.delay(str(tmp_path))
    first, second, deaf = worker(idle_site), worker(idle_site, "-Q", "everybody"), worker(idle_site, "-Q", "video")
    assert task.delay(str(tmp_path)).get(timeout=20).startswith("everybody/")
    expected = {f"everybody {one.name}.dq": 1 for one in (first, second)}
    wait_until(lambda: ran(tmp_path) == expected, 10, "both to have run it")
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
