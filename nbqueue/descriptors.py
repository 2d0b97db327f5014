"""What C code and subprocesses of a task write to the descriptors 1 and 2, brought to the task's own output.

The descriptors are files without a name, looked at before anything else is put out, 20 times a second while a task
runs, and at its end. A pipe would have to be emptied by a thread that needs the interpreter, for which C code that
writes may hold the lock.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import fcntl
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Final

from nbqueue.capture import Flusher, Interrupts, Recorder

LOOK_S: Final = 0.05
FLOOD_LOOK_S: Final = 0.002  # while there is more than is read at once
QUIET_LOOKS: Final = 20  # without a task, after which nobody looks any more
MAX_BACKLOG_BYTES: Final = 16_000_000  # what lies beyond is passed over: who writes must not outrun who reads
MAX_PASSED_BYTES: Final = 1_000_000  # of what comes between tasks, in a child's life
MAX_LAST_BYTES: Final = 2_000
MAX_LAST_WORDS: Final = 500
_READ_BYTES: Final = 1 << 20
_PUNCH: Final = 0x01 | 0x02  # keep the size, punch a hole. Source: fallocate(2)
_UNBUFFERED: Final = 2  # _IONBF. Source: setvbuf(3)


class Descriptors:
    """Reads the descriptors 1 and 2 of this process for whatever task runs.

    Args:
        recorder: returns the recorder of the running task, or None between tasks.
        flusher: flushes later.
        interrupts: wait until a call of this has ended.
    """

    def __init__(
        self, recorder: Callable[[], Recorder | None], flusher: Flusher, interrupts: Interrupts | None = None
    ) -> None:
        self._recorder = recorder
        self._flusher = flusher
        self._interrupts = interrupts or Interrupts()
        self._files: list[_File] = []
        self._lock = threading.Lock()
        self._wanted = threading.Event()

    def install(self, errors: int = -1) -> None:
        """Take over both descriptors, and let nothing that this process writes to them wait in a buffer.

        Args:
            errors: the file to stand for descriptor 2; -1 for one that nobody else has.
        """
        self._files = [_File(1, "stdout", nameless()), _File(2, "stderr", nameless() if errors < 0 else errors)]
        sys.__stdout__, sys.__stderr__ = _unbuffered(1), _unbuffered(2)  # type: ignore[misc]
        _unbuffer_c()
        os.register_at_fork(after_in_child=self._files.clear)
        threading.Thread(target=self._run, name="nbqueue descriptors", daemon=True).start()

    def begin(self) -> None:
        """Look from now on: a task is to begin, which what was written before doesn't belong to."""
        if not self._wanted.is_set():
            self.look()
            self._wanted.set()

    def look(self) -> bool:
        """Bring what was written to the running task, or to the worker's own streams if none runs.

        Returns:
            Whether much was written.
        """
        # Once a task and once a print at least: in this order it costs a system call a file and no more.
        for file in self._files:
            if os.lseek(file.descriptor, 0, os.SEEK_END) != file.place:
                return self._bring()
        return False

    def _bring(self) -> bool:
        much = False
        with self._interrupts, self._lock:
            for file in self._files:
                # What is written from now on waits for the next look: a process that never stops must not stop us.
                end = os.lseek(file.descriptor, 0, os.SEEK_END)
                much = much or end - file.place > _READ_BYTES
                self._bring_until(file, end)
        return much

    def _bring_until(self, file: _File, end: int) -> None:
        recorder = self._recorder()
        too_much = end - file.place - MAX_BACKLOG_BYTES
        if too_much > 0:
            if recorder is not None:
                recorder.leave_out(file.stream, too_much)
            file.leave(too_much)
        while file.place != end:
            text, size = file.read(end)
            if not size:
                break
            if recorder is None:
                file.pass_on(text)
            elif recorder.write(file.stream, text):
                self._flusher.soon(recorder)
            # Only now: whoever finds nothing left to bring may close the recorder.
            file.leave(size)

    def _run(self) -> None:
        quiet, patient = 0, True
        while True:
            self._wanted.wait()
            much = False
            recorder = self._recorder()
            # A print in another thread may be just before the end of its line: it is waited for, once.
            patient = patient and recorder is not None and recorder.in_line
            if not patient:
                with contextlib.suppress(OSError):
                    much = self.look()
            patient = not patient
            quiet = 0 if much or recorder is not None else quiet + 1
            if quiet > QUIET_LOOKS:
                self._wanted.clear()
                quiet = 0
            time.sleep(FLOOD_LOOK_S if much else LOOK_S)


class _File:
    """One descriptor, and the file behind it."""

    def __init__(self, descriptor: int, stream: str, file: int) -> None:
        self.stream = stream
        self.place = 0
        self._own = os.dup(descriptor)
        os.set_inheritable(self._own, False)
        self._passed = 0
        self.descriptor = file
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # Who opens it by its path, as `/dev/stderr`, begins at the start: appending puts all of it at the end.
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, fcntl.fcntl(self.descriptor, fcntl.F_GETFL) | os.O_APPEND)
        os.dup2(self.descriptor, descriptor)

    def read(self, end: int) -> tuple[str, int]:
        """Return what comes next, and its size in bytes: at most a megabyte."""
        if end < self.place:
            self.place = 0  # somebody has emptied it, by its path; what was not read then is gone
        data = os.pread(self.descriptor, min(_READ_BYTES, end - self.place), self.place)
        return self._decoder.decode(data), len(data)

    def leave(self, size: int) -> None:
        """Go on behind what was read, or is not to be."""
        _free(self.descriptor, self.place, size)
        self.place += size

    def pass_on(self, text: str) -> None:
        """Write to what the descriptor was before."""
        self._passed += len(text)
        if self._passed <= MAX_PASSED_BYTES:
            with contextlib.suppress(OSError):
                os.write(self._own, text.encode(errors="replace"))


def nameless() -> int:
    """Return the descriptor of a new file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("nbqueue output", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def last_words(descriptor: int) -> str:
    """Return in one line what a process wrote to such a file last and didn't live to tell, as far as one can know."""
    start = max(0, os.fstat(descriptor).st_size - MAX_LAST_BYTES)
    data = os.pread(descriptor, MAX_LAST_BYTES, start).strip(b"\0")  # what was read is a hole
    words = " ".join(data.decode(errors="replace").split())
    return words if len(words) <= MAX_LAST_WORDS else f"{words[: MAX_LAST_WORDS - 1]}\u2026"


def _unbuffered(descriptor: int) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def _unbuffer_c() -> None:
    """Let what C code prints be written at once; it would wait for 4 KB, as to any file."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        libc = ctypes.CDLL(None)
        name = "__stdoutp" if sys.platform == "darwin" else "stdout"
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, _UNBUFFERED, ctypes.c_size_t(0))


def _free(descriptor: int, start: int, size: int) -> None:
    """Give back the memory of what was read."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):
        punch = ctypes.CDLL(None).fallocate
        punch.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        punch(descriptor, _PUNCH, start, size)
