"""A server of the tests' own, on a private socket, which ends with them, however they end."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

from nbqueue import server
from nbqueue.config import Environment, clean_environment
from nbqueue.embedded import MAX_SOCKET_BYTES
from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured
from nbqueue.link import Link
from nbqueue.processes import tail
from nbqueue.signing import create_key_file, read_key_file

# Ends the server when the other end of stdin is closed, by its owner or by the end of that.
_WITH_US: Final = '"$@" </dev/null & server=$!; read _; kill "$server"; wait "$server"'
_DATABASES: Final = 10_000  # one for each app, in turn
_OPTIONS: Final = {
    "--port": "0",
    "--unixsocketperm": "600",
    "--save": "",
    "--appendonly": "yes",  # a worker warns of a server that keeps nothing
    "--appendfsync": "no",
    "--databases": str(_DATABASES),
}


class PrivateServer:
    """A server and a signing key in a directory of their own. Used as a context manager; starts in some 10 ms.

    Raises:
        ImproperlyConfigured: there is no server program.
        BackendUnavailable: it does not start.
    """

    def __init__(self) -> None:
        self.directory = Path()
        self._database = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        variables = Environment.read().variables
        binary = server.find_binary(variables.get("PATH"))
        self.directory = _short_directory()
        try:
            create_key_file(self.key_file)
            log = self.directory / "log"
            self._process = subprocess.Popen(
                [
                    *("/bin/sh", "-c", _WITH_US, "server", str(binary)),
                    *(word for option in _OPTIONS.items() for word in option),
                    *("--unixsocket", str(self._socket), "--dir", str(self.directory), "--logfile", str(log)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=clean_environment(variables),
                start_new_session=True,
            )
            deadline = time.monotonic() + server.START_S
            while server.state(self._socket) != "ready":
                if time.monotonic() > deadline:
                    raise BackendUnavailable(f"the server does not answer. {log} ends:\n{tail(log)}")
                time.sleep(0.005)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of broker and backend."""
        return f"redis+socket://{self._socket}"

    @property
    def key_file(self) -> Path:
        """The signing key."""
        return self.directory / "key"

    def new_link(self) -> Link:
        """Return a way to a database that is empty, and nobody else's.

        `App.adopt` takes it; large data lies in this server's directory then, too.
        """
        self._database = self._database % (_DATABASES - 1) + 1
        url = f"{self.url}?virtual_host={self._database}"
        with server.Wire(self._socket) as wire:
            wire.call("SELECT", self._database)
            wire.call("FLUSHDB")
        return Link(url, url, read_key_file(self.key_file), self.directory)

    @property
    def settings(self) -> dict[str, str]:
        """What an app is given to be connected to it."""
        return {"broker_url": self.url, "result_backend": self.url, "key_file": str(self.key_file)}

    def close(self) -> None:
        """End the server, and remove its directory."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait(server.STOP_S)
            self._process = None
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _socket(self) -> Path:
        return self.directory / "s"


def _short_directory() -> Path:
    """Return a new directory whose path leaves room for the name of a socket."""
    for parent in (None, "/tmp"):  # noqa: S108 - what is made there is private
        made = Path(tempfile.mkdtemp(prefix="nbq-", dir=parent))
        if len(bytes(made)) + 2 < MAX_SOCKET_BYTES:
            return made
        made.rmdir()
    raise ImproperlyConfigured("there is no directory with a path short enough for a socket")
