"""Starts the process that forks a worker's children. Loads little, so that it may start before all else of a worker."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from nbqueue.config import Settings
from nbqueue.frames import socket_of_frames

# The package may lie where only this process looks; users' folders join the path when the machinery is loaded.
# Nothing of what is loaded is garbage, and to look for some in it takes a tenth of the time.
_PROGRAM: Final = (
    "import gc, sys; gc.disable(); sys.path.append(sys.argv[2]); from nbqueue.child import main; gc.enable(); main()"
)


@dataclass(frozen=True)
class ChildSettings:
    """What a fork server is told before its first child.

    Args:
        preload: what `-A` names, imported before children are forked.
        path: put before `sys.path` of the children.
        blobs: where children find and keep large data; empty where they can't.
        keep_s: how long that of results is kept.
        max_tasks: a child is replaced after so many; 0: never.
        max_memory_kib: a child that uses more after a task is replaced; 0: never.
        threads: tasks run in threads of one process.
        client: where tasks send calls of their own: fields of `Link` and settings, as JSON; empty where they can't.
        accept: serializers whose content children load; all if empty.
        log_level: from which on tasks log.
        log_line: the form of such a line, and that of its time.
    """

    preload: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    blobs: str = ""
    keep_s: float = 0.0
    max_tasks: int = 0
    max_memory_kib: int = 0
    threads: bool = False
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    accept: tuple[str, ...] = ()
    log_level: int = logging.WARNING
    log_line: tuple[str | None, str | None] = (None, None)

    @classmethod
    def of(
        cls,
        conf: Settings,
        blobs: Path,
        preload: Sequence[str],
        max_tasks: int | None,
        max_memory_kib: int | None,
        client: Mapping[str, Any],
        *,
        threads: bool = False,
    ) -> Self:
        """Return those of a worker; what is None is as its settings say."""
        return cls(
            tuple(preload),
            (str(Path.cwd()),) if preload else (),
            str(blobs),
            conf.result_expires,
            max_tasks or conf.worker_max_tasks_per_child,
            max_memory_kib or conf.worker_max_memory_per_child,
            threads,
            client,
            conf.accept_content,
            logging.getLogger("nbqueue").getEffectiveLevel(),
            (conf.worker_task_log_format, conf.worker_task_log_datefmt),
        )


@dataclass
class ForkServer:
    """A fork server that has been started.

    Args:
        process: its process; it ends when the socket is closed.
        sock: takes settings and orders.
        environment: it was started with.
    """

    process: subprocess.Popen[bytes]
    sock: socket.socket
    environment: Mapping[str, str]
    told: ChildSettings | None = field(default=None, init=False)

    def tell(self, settings: ChildSettings) -> None:
        """Tell it its settings, once: it imports what they name, and waits for orders."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended already, which is seen later
            self.sock.send(json.dumps(asdict(settings)).encode())
        self.told = settings

    def close(self) -> None:
        """End it, if it was not to be used after all."""
        self.sock.close()
        self.process.wait()


def start_fork_server(environment: Mapping[str, str], directory: str | None = None) -> ForkServer:
    """Start a fork server.

    Args:
        environment: of it and its children.
        directory: in which they work; this process's if None.
    """
    ours, theirs = socket_of_frames()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), str(Path(__file__).parent.parent)],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env=dict(environment),
        cwd=directory,
        start_new_session=True,
    )
    theirs.close()
    return ForkServer(process, ours, environment)
