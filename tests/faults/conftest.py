"""A server and workers of each test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.helpers import RedisServer
from tests.workers import Site


@pytest.fixture
def site(private_redis: RedisServer, broker_url: Callable[[], str]) -> Iterator[Site]:
    """Yield a server that keeps an append-only file, and an app on it; workers are the test's to start."""
    with Site(private_redis, by_value=False, broker_url=broker_url()) as made:
        yield made
