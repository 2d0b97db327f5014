"""Real workers for tests: processes of a test's own, with leases short enough to watch them lapse."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from nbqueue import App
from nbqueue.signing import create_key_file
from nbqueue.streams import Streams
from tests.helpers import RedisServer, wait_until

ROOT: Final = Path(__file__).parent.parent
LEASE_S: Final = 2.0
RENEWAL_S: Final = 0.5
START_S: Final = 20.0


class Site:
    """A server, a key, an app, and workers on it. Used as a context manager, so that all of it ends.

    Args:
        server: runs already.
        by_value: whether functions of modules travel with their code.
        broker_url: of another broker than this server.
        queue: the default queue of the app; workers listen to it.
    """

    def __init__(
        self, server: RedisServer, *, by_value: bool = True, broker_url: str = "", queue: str = "nbqueue"
    ) -> None:
        self.server = server
        self.broker_url = broker_url or server.url
        self.queue = queue
        self.key_file = server.directory / "key"
        if not self.key_file.exists():
            create_key_file(self.key_file)
        self.app = self.new_app(by_value=by_value)
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
        self.app.close()

    @property
    def on_rabbitmq(self) -> bool:
        """Tell whether messages are on RabbitMQ."""
        return self.broker_url != self.server.url

    def new_app(self, *, by_value: bool = True, urls: tuple[str, str] | None = None) -> App:
        """Return another app on the same servers: another session, as another kernel would have.

        Args:
            by_value: whether functions of modules travel with their code.
            urls: other ways to broker and backend.
        """
        broker, backend = urls or (self.broker_url, self.server.url)
        app = App(
            "tests",
            broker=broker,
            backend=None if broker == backend else backend,
            key_file=self.key_file,
            by_value=by_value,
            set_as_current=False,
        )
        app.conf.task_default_queue = self.queue
        return app

    @property
    def streams(self) -> Streams:
        """Return the queues."""
        streams: Streams = self.app.broker.streams  # type: ignore[attr-defined]
        return streams

    def server_says(self, *command: str) -> object:
        """Return the server's answer to a command."""
        with self.server.client() as client:
            return client.execute_command(*command)

    def worker(
        self, *options: str, concurrency: int = 2, ready: bool = True, home: Path | None = None, **variables: str
    ) -> Worker:
        """Start a worker; wait until it shows itself, unless told not to.

        With a `home` of its own it shares no files with the app, as on another machine. `variables` are of its
        environment.
        """
        worker = Worker(self, concurrency, options, home, variables)
        self.workers.append(worker)
        if ready:
            worker.wait_until_ready()
        return worker


class Worker:
    """One worker process.

    Args:
        site: where it works.
        concurrency: children.
        options: of the command line.
        home: where its files are; those of the tests if None.
        variables: of its environment, beside those of the tests.
    """

    number = 0

    def __init__(
        self,
        site: Site,
        concurrency: int,
        options: tuple[str, ...],
        home: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        Worker.number += 1
        self.site = site
        self.name = f"w{Worker.number}@test"
        self.log = site.server.directory / f"w{Worker.number}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "nbqueue", "-A", "tests.project", "worker"),
                    *("-c", str(concurrency), "-n", self.name, "-l", "info"),
                    *(() if site.queue == "nbqueue" else ("-Q", site.queue)),
                    *options,
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "NBQUEUE_BROKER_URL": site.broker_url,
                    **({"NBQUEUE_RESULT_BACKEND": site.server.url} if site.on_rabbitmq else {}),
                    "NBQUEUE_KEY_FILE": str(site.key_file),
                    **({"NBQUEUE_HOME": str(home)} if home else {}),
                    **(variables or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return the supervisor's process id."""
        return self.process.pid

    def wait_until_ready(self) -> None:
        """Wait until it has shown itself."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended: {self.log.read_text()}")
            return self.name in self.site.app.backend.adverts()

        wait_until(ready, START_S, f"{self.name} to show itself")

    def signal(self, number: int) -> None:
        """Send the supervisor a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the supervisor by force, and wait until it has ended."""
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    def wait(self, timeout_s: float = 15.0) -> int:
        """Wait until it has ended; return its exit code."""
        return self.process.wait(timeout_s)
