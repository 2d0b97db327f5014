"""Which worker runs what, and in which order."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nbqueue.execute import BoundTask
from tests.end_to_end.test_cli import run
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = pytest.mark.brokers


def note(folder: str, name: str) -> str:
    with (Path(folder) / "order").open("a") as file:
        file.write(name + " ")
    time.sleep(0.01)
    return name


def hold(folder: str) -> None:
    (Path(folder) / "held").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)


def where(self: BoundTask) -> str:
    return self.request.queue


def test_higher_priority_runs_first(idle_site: Site, tmp_path: Path) -> None:
    task = idle_site.app.task(note)
    idle_site.worker(concurrency=1)
    for level in (3, 9, 5, 7):  # on RabbitMQ one that is used for the first time is seen within half a second
        idle_site.app.task(where, bind=True).apply_async(priority=level).get(timeout=20)
    idle_site.app.task(hold).delay(str(tmp_path))
    wait_until((tmp_path / "held").exists, 10, "the child to be busy")
    sent = [task.apply_async((str(tmp_path), f"p{level}"), priority=level) for level in (0, 3, 9, 5)]
    high = task.starmap([(str(tmp_path), f"m{n}") for n in range(2)], priority=7)
    (tmp_path / "go").touch()
    for result in sent:
        result.get(timeout=20)
    high.get(timeout=20)
    assert (tmp_path / "order").read_text().split() == ["p9", "m0", "m1", "p5", "p3", "p0"]


def test_idle_worker_runs_the_first_message_of_a_priority(shared_site: Site) -> None:
    task = shared_site.app.task(where, bind=True)
    assert task.apply_async(priority=4).get(timeout=10) == "nbqueue"
    assert task.apply_async(priority=4, countdown=0.1).get(timeout=10) == "nbqueue"


def test_worker_runs_what_is_in_its_queues_and_not_in_the_excluded(idle_site: Site) -> None:
    app = idle_site.app
    app.conf.task_routes = {"tests.*.where": {"queue": "c"}}
    task = app.task(where, bind=True)
    idle_site.worker("-Q", "a,b,c", "-X", "c")
    routed = task.delay()
    assert task.apply_async(queue="a").get(timeout=20) == "a"
    assert app.task(where, bind=True, queue="b", name="other").delay().get(timeout=20) == "b"
    assert not routed.ready()
    assert idle_site.app.broker.size("c").queued == 1
    idle_site.worker("--all-queues", "-X", "a")
    assert routed.get(timeout=20) == "c"


def test_worker_without_queues_says_so(idle_site: Site) -> None:
    said = run(idle_site, "-b", idle_site.server.url, "worker", "-Q", "a", "-X", "a")
    assert said.returncode == 1
    assert "no queue is left to listen to" in said.stderr


@pytest.mark.parametrize("option", ["-Q", "-X"])
def test_queues_are_named_with_commas_and_spaces(idle_site: Site, option: str) -> None:
    words = ("-Q", "a, b") if option == "-Q" else ("-Q", "a,b,c", "-X", " c ,")
    worker = idle_site.worker(*words, concurrency=1)
    wait_until(lambda: "queues a, b\n" in worker.log.read_text(), 10, "the worker to name its queues")


def test_worker_asks_now_and_then_where_very_many_wait_already(idle_site: Site) -> None:
    # another has the count, and does not look again
    idle_site.server_says("SET", "nbq:{nbqueue}:sweeper", "another")
    idle_site.server_says("SET", "nbq:{nbqueue}:listeners", "999999")
    worker = idle_site.worker()
    looks = 0

    def waits_no_more() -> bool:
        nonlocal looks
        with idle_site.server.client(decode_responses=True) as client:
            lines = client.client_list()
        waits = any(line["cmd"].startswith("xreadgroup") and "b" in line["flags"] for line in lines)
        looks = 0 if waits else looks + 1
        return looks > 30  # one that waits pauses for a moment only

    wait_until(waits_no_more, 20, "it to wait no more")
    for number in range(5):
        assert idle_site.app.send_task("tests.project.add", (number, 1)).get(timeout=10) == number + 1
    assert worker.process.poll() is None
