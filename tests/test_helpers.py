from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import redis

from tests.helpers import wait_until

if TYPE_CHECKING:
    from tests.helpers import RedisServer


def test_wait_until_returns_the_value_when_it_turns_true() -> None:
    values = itertools.chain([0, None, ""], itertools.repeat("ready"))
    assert wait_until(lambda: next(values), 5, "a value") == "ready"


def test_wait_until_names_what_it_waited_for_when_time_is_up() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.02 s for the moon; last seen: 0"):
        wait_until(lambda: 0, 0.02, "the moon")


@pytest.mark.parametrize("turn", [1, 2])
def test_shared_server_is_empty_when_a_test_begins(redis_server: RedisServer, turn: int) -> None:
    with redis_server.client() as client:
        assert client.dbsize() == 0
        client.set("left by turn", turn)


@pytest.mark.faults
def test_private_server_keeps_its_data_when_it_is_killed_and_started(private_redis: RedisServer) -> None:
    with private_redis.client() as client:
        client.config_set("appendfsync", "always")
        client.set("key", "value")
    private_redis.kill()
    assert not private_redis.running
    with private_redis.client() as client, pytest.raises(redis.exceptions.ConnectionError):
        client.ping()
    private_redis.start()
    with private_redis.client() as client:
        assert client.get("key") == b"value"


@pytest.mark.faults
def test_private_server_ends_when_it_is_stopped_while_it_hangs(private_redis: RedisServer) -> None:
    private_redis.sigstop()
    private_redis.stop()
    assert not private_redis.running
