"""The program of a worker that belongs to another process: told by it what to do, and at its end when it ends.

Its orders come as one line of JSON on stdin. That is a pipe: when its other end is closed, the owner has ended.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from typing import Any, Final

from nbqueue.app import App
from nbqueue.config import Environment, child_environment
from nbqueue.forkserver import ChildSettings, start_fork_server
from nbqueue.link import heard, told
from nbqueue.log import setup
from nbqueue.poolkinds import THREADS

STDIN: Final = 0
LOOK_S: Final = 1.0  # a process that its owner has forked may keep the pipe open

logger = logging.getLogger(__name__)


class Owner:
    """The process that this one belongs to.

    Args:
        pid: its number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def watch(self) -> None:
        """Have this process stop at once when its owner ends."""
        threading.Thread(target=self._wait, name="nbqueue owner", daemon=True).start()

    def _wait(self) -> None:
        while os.getppid() == self.pid:
            readable, _, _ = select.select([STDIN], [], [], LOOK_S)
            if readable and not os.read(STDIN, 4096):
                break
        os.kill(os.getpid(), signal.SIGQUIT)  # to the loop, which a flag alone would not wake


def _inherited(descriptor: int) -> socket.socket:
    """Return the socket that the owner has left open, for this process alone."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def main() -> int:
    """Work until told to stop, or until the owner ends; return the exit code."""
    owner = Owner(os.getppid())
    # Its interpreter starts while this one loads what a supervisor needs.
    started = start_fork_server(child_environment(Environment.read().variables, int(sys.argv[1])))
    try:
        with open(STDIN, "rb", buffering=0, closefd=False) as told_by_owner:
            line = told_by_owner.readline()
        if not line.endswith(b"\n"):
            raise SystemExit(1)  # the owner ended before it had told anything
        orders: dict[str, Any] = json.loads(line)
        gc.disable()  # as in the fork server
        setup(orders["loglevel"])
        if not orders["failures"]:
            logging.getLogger("nbqueue.outcomes").setLevel(logging.CRITICAL)
        app = App(set_as_current=False)
        app.conf.update(orders["client"]["settings"])
        if orders["takes_code"]:
            app.conf.accept_content = tuple(dict.fromkeys((*app.conf.accept_content, "cloudpickle")))
        app.adopt(heard(orders["client"]))
        client = told(app.link, app.conf)
        threads = orders["pool"] == THREADS
        started.tell(ChildSettings.of(app.conf, app.link.blobs, (), orders["max_tasks"], None, client, threads=threads))
        from nbqueue.worker import Worker  # noqa: PLC0415 - redis costs 0.1 s, in which the fork server gets ready

        worker = Worker(
            app,
            queues=orders["queues"],
            concurrency=orders["concurrency"],
            pool=orders["pool"],
            name=orders["name"],
            max_tasks_per_child=orders["max_tasks"] or None,
            started=started,
            owner=None if orders["calls"] is None else _inherited(orders["calls"]),
        )
        gc.freeze()
    except BaseException:
        started.close()
        raise
    finally:
        gc.enable()
    owner.watch()
    return worker.run()
