"""What Celery's mailbox may get to hear that isn't Celery's, and servers that go away under it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.end_to_end.test_celery_programs import asked
from tests.workers import Site

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
TOPIC = "/0.celery.pidbox"


def message(body: Any, **fields: Any) -> str:
    envelope = {"body": json.dumps(body), "content-encoding": "utf-8", "content-type": "application/json"}
    properties = {"delivery_tag": "1", "body_encoding": None, "delivery_info": {"exchange": "", "routing_key": ""}}
    return json.dumps({**envelope, "headers": {}, "properties": properties, **fields})


def test_garbage_in_the_mailbox_stops_nothing(idle_site: Site) -> None:
    worker = idle_site.worker(concurrency=1)
    asked(idle_site, "ping")
    idle_site.server_says("SET", "_kombu.binding.bad", "not a set")
    call: dict[str, Any] = {"method": "ping", "arguments": {}, "destination": None}
    for text in (
        "garbage",
        "[]",
        "{}",
        message([1, 2]),
        message({"method": "ping", "arguments": [1]}),
        message({"method": 1}),
        message({**call, "reply_to": "nobody", "ticket": "x"}),
        message({**call, "reply_to": {"exchange": 1, "routing_key": {}}, "ticket": None}),
        message({**call, "reply_to": {"exchange": "bad", "routing_key": "x"}, "ticket": "x"}),
        message({**call, "pattern": "(", "matcher": "pcre"}),
        message({**call, "matcher": "sql", "pattern": "x"}),
        message(call, **{"content-type": "application/x-python-serialize"}),
        message(call, headers={"clock": "late"}),
        message({**call, "method": "__class__"}),
        message({**call, "arguments": {"command": "shutdown", "_state": 1}}),
        message({"method": "shutdown", "arguments": {}, "destination": None}),
        "x" * 2_000_000,
    ):
        idle_site.server_says("PUBLISH", TOPIC, text)
    assert asked(idle_site, "ping") == {worker.name: {"ok": "pong"}}
    assert worker.process.poll() is None
    assert idle_site.app.send_task("tests.project.add", (1, 2)).get(timeout=10) == 3


def test_worker_answers_celery_again_after_its_server_was_away(idle_site: Site) -> None:
    worker = idle_site.worker(concurrency=1)
    assert asked(idle_site, "ping") == {worker.name: {"ok": "pong"}}
    idle_site.server.kill()
    idle_site.server.start()
    assert asked(idle_site, "ping") == {worker.name: {"ok": "pong"}}


@pytest.mark.rabbitmq
@pytest.mark.timeout(180)
@pytest.mark.parametrize("broker_name", ["rabbitmq"], indirect=True, scope="session")
def test_worker_answers_celery_again_after_rabbitmq_has_dropped_its_connections(
    idle_site: Site, rabbit_server: Any
) -> None:
    worker = idle_site.worker(concurrency=1)
    assert asked(idle_site, "ping") == {worker.name: {"ok": "pong"}}
    rabbit_server.evaluate("[rabbit_networking:close_connection(P, <<>>) || P <- rabbit_networking:connections()].")
    assert asked(idle_site, "ping") == {worker.name: {"ok": "pong"}}
