"""What may go wrong with the workers and the server of a site, at random."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import time
from collections.abc import Callable
from typing import Final

import psutil

from tests.faults.test_processes import children_of
from tests.helpers import wait_until
from tests.workers import Site, Worker

CHILDREN: Final = 2
_ENTRIES: Final = re.compile(r"^(?=\[\d{4}-)", re.MULTILINE)  # of a log
_OWN: Final = re.compile(r"\[[^]]*ERROR/nbqueue\.outcomes\] task ")


class Faults:
    """One method a fault; a worker that is ended is replaced.

    Args:
        site: whose server and workers are broken; the server has files of its own.
        chance: what is drawn from.
        start: starts a worker of `CHILDREN` children, given its place among the others.
        number: so many workers.
        go_on: does for so many seconds what is done while something is broken.
    """

    def __init__(
        self,
        site: Site,
        chance: random.Random,
        start: Callable[[int], Worker],
        number: int,
        go_on: Callable[[float], None],
    ) -> None:
        self.site = site
        self.random = chance
        self.workers = [start(place) for place in range(number)]
        self.in_flight = 0  # that a fault may have made run again
        self._start = start
        self._go_on = go_on
        self.kinds: list[Callable[[], None]] = [
            *(self.child_killed, self.fork_server_killed, self.worker_killed, self.worker_stopped),
            *(self.worker_stopped_at_once, self.worker_frozen, self.server_frozen, self.server_restarted),
            *(self.connections_cut, self.scripts_forgotten),
        ]

    def child_killed(self) -> None:
        if children := children_of(self.random.choice(self.workers)):
            self.in_flight += 1
            with contextlib.suppress(psutil.NoSuchProcess):
                self.random.choice(children).kill()

    def fork_server_killed(self) -> None:
        self.in_flight += CHILDREN
        for server in psutil.Process(self.random.choice(self.workers).pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                server.kill()

    def worker_killed(self) -> None:
        self._replace(signal.SIGKILL).process.wait(10)

    def worker_stopped(self) -> None:
        self._replace(signal.SIGTERM)

    def worker_stopped_at_once(self) -> None:
        self._replace(signal.SIGQUIT)

    def worker_frozen(self) -> None:
        worker = self.random.choice(self.workers)
        self.in_flight += CHILDREN
        worker.signal(signal.SIGSTOP)
        self._go_on(self.random.uniform(0.5, 5.0))
        worker.signal(signal.SIGCONT)

    def server_frozen(self) -> None:
        self.site.server.sigstop()
        pause(self.random.uniform(0.5, 6.0))
        self.site.server.sigcont()

    def server_restarted(self) -> None:
        self.site.server.stop()
        pause(self.random.uniform(0.0, 3.0))
        self.site.server.start()

    def connections_cut(self) -> None:
        self.site.server_says("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def scripts_forgotten(self) -> None:
        self.site.server_says("SCRIPT", "FLUSH")

    def _replace(self, number: signal.Signals) -> Worker:
        """Signal a worker, and start another in its place."""
        place = self.random.randrange(len(self.workers))
        old, self.workers[place] = self.workers[place], self._start(place)
        self.in_flight += CHILDREN
        old.signal(number)
        return old

    def wrong(self) -> list[str]:
        """Return what is wrong with the workers in the end."""
        found = [f"{worker.name} has ended by itself" for worker in self.workers if worker.process.poll() is not None]
        for worker in self.site.workers:
            said = worker.log.read_text(errors="replace")
            # What a task raises is told too, and is its own.
            entries = [entry for entry in _ENTRIES.split(said) if "Traceback (most" in entry and not _OWN.match(entry)]
            found += [f"{worker.name} met an error:\n{entry[:8_000]}" for entry in entries[:1]]
        return found


def pause(seconds: float) -> None:
    """Let time pass."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, seconds + 5, "time to pass")
