"""Records that expire, are evicted, moved or overwritten: every wait says so, and none goes on for ever."""

from __future__ import annotations

import signal
import time
import uuid

import pytest

from nbqueue import states
from nbqueue.deliveries import LIVE_S, RECORDS
from nbqueue.exceptions import BadMessage, ResultExpired, UnknownTask
from tests.faults.test_messages import still_works
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(60)]

DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbqueue.watcher.CHECK_S", 0.1)
    monkeypatch.setattr("nbqueue.watcher.BLOCK_S", 0.05)
    monkeypatch.setattr("nbqueue.watcher.EXPLAIN_S", 0.0)


def double(x: int) -> int:
    return 2 * x


def kept_s(site: Site, key: str) -> float:
    with site.server.client() as client:
        return float(client.pttl(key)) / 1000


def test_wait_for_a_task_ends_when_the_server_has_dropped_its_record(site: Site) -> None:
    result = site.app.send_task("tests.project.add", (1, 2))
    with site.server.client() as client:
        client.delete(RECORDS + result.id)
    with pytest.raises(ResultExpired, match="nothing is kept of task"):
        result.get(timeout=20)
    with site.new_app() as other, pytest.raises(UnknownTask):
        other.AsyncResult(result.id).get(timeout=20)


def test_results_of_a_map_that_are_gone_are_told_to_whoever_asks_for_them(site: Site) -> None:
    site.worker()
    results = site.app.task(double, by_value=True).map(range(4))
    assert results.get(timeout=20) == [0, 2, 4, 6]
    with site.server.client() as client:
        client.delete(f"{RECORDS}{results.id}-1")
    with site.new_app() as other:
        again = other.GroupResult(results.id)
        with pytest.raises(ResultExpired, match="1 of the 4 results"):
            again.get(timeout=20)
        assert again[2].get(timeout=5) == 4
    with site.new_app() as other:
        with pytest.raises(ResultExpired):
            other.AsyncResult(f"{results.id}-1").get(timeout=20)
        with pytest.raises(ResultExpired):
            list(other.GroupResult(results.id).as_completed(timeout=20))


def test_result_that_was_moved_to_another_id_is_refused(site: Site) -> None:
    site.worker()
    theirs, mine = (site.app.send_task("tests.project.add", (1, n)) for n in range(2))
    assert (theirs.get(timeout=20), mine.get(timeout=20)) == (1, 2)
    with site.server.client() as client:
        client.set(RECORDS + mine.id, client.get(RECORDS + theirs.id))
    with site.new_app() as other, pytest.raises(BadMessage, match="place"):
        other.AsyncResult(mine.id).get(timeout=20)


def test_result_that_was_moved_to_another_task_in_its_session_is_not_believed(site: Site) -> None:
    worker = site.worker()
    theirs = site.app.send_task("tests.project.add", (1, 2))
    assert theirs.get(timeout=20) == 3
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    mine = site.app.send_task("tests.project.add", (3, 4))
    with site.server.client() as client:
        moved = (client.get(RECORDS + theirs.id) or b"").replace(f'"{theirs.id}"'.encode(), f'"{mine.id}"'.encode(), 1)
        assert mine.id.encode() in moved
        client.xadd(f"nbq:session:{site.app.session}", {"f": b"[" + moved + b"]"})
        client.set(RECORDS + mine.id, moved)
    with mine.watched.subscribing():
        wait_until(lambda: "can't be believed" in mine.watched.note, 20, "the refusal")
    site.worker()
    assert mine.get(timeout=20) == 7


@pytest.mark.parametrize("where", ["in its record", "in its session"])
def test_older_result_of_the_same_id_is_not_believed(site: Site, where: str) -> None:
    worker = site.worker()
    assert site.app.send_task("tests.project.add", (1, 2), task_id="daily").get(timeout=20) == 3
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    with site.server.client() as client:
        older = client.get(RECORDS + "daily") or b""
        newer = site.app.send_task("tests.project.add", (3, 4), task_id="daily")
        waits = client.get(RECORDS + "daily") or b""
        client.xadd(f"nbq:session:{site.app.session}", {"f": b"[" + older + b"]"})
        if where == "in its record":
            client.set(RECORDS + "daily", older)
            with newer.watched.subscribing():
                wait_until(lambda: "earlier" in newer.watched.note, 20, "the refusal")
            client.set(RECORDS + "daily", waits)
    site.worker()
    assert newer.get(timeout=20) == 7


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_waits_end_when_the_server_evicts_what_it_holds(site: Site, policy: str) -> None:
    sent = [site.app.send_task("tests.project.add", (1, n)) for n in range(20)]
    site.app.backend.now()  # all connections that the test needs are there
    with site.server.client() as client:
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + (1 << 20))

        def evicted() -> bool:
            with client.pipeline(transaction=False) as pipe:
                for _ in range(100):
                    pipe.set(f"filler-{uuid.uuid4()}", bytes(10_000))
                pipe.execute()
            return not client.exists(*(RECORDS + result.id for result in sent))

        wait_until(evicted, 20, "the records to be evicted")
        assert client.info("stats")["evicted_keys"] > 20
        for result in sent:
            with pytest.raises(ResultExpired, match="the server dropped it"):
                result.get(timeout=20)
        with site.new_app() as other, pytest.raises(UnknownTask):
            other.AsyncResult(sent[0].id).get(timeout=20)
        client.config_set("maxmemory", 0)
    site.worker()
    assert still_works(site)


def test_wait_says_that_a_record_was_forged_and_ends_when_the_task_does(site: Site) -> None:
    result = site.app.send_task("tests.project.add", (1, 2))
    with site.server.client() as client:
        client.set(RECORDS + result.id, b'{"task_id":"x","status":"SUCCESS","nbq":"1.2.3.{}"}')
    with result.watched.subscribing():
        wait_until(lambda: "can't be believed" in result.watched.note, 20, "the reason")
    site.worker()
    assert result.get(timeout=20) == 3


def test_what_is_known_of_a_task_outlives_its_wait_and_its_run_however_soon_results_expire(site: Site) -> None:
    site.app.conf.result_expires = 60
    task = site.app.task(double, by_value=True)
    waits, later, group = task.delay(1), task.apply_async((1,), countdown=40 * DAY_S), task.map(range(2))
    assert kept_s(site, RECORDS + waits.id) > LIVE_S - 60
    assert kept_s(site, RECORDS + later.id) > LIVE_S + 40 * DAY_S - 60
    assert kept_s(site, f"nbq:group:{group.id}") > LIVE_S - 60
    running = site.app.send_task("tests.project.note", (str(site.server.directory), "n", 30.0), priority=9)
    site.worker(concurrency=1)
    wait_until(lambda: running.state == states.STARTED, 20, "it to run")
    assert kept_s(site, RECORDS + running.id) > LIVE_S - 60
    began = time.monotonic()
    running.revoke(terminate=True)
    assert group.get(timeout=20) == [0, 2]
    assert kept_s(site, f"{RECORDS}{group.id}-1") > 60, "as the worker's settings say"
    assert time.monotonic() - began < 20
