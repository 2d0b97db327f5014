"""Fixtures, and which tests are left out or must not be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.environment import chromium_binary, rabbitmq_binary
from tests.helpers import RedisServer
from tests.rabbit import RabbitServer
from tests.workers import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# Modules of workers, which change the process that imports them: for doctests pytest would.
collect_ignore = ["sends_sent_events.py", "signalled.py"]

# marker -> what its tests need, how to find it
PROGRAMS: Final[dict[str, tuple[str, Callable[[], str | None]]]] = {
    "browser": ("chromium", chromium_binary),
    "rabbitmq": ("rabbitmq-server", rabbitmq_binary),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--all`."""
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `brokers` once on each."""
    if "broker_name" in metafunc.fixturenames and metafunc.definition.get_closest_marker("brokers"):
        rabbitmq = pytest.param("rabbitmq", marks=[pytest.mark.rabbitmq, pytest.mark.timeout(180)])
        # Through the fixture: another in its place would leave the site of RabbitMQ to tests that aren't marked.
        metafunc.parametrize("broker_name", ["redis", rabbitmq], indirect=True, scope="session")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give the tests that share a browser, or RabbitMQ, to few processes, and every other to whichever is free."""
    from xdist.scheduler import LoadScopeScheduling

    class ByProgram(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            if "rabbitmq" in nodeid or "amqp" in nodeid:
                # Two processes, each with a node of its own: in one they would be what the whole run waits for.
                module = nodeid.partition("::")[0].rpartition("/")[2]
                return "rabbitmq, first half" if module < "test_m" else "rabbitmq, second half"
            return "browser" if "browser" in nodeid else nodeid

    return ByProgram(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out, unless they are asked for with --all or with -m; keep those of the browser together."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
    if config.getoption("--all") or config.getoption("-m"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose program is not installed; in CI that is an error, so that nothing stays untested unseen."""
    for marker, (program, find) in PROGRAMS.items():
        if item.get_closest_marker(marker) and not find():
            if os.environ.get("CI"):
                pytest.fail(f"{program} is not installed, and CI runs every test", pytrace=False)
            pytest.skip(f"{program} is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show beside a failure what the test's workers have logged: their files go with their server."""
    report = yield
    if report.failed and report.when == "call":
        for value in getattr(item, "funcargs", {}).values():
            for worker in value.workers if isinstance(value, Site) else ():
                lines = worker.log.read_text(errors="replace").splitlines()[-40:]
                report.sections.append((f"log of {worker.name}, ended: {worker.process.poll()}", "\n".join(lines)))
    return report


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what apps and workers of tests write out of the user's own data."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBQUEUE_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def shared_server() -> Iterator[RedisServer]:
    """Yield the one server of this run, as earlier tests left it; tests ask for `redis_server`."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(shared_server: RedisServer) -> RedisServer:
    """Return the server that tests share, emptied. Not to be stopped or restarted."""
    shared_server.flush()
    return shared_server


@pytest.fixture
def private_redis() -> Iterator[RedisServer]:
    """Yield a server of the test's own, which it may stop, kill and restart; it keeps an append-only file."""
    with RedisServer(appendonly=True) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """Yield the RabbitMQ of this run, started by the first test that asks; for tests marked `rabbitmq`.

    A test that restarts it leaves it running. Tests use queues of their own, as nothing empties it.
    """
    with RabbitServer() as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of the browser, for Playwright's `executable_path`; for tests marked `browser`."""
    path = chromium_binary()
    assert path, "tests that use a browser are marked so"
    return path


@pytest.fixture(scope="session")
def broker_name(request: pytest.FixtureRequest) -> str:
    """Return what the fixtures of sites use as broker; tests that are marked `brokers` get all of them."""
    return str(getattr(request, "param", "redis"))


@pytest.fixture(scope="session")
def broker_url(broker_name: str, request: pytest.FixtureRequest) -> Callable[[], str]:
    """Return what returns the URL of a broker that is empty; none for Redis, where the backend is the broker too."""
    if broker_name == "redis":
        return lambda: ""
    server: RabbitServer = request.getfixturevalue("rabbit_server")
    return server.new_host


@pytest.fixture(scope="session")
def shared_site(broker_url: Callable[[], str]) -> Iterator[Site]:
    """Yield a server with a worker of two children, for tests that stop neither."""
    with RedisServer() as server, Site(server, broker_url=broker_url()) as site:
        site.worker()
        yield site


@pytest.fixture
def idle_site(broker_url: Callable[[], str]) -> Iterator[Site]:
    """Yield a server of the test's own, without workers."""
    with RedisServer(appendonly=True) as server, Site(server, broker_url=broker_url()) as site:
        yield site
