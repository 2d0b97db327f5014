"""Signals of a worker: stop, warm, soft or cold; begin anew with new code; say where every process is at."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Protocol

from nbqueue.child import STACKS_SIGNAL
from nbqueue.forkserver import ForkServer, start_fork_server
from nbqueue.pool import Pool

WRITING_S: Final = 0.05  # a child takes to write where it is at

_READY: Final = "--ready-fd"
_PURGES: Final = ("--purge", "--discard")

logger = logging.getLogger(__name__)


class Signalled(Protocol):
    """Is a worker."""

    def stop(self, *, at_once: bool = False) -> None:
        """Ask for a stop."""

    def reload(self) -> None:
        """Ask for a stop after which it begins anew."""

    def pids(self) -> list[int]:
        """Return the process ids of its children."""


@contextmanager
def signals(worker: Signalled, wake: socket.socket, *, remap: bool) -> Iterator[None]:
    """Let signals reach a worker that runs on the main thread.

    Args:
        worker: what they are for.
        wake: is written to at each of them.
        remap: TERM is taken for QUIT, as under a service manager that sends no other.
    """
    # Who closes a terminal means its worker too; a worker without one is told so to begin anew.
    hang_up = worker.stop if _at_a_terminal() else worker.reload

    def stop(number: int, _: FrameType | None) -> None:
        worker.stop(at_once=number == signal.SIGQUIT or (remap and number == signal.SIGTERM))

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGTERM: stop,
        signal.SIGINT: stop,
        signal.SIGQUIT: stop,
        signal.SIGHUP: lambda *_: hang_up(),
        signal.SIGUSR1: lambda *_: show_stacks(worker.pids()),
    }
    old_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, before in old.items():
            signal.signal(number, before)


def show_stacks(children: Iterable[int]) -> None:
    """Log where each thread of this process is at; children write theirs to stderr, whatever they are busy with."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - its only name
    ]
    logger.warning("stacks of the supervisor, %d; those of its children follow\n%s", os.getpid(), "\n".join(parts))
    threading.Thread(target=_ask_for_stacks, args=(list(children),), name="nbqueue stacks", daemon=True).start()


def _ask_for_stacks(children: list[int]) -> None:
    """Let one child after the other write: all at once would write into each other's lines."""
    for pid in children:
        logger.warning("stacks of the child %d, on stderr:", pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, STACKS_SIGNAL)
        time.sleep(WRITING_S)


class Reload:
    """A worker's way to new code: tried in a process of its own first, so that what can't be imported ends nobody.

    Args:
        pool: whose environment and settings it is tried with; they name the modules.
        selector: gets the socket registered of the process that tries it; its key's data is this.
    """

    def __init__(self, pool: Pool, selector: selectors.BaseSelector) -> None:
        self._pool = pool
        self._selector = selector
        self._server: ForkServer | None = None
        self.asked = False
        self.due = False  # the worker is to begin anew once it has stopped

    def begin(self) -> None:
        """Try the code on disk, unless that is being done."""
        self.asked = False
        if self._server is None and not self.due:
            logger.info("the code on disk is tried")
            self._server = start_fork_server(self._pool.environment)
            self._server.tell(self._pool.settings)
            self._selector.register(self._server.sock, selectors.EVENT_READ, self)

    def decide(self) -> bool:
        """Return whether the code can be used; called when the socket is readable."""
        assert self._server is not None, "it has begun"
        data = self._server.sock.recv(1 << 16)
        self.close()
        report = json.loads(data) if data else {"failed": "the process that tried it has ended"}
        if "failed" in report:
            logger.error("the code on disk can't be used, the old one goes on: %s", report["failed"])
            return False
        logger.info("the code on disk can be used; begins anew with it once running tasks have ended")
        self.due = True
        return True

    def close(self) -> None:
        """End the process that tries it."""
        if self._server is not None:
            self._selector.unregister(self._server.sock)
            self._server.close()
            self._server = None


def begin_anew(directory: str) -> None:
    """Become the program that this process was started as, in the directory it was started in; its id stays."""
    os.chdir(directory)
    arguments = sys.orig_argv[1:]
    if _READY in arguments:  # whoever waited for its start has been told, and the number may be another file's
        at = arguments.index(_READY)
        del arguments[at : at + 2]
    # What waits now was sent since it was told to drop what waited.
    arguments = [word for word in arguments if word not in _PURGES]
    os.execv(sys.executable, [sys.executable, *arguments])


def _at_a_terminal() -> bool:
    with contextlib.suppress(ValueError, AttributeError):  # closed, or none
        return sys.stdin.isatty()
    return False
