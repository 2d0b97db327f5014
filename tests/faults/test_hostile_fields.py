"""What whoever can write to the server may put into its streams by hand: refused or mended, and nothing stops."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import pytest

from nbqueue.deliveries import CONTROL
from tests.faults.test_messages import genuine, still_works
from tests.faults.test_processes import runs
from tests.hand import Field, put, take
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(60)]

NUMBERS: Final = ("", "x", "nan", "inf", "-inf", "1e400", "1e300", "0x10", "-5", "1.5", "99999999999999999999", "\0")


def queue_is_empty(site: Site) -> bool:
    size = site.app.broker.size("nbqueue")
    return (size.queued, size.claimed, size.delayed) == (0, 0, 0)


@pytest.mark.parametrize("idle", [True, False], ids=["idle worker", "busy queue"])
def test_counters_that_are_no_numbers_stop_nothing(site: Site, tmp_path: Path, idle: bool) -> None:
    message = genuine(site, tmp_path, "genuine")
    take(site)
    if idle:
        site.worker()
    garbage: dict[str, Field] = {"i": "garbage", "h": "x", "b": ""}
    genuine_one: dict[str, Field] = {"i": message.id, "h": message.header, "b": message.body}
    put(site, [{**one, field: n} for field in ("a", "c", "w") for n in NUMBERS for one in (garbage, genuine_one)])
    if not idle:
        site.worker()
    assert still_works(site)
    wait_until(lambda: queue_is_empty(site), 15, "the queue to be empty")
    assert runs(tmp_path)["genuine"] <= 1
    assert site.workers[0].process.poll() is None


def test_task_whose_counters_were_spoilt_is_given_back_and_runs(site: Site, tmp_path: Path) -> None:
    result = site.app.send_task("tests.project.deadly", (str(tmp_path), "tough", 2))
    (fields,) = take(site)
    put(site, [{**fields, "a": "x", "c": "nan", "w": "1e300"}])
    site.worker()
    assert result.get(timeout=15) == "tough"
    assert runs(tmp_path)["tough"] == 3


def test_delayed_message_that_is_garbage_stops_no_other(site: Site, tmp_path: Path) -> None:
    good = site.app.send_task("tests.project.note", (str(tmp_path), "good"), countdown=0.5)
    for number, packed in enumerate((b"", b"\xc1", b"\x01", b"\x90", b"\x92\x01\x02", b"\x93\xa1a\xa1b\xa1c")):
        site.streams.client.hset("nbq:{nbqueue}:bodies", f"bad{number}", packed)
        site.streams.client.zadd("nbq:{nbqueue}:delayed", {f"bad{number}": 1})
    site.streams.client.zadd("nbq:{nbqueue}:delayed", {"without a body": 1})
    site.worker()
    assert good.get(timeout=15) == "good"
    wait_until(lambda: queue_is_empty(site), 10, "the queue to be empty")


def test_ids_that_are_no_text_leave_nothing_claimed(site: Site) -> None:
    site.worker()
    ids = (b"\xff\xfe", b"", b"\0", b"a" * 100_000, b"{nbqueue}:n", "ä".encode("latin-1"))
    put(site, [{"i": id_, "h": b"garbage", "b": bytes([number])} for number, id_ in enumerate(ids)])
    put(site, [{"i": "a", "j": "b", "h": b"\xff", "x" * 100: "y"}])
    assert still_works(site)
    wait_until(lambda: queue_is_empty(site), 10, "nothing to be left, queued or claimed")


def test_garbage_in_the_control_stream_is_passed_over(site: Site) -> None:
    worker = site.worker()
    client = site.streams.client
    client.xadd(CONTROL, {"x": "y"})
    for text in (b"", b"\xff", b"1.2.3.4", b"{}", b"x" * 100_000):
        client.xadd(CONTROL, {"o": text})
    orders: list[object] = [
        {},
        [],
        {"order": 1},
        {"order": "revoke", "at": "now"},
        {"order": "revoke", "ids": {"a": 1}},
    ]
    for order in (*orders, None):
        client.xadd(CONTROL, {"o": site.app.signer.sign("control", msgspec.json.encode(order))})
    assert still_works(site)
    result = site.app.send_task("tests.project.note", (str(site.server.directory), "long", 30.0))
    wait_until(lambda: result.state == "STARTED", 10, "it to run")
    result.revoke(terminate=True)
    wait_until(result.ready, 10, "orders to be followed still")
    assert worker.process.poll() is None


def test_garbage_in_a_session_does_not_stop_its_watcher(site: Site) -> None:
    site.worker()
    client = site.streams.client
    session = f"nbq:session:{site.app.session}"
    result = site.app.send_task("tests.project.add", (1, 2), countdown=1.0)
    client.xadd(session, {"x": "y"})
    for text in (b"", b"\xff", b"[", b"{}", b"[1]", b'[{"nbq": 1}]', b'[{"nbq": "1.2.3.{}", "body": "%%%"}]', b"[[]]"):
        client.xadd(session, {"f": text})
    client.hset("nbq:workers", mapping={"x": "garbage", "y": '{"at": 1e300, "nbq": "."}', b"\xff": b"\xff"})
    client.set(f"celery-task-meta-{result.id}-0", b"\xff")
    site.app.watcher.check_soon()
    assert result.get(timeout=10) == 3
    assert still_works(site)
