"""The embedded server: with nothing configured, one real server for all of a user's kernels and workers.

What lasts lies in the data directory, with the locks that guard it; the runtime directory has only the socket. They
are apart because a socket's path must be short, and because the one may be on a disk that a reboot empties. A session
that would choose another place for the socket (cron, ssh) finds the server where the connection file says it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbqueue import connection, server
from nbqueue.config import clean_environment
from nbqueue.connection import Connection
from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured
from nbqueue.processes import PidFile, locked, start_detached
from nbqueue.signing import create_key_file, read_key_file

FORMAT: Final = 1
MAX_SOCKET_BYTES: Final = 100  # systems allow 104 to 108
LOCK_S: Final = 60.0
_MACHINE_ID_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_ORPHAN_S: Final = 2.0

_HOME: Final = "NBQUEUE_HOME"

# Not -m: that would put the working directory, which is the user's home, before the standard library.
_RUN: Final = (
    "import importlib, sys; sys.path.append(sys.argv.pop(1)); sys.exit(importlib.import_module(sys.argv.pop(1)).main())"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the embedded server and what belongs to it is found.

    Args:
        data: what lasts, and locks.
        runtime: the socket.
        note: why these are not the usual places; empty if they are.
    """

    data: Path
    runtime: Path
    note: str = ""

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Places:
        """Return this user's places; `NBQUEUE_HOME` overrides them. Nothing is made yet."""
        temporary = Path(environ.get("TMPDIR") or "/tmp")  # noqa: S108 - what is made there is private, and checked
        note = ""
        if home := environ.get(_HOME):
            base = Path(home).absolute()
            data, runtime = base / "data", base / "run"
        else:
            root = _user_data(environ)
            if root is None:
                root = temporary / f"nbqueue-{os.geteuid()}"
                note = f"there is no home directory: queued tasks and results are kept in {root}, which may not last"
            data = (root if note else root / "nbqueue") / machine_id()
            runtime = _runtime(environ, temporary) / f"nbqueue-{_short(data)}"
        if len(os.fsencode(runtime / "b.sock")) >= MAX_SOCKET_BYTES:
            runtime = Path("/tmp") / f"nbq-{os.geteuid()}-{_short(data)}"  # noqa: S108 - see above
        return cls(data, runtime, note)

    @property
    def socket(self) -> Path:
        """The server's socket."""
        return self.runtime / "b.sock"

    @property
    def key_file(self) -> Path:
        """The signing key."""
        return self.data / "key"

    @property
    def connection_file(self) -> Path:
        """What workers connect by."""
        return self.data / "connection.json"

    @property
    def server_directory(self) -> Path:
        """The server's append-only file."""
        return self.data / "server"

    @property
    def logs(self) -> Path:
        """The logs of server, keeper and worker."""
        return self.data / "logs"

    @property
    def lock(self) -> Path:
        """Held by whoever starts or stops the server."""
        return self.data / "lock"

    @property
    def server(self) -> PidFile:
        """The server's process."""
        return PidFile(self.data / "server.pid")

    @property
    def keeper(self) -> PidFile:
        """The keeper's process."""
        return PidFile(self.data / "keeper.pid")

    @property
    def worker(self) -> PidFile:
        """The process of the worker that the keeper has started."""
        return PidFile(self.data / "worker.pid")

    def started(self) -> list[PidFile]:
        """Return the processes of workers that this user has started from notebooks, those that have ended too."""
        return [PidFile(path) for path in sorted(self.workers.glob("*.pid"))]

    @property
    def workers(self) -> Path:
        """What is known of workers that were started from notebooks."""
        return self.data / "workers"

    def make(self) -> None:
        """Make what is missing of the directories, for this user only.

        Raises:
            ImproperlyConfigured: one can't be made or isn't private, or its content is of a newer nbqueue.
        """
        for directory in (self.data, self.server_directory, self.logs, self.runtime):
            _make_private(directory)
        mark = self.data / "format"
        if not mark.exists():
            # in one step: others may look at this moment
            new = self.data / f"format.{os.getpid()}"
            new.touch(0o600)
            new.write_text(f"{FORMAT}\n")
            new.rename(mark)
        self.check_format()

    def check_format(self) -> None:
        """Raise `ImproperlyConfigured` if a newer nbqueue has written the data."""
        try:
            found = int((self.data / "format").read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:
            raise ImproperlyConfigured(f"{self.data / 'format'} can't be read: {exc}") from exc
        if found > FORMAT:
            raise ImproperlyConfigured(
                f"{self.data} is of a newer nbqueue (format {found}, this one reads {FORMAT}). "
                f"Run: pip install -U nbqueue; or set {_HOME} to another directory"
            )


def machine_id(files: Sequence[Path] = _MACHINE_ID_FILES) -> str:
    """Return 12 hexadecimal digits that stand for this machine; the id itself is not to be given away."""
    for file in files:
        with contextlib.suppress(OSError):
            if text := file.read_text().strip():
                break
    else:
        text = socket.gethostname()
    return hashlib.sha256(b"nbqueue machine " + text.encode()).hexdigest()[:12]


def own_key(places: Places) -> bytes:
    """Return this user's signing key, made at the first need."""
    if not places.key_file.exists():
        places.make()
        with locked(places.lock, LOCK_S) as mine:
            _require(mine, places)
            _make_key(places)
    return read_key_file(places.key_file)


def ensure(
    places: Places,
    *,
    variables: Mapping[str, str],
    work_follows: bool = False,
    idle_s: float | None = None,
    worker_command: Sequence[str] = (),
) -> Connection:
    """Return the way to the embedded server, after starting what doesn't run of server and keeper.

    Any number of processes may call this at once. Under a millisecond where everything runs.

    Args:
        places: where it is.
        variables: the environment.
        work_follows: a keeper that has to be started starts a worker at once, and not when something waits.
        idle_s: for a keeper that has to be started: after so long with nothing to do, everything leaves.
        worker_command: for the same: what it starts instead of nbqueue's worker.

    Raises:
        ImproperlyConfigured: there is no server program, or no directory to use.
        BackendUnavailable: the server does not start; its log's end is in the text.
    """
    if places.note:
        logger.warning("%s", places.note)
    recorded = known(places)
    if recorded is not None and _runs(places, recorded):
        return recorded
    places.make()
    with locked(places.lock, LOCK_S) as mine:
        _require(mine, places)
        found = _begin_server(places, variables)
        options = [] if idle_s is None else ["--idle-s", str(idle_s)]
        if worker_command:
            options += ["--worker-command", json.dumps(list(worker_command))]
        if work_follows:
            options.append("--work-follows")
        # Its interpreter, and its worker's, start while the server does.
        started = _start_keeper(places, found, variables, options)
        try:
            _await_server(places, found)
        except BackendUnavailable:
            if started:
                _end_keeper(places)
            raise
    return found


def _end_keeper(places: Places) -> None:
    """End a keeper that has nothing to keep, and what it has started."""
    for file in (places.keeper, places.worker):
        file.end((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0))


def start_server(places: Places, variables: Mapping[str, str]) -> Connection:
    """Return the way to the server, after starting it if it doesn't run. The caller holds `places.lock`."""
    found = _begin_server(places, variables)
    _await_server(places, found)
    return found


def _begin_server(places: Places, variables: Mapping[str, str]) -> Connection:
    """Return the way to the server, which is there soon if it doesn't run. The caller holds `places.lock`."""
    _make_key(places)
    key = read_key_file(places.key_file)
    recorded = known(places)
    path = places.socket
    if recorded is not None and server.state(_socket_of(recorded)) != "gone":
        path = _socket_of(recorded)
    if server.state(path) == "gone":
        _end_orphan(places, path)
    if not places.server.held() and server.state(path) == "gone":
        binary = server.find_binary(variables.get("PATH"))
        log, environment = _server_log(places), process_environment(variables)
        server.start(binary, path, places.server_directory, log, places.server, environment)
    url = f"redis+socket://{path}"
    found = Connection(url, url, key, embedded=True, machine=machine_id(), directory=str(places.data))
    if found != recorded:
        connection.write(places.connection_file, found)
    return found


def _await_server(places: Places, found: Connection) -> None:
    server.await_ready(_socket_of(found), _server_log(places), places.server)


def _server_log(places: Places) -> Path:
    return places.logs / "server.log"


def down(places: Places, grace_s: float) -> list[str]:
    """Stop the local worker, the keeper and the server; return what was stopped, a line each.

    Args:
        places: where they are.
        grace_s: how long running tasks may take to end; what hasn't ended by then goes back to its queue.
    """
    lines = []
    worker, keeper = places.worker.pid(), places.keeper.pid()
    began = time.monotonic()
    # The keeper first, or it would start the others again; it stops its worker, at the second signal at once.
    places.keeper.end((signal.SIGTERM, grace_s), (signal.SIGTERM, 6.0), (signal.SIGKILL, 2.0))
    others = [(file, file.pid()) for file in places.started()]
    for file, pid in others:
        if pid is not None:
            file.tell(signal.SIGTERM)
    for file in (places.worker, *(file for file, _ in others)):
        left = max(0.0, grace_s - (time.monotonic() - began))
        file.end((signal.SIGTERM, left), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 2.0))
    found = [("worker", worker, places.worker), *(("worker", pid, file) for file, pid in others)]
    for what, pid, pid_file in (*found, ("keeper", keeper, places.keeper)):
        if pid is not None:
            lines.append(f"{what} {pid} {'does not stop' if pid_file.held() else 'stopped'}")
    if not places.lock.exists():
        return lines
    with locked(places.lock, LOCK_S) as mine:
        _require(mine, places)
        if places.server.held():
            pid = places.server.pid()
            recorded = known(places)
            gone = server.stop(places.server, places.socket if recorded is None else _socket_of(recorded))
            name = "server" if pid is None else f"server {pid}"
            lines.append(f"{name} {'stopped; its data is in' if gone else 'does not stop; see'} {places.data}")
    return lines


