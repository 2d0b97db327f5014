"""One server and one worker that the quick tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers import RedisServer
from tests.workers import Site


@pytest.fixture(scope="session")
def shared_site() -> Iterator[Site]:
    """Yield a server with a worker of two children, for tests that stop neither."""
    with RedisServer() as server, Site(server) as site:
        site.worker()
        yield site


@pytest.fixture
def idle_site() -> Iterator[Site]:
    """Yield a server of the test's own, without workers."""
    with RedisServer(appendonly=True) as server, Site(server) as site:
        yield site
