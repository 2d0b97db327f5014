"""Signing: one secret key, one HMAC over what steers a message and over its body.

A signed text is `1.<key id>.<mac>.<json>`. The MAC covers the JSON text, its length and the body, under a
key derived for one kind of message, so that a record can never pass for a task. Nothing is parsed before
it is verified.

Source: HMAC (RFC 2104) with SHA-256; the key file follows Jupyter's connection files.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from nbqueue.exceptions import BadMessage, ImproperlyConfigured

VERSION = "1"
KEY_BYTES = 32
MAX_HEADER_BYTES = 16 * 1024
KINDS = (
    *("task", "call", "group", "record", "event", "control", "worker", "code", "step", "graph", "saved", "reply"),
    *("entry", "stand"),
)


class Signer:
    """Signs and verifies with one key. Cheap to copy to threads; holds no connection.

    Args:
        key: 32 random bytes, shared by clients and workers.
    """

    __slots__ = ("_kinds", "_prefix", "key_id")

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_BYTES:
            raise ImproperlyConfigured(f"a signing key has {KEY_BYTES} bytes, this one {len(key)}")
        self.key_id = hashlib.sha256(b"nbqueue key id" + key).hexdigest()[:8]
        self._prefix = f"{VERSION}.{self.key_id}."
        self._kinds = {kind: _Keyed(hmac.digest(key, f"nbqueue/1/{kind}".encode(), "sha256")) for kind in KINDS}

    def __repr__(self) -> str:
        return f"<Signer {self.key_id}>"

    def sign(self, kind: str, text: bytes, body: bytes = b"") -> str:
        """Return the signed text that travels: version, key id, MAC and `text` (ASCII JSON)."""
        return f"{self._prefix}{self._mac(kind, text, body)}.{text.decode('ascii')}"

    def verify(self, kind: str, signed: str | bytes, body: bytes = b"") -> bytes:
        """Return the JSON text of `signed` once version, key and MAC hold.

        Raises:
            BadMessage: anything at all is wrong with it.
        """
        if isinstance(signed, bytes):
            try:
                signed = signed.decode("ascii")
            except UnicodeDecodeError:
                raise BadMessage("format", "the signed text isn't ASCII") from None
        if len(signed) > MAX_HEADER_BYTES:
            raise BadMessage("format", f"the signed text has {len(signed):,} characters")
        parts = signed.split(".", 3)
        if len(parts) != 4:
            raise BadMessage("format", "no signature")
        version, key_id, mac, text = parts
        if version != VERSION:
            # Only a number can be the version of a later nbqueue, which others may understand.
            reason = "version" if version.isdecimal() and len(version) < 4 else "format"
            raise BadMessage(reason, f"wire version {version[:8]!r}, this nbqueue reads {VERSION}")
        if key_id != self.key_id:
            raise BadMessage("key", f"signed with key {key_id[:8]!r}, this process holds {self.key_id}")
        data = text.encode("utf-8", "surrogatepass")
        if not mac.isascii() or not hmac.compare_digest(mac, self._mac(kind, data, body)):
            raise BadMessage("signature", "the signature doesn't fit")
        return data

    def _mac(self, kind: str, text: bytes, body: bytes) -> str:
        data = b"%d\n%b%b" % (len(text), text, body)
        # 32 bytes are 43 characters and one that fills up
        return binascii.b2a_base64(self._kinds[kind].digest(data))[:43].decode()


class _Keyed:
    """HMAC with SHA-256 and one key of up to 64 bytes, whose two blocks are hashed once: half the time of `hmac`."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def digest(self, data: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()


def create_key_file(path: Path) -> bytes:
    """Write a new random key to `path`, readable by its owner only, and return it. Never overwrites."""
    key = secrets.token_bytes(KEY_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def read_key_file(path: Path) -> bytes:
    """Return the key in `path`.

    Raises:
        ImproperlyConfigured: the file is missing, a link, another user's, readable by others, or no key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as exc:
        raise ImproperlyConfigured(f"the key file {path} can't be opened: {exc.strerror}") from exc
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        found = os.fstat(file.fileno())
        if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), 0):
            raise ImproperlyConfigured(f"the key file {path} belongs to another user")
        if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
            raise ImproperlyConfigured(f"the key file {path} can be read by others; run: chmod 600 {path}")
        return parse_key(file.read(4 * KEY_BYTES), str(path))


def parse_key(text: str, where: str) -> bytes:
    """Return the key that `text` (hexadecimal) holds; `where` names its origin in errors."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        raise ImproperlyConfigured(f"{where} holds no key: hexadecimal digits are expected") from None
    if len(key) < KEY_BYTES:
        raise ImproperlyConfigured(f"{where} holds {len(key)} bytes, a key has {KEY_BYTES}")
    return key