def daemon_command(module: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs a module's `main` in this interpreter, from this very nbqueue."""
    return [sys.executable, "-P", "-c", _RUN, str(_package_root()), module, *(str(word) for word in arguments)]


def _start_keeper(places: Places, found: Connection, variables: Mapping[str, str], options: Sequence[str]) -> bool:
    """Start the keeper; tell whether it did not run already."""
    home = Path(variables.get("HOME") or "/")
    return start_detached(
        daemon_command("nbqueue.keeper", "--data", places.data, "--runtime", _socket_of(found).parent, *options),
        places.keeper,
        log=places.logs / "keeper.log",
        environment=process_environment(variables),
        cwd=home if home.is_dir() else Path("/"),
        lock_option="--lock",
    )


def _runs(places: Places, recorded: Connection) -> bool:
    """Tell whether server and keeper run and will do so: whoever starts or stops them holds the lock."""
    ready = server.state(_socket_of(recorded)) == "ready"
    return ready and places.keeper.held() and not PidFile(places.lock).held()


def _end_orphan(places: Places, path: Path) -> None:
    """End a server that lives and can't be reached, its socket being gone: only one may write the data."""
    deadline = time.monotonic() + _ORPHAN_S
    while places.server.held() and server.state(path) == "gone":
        if time.monotonic() < deadline:
            time.sleep(0.01)  # it may be about to make its socket, or about to end
            continue
        if places.server.pid() is None:
            raise ImproperlyConfigured(
                f"another container runs the embedded server on {places.data}; set {_HOME} to a directory of this "
                "one's own, or a Redis or RabbitMQ URL for both: NBQUEUE_BROKER_URL"
            )
        logger.warning("the server's socket %s is gone; the server is started anew", path)
        if not server.stop(places.server, path):
            raise BackendUnavailable(f"the server {places.server.pid()} can't be reached and does not end")


def known(places: Places) -> Connection | None:
    """Return what the connection file says, if it is there and of any use."""
    places.check_format()
    try:
        found = connection.read(places.connection_file, machine_id())
    except ImproperlyConfigured:
        return None
    return found if found.embedded else None


def _socket_of(found: Connection) -> Path:
    return Path(found.broker_url.removeprefix("redis+socket://"))


def _make_key(places: Places) -> None:
    """Make the key; the caller holds the lock, and who reads it doesn't: it appears in one step."""
    if not places.key_file.exists():
        new = places.data / f"key.{os.getpid()}"
        new.unlink(missing_ok=True)
        create_key_file(new)
        new.rename(places.key_file)


def _require(mine: bool, places: Places) -> None:
    if not mine:
        raise BackendUnavailable(f"another process has held {places.lock} for {LOCK_S:.0f} s: is it stopped?")


def process_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of what outlives the caller, and finds this user's data where the caller does."""
    kept = {name: value for name, value in variables.items() if name == _HOME}
    return clean_environment(variables) | kept


def _user_data(environ: Mapping[str, str]) -> Path | None:
    if (given := environ.get("XDG_DATA_HOME")) and Path(given).is_absolute():
        return Path(given)
    home = environ.get("HOME")
    if not home or not Path(home).is_dir():
        return None
    return Path(home) / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")


def _runtime(environ: Mapping[str, str], temporary: Path) -> Path:
    given = Path(environ.get("XDG_RUNTIME_DIR") or "-")
    if given.is_absolute() and given.is_dir() and given.stat().st_uid == os.geteuid():
        return given
    return temporary


def _short(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:10]


def _package_root() -> Path:
    return Path(__file__).resolve().parent.parent


def _make_private(directory: Path) -> None:
    try:
        # what is missing above it is made as private: mkdir's own way would follow the umask
        for missing in reversed([parent for parent in directory.parents if not parent.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as exc:
        raise ImproperlyConfigured(
            f"{directory} can't be made: {exc.strerror}. Set {_HOME} to a directory of yours"
        ) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise ImproperlyConfigured(f"{directory} is no directory. Set {_HOME} to a directory of yours")
    if found.st_uid != os.geteuid():
        raise ImproperlyConfigured(f"{directory} belongs to another user. Set {_HOME} to a directory of yours")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ImproperlyConfigured(f"{directory} is open to other users; run: chmod 700 '{directory}'")
    parent = directory.parent.stat().st_mode
    if parent & stat.S_IWOTH and not parent & stat.S_ISVTX:
        raise ImproperlyConfigured(f"anybody may rename {directory}; run: chmod o-w '{directory.parent}'")
