"""Connection files: what a worker or a client elsewhere needs, URLs and the signing key, readable by one user.

The file of the embedded server serves the machine it was written on and says so, because its broker is a socket
in that machine's file system.

Source: the idea is that of Jupyter's connection files.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nbqueue._version import __version__
from nbqueue.config import mask
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.signing import parse_key, read_key_file

FORMAT: Final = 1
MAX_FILE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to connect to, and the key to sign with.

    Args:
        broker_url: where messages go.
        backend_url: where results are kept; None where the broker keeps none.
        key: the signing key.
        embedded: the server is the embedded one, which nobody reaches from another machine.
        machine: the id of the machine whose embedded server this is.
        directory: where that server's data lies.
        host: the name of the machine that wrote this, for people.
        version: of the nbqueue that wrote this.
    """

    broker_url: str
    backend_url: str | None
    key: bytes = field(repr=False)
    embedded: bool = False
    machine: str = ""
    directory: str = ""
    host: str = field(default_factory=socket.gethostname)
    version: str = __version__

    def __repr__(self) -> str:
        backend = None if self.backend_url is None else mask(self.backend_url)
        where = f"embedded on {self.host}" if self.embedded else f"from {self.host}"
        return f"<Connection broker={mask(self.broker_url)!r} backend={backend!r} {where}>"


def write(path: Path, connection: Connection) -> None:
    """Write `connection` to `path` in one step, readable by this user only.

    Raises:
        ImproperlyConfigured: something that is no connection file stands there, or the file can't be written.
    """
    _refuse_to_overwrite(path)
    text = json.dumps(
        {
            "nbqueue_connection": FORMAT,
            "broker_url": connection.broker_url,
            "backend_url": connection.backend_url,
            "key": connection.key.hex(),
            "embedded": connection.embedded,
            "host": connection.host,
            "machine": connection.machine,
            "directory": connection.directory,
            "version": connection.version,
        },
        indent=1,
    )
    try:
        # mkstemp's files are 0600 from the first moment
        descriptor, name = tempfile.mkstemp(prefix=".nbqueue-", dir=path.parent)
    except OSError as exc:
        raise ImproperlyConfigured(f"no file can be written to {path.parent}: {exc.strerror}") from exc
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path, machine: str = "") -> Connection:
    """Return the connection that a file holds.

    Args:
        path: the file.
        machine: this machine's id, which the file of an embedded server must name; not compared if empty.

    Raises:
        ImproperlyConfigured: it can't be trusted, read or used on this machine; the text says what to do.
    """
    fields = _parse(path, _read_private(path))
    broker_url, backend_url, embedded = (fields.get(name) for name in ("broker_url", "backend_url", "embedded"))
    if not isinstance(broker_url, str) or not isinstance(backend_url, str | None) or not isinstance(embedded, bool):
        raise ImproperlyConfigured(f"{path} is no complete connection file: broker_url, backend_url or embedded is off")
    host, whose = str(fields.get("host", "")), str(fields.get("machine", ""))
    if embedded and machine and whose != machine:
        raise ImproperlyConfigured(
            f"{path} belongs to the embedded server of {host or 'another machine'}, which only that machine can use. "
            "To add a machine, set a Redis or RabbitMQ URL there and here: NBQUEUE_BROKER_URL"
        )
    version = str(fields.get("version", ""))
    directory = str(fields.get("directory", ""))
    return Connection(broker_url, backend_url, _key(path, fields), embedded, whose, directory, host, version)


def _read_private(path: Path) -> str:
    """Return the text of a file that nobody else can have written or read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        if path.is_symlink():
            raise ImproperlyConfigured(f"the connection file {path} is a symbolic link; name the file itself") from exc
        raise ImproperlyConfigured(f"the connection file {path} can't be opened: {exc.strerror}") from exc
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ImproperlyConfigured(f"the connection file {path} is no regular file")
    with os.fdopen(descriptor, errors="replace") as file:
        if found.st_uid not in (os.geteuid(), 0):
            raise ImproperlyConfigured(f"the connection file {path} belongs to another user")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise ImproperlyConfigured(f"the connection file {path} can be read by others; run: chmod 600 {path}")
        return file.read(MAX_FILE_BYTES)


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as exc:
        raise ImproperlyConfigured(f"{path} is no connection file: {exc}") from exc
    form = fields.get("nbqueue_connection") if isinstance(fields, dict) else None
    if not isinstance(form, int):
        raise ImproperlyConfigured(f"{path} is no connection file of nbqueue")
    if form > FORMAT:
        raise ImproperlyConfigured(
            f"{path} was written by a newer nbqueue ({fields.get('version', '?')}, format {form}; "
            f"{__version__} reads {FORMAT}). Update here: pip install -U nbqueue"
        )
    return dict(fields)


def _key(path: Path, fields: dict[str, Any]) -> bytes:
    """Return the key in a file, or in the key file that it names, relative to its own folder."""
    if isinstance(key_file := fields.get("key_file"), str):
        return read_key_file(path.parent / key_file)
    return parse_key(str(fields.get("key", "")), str(path))


def _refuse_to_overwrite(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            with path.open(errors="replace") as file:
                start = file.read(100)
            if not start or "nbqueue_connection" in start:
                return
        raise ImproperlyConfigured(f"{path} exists and is no connection file; choose another name")
