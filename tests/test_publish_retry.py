"""Calls that are made while the server is away: tried again as their policy says."""

from __future__ import annotations

import threading
import time

import pytest

from nbqueue.exceptions import SendFailed
from tests.helpers import RedisServer, wait_until
from tests.workers import Site

QUICK = {"interval_start": 0.05, "interval_step": 0.0, "interval_max": 0.05}


def add(x: int, y: int) -> int:
    return x + y


def test_call_is_tried_again_for_as_long_as_its_policy_says(private_redis: RedisServer) -> None:
    with Site(private_redis) as site:
        task = site.app.task(add)
        assert site.app.broker.size("nbqueue").queued == 0
        task.delay(0, 0)
        private_redis.stop()
        for options in ({"retry": False}, {"retry_policy": {**QUICK, "max_retries": 2}}):
            with pytest.raises(SendFailed):
                task.apply_async((1, 2), **options)
        sent: list[str] = []
        thread = threading.Thread(
            target=lambda: sent.append(
                task.apply_async((1, 2), retry_policy={**QUICK, "max_retries": None}, task_id="kept trying").id
            )
        )
        thread.start()
        since = time.monotonic()
        wait_until(lambda: time.monotonic() - since > 0.5, 5, "some tries in vain")
        assert (thread.is_alive(), sent) == (True, [])
        private_redis.start()
        thread.join(20)
        assert sent == ["kept trying"]
        assert site.app.broker.size("nbqueue").queued == 2


def test_error_that_a_call_could_not_be_sent_is_found_on_its_task(private_redis: RedisServer) -> None:
    with Site(private_redis) as site:
        task = site.app.task(add)
        private_redis.stop()
        with pytest.raises(task.OperationalError):
            task.apply_async((1, 2), retry=False)
