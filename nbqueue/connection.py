"""Connection files: what a worker or client elsewhere needs, as Jupyter's own files are for kernels.

A file holds URLs and the signing key, so only its owner may read it: whoever has it may run code.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nbqueue.config import mask
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.signing import parse_key

FORMAT: Final = 1
MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Connection:
    """What a connection file holds. `machine` is where an embedded server runs; it serves no other."""

    broker_url: str
    backend_url: str | None
    key: bytes = field(repr=False)
    embedded: bool = False
    machine: str = ""

    def __repr__(self) -> str:
        backend = mask(self.backend_url) if self.backend_url else None
        return f"Connection(broker_url={mask(self.broker_url)!r}, backend_url={backend!r}, embedded={self.embedded})"


def write(path: Path, connection: Connection) -> None:
    """Write a connection file, readable by its owner only; one that is there is replaced in one step."""
    text = json.dumps(
        {
            "format": FORMAT,
            "broker_url": connection.broker_url,
            "backend_url": connection.backend_url,
            "key": connection.key.hex(),
            "embedded": connection.embedded,
            "machine": connection.machine,
        },
        indent=2,
    )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise ImproperlyConfigured(f"the connection file {path} can't be written: {exc.strerror}") from exc
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path, machine: str = "") -> Connection:
    """Return what a connection file holds.

    Args:
        path: the file.
        machine: this machine's id, which the file of an embedded server must name; not checked if empty.

    Raises:
        ImproperlyConfigured: it is missing, another user's, readable by others, newer than this nbqueue, no
            connection file, or one of an embedded server of another machine.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as exc:
        raise ImproperlyConfigured(f"the connection file {path} can't be opened: {exc.strerror}") from exc
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        found = os.fstat(file.fileno())
        if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), 0):
            raise ImproperlyConfigured(f"the connection file {path} belongs to another user")
        if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
            raise ImproperlyConfigured(f"the connection file {path} can be read by others; run: chmod 600 {path}")
        text = file.read(MAX_BYTES)
    return _parse(text, path, machine)


def _parse(text: str, path: Path, machine: str) -> Connection:
    try:
        fields = json.loads(text)
        version = int(fields["format"])
    except (ValueError, KeyError, TypeError):
        raise ImproperlyConfigured(
            f"{path} is no connection file; write one with: nbqueue connect --export FILE"
        ) from None
    if version > FORMAT:
        raise ImproperlyConfigured(f"{path} has format {version}, this nbqueue reads {FORMAT}: upgrade nbqueue here")
    try:
        connection = Connection(
            str(fields["broker_url"]),
            fields.get("backend_url"),
            parse_key(fields["key"], str(path)),
            bool(fields.get("embedded")),
            str(fields.get("machine", "")),
        )
    except KeyError as exc:
        raise ImproperlyConfigured(f"the connection file {path} has no {exc.args[0]}") from None
    if connection.embedded and machine and connection.machine != machine:
        raise ImproperlyConfigured(
            f"{path} is of an embedded server, which serves its own machine only; to add a machine, set "
            "NBQUEUE_BROKER_URL to a Redis server that both can reach, and export the connection again"
        )
    return connection
