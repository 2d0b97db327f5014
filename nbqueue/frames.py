"""Frames between a supervisor and a child: one message of a socket each, large ones as files in memory.

A frame begins with its kind and what tells it from others of that kind, in `LABEL_BYTES` at most. A supervisor that
takes frames back reads no more than that, however large they are.
"""

from __future__ import annotations

import array
import contextlib
import errno
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from typing import Final

FRAME_BYTES: Final = 100_000  # a larger one goes as a file
BUFFER_BYTES: Final = FRAME_BYTES + 1_024
LABEL_BYTES: Final = 33  # a kind and a digest
BEGAN: Final = struct.Struct(">Qd")  # a task's number, and the machine's monotonic clock when it began
_FILE: Final = b"F"
_ROOM: Final = socket.CMSG_SPACE(array.array("i").itemsize)
# All of these pass: no room in the socket, or for another file.
_BUSY: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def socket_of_frames() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep the bounds of messages."""
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:  # macOS has no such pairs, and nobody there needs to see an end of file
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def send_frame(sock: socket.socket, frame: bytes | bytearray) -> bool:
    """Send a frame; False if there is no room for it now, and then nothing was sent."""
    try:
        if len(frame) <= FRAME_BYTES:
            sock.send(frame)
        else:
            with _file_of(frame) as descriptor:
                socket.send_fds(sock, [_FILE + frame[:LABEL_BYTES]], [descriptor])
    except OSError as exc:
        if exc.errno in _BUSY:
            return False
        raise
    return True


def receive_frame(sock: socket.socket, buffer: memoryview) -> memoryview:
    """Wait for a frame and return it, good until the next call; empty when the other side is closed."""
    size, ancillary, _, _ = sock.recvmsg_into([buffer], _ROOM)
    if not ancillary:
        return buffer[:size]
    descriptor = array.array("i", ancillary[0][2])[0]
    try:
        # Unmapped when the last view of it goes.
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)


def take_back(sock: socket.socket, buffer: memoryview) -> bytes:
    """Return the label of a frame that nobody has read, and drop the frame; empty if there is none."""
    try:
        size, ancillary, _, _ = sock.recvmsg_into([buffer], _ROOM, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
    for _, _, data in ancillary:
        for descriptor in array.array("i", data):
            os.close(descriptor)
    start = len(_FILE) if ancillary else 0
    return bytes(buffer[start : min(size, start + LABEL_BYTES)])


@contextlib.contextmanager
def _file_of(frame: bytes | bytearray) -> Iterator[int]:
    """Yield the descriptor of a file that holds `frame` and has no name."""
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("nbqueue", os.MFD_CLOEXEC)
            stack.callback(os.close, descriptor)
        else:
            descriptor = stack.enter_context(tempfile.TemporaryFile()).fileno()
        view = memoryview(frame)
        while view:
            view = view[os.write(descriptor, view) :]
        yield descriptor
