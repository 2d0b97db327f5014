"""The fixtures of `nbqueue.testing.pytest_plugin` under the names that Celery's plugin has for them.

Source: `celery.contrib.pytest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from nbqueue.testing.pytest_plugin import app_of, worker_of

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.testing.servers import PrivateServer
    from nbqueue.testing.workers import StartedWorker


@pytest.fixture(scope="session")
def celery_config(nbqueue_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings of apps; to be overridden."""
    return nbqueue_config


@pytest.fixture(scope="session")
def celery_parameters(nbqueue_parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return arguments of `App`; to be overridden."""
    return nbqueue_parameters


@pytest.fixture(scope="session")
def celery_worker_parameters(nbqueue_worker_parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return arguments of `start_worker`; to be overridden."""
    return nbqueue_worker_parameters


@pytest.fixture(scope="session")
def celery_includes(nbqueue_includes: Sequence[str]) -> Sequence[str]:
    """Return modules that are imported before a worker starts; to be overridden."""
    return nbqueue_includes


@pytest.fixture(scope="session")
def celery_worker_pool() -> str:
    """Return the pool of workers; to be overridden."""
    return "solo"


@pytest.fixture(scope="session")
def celery_enable_logging() -> bool:
    """Return whether workers say what they do; to be overridden."""
    return False


@pytest.fixture(scope="session")
def celery_class_tasks() -> Sequence[Any]:
    """Return classes of tasks that the app gets; to be overridden."""
    return ()


@pytest.fixture(scope="session")
def use_celery_app_trap() -> bool:
    """Return whether every use of the current app is to be an error; to be overridden."""
    return False


@pytest.fixture
def celery_app(
    request: pytest.FixtureRequest,
    nbqueue_server: PrivateServer,
    celery_config: Mapping[str, Any],
    celery_parameters: Mapping[str, Any],
    use_celery_app_trap: bool,
) -> Iterator[App]:
    """Yield an app of the test's own, which is the current one; `@pytest.mark.celery` has more settings."""
    with app_of(request, nbqueue_server, celery_config, celery_parameters, trap=use_celery_app_trap) as app:
        yield app


@pytest.fixture(scope="session")
def celery_session_app(
    request: pytest.FixtureRequest,
    nbqueue_server: PrivateServer,
    celery_config: Mapping[str, Any],
    celery_parameters: Mapping[str, Any],
    use_celery_app_trap: bool,
) -> Iterator[App]:
    """Yield an app for the whole run."""
    with app_of(request, nbqueue_server, celery_config, celery_parameters, trap=use_celery_app_trap) as app:
        yield app


@pytest.fixture
def celery_worker(
    celery_app: App,
    celery_includes: Sequence[str],
    celery_class_tasks: Sequence[Any],
    celery_worker_pool: str,
    celery_enable_logging: bool,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[StartedWorker]:
    """Yield a worker for `celery_app`."""
    given = _given(celery_worker_pool, celery_worker_parameters, logs=celery_enable_logging)
    with worker_of(celery_app, celery_includes, celery_class_tasks, given) as worker:
        yield worker


@pytest.fixture(scope="session")
def celery_session_worker(
    celery_session_app: App,
    celery_includes: Sequence[str],
    celery_class_tasks: Sequence[Any],
    celery_worker_pool: str,
    celery_enable_logging: bool,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[StartedWorker]:
    """Yield a worker for `celery_session_app`, for the whole run."""
    given = _given(celery_worker_pool, celery_worker_parameters, logs=celery_enable_logging)
    with worker_of(celery_session_app, celery_includes, celery_class_tasks, given) as worker:
        yield worker


@pytest.fixture
def depends_on_current_app(celery_app: App) -> None:
    """Let `celery_app` be the current app."""
    from nbqueue.current import set_current_app

    set_current_app(celery_app)


def _given(pool: str, parameters: Mapping[str, Any], *, logs: bool) -> dict[str, Any]:
    return {"pool": pool, "loglevel": "info" if logs else None, **parameters}
