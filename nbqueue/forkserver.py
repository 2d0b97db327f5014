"""Starts the process that forks a worker's children. Loads little, so that it may start before all else of a worker."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbqueue.frames import socket_of_frames

# The package may lie where only this process looks; users' folders join the path when the machinery is loaded.
# Nothing of what is loaded is garbage, and to look for some in it takes a tenth of the time.
_PROGRAM: Final = (
    "import gc, sys; gc.disable(); sys.path.append(sys.argv[2]); from nbqueue.child import main; gc.enable(); main()"
)


@dataclass(frozen=True)
class ForkServer:
    """A fork server that has been started, and waits for its settings.

    Args:
        process: its process; it ends when the socket is closed.
        sock: takes settings and orders.
        environment: it was started with.
    """

    process: subprocess.Popen[bytes]
    sock: socket.socket
    environment: Mapping[str, str]

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
