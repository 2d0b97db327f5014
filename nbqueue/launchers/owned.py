"""A worker that belongs to the process that starts it, and that ends with it, however that ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from nbqueue.config import Environment
from nbqueue.embedded import daemon_command
from nbqueue.link import told
from nbqueue.poolkinds import PREFORK, processes

if TYPE_CHECKING:
    from nbqueue.app import App

_STEPS: Final = ((signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True)
class Terms:
    """How an owned worker works.

    Args:
        name: unique among workers; `@host` is added.
        concurrency: children.
        pool: of `nbqueue.poolkinds`.
        queues: which it listens to; the app's if empty.
        max_tasks: a child is replaced after so many; 0: never.
        takes_code: it runs code that travels, whatever the app's settings accept.
        loglevel: of what it writes.
        failures: write of tasks that fail, too.
    """

    name: str
    concurrency: int
    pool: str = PREFORK
    queues: Sequence[str] = ()
    max_tasks: int = 0
    takes_code: bool = False
    loglevel: str = "warning"
    failures: bool = True


@dataclass
class OwnedWorker:
    """A worker process of this process.

    Args:
        name: as the fleet knows it.
        process: a child of this process.
        started_at: on the monotonic clock.
    """

    name: str
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """Return how it ended; None while it lives."""
        with self._lock:  # two threads that wait at once could each take the end for the other's
            return self.process.poll()

    def wait(self, longest_s: float) -> None:
        """Wait for its end, if that is near."""
        with self._lock, contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(longest_s)

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop it: what runs may end within `grace_s` seconds, the rest goes back to its queue."""
        with self._lock:
            for number, wait_s in ((signal.SIGTERM, grace_s), *_STEPS):
                if self.process.poll() is not None:
                    break
                self.process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(wait_s)
            if self.process.stdin is not None:
                with contextlib.suppress(OSError):
                    self.process.stdin.close()


def start_owned(
    app: App, terms: Terms, log: IO[bytes] | int | None = None, calls: socket.socket | None = None
) -> OwnedWorker:
    """Start a worker for an app; it shows itself a moment later.

    Args:
        app: where it works.
        terms: how.
        log: a file for what it writes; this process's stderr if None.
        calls: the worker's end of a socket that all of its calls come over; else the broker has them.
    """
    orders: dict[str, Any] = {
        "client": told(app.link, app.conf),
        "name": terms.name,
        "concurrency": terms.concurrency,
        "pool": terms.pool,
        "queues": list(terms.queues or app.conf.task_queues or (app.conf.task_default_queue,)),
        "max_tasks": terms.max_tasks,
        "takes_code": terms.takes_code,
        "loglevel": terms.loglevel,
        "failures": terms.failures,
        "calls": None if calls is None else calls.fileno(),
    }
    process = subprocess.Popen(
        daemon_command("nbqueue.launchers.owned_worker", str(processes(terms.pool, terms.concurrency))),
        stdin=subprocess.PIPE,  # its end tells of ours
        stdout=subprocess.DEVNULL if log is None else log,
        stderr=log,
        env=dict(Environment.read().variables),
        pass_fds=() if calls is None else (calls.fileno(),),
        start_new_session=True,  # an interrupt that is meant for this process doesn't reach it
    )
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended already, which is seen later
        process.stdin.write(json.dumps(orders).encode() + b"\n")
        process.stdin.flush()
    return OwnedWorker(f"{terms.name}@{socket.gethostname()}", process)
