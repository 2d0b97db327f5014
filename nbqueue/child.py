"""The processes that run users' code: a fork server, and the children it forks.

The fork server is a fresh interpreter that imports little and opens nothing, so its children are small and hold no
connection of anybody's. It ends its children when the supervisor goes away, however that happens.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, Final, NoReturn

import msgspec

from nbqueue.exceptions import NBQueueError
from nbqueue.execute import Executor, find_app
from nbqueue.messages import ChildEvent, ChildTask, Outcome
from nbqueue.states import REVOKED

FRAME_BYTES: Final = 100_000  # a larger one goes as a file in memory
_PR_SET_PDEATHSIG: Final = 1
_encode = msgspec.msgpack.Encoder().encode
_decode_task = msgspec.msgpack.Decoder(ChildTask).decode


def receive_frame(sock: socket.socket, buffer: memoryview, flags: int = 0) -> bytes:
    """Return the next frame of a socket of frames; empty when the other side has closed it.

    Args:
        sock: keeps the bounds of messages.
        buffer: room for one frame.
        flags: of `recvmsg`.
    """
    size, ancillary, _, _ = sock.recvmsg_into([buffer], socket.CMSG_SPACE(4), flags)
    if not ancillary:
        return bytes(buffer[:size])
    descriptor = array.array("i", ancillary[0][2])[0]
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
            return bytes(mapped)
    finally:
        os.close(descriptor)


def send_frame(sock: socket.socket, frame: bytes) -> None:
    """Send a frame as one message; raises BlockingIOError if there is no room for it."""
    if len(frame) <= FRAME_BYTES:
        sock.send(frame)
        return
    descriptor = os.memfd_create("nbqueue frame", os.MFD_CLOEXEC)
    try:
        view = memoryview(frame)
        while view:
            view = view[os.write(descriptor, view) :]
        socket.send_fds(sock, [b"M"], [descriptor])
    finally:
        os.close(descriptor)


class ForkServer:
    """Forks children on request and reports how they end.

    Args:
        sock: to the supervisor; keeps the bounds of messages.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.children: set[int] = set()
        self.registries: list[Any] = []

    def run(self) -> None:
        """Serve until the supervisor closes its end."""
        wake_in, wake_out = socket.socketpair()
        wake_in.setblocking(False)
        wake_out.setblocking(False)
        signal.set_wakeup_fd(wake_out.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not self._preload():
            return
        while True:
            readable, _, _ = select.select([self.sock, wake_in], [], [])
            if wake_in in readable:
                with contextlib.suppress(BlockingIOError):
                    wake_in.recv(4096)
                self._reap()
            if self.sock in readable:
                data, descriptors, _, _ = socket.recv_fds(self.sock, 4096, 2)
                if not data:
                    break
                self._fork(int(data), descriptors, (wake_in, wake_out))
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _preload(self) -> bool:
        settings = json.loads(self.sock.recv(1 << 16))
        sys.path[:0] = settings["path"]
        try:
            self.registries = [find_app(spec) for spec in settings["preload"]]
        except NBQueueError as exc:
            self._say(failed=str(exc))
            return False
        except Exception as exc:  # noqa: BLE001 - a user's module may raise anything
            self._say(failed=f"-A {', '.join(settings['preload'])}: {type(exc).__name__}: {exc}")
            return False
        return True

    def _fork(self, number: int, descriptors: list[int], own: tuple[socket.socket, ...]) -> None:
        pid = os.fork()
        if pid == 0:
            for sock in (self.sock, *own):
                sock.close()
            _become_child(descriptors, self.registries)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # the child does it too; whoever is first
            os.setpgid(pid, pid)
        self.children.add(pid)
        self._say(forked=pid, child=number)

    def _reap(self) -> None:
        while self.children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.children.discard(pid)
            # What it started itself, and left behind, ends with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            self._say(exited=pid, status=status)

    def _say(self, **report: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.sock.send(json.dumps(report).encode())


def _become_child(descriptors: list[int], registries: list[Any]) -> NoReturn:
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        _die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        tasks, replies = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        Child(tasks, replies, registries).run()
        status = 0
    except BaseException:  # noqa: BLE001 - a forked process must not return into its parent's code
        sys.__stderr__ and sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _die_with_parent() -> None:
    """Ask Linux to end this process with the fork server; elsewhere that one does it by hand."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """Runs one task after another, as they come.

    Args:
        tasks: brings code (`C`), tasks (`T`) and the end (`Q`), each as one message.
        replies: takes a length and then what happened: ready (`R`), an event (`E`), an outcome (`O`).
        registries: where tasks by name are looked up.
    """

    def __init__(self, tasks: socket.socket, replies: socket.socket, registries: list[Any]) -> None:
        self.tasks = tasks
        self.replies = replies
        self._lock = threading.Lock()
        self.executor = Executor(self._event, registries)

    def run(self) -> None:
        """Run tasks until told to end, or until nobody is left to tell."""
        self.executor.install_streams()
        signal.signal(signal.SIGINT, self._interrupted)
        buffer = memoryview(bytearray(FRAME_BYTES + 1024))
        self._reply(b"R")
        while True:
            frame = receive_frame(self.tasks, buffer)
            kind = frame[:1]
            if kind == b"T":
                task = _decode_task(memoryview(frame)[1:])
                try:
                    outcome = self.executor.execute(task)
                except KeyboardInterrupt:  # it came while the outcome was being packed
                    outcome = Outcome(task.seq, REVOKED, b"", 0.0, 0.0, "interrupted")
                self._reply(b"O" + _encode(outcome))
            elif kind == b"C":
                self.executor.keep_code(frame[1:33].decode(), frame[33:])
            else:
                return

    def _interrupted(self, *_: object) -> None:
        # Between tasks it is late: whom it was meant for has ended.
        if self.executor.interruptible:
            raise KeyboardInterrupt

    def _event(self, seq: int, kind: str, data: bytes) -> None:
        self._reply(b"E" + _encode(ChildEvent(seq, kind, data, time.time())))

    def _reply(self, payload: bytes) -> None:
        with self._lock:
            try:
                self.replies.sendall(len(payload).to_bytes(4, "big") + payload)
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # nobody is left to tell


def main() -> None:
    """Run the fork server on the socket that the supervisor passed."""
    ForkServer(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
