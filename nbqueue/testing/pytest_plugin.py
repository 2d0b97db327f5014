"""Fixtures of pytest for projects that use nbqueue; pytest finds this by itself where nbqueue is installed.

`nbqueue_app` is an app on a server that ends with the tests, `nbqueue_worker` a worker for it. Celery's names for them
are there too, unless Celery's own plugin is. Nothing is loaded before a test asks for a fixture.

Source: `celery.contrib.pytest`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.testing.servers import PrivateServer
    from nbqueue.testing.workers import StartedWorker


def pytest_configure(config: pytest.Config) -> None:
    """Tell of the marks, and add fixtures with Celery's names where nobody else has them."""
    for name in ("nbqueue", "celery"):
        config.addinivalue_line("markers", f"{name}(**settings): settings of the app that this test gets")
    plugins = config.pluginmanager
    names = "nbqueue.testing.celery_names"
    if not plugins.has_plugin(names) and not any(hasattr(plugin, "celery_app") for plugin in plugins.get_plugins()):
        plugins.register(importlib.import_module(names), names)


@pytest.fixture(scope="session")
def nbqueue_server() -> Iterator[PrivateServer]:
    """Yield the server of this run; each app has a database of it."""
    from nbqueue.testing.servers import PrivateServer

    with PrivateServer() as server:
        yield server


@pytest.fixture(scope="session")
def nbqueue_config() -> Mapping[str, Any]:
    """Return settings of apps; to be overridden."""
    return {}


@pytest.fixture(scope="session")
def nbqueue_parameters() -> Mapping[str, Any]:
    """Return arguments of `App`; to be overridden."""
    return {}


@pytest.fixture(scope="session")
def nbqueue_worker_parameters() -> Mapping[str, Any]:
    """Return arguments of `start_worker`; to be overridden."""
    return {}


@pytest.fixture(scope="session")
def nbqueue_includes() -> Sequence[str]:
    """Return modules that are imported before a worker starts; to be overridden."""
    return ()


@pytest.fixture
def nbqueue_app(
    request: pytest.FixtureRequest,
    nbqueue_server: PrivateServer,
    nbqueue_config: Mapping[str, Any],
    nbqueue_parameters: Mapping[str, Any],
) -> Iterator[App]:
    """Yield an app of the test's own, which is the current one; `@pytest.mark.nbqueue` has more settings."""
    with app_of(request, nbqueue_server, nbqueue_config, nbqueue_parameters) as app:
        yield app


@pytest.fixture(scope="session")
def nbqueue_session_app(
    request: pytest.FixtureRequest,
    nbqueue_server: PrivateServer,
    nbqueue_config: Mapping[str, Any],
    nbqueue_parameters: Mapping[str, Any],
) -> Iterator[App]:
    """Yield an app for the whole run."""
    with app_of(request, nbqueue_server, nbqueue_config, nbqueue_parameters) as app:
        yield app


@pytest.fixture
def nbqueue_worker(
    nbqueue_app: App, nbqueue_includes: Sequence[str], nbqueue_worker_parameters: Mapping[str, Any]
) -> Iterator[StartedWorker]:
    """Yield a worker for `nbqueue_app`."""
    with worker_of(nbqueue_app, nbqueue_includes, (), nbqueue_worker_parameters) as worker:
        yield worker


@pytest.fixture(scope="session")
def nbqueue_session_worker(
    nbqueue_session_app: App, nbqueue_includes: Sequence[str], nbqueue_worker_parameters: Mapping[str, Any]
) -> Iterator[StartedWorker]:
    """Yield a worker for `nbqueue_session_app`, for the whole run."""
    with worker_of(nbqueue_session_app, nbqueue_includes, (), nbqueue_worker_parameters) as worker:
        yield worker


@contextmanager
def app_of(
    request: pytest.FixtureRequest,
    server: PrivateServer,
    settings: Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    trap: bool = False,
) -> Iterator[App]:
    """Yield the app of a test: with the settings of its marks, and the current one."""
    from nbqueue.testing.apps import connected_app

    marks = [mark for name in ("celery", "nbqueue") if (mark := request.node.get_closest_marker(name)) is not None]
    more = {name: value for mark in marks for name, value in mark.kwargs.items()}
    with connected_app(server, {**settings, **more}, parameters, trap=trap) as app:
        yield app


@contextmanager
def worker_of(
    app: App, includes: Sequence[str], class_tasks: Sequence[Any], parameters: Mapping[str, Any]
) -> Iterator[StartedWorker]:
    """Yield a worker for an app, once modules with its tasks are imported."""
    from nbqueue.testing.workers import start_worker

    for module in includes:
        importlib.import_module(module)
    for task in class_tasks:
        app.register_task(task)
    with start_worker(app, **parameters) as worker:
        yield worker
