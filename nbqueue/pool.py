"""`Pool`: the child processes of one supervisor, and everything that passes between them.

Each child has a socket of frames for its tasks, one message a task. The supervisor keeps the child's end of it open
too, so that it can take back what the child has not read, whatever the child is busy with.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from nbqueue import states
from nbqueue.capture import SOFT_SIGNAL
from nbqueue.exceptions import BadMessage, ImproperlyConfigured
from nbqueue.execute import CODES_KEPT
from nbqueue.forkserver import ChildSettings, ForkServer, start_fork_server
from nbqueue.frames import BEGAN, BUFFER_BYTES, send_frame, socket_of_frames, take_back
from nbqueue.messages import (
    MAX_MESSAGE_BYTES,
    REPLACED,
    ChildEvent,
    ChildTask,
    Outcome,
    decode_again,
    decode_failure,
    decode_graft,
)
from nbqueue.routing import MAX_PRIORITY
from nbqueue.times import LATEST

_BUFFER_BYTES: Final = 4 * 1024 * 1024
_READ_BYTES: Final = 1 << 18
_SERVERS_KILLED: Final = 5
_MAX_REPLY_BYTES: Final = MAX_MESSAGE_BYTES + (1 << 20)  # an outcome, and what is said of it
_ENDS: Final = states.READY_STATES | {states.RETRY, REPLACED}
_WAIT_S: Final = 0.1  # before a child takes the place of one that died before it was ready; then twice that, ...
_MAX_WAIT_S: Final = 5.0
_GONE_S: Final = 2.0  # for killed children to be gone when their fork server is
_NO_SETTINGS: Final = ChildSettings()
_encode = msgspec.msgpack.Encoder().encode
# What decoders of ours and msgspec's raise.
_GARBLED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, struct.error, BadMessage)
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode
_decode_event = msgspec.msgpack.Decoder(ChildEvent).decode


class Job(msgspec.Struct, frozen=True):
    """A task for a child. `code` is what `task.code` is the digest of; empty for a task by name."""

    seq: int
    task: ChildTask
    code: bytes


class Ready(msgspec.Struct, frozen=True):
    """A child can take tasks."""

    child: int


class Began(msgspec.Struct, frozen=True):
    """A task with a limit has begun in its child; `at` is the machine's monotonic clock."""

    child: int
    seq: int
    at: float


class Finished(msgspec.Struct, frozen=True):
    """A task has ended in its child."""

    child: int
    outcome: Outcome


class Told(msgspec.Struct, frozen=True):
    """A task said something."""

    child: int
    event: ChildEvent


class Died(msgspec.Struct, frozen=True):
    """A child has ended and is reaped; all it said has been delivered before. `started` is what it was at.

    `worn`: it was to be replaced, and ended in order between two tasks. `said`: what it wrote last to descriptor 2.
    `shared`: others were in its process, any of which may have been its end. `ended_by_us`: one of them had to end.
    """

    child: int
    cause: str
    started: int | None
    unstarted: tuple[int, ...]
    worn: bool = False
    said: str = ""
    shared: bool = False
    ended_by_us: bool = False


Happening = Ready | Began | Finished | Told | Died


@dataclass(slots=True)
class Child:
    """One child as its supervisor sees it. `jobs` are those it has not answered, in order."""

    number: int
    tasks: socket.socket
    recall: socket.socket
    replies: socket.socket
    pid: int = 0
    ready: bool = False
    jobs: dict[int, Job] = field(default_factory=dict)
    codes: dict[str, None] = field(default_factory=dict)
    again: dict[int, Job] = field(default_factory=dict)  # of `jobs`, those that have to be sent anew
    incoming: bytearray = field(default_factory=bytearray)
    kill_when_forked: bool = False
    silent: bool = False  # nothing more comes of it
    fault: str = ""  # why it was killed
    worn: str = ""  # why it ends by itself


