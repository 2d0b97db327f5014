"""Workers on this machine: processes of their own, which outlive the kernel that started them."""

from __future__ import annotations

import hashlib
import itertools
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nbqueue import connection, embedded
from nbqueue.config import Environment, nodes_of
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.processes import PidFile, make_private, start_detached, tail

if TYPE_CHECKING:
    from nbqueue.app import App

START_S: Final = 30.0
_STEPS: Final = ((signal.SIGQUIT, 5.0), (signal.SIGKILL, 2.0))


@dataclass(frozen=True)
class LocalProcess:
    """A process of this machine that outlives who started it.

    Args:
        name: as the fleet knows it.
        log: what it writes.
        process: known by its lock.
    """

    name: str
    log: Path
    process: PidFile

    @property
    def running(self) -> bool:
        """Tell whether it lives."""
        return self.process.held()


class LocalWorker(LocalProcess):
    """A worker process of this machine."""

    def stop(self, grace_s: float = 10.0) -> bool:
        """Stop it: what runs may end within `grace_s` seconds, the rest goes back. Tell whether it is gone."""
        return self.process.end((signal.SIGTERM, grace_s), *_STEPS)


class LocalBeat(LocalProcess):
    """A beat process of this machine."""

    def stop(self, grace_s: float = 5.0) -> bool:
        """Stop it; another that stands by takes over. Tell whether it is gone."""
        return self.process.end((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0))


def start_worker(
    app: App, concurrency: int = 0, *, queues: Sequence[str] = (), module: str = "", wait_s: float = START_S
) -> LocalWorker:
    """Start a worker for an app; return it once it has shown itself.

    Args:
        app: what it works for.
        concurrency: children; as many as cores if 0.
        queues: which it listens to; the app's default queue if empty.
        module: what `-A` would name, for tasks by name.
        wait_s: seconds for it to show itself.

    Raises:
        ImproperlyConfigured: it ended, or did not show itself; with the end of its log.
    """
    folder, logs = app.link.directory / "workers", app.link.directory / "logs"
    for directory in (folder, logs):
        make_private(directory)
    name, process = _free(folder)
    log = logs / f"{name}.log"
    full_name = f"{name}@{socket.gethostname()}"
    options = ["-n", full_name, "-l", "info"]
    options += ["-c", str(concurrency)] if concurrency else []
    options += ["-Q", ",".join(queues)] if queues else ["--all-queues"] if app.link.embedded else []
    named = ["-A", module] if module else []
    started = start_detached(
        embedded.daemon_command("nbqueue.cli", *named, "worker", "--connect", _file(app, folder), *options),
        process,
        log=log,
        environment=embedded.process_environment(Environment.read().variables),
        cwd=Path.cwd(),
    )
    made = LocalWorker(full_name, log, process)
    deadline = time.monotonic() + wait_s
    while started and made.running and time.monotonic() < deadline:
        if any(offer.name == full_name and age < 5.0 and not offer.stopping for offer, age in app.offers()):
            return made
        time.sleep(0.05)
    made.process.end((signal.SIGTERM, 2.0), *_STEPS)
    raise ImproperlyConfigured(f"the worker {name} did not start. The end of its log:\n{tail(log)}")


def start_beat(app: App, *, module: str = "", wait_s: float = START_S) -> LocalBeat:
    """Start a beat for an app; return it once one leads.

    Args:
        app: whose schedule it sends.
        module: what `-A` would name, for entries in its settings.
        wait_s: seconds for it to show itself.

    Raises:
        ImproperlyConfigured: it ended, or none leads; with the end of its log.
    """
    folder, logs = app.link.directory / "workers", app.link.directory / "logs"
    for directory in (folder, logs):
        make_private(directory)
    name, process = _free(folder, "beat")
    log = logs / f"{name}.log"
    full_name = f"{name}@{socket.gethostname()}"
    named = ["-A", module] if module else []
    started = start_detached(
        embedded.daemon_command("nbqueue.cli", *named, "beat", "--connect", _file(app, folder), "-n", full_name),
        process,
        log=log,
        environment=embedded.process_environment(Environment.read().variables),
        cwd=Path.cwd(),
    )
    deadline = time.monotonic() + wait_s
    while started and process.held() and time.monotonic() < deadline:
        leader = app.beat.leader()
        if leader is not None and (leader.name == full_name or leader.standby):
            return LocalBeat(full_name, log, process)
        time.sleep(0.05)
    process.end((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0))
    raise ImproperlyConfigured(f"the beat {name} did not start. The end of its log:\n{tail(log)}")


def find_worker(app: App, name: str) -> LocalWorker | None:
    """Return the worker of this name if it was started from a notebook on this machine; else None."""
    short, _, host = name.partition("@")
    process = PidFile(app.link.directory / "workers" / f"{short}.pid")
    if host not in ("", socket.gethostname()) or not process.held():
        return None
    return LocalWorker(f"{short}@{socket.gethostname()}", log_of(app, name), process)


def log_of(app: App, name: str) -> Path:
    """Return where a worker of this machine writes its log; it need not exist."""
    short = name.partition("@")[0]
    return app.link.directory / "logs" / ("worker.log" if short == "local" else f"{Path(short).name}.log")


def _free(folder: Path, kind: str = "local") -> tuple[str, PidFile]:
    """Return the first name that no living process of this machine has."""
    for number in itertools.count(1):
        process = PidFile(folder / f"{kind}-{number}.pid")
        if not process.held():
            return f"{kind}-{number}", process
    raise AssertionError("unreachable")


def _file(app: App, folder: Path) -> Path:
    """Return a connection file by which a worker reaches what the app is connected to."""
    link = app.link
    if link.embedded and link.file is not None:
        return link.file
    nodes = sorted(nodes_of(link.broker_url))  # whichever is tried first
    urls = f"{' '.join(nodes)} {link.backend_url} {app.signer.key_id}"
    path = folder / f"{hashlib.sha256(urls.encode()).hexdigest()[:16]}.json"
    connection.write(path, connection.Connection(link.broker_url, link.backend_url, link.key))
    return path
