"""What C code and subprocesses of a task write to the descriptors 1 and 2, brought to the task's own output.

The descriptors are files without a name, looked at 20 times a second while a task runs and once at its end. A pipe
would have to be emptied by a thread that needs the interpreter, for which C code that writes may hold the lock.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import fcntl
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Final

from nbqueue.capture import Flusher, Recorder

LOOK_S: Final = 0.05
QUIET_LOOKS: Final = 20  # without a task, after which nobody looks any more
_READ_BYTES: Final = 1 << 20
_PUNCH: Final = 0x01 | 0x02  # keep the size, punch a hole. Source: fallocate(2)


class Descriptors:
    """Reads the descriptors 1 and 2 of this process for whatever task runs.

    Args:
        recorder: returns the recorder of the running task, or None between tasks.
        flusher: flushes later.
    """

    def __init__(self, recorder: Callable[[], Recorder | None], flusher: Flusher) -> None:
        self._recorder = recorder
        self._flusher = flusher
        self._files: list[_File] = []
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._pid = 0

    def install(self) -> None:
        """Take over both descriptors."""
        self._files = [_File(1, "stdout"), _File(2, "stderr")]
        self._pid = os.getpid()
        threading.Thread(target=self._run, name="nbqueue descriptors", daemon=True).start()

    def begin(self) -> None:
        """Look from now on: a task has begun."""
        if not self._wanted.is_set():
            self._wanted.set()

    def look(self) -> None:
        """Bring what was written to the running task, or to the worker's own streams if none runs."""
        if self._pid != os.getpid():
            return  # a process that the task forked
        with self._lock:
            for file in self._files:
                while text := file.read():
                    recorder = self._recorder()
                    if recorder is None:
                        file.pass_on(text)
                    elif recorder.write(file.stream, text):
                        self._flusher.soon(recorder)

    def _run(self) -> None:
        quiet = 0
        while True:
            self._wanted.wait()
            quiet = 0 if self._recorder() is not None else quiet + 1
            if quiet > QUIET_LOOKS:
                self._wanted.clear()
            time.sleep(LOOK_S)
            with contextlib.suppress(OSError):
                self.look()


class _File:
    """One descriptor, and the file behind it."""

    def __init__(self, descriptor: int, stream: str) -> None:
        self.stream = stream
        self._own = os.dup(descriptor)
        os.set_inheritable(self._own, False)
        self._file = _nameless()
        self._place = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # Who opens it by its path, as `/dev/stderr`, begins at the start: appending puts all of it at the end.
        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) | os.O_APPEND)
        os.dup2(self._file, descriptor)

    def read(self) -> str:
        """Return what was written since the last time; empty if nothing was."""
        size = os.fstat(self._file).st_size
        if size < self._place:
            self._place = 0  # somebody has emptied it, by its path; what was not read then is gone
        if size == self._place:
            return ""
        data = os.pread(self._file, _READ_BYTES, self._place)
        _free(self._file, self._place, len(data))
        self._place += len(data)
        return self._decoder.decode(data)

    def pass_on(self, text: str) -> None:
        """Write to what the descriptor was before."""
        with contextlib.suppress(OSError):
            os.write(self._own, text.encode(errors="replace"))


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("nbqueue output", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _free(descriptor: int, start: int, size: int) -> None:
    """Give back the memory of what was read."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):
        punch = ctypes.CDLL(None).fallocate
        punch.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        punch(descriptor, _PUNCH, start, size)