class Pool:
    """Children of a fork server of its own. Not thread-safe: it lives in its supervisor's loop.

    Args:
        size: how many children.
        selector: gets the sockets registered; pass each readable key whose data is this pool or a `Child` to `events`.
        environment: of the children.
        settings: of the children.
        started: a fork server that has been started already, if that has this environment and these settings or none.
    """

    def __init__(
        self,
        size: int,
        selector: selectors.BaseSelector,
        *,
        environment: Mapping[str, str],
        settings: ChildSettings = _NO_SETTINGS,
        started: ForkServer | None = None,
    ) -> None:
        if not hasattr(os, "fork"):
            raise ImproperlyConfigured("workers with child processes need a system that can fork; this one can't")
        self.size = size
        self.worker = ""  # the name that its tasks are told
        self.children: dict[int, Child] = {}
        self._selector = selector
        self.settings = settings
        self.environment = dict(environment)
        self._started = started
        if started is not None and (
            started.environment != self.environment or started.told not in (None, self.settings)
        ):
            started.close()
            self._started = None
        self._by_pid: dict[int, list[Child]] = {}
        self._killed: set[int] = set()  # processes
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._server_ready = False
        self._unready = 0  # fork servers in a row that were killed before they were ready
        self._failures = 0  # children in a row that died before they were ready
        self._stopping = False
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def start(self) -> None:
        """Start the fork server and its children; `Ready` follows for each."""
        started, self._started = self._started, None
        if started is None:
            started = start_fork_server(self.environment)
        if started.told is None:
            started.tell(self.settings)
        ours = started.sock
        self._server_ready = False
        self._server = started.process
        self._control = ours
        self._selector.register(ours, selectors.EVENT_READ, self)
        for number in range(1, self.size + 1):
            self._add(number)

    def send(self, child: int, job: Job) -> bool:
        """Hand a task to a child; False if its socket is full, and then nothing was sent."""
        target = self.children[child]
        if not self._send_again(target) or not self._hand(target, job):
            return False
        target.jobs[job.seq] = job
        return True

    def recall(self, child: int) -> list[int]:
        """Take back every task that a child has not started; return their seqs in order."""
        target = self.children[child]
        back = list(target.again)
        target.again.clear()
        leaves = False
        while label := take_back(target.recall, self._buffer):
            if label[:1] == b"T":
                back.append(int.from_bytes(label[1:9], "big"))
            elif label[:1] == b"C":
                target.codes.pop(label[1:].decode(), None)
            elif label[:1] == b"Q":
                leaves = True
        if leaves:
            self.retire(child)
        for seq in back:
            target.jobs.pop(seq, None)
        return back

    def interrupt(self, child: int, signum: int) -> None:
        """Send a signal to a child and to what it has started; in a thread `KeyboardInterrupt` is raised."""
        if self.settings.threads:
            self._raise_in(child, "interrupt")
        else:
            self._signal(self.children[child], signum)

    def warn(self, child: int) -> None:
        """Have `SoftTimeLimitExceeded` raised in a child; what it has started itself is left alone."""
        if self.settings.threads:
            self._raise_in(child, "soft")
        elif pid := self.children[child].pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, SOFT_SIGNAL)

    def _raise_in(self, child: int, what: str) -> None:
        """Have something raised in what the thread of a child runs."""
        seq = next(iter(self.children[child].jobs), 0)
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(json.dumps({"raise": what, "seq": seq}).encode())

    def resize(self, size: int) -> None:
        """Have so many children: more start at once, those beyond end after the task they are at."""
        self.size = size
        for number in range(1, size + 1):
            if number not in self.children:
                self._add(number)
        for number in [number for number in self.children if number > size]:
            self.retire(number)

    def retire(self, child: int) -> None:
        """Let a child end after the task it is at; a new one takes its place, unless there are too many."""
        target = self.children[child]
        target.ready, target.worn = False, target.worn or "replaced"
        with contextlib.suppress(OSError):  # it has ended already, or is about to: its socket is full of tasks
            target.tasks.send(b"Q")

    def kill(self, child: int) -> None:
        """End a child by force; `Died` follows once it is reaped, and a new one takes its place."""
        target = self.children[child]
        target.kill_when_forked = not target.pid
        self._signal(target, signal.SIGKILL)

    def events(self, key: selectors.SelectorKey) -> Iterator[Happening]:
        """Yield what has happened at a readable socket.

        Raises:
            ImproperlyConfigured: a module that `-A` names can't be imported.
        """
        if isinstance(key.data, Child):
            yield from self._read(key.data)
        else:
            yield from self._reports()

    def stop(self, timeout_s: float) -> None:
        """Ask the children to end, then end them by force; wait for the fork server."""
        self._stopping = True
        for child in self.children.values():
            with contextlib.suppress(OSError):
                child.tasks.send(b"Q")
        deadline = time.monotonic() + timeout_s
        while any(child.pid for child in self.children.values()) and time.monotonic() < deadline:
            if not self._wait_for_report(deadline - time.monotonic()):
                break
        if self._control is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._control)
            self._control.close()  # now the fork server kills what is left, and ends
            self._control = None
        for child in list(self.children.values()):
            self._remove(child)
        if self._server is not None:
            try:
                self._server.wait(5.0)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()

    def _wait_for_report(self, timeout_s: float) -> bool:
        assert self._control is not None
        self._control.settimeout(max(0.01, timeout_s))
        try:
            for _ in self._reports():  # to the end: threads of one process end together
                pass
        except (TimeoutError, OSError):
            return False
        else:
            return True
        finally:
            self._control.settimeout(None)

    def _hand(self, child: Child, job: Job) -> bool:
        digest = job.task.code
        if digest and digest not in child.codes:
            if not send_frame(child.tasks, b"C" + digest.encode() + job.code):
                return False
            child.codes[digest] = None
            if len(child.codes) > CODES_KEPT:
                del child.codes[next(iter(child.codes))]
        return send_frame(child.tasks, b"T" + job.seq.to_bytes(8, "big") + _encode(job.task))

    def _send_again(self, child: Child) -> bool:
        while child.again:
            seq, job = next(iter(child.again.items()))
            if not self._hand(child, job):
                return False
            del child.again[seq]
        return True

    def _add(self, number: int, wait_s: float = 0.0) -> None:
        assert self._control is not None
        tasks, theirs = socket_of_frames()
        replies, answers = socket.socketpair()
        for sock in (tasks, answers):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        tasks.setblocking(False)
        replies.setblocking(False)
        child = Child(number, tasks, theirs, replies)
        self.children[number] = child
        self._selector.register(replies, selectors.EVENT_READ, child)
        with contextlib.suppress(OSError):  # a fork server that has ended is replaced with all its children
            order = json.dumps({"child": number, "wait_s": wait_s, "worker": self.worker}).encode()
            socket.send_fds(self._control, [order], [theirs.fileno(), answers.fileno()])
        answers.close()

    def _read(self, child: Child) -> Iterator[Happening]:
        while True:
            try:
                data = child.replies.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                child.silent = True
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(child.replies)
                break
            child.incoming += data
            if len(data) < _READ_BYTES:
                break
        try:
            yield from self._parse(child)
        except _GARBLED as exc:
            # A task has written to a descriptor that isn't its own.
            child.fault = f"its replies were garbled: {exc}"
            child.incoming.clear()
            self.kill(child.number)
        self._send_again(child)
        if child.silent and child.pid and self.settings.threads and not child.jobs:
            self._by_pid[child.pid].remove(child)  # a thread that has ended, or its process has
            yield from self._bury(child, "its thread ended")

    def _parse(self, child: Child) -> Iterator[Happening]:
        incoming, at = child.incoming, 0
        try:
            while len(incoming) - at >= 4:
                size = int.from_bytes(incoming[at : at + 4], "big")
                if not 0 < size <= _MAX_REPLY_BYTES:
                    raise msgspec.DecodeError(f"a reply of {size:,} bytes")
                end = at + 4 + size
                if len(incoming) < end:
                    break
                kind, payload = incoming[at + 4], bytes(incoming[at + 5 : end])
                at = end
                if kind == 79:  # O
                    outcome = _checked(_decode_outcome(payload))
                    child.jobs.pop(outcome.seq, None)
                    yield Finished(child.number, outcome)
                elif kind == 69:  # E
                    yield Told(child.number, _decode_event(payload))
                elif kind == 66:  # B
                    seq, at_s = BEGAN.unpack(payload)
                    yield Began(child.number, seq, at_s)
                elif kind == 78:  # N
                    self._missed(child, int.from_bytes(payload, "big"))
                elif kind == 76:  # L
                    child.ready, child.worn = False, payload.decode(errors="replace")
                elif kind == 82:  # R
                    self._failures = 0
                    child.ready = True
                    yield Ready(child.number)
                else:
                    raise msgspec.DecodeError(f"a reply of kind {kind}")
        finally:
            del incoming[:at]

    def _missed(self, child: Child, seq: int) -> None:
        """Send a task anew whose code was taken back just before the child read the task itself."""
        job = child.jobs.pop(seq, None)
        if job is not None:
            child.codes.pop(job.task.code, None)
            child.jobs[seq] = child.again[seq] = job

    def _reports(self) -> Iterator[Happening]:
        assert self._control is not None
        try:
            data = self._control.recv(1 << 16)
        except ConnectionResetError:  # it ended with orders unread; its last reports still come
            data = self._control.recv(1 << 16)
        if not data:
            yield from self._server_ended()
            return
        report: dict[str, Any] = json.loads(data)
        if "failed" in report:
            raise ImproperlyConfigured(report["failed"])
        self._server_ready = True
        if "forked" in report:
            child = self.children[report["child"]]
            child.pid = report["forked"]
            self._by_pid.setdefault(child.pid, []).append(child)
            if child.silent and self.settings.threads:
                yield from self._read(child)
            elif child.kill_when_forked:
                self._signal(child, signal.SIGKILL)
        elif "not_forked" in report:
            yield from self._bury(self.children[report["child"]], f"can't be forked: {report['not_forked']}")
        elif "exited" in report:
            pid = report["exited"]
            for ended in self._by_pid.pop(pid, ()):
                yield from self._bury(ended, _cause(report["status"]), report["said"], ended_by_us=pid in self._killed)
            self._killed.discard(pid)

    def _bury(self, child: Child, cause: str, said: str = "", *, ended_by_us: bool = False) -> Iterator[Happening]:
        child.pid = 0
        yield from self._read(child)
        unstarted = self.recall(child.number)
        started = next(iter(child.jobs), None)
        # It reads one task at a time, so there are no others; if there were, they would not be its fault.
        unstarted += list(child.jobs)[1:]
        self._remove(child)
        if not child.ready and not child.worn:
            self._failures += 1
        if not self._stopping and child.number <= self.size:
            self._add(child.number, min(_MAX_WAIT_S, _WAIT_S * 2**self._failures) if self._failures else 0.0)
        worn = child.worn if started is None else ""  # one that was to leave after a task may not survive it
        yield Died(
            child.number,
            child.fault or worn or cause,
            started,
            tuple(unstarted),
            worn=bool(worn),
            said=said,
            shared=self.settings.threads,
            ended_by_us=ended_by_us,
        )

    def _remove(self, child: Child) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(child.replies)
        for sock in (child.tasks, child.recall, child.replies):
            sock.close()
        if self.children.get(child.number) is child:
            del self.children[child.number]

    def _server_ended(self) -> Iterator[Happening]:
        """Begin anew with another fork server: the old one took its children along."""
        assert self._control is not None
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._control)
        self._control.close()
        assert self._server is not None
        status = self._server.wait()
        old = list(self.children.values())
        for child in old:
            self._signal(child, signal.SIGKILL)
        self._by_pid.clear()
        if self._stopping:
            return
        # One that ends by itself before it is ready would do so again; a signal came from elsewhere, and may pass.
        self._unready = 0 if self._server_ready else self._unready + 1
        if self._unready and (status >= 0 or self._unready > _SERVERS_KILLED):
            raise ImproperlyConfigured(f"{sys.executable} can't run children: it ended with {status}; see its messages")
        self._stopping = True  # `_bury` must not add to a server that is gone
        deadline = time.monotonic() + _GONE_S
        for child in old:
            yield from self._read_to_end(child, deadline)
            yield from self._bury(child, "its fork server ended")
        self._stopping = False
        self.start()

    def _read_to_end(self, child: Child, deadline: float) -> Iterator[Happening]:
        while child.pid and not child.silent and (left := deadline - time.monotonic()) > 0:
            select.select([child.replies], [], [], left)
            yield from self._read(child)

    def _signal(self, child: Child, signum: int) -> None:
        if not child.pid:
            return
        if signum == signal.SIGKILL:
            self._killed.add(child.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signum)
        if signum == signal.SIGKILL:  # a task may have moved it to another group
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child.pid, signum)


