"""Processes that outlive whoever starts them, each known by a lock that it holds for its life.

A number in a pid file says little: the process may be gone and its number another's. So whoever starts a process
locks its pid file first and passes the lock on: it is held from before the first instruction until the last, however
that comes about, and only the pid in a locked file is ever signalled.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbqueue.exceptions import ImproperlyConfigured

# Whoever only looks holds the lock too, for some microseconds.
_LOOKERS_S: Final = 0.05
_MAX_LOG_BYTES: Final = 1_000_000

# The shell ends at once, so what it started has no parent that would have to reap it, or that a kernel's end reaches.
_DETACH: Final = '"$@" </dev/null >&2 & echo "$! $0"'


@dataclass(frozen=True, slots=True)
class PidFile:
    """A file with a process's number, locked by that process. It is never removed."""

    path: Path

    def take(self) -> int | None:
        """Return a descriptor that holds the lock of the emptied file; None if a living process has it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + _LOOKERS_S
        while not _lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(0.002)
        # An old number beside a new lock would be somebody else's.
        os.ftruncate(descriptor, 0)
        return descriptor

    def held(self) -> bool:
        """Tell whether the process lives."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return not _lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def pid(self) -> int | None:
        """Return the number of the living process; None if there is none, or if it counts in another container."""
        with contextlib.suppress(OSError, ValueError):
            number, _, where = self.path.read_text().strip().partition(" ")
            if where == _namespace() and self.held():
                return int(number)
        return None

    def write(self, descriptor: int, pid: int) -> None:
        """Write down who holds the lock from now on."""
        os.write(descriptor, f"{pid} {_namespace()}\n".encode())

    def tell(self, number: int) -> None:
        """Send a signal to the living process."""
        if (pid := self.pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, *steps: tuple[signal.Signals, float]) -> bool:
        """Send one signal after the other, each with its seconds to end; return whether the process is gone."""
        pid = self.pid()
        for number, timeout_s in steps:
            deadline = time.monotonic() + timeout_s
            if self._is(pid):
                self.tell(number)
            while self._is(pid) and time.monotonic() < deadline:
                time.sleep(0.005)
        return not self._is(pid)

    def _is(self, pid: int | None) -> bool:
        """Tell whether the holder is this one still, and not a successor that was started meanwhile."""
        return self.held() and self.pid() in (pid, None)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[bool]:
    """Hold a lock among processes; yield False if it could not be had in `timeout_s` seconds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while not (mine := _lock(descriptor, fcntl.LOCK_EX)) and time.monotonic() < deadline:
            time.sleep(0.005)
        yield mine
    finally:
        os.close(descriptor)


def start_detached(
    command: Sequence[str | Path],
    pid_file: PidFile,
    *,
    log: Path,
    environment: Mapping[str, str],
    umask: int = -1,
    cwd: Path | None = None,
    lock_option: str = "",
) -> bool:
    """Start a process in a session of its own that is nobody's child; return False if it runs already.

    Args:
        command: the program and its arguments.
        pid_file: what it holds for its life.
        log: gets what it prints.
        environment: all of its variables.
        umask: -1 for the caller's.
        cwd: where it starts.
        lock_option: an argument by which it is told its lock's descriptor; empty for none.
    """
    held = pid_file.take()
    if held is None:
        return False
    told = [lock_option, str(held)] if lock_option else []
    with (
        os.fdopen(held),
        open_log(log) as lines,
        # sh ignores INT and QUIT for what it starts so, which is right for a server; others set their own
        subprocess.Popen(
            ["/bin/sh", "-c", _DETACH, _namespace(), *command, *told],
            stdin=subprocess.DEVNULL,
            stdout=held,
            stderr=lines,
            pass_fds=(held,),
            start_new_session=True,
            env=dict(environment),
            umask=umask,
            cwd=cwd,
        ) as shell,
    ):
        shell.wait()
    return True


def start_child(command: Sequence[str | Path], pid_file: PidFile, *, log: Path) -> subprocess.Popen[bytes] | None:
    """Start a child in a session of its own; return None if another process holds its pid file."""
    held = pid_file.take()
    if held is None:
        return None
    with os.fdopen(held), open_log(log) as lines:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            pass_fds=(held,),
            start_new_session=True,
        )
        pid_file.write(held, child.pid)
    return child


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[int]:
    """Open a log for appending; one that has grown large is set aside first, over the one set aside before."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def tail(path: Path, lines: int = 20, max_bytes: int = 4_096) -> str:
    """Return a log's last lines."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise ImproperlyConfigured(
                "the file system of nbqueue's data directory knows no locks; set NBQUEUE_HOME to a local directory"
            ) from exc
        raise
    return True


def _namespace() -> str:
    """Return what tells apart the containers that may share a directory, and that count processes on their own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "-"


def make_private(directory: Path) -> None:
    """Make a directory for this user only, and so its parents, which `mkdir` would let others read."""
    if not directory.exists():
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
