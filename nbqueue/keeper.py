"""The keeper: one process a user, which looks after the embedded server and starts a local worker when one is needed.

It starts the worker when something waits and no worker listens, starts the server again if that has died, and ends
worker, server and itself when nothing has been queued, running, delayed or connected for some time. Results stay on
disk. Clients only push to a list to be noticed sooner.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import redis

from nbqueue.config import Environment, clean_environment
from nbqueue.deliveries import KEEPER_TROUBLE, KEEPER_WAKE, WORKERS
from nbqueue.embedded import Places, Process, answers, locked, start_server, try_lock
from nbqueue.exceptions import NBQueueError
from nbqueue.log import setup
from nbqueue.streams import Streams, connect
from nbqueue.watcher import ALIVE_S, advert_times

IDLE_S: Final = 600.0
LOOK_S: Final = 1.0
SOON_S: Final = 3.0  # a delayed task due within this time is reason enough to start a worker
QUICK_S: Final = 2.0  # a worker that ends sooner has not worked
MAX_LOG_BYTES: Final = 10_000_000

logger = logging.getLogger(__name__)


class Keeper:
    """Looks after one embedded server.

    Args:
        places: where it lives.
        idle_s: after so long with nothing to do, everything ends.
        worker_command: starts a local worker.
    """

    def __init__(self, places: Places, idle_s: float = IDLE_S, worker_command: list[str] | None = None) -> None:
        self.places = places
        self.idle_s = idle_s
        self.command = worker_command or [
            *(sys.executable, "-m", "nbqueue", "worker", "--connect", str(places.connection_file)),
            *("-n", f"local@{socket.gethostname()}", "--all-queues", "-l", "info", "--keeper"),
        ]
        self.variables = Environment.read().variables
        self.client = connect(places.url, name="nbq-keeper", timeout_s=None)
        self.streams = Streams(self.client)
        self._worker: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._busy_at = time.monotonic()

    def run(self) -> None:
        """Keep until there is nothing to keep, or until told to end."""
        while True:
            try:
                self.client.blpop([KEEPER_WAKE], timeout=LOOK_S)
                self._look()
                if time.monotonic() - self._busy_at > self.idle_s and self._end():
                    return
            except (redis.ConnectionError, redis.TimeoutError) as exc:
                logger.warning("the server does not answer: %s", exc)
                self._revive()

    def _look(self) -> None:
        sizes = [(queue, self.streams.size(queue)) for queue in self.streams.queues()]
        if any(size.queued or size.claimed or size.delayed for _, size in sizes) or self._clients():
            self._busy_at = time.monotonic()
        self._reap()
        if self._workers() or self._running():
            return
        if any(size.queued or size.claimed or (size.delayed and self._due_soon(queue)) for queue, size in sizes):
            self._start_worker()

    def _clients(self) -> bool:
        return any(row.get("name", "").startswith("nbq-client") for row in self.client.client_list())

    def _workers(self) -> bool:
        """Tell whether any worker has shown itself lately."""
        seconds, _ = self.client.time()
        return any(seconds - at < ALIVE_S for at in advert_times(self.client.hgetall(WORKERS)))

    def _due_soon(self, queue: str) -> bool:
        first = self.client.zrange(f"nbq:{{{queue}}}:delayed", 0, 0, withscores=True)
        seconds, _ = self.client.time()
        return bool(first) and first[0][1] / 1000 - seconds < SOON_S

    # ---- the worker

    def _running(self) -> bool:
        return Process.load(self.places.runtime / "worker.pid") is not None

    def _start_worker(self) -> None:
        if time.monotonic() < self._not_before:
            return
        log = self.places.logs / "worker.log"
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".old"))
        # A worker that was killed leaves its advert behind; without it this one is not looked for in vain.
        self.client.delete(KEEPER_WAKE)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._worker = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                cwd=Path.home(),
                umask=0o077,
                env=clean_environment(self.variables),
            )
        finally:
            os.close(descriptor)
        self._started_at = time.monotonic()
        Process.of(self._worker.pid).save(self.places.runtime / "worker.pid")
        logger.info("started a local worker (%d)", self._worker.pid)

    def _reap(self) -> None:
        if self._worker is None or self._worker.poll() is None:
            return
        code, self._worker = self._worker.returncode, None
        (self.places.runtime / "worker.pid").unlink(missing_ok=True)
        if time.monotonic() - self._started_at > QUICK_S:
            self._failures = 0
            return
        self._failures += 1
        pause_s = min(60.0, 0.5 * 2**self._failures)
        self._not_before = time.monotonic() + pause_s
        tail = (self.places.logs / "worker.log").read_text(errors="replace")[-2_000:]
        logger.error("the local worker ended at once with code %s; next try in %.0f s", code, pause_s)
        self.client.set(KEEPER_TROUBLE, tail, ex=300)

    # ---- the server

    def _revive(self) -> None:
        """Start the server again; its data is on disk."""
        with locked(self.places.runtime / "lock"):
            if not answers(self.places.socket):
                try:
                    start_server(self.places, self.variables)
                    logger.warning("started the server again")
                except NBQueueError as exc:
                    logger.error("%s", exc)  # noqa: TRY400 - its text says all
                    time.sleep(5.0)

    def _end(self) -> bool:
        """End everything, unless somebody came meanwhile; whoever comes next starts it all again."""
        with locked(self.places.runtime / "lock"):
            self._look()
            if time.monotonic() - self._busy_at <= self.idle_s:
                return False
            logger.info("nothing was left to do for %.0f s: ending", self.idle_s)
            for name in ("worker", "server"):
                process = Process.load(self.places.runtime / f"{name}.pid")
                if process is not None:
                    process.signal(signal.SIGTERM)
                    process.wait(30.0)
                (self.places.runtime / f"{name}.pid").unlink(missing_ok=True)
            (self.places.runtime / "keeper.pid").unlink(missing_ok=True)
            return True


def main(argv: list[str]) -> int:
    """Run the keeper of `argv` = data directory, runtime directory, optionally seconds of idling and a command."""
    data, runtime, *more = argv
    places = Places(Path(data), Path(runtime))
    lock = try_lock(places.runtime / "keeper.lock")
    if lock is None:
        return 0  # another was quicker
    setup("info")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Process.of(os.getpid()).save(places.runtime / "keeper.pid")
    keeper = Keeper(places, float(more[0]) if more else IDLE_S, more[1:] or None)
    try:
        keeper.run()
    finally:
        os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