def _checked(outcome: Outcome) -> Outcome:
    """Return an outcome that ends a task or has it run again, and whose body can be read where that is needed.

    Raises:
        BadMessage: it isn't one.
    """
    if outcome.state not in _ENDS:
        raise BadMessage("fields", f"an outcome of state {outcome.state[:20]}")
    instants = [outcome.started_at, outcome.ended_at]
    if outcome.state == states.RETRY:
        again = decode_again(outcome.body)
        decode_failure(again.failure)
        instants.append(again.due)
        if again.changes is not None:
            instants.append(again.changes.expires or 0.0)
            if not 0 <= (again.changes.priority or 0) <= MAX_PRIORITY:
                raise BadMessage("fields", f"a retry of priority {again.changes.priority}")
    elif outcome.state == states.FAILURE:
        decode_failure(outcome.body)
    for graft in (*((outcome.body,) if outcome.state == REPLACED else ()), *outcome.also):
        decode_graft(graft)
    if not all(0 <= instant < LATEST for instant in instants):
        raise BadMessage("fields", "an outcome at no time there is")
    return outcome


def _cause(status: int) -> str:
    """Return how a process ended, from what `waitpid` says."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"signal {number} ({signal.Signals(number).name})"
        return f"signal {number}"
    return f"exit code {os.WEXITSTATUS(status)}"
