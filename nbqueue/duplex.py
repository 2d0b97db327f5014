"""What an executor and the worker of its own say to each other, over a socket that only these two have.

Calls go over it by the hundred, and what became of them comes back; neither passes a server. Nothing is signed, as
between a supervisor and its children.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any, Final

import msgspec

CODES_KEPT: Final = 128  # of functions, on either side: the same ones, as both see the same calls in the same order
BUFFER_BYTES: Final = 4 * 1024 * 1024
_READ_BYTES: Final = 1 << 18
_LENGTH_BYTES: Final = 4


class SentCalls(msgspec.Struct, array_like=True, tag="calls"):
    """Calls of one function: the JSON of the steering of a map, and packed arguments.

    `code` is empty where the worker has it already. `losses` of workers are charged to them.
    """

    steering: bytes
    code: bytes
    rows: list[bytes]
    losses: int = 0


class Cancel(msgspec.Struct, array_like=True, tag="cancel"):
    """Task ids of calls that are not to begin any more."""

    number: int
    ids: list[str]


class Cancelled(msgspec.Struct, array_like=True, tag="cancelled"):
    """Which of them won't."""

    number: int
    ids: list[str]


class Ended(msgspec.Struct, array_like=True, tag="ended"):
    """Calls of one map that have ended well, by index, and their packed values."""

    group: str
    indexes: list[int]
    values: list[bytes]


class Said(msgspec.Struct, array_like=True, tag="said"):
    """Facts: how other calls have ended, that some run, and what they put out."""

    facts: list[bytes]


class Refused(msgspec.Struct, array_like=True, tag="refused"):
    """A call that the worker can't run, and why."""

    id: str
    why: str


ToWorker = SentCalls | Cancel
ToOwner = Ended | Said | Cancelled | Refused

encode = msgspec.msgpack.Encoder().encode
_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
_to_owner = msgspec.msgpack.Decoder(ToOwner).decode


def keep_code(kept: dict[str, bytes], digest: str, code: bytes) -> None:
    """Keep code, and forget the oldest if there is very much."""
    if digest not in kept:
        kept[digest] = code
        if len(kept) > CODES_KEPT:
            del kept[next(iter(kept))]


class Duplex:
    """One end of the socket.

    Args:
        sock: a stream.
        owner: this is the owner's end, and what comes is from the worker.
    """

    def __init__(self, sock: socket.socket, *, owner: bool) -> None:
        self.sock = sock
        self.closed = False  # the other side has ended
        self._decode: Any = _to_owner if owner else _to_worker
        self._incoming = bytearray()
        self._outgoing = bytearray()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)

    def send(self, message: ToWorker | ToOwner) -> None:
        """Send a message, however long that takes; one thread at a time.

        Raises:
            OSError: the other side has ended.
        """
        self.sock.sendall(_framed(message))

    def put(self, message: ToOwner, longest_s: float) -> None:
        """Send a message over a socket that doesn't block; what finds no room within `longest_s` is kept."""
        self._outgoing += _framed(message)
        self.flush(longest_s)

    def flush(self, longest_s: float = 0.0) -> None:
        """Send what was kept, as far as there is room within `longest_s`."""
        deadline = 0.0
        while self._outgoing and not self.closed:
            try:
                sent = self.sock.send(self._outgoing)
            except BlockingIOError:
                now = time.monotonic()
                deadline = deadline or now + longest_s
                if now >= deadline:
                    return
                time.sleep(0.001)
                continue
            except OSError:
                self.closed = True
                self._outgoing.clear()
                return
            del self._outgoing[:sent]

    def receive(self) -> list[Any]:
        """Return the messages that have come; a socket that blocks waits until there is something to read.

        Raises:
            msgspec.DecodeError: this is no message; those after it can be read.
        """
        flags = 0
        try:
            while data := self.sock.recv(_READ_BYTES, flags):
                self._incoming += data
                if len(data) < _READ_BYTES:
                    break
                flags = socket.MSG_DONTWAIT
            else:
                self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        at, incoming = 0, self._incoming
        messages = []
        try:
            while len(incoming) - at >= _LENGTH_BYTES:
                start = at + _LENGTH_BYTES
                end = start + int.from_bytes(incoming[at:start], "big")
                if len(incoming) < end:
                    break
                at = end
                with memoryview(incoming) as view:
                    messages.append(self._decode(view[start:end]))
        finally:
            del incoming[:at]
        return messages

    def close(self) -> None:
        """Close this end; whoever reads from it in another thread sees the end of it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def _framed(message: ToWorker | ToOwner) -> bytes:
    data = encode(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data
