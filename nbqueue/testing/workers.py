"""A worker for tests: a process that ends with the block, and with the tests, however they end.

Source: the arguments of `start_worker` are those of `celery.contrib.testing.worker`.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nbqueue import prepared
from nbqueue.exceptions import ImproperlyConfigured, TimeoutError  # noqa: A004 - Celery's name
from nbqueue.launchers.owned import OwnedWorker, Terms, start_owned
from nbqueue.poolkinds import pool_kind

if TYPE_CHECKING:
    from nbqueue.app import App

START_S: Final = 30.0


@dataclass(frozen=True)
class StartedWorker:
    """A worker that works for a test.

    Args:
        app: whose tasks it runs.
        hostname: its name.
        process: its process.
    """

    app: App
    hostname: str
    process: OwnedWorker

    @property
    def running(self) -> bool:
        """Tell whether it lives."""
        return self.process.exit_code is None

    def reload(self) -> None:
        """Do nothing: code travels with calls, so a task that is declared later is known to it."""

    def ensure_started(self, wait_s: float = START_S) -> None:
        """Wait until it has shown itself.

        Raises:
            ImproperlyConfigured: it has ended, or does not show itself.
        """
        deadline = time.monotonic() + wait_s
        while not any(offer.name == self.hostname for offer, _ in self.app.offers()):
            if not self.running or time.monotonic() > deadline:
                how = "does not show itself" if self.running else f"has ended, exit code {self.process.exit_code}"
                raise ImproperlyConfigured(f"the worker of this test {how}; what it said is on stderr, or in its log")
            time.sleep(0.01)


@contextmanager
def start_worker(
    app: App,
    concurrency: int = 1,
    pool: str = "prefork",
    loglevel: str | int | None = None,
    logfile: str | Path | None = None,
    perform_ping_check: bool = True,
    ping_task_timeout: float = 10.0,
    shutdown_timeout: float = 10.0,
    *,
    queues: Sequence[str] | str = (),
    hostname: str = "",
    **others: Any,
) -> Iterator[StartedWorker]:
    """Run a worker for an app while the block runs; it is ready when the block begins.

    It is a process, so it sees nothing that a test has patched in its own. Tasks of the app travel with their code
    while the block runs, wherever they are declared: also those that the test declares after the worker has started.

    Args:
        app: whose tasks it runs; connected to a server, such as `PrivateServer`.
        concurrency: its children.
        pool: its kind; of every kind it is a process of its own.
        loglevel: of what it writes; warnings and worse if None.
        logfile: where it writes; stderr if None.
        perform_ping_check: run a task of its own before the block begins.
        ping_task_timeout: seconds that this may take.
        shutdown_timeout: seconds that running tasks may take to end after the block.
        queues: which it listens to; those of the app if empty.
        hostname: its name.
        others: more arguments of Celery's worker; they mean nothing here.

    Raises:
        ImproperlyConfigured: it does not start; or there is no such pool.
        TimeoutError: it runs no task in time.
    """
    del others
    name = (hostname or f"test-{secrets.token_hex(4)}").partition("@")[0]
    chosen = tuple(queues.split(",")) if isinstance(queues, str) else tuple(queues)
    queues = tuple(filter(None, chosen))
    terms = Terms(name, concurrency, pool_kind(pool), queues, takes_code=True, loglevel=_level(loglevel))
    with contextlib.ExitStack() as ends:
        ends.enter_context(_code_travels(app))
        log = ends.enter_context(Path(logfile).open("ab")) if logfile else None
        process = start_owned(app, terms, log)
        ends.callback(process.stop, shutdown_timeout)
        made = StartedWorker(app, process.name, process)
        made.ensure_started()
        if perform_ping_check:
            _ping(app, terms, ping_task_timeout)
        yield made


def _ping(app: App, terms: Terms, timeout_s: float) -> None:
    task = app.task_for("nbqueue.ping", prepared.pong)
    queue = terms.queues[0] if terms.queues else None
    try:
        assert task.apply_async(queue=queue, serializer="cloudpickle").get(timeout=timeout_s) == "pong"
    except TimeoutError as exc:
        raise TimeoutError(f"the worker of this test has run no task within {timeout_s:g} s") from exc


@contextmanager
def _code_travels(app: App) -> Iterator[None]:
    """Let the code of an app's tasks travel, wherever it is, also of those that are declared in the block."""
    before, known = app.by_value, {name: task.by_value for name, task in app.tasks.items()}
    app.by_value = True
    for name in known:
        app.tasks[name].by_value = True
    try:
        yield
    finally:
        app.by_value = before
        for name, task in app.tasks.items():
            task.by_value = known.get(name, task.by_value)


def _level(given: str | int | None) -> str:
    """Return a level by the name that a command line has for it."""
    import logging  # noqa: PLC0415 - only numbers need it

    name = logging.getLevelName(given) if isinstance(given, int) else given or "warning"
    return "critical" if name.lower() == "fatal" else name.lower()
