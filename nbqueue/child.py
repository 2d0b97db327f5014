"""The processes that run users' code: a fork server, and the children it forks.

The fork server is a fresh interpreter that imports little and opens nothing, so its children are small and hold no
connection of anybody's. It ends its children when the supervisor goes away, however that happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import io
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

import msgspec

from nbqueue import signals, tasklog
from nbqueue.blobs import BlobStore
from nbqueue.capture import SOFT_SIGNAL, Interrupts
from nbqueue.contents import accepts
from nbqueue.current import current_app, set_app_maker
from nbqueue.descriptors import last_words, nameless
from nbqueue.exceptions import ImproperlyConfigured, NBQueueError, SoftTimeLimitExceeded
from nbqueue.execute import Executor, failed, find_app, leave_task
from nbqueue.frames import BEGAN, BUFFER_BYTES, receive_frame, socket_of_frames
from nbqueue.limits import shown_size
from nbqueue.memory import rss_bytes
from nbqueue.messages import ChildEvent, ChildTask, Graft, Outcome, encode_said
from nbqueue.payloads import Packer
from nbqueue.states import REVOKED

# Lets a child write to stderr where it is at. A task may take the signal for its own ends.
STACKS_SIGNAL: Final[int] = getattr(signal, "SIGUSR2", 0)
FORK_PAUSE_S: Final = 0.5  # after a fork that failed
_PR_SET_PDEATHSIG: Final = 1
_encode = msgspec.msgpack.Encoder().encode
_decode_task = msgspec.msgpack.Decoder(ChildTask).decode


class ForkServer:
    """Forks children on request and reports how they end.

    Args:
        sock: to the supervisor; keeps the bounds of messages.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.children: dict[int, int] = {}  # process ids, and the files that they write their errors to
        self.registries: list[Any] = []
        self.store: BlobStore | None = None
        self.keep_s = 0.0
        self.accept: frozenset[str] | None = None
        self.worker = ""
        self.wear = Wear()
        self.threads = False  # tasks run in those of one process
        self._host: tuple[int, socket.socket] | None = None  # that process, and what takes orders for it

    def run(self) -> None:
        """Serve until the supervisor closes its end."""
        wake_in, wake_out = socket.socketpair()
        wake_in.setblocking(False)
        wake_out.setblocking(False)
        signal.set_wakeup_fd(wake_out.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # What users' code calls __main__ is their notebook or program, never this one.
        sys.modules["__main__"] = ModuleType("__main__")
        if not self._preload():
            while self.sock.recv(4096):  # leaving orders unread would reset the connection under the report
                pass
            return
        gc.collect()
        gc.freeze()  # what is here now stays shared with the children
        with contextlib.suppress(ConnectionResetError):  # it was killed, with reports unread
            self._serve(wake_in, wake_out)
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _serve(self, wake_in: socket.socket, wake_out: socket.socket) -> None:
        while True:
            readable, _, _ = select.select([self.sock, wake_in], [], [])
            if wake_in in readable:
                with contextlib.suppress(BlockingIOError):
                    wake_in.recv(4096)
                self._reap()
            if self.sock in readable:
                data, descriptors, _, _ = socket.recv_fds(self.sock, 4096, 2)
                if not data:
                    return
                order = json.loads(data)
                if "raise" in order:
                    self._pass_on(data, [])
                elif self.threads:
                    self._add_thread(order, data, descriptors, (wake_in, wake_out))
                else:
                    self._fork(order, descriptors, (wake_in, wake_out))

    def _preload(self) -> bool:
        told = self.sock.recv(1 << 16)
        if not told:
            return False  # its supervisor has not come so far
        settings = json.loads(told)
        if settings["blobs"]:
            self.store, self.keep_s = BlobStore(Path(settings["blobs"])), settings["keep_s"]
        self.accept = accepts(settings["accept"]) if settings["accept"] else None
        self.wear = Wear(settings["max_tasks"], settings["max_memory_kib"])
        # The supervisor, which reads the same settings, has said which of them mean nothing here.
        logging.getLogger("nbqueue.config").setLevel(logging.ERROR)
        tasklog.setup(settings["log_level"], *settings["log_line"])
        self.threads = settings["threads"]
        sys.path[:0] = [*settings["path"], ""]  # "": the working directory, as in a notebook
        try:
            found = [_registry(spec) for spec in settings["preload"]]
        except NBQueueError as exc:
            self._say(failed=str(exc))
            return False
        except Exception as exc:  # noqa: BLE001 - a user's module may raise anything
            self._say(failed=f"-A {', '.join(settings['preload'])}: {type(exc).__name__}: {exc}")
            return False
        self.registries = [registry for registry in found if registry is not None]
        if client := settings["client"]:
            _connect(client, self.registries)
        self._say(ready=True)
        return True

    def _pass_on(self, data: bytes, descriptors: list[int]) -> bool:
        """Pass an order on to the process of the threads; False if that has ended."""
        if self._host is None or self._host[0] not in self.children:
            return False
        try:
            socket.send_fds(self._host[1], [data], descriptors)
        except OSError:
            return False
        return True

    def _add_thread(
        self, order: dict[str, Any], data: bytes, descriptors: list[int], own: tuple[socket.socket, ...]
    ) -> None:
        """Have one thread more, in the process of the others, or in a new one that gets them all from now on."""
        if not self._pass_on(data, descriptors):
            if self._host is not None:
                self._host[1].close()
            ours, theirs = socket_of_frames()
            self.worker = order["worker"]
            pid = self._forked(lambda parent: _become_host(parent, theirs, self, (*own, ours)), order["child"])
            theirs.close()
            self._host = (pid, ours)
            self._pass_on(data, descriptors)  # one that has ended already is reaped, and the thread asked for anew
        for descriptor in descriptors:
            os.close(descriptor)
        if self._host is not None and self._host[0] > 0:
            self._say(forked=self._host[0], child=order["child"])

    def _forked(self, become: Callable[[int], NoReturn], child: int) -> int:
        """Fork; return the process id, or -1 if it can't be done, which is said."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as exc:  # no memory, or too many processes: that may pass
            time.sleep(FORK_PAUSE_S)
            self._say(not_forked=str(exc), child=child)
            return -1
        if pid == 0:
            become(parent)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self.children[pid] = nameless()
        return pid

    def _fork(self, order: dict[str, Any], descriptors: list[int], own: tuple[socket.socket, ...]) -> None:
        parent = os.getpid()
        errors = -1
        try:
            errors = nameless()
            pid = os.fork()
        except OSError as exc:  # no memory, or too many processes: that may pass
            time.sleep(FORK_PAUSE_S)
            self._say(not_forked=str(exc), child=order["child"])
            pid = -1
        if pid == 0:
            for sock in (self.sock, *own):
                sock.close()
            for file in self.children.values():
                os.close(file)
            self.worker = order["worker"]
            _become_child(parent, order["wait_s"], descriptors, self, errors)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid < 0:
            if errors >= 0:
                os.close(errors)
            return
        with contextlib.suppress(OSError):  # the child does it too; whoever is first
            os.setpgid(pid, pid)
        self.children[pid] = errors
        self._say(forked=pid, child=order["child"])

    def _reap(self) -> None:
        while self.children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            errors = self.children.pop(pid)
            said = last_words(errors) if status else ""
            os.close(errors)
            # What it started itself, and left behind, ends with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            self._say(exited=pid, status=status, said=said)

    def _say(self, **report: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.send(json.dumps(report).encode())


def _connect(client: dict[str, Any], registries: list[Any]) -> None:
    """Let calls that tasks make go to where their worker is connected to, whatever their modules say."""

    # What sends calls is loaded where a task sends one, and not before: most don't.
    def connected(app: Any) -> Any:
        from nbqueue.link import heard  # noqa: PLC0415

        app.adopt(heard(client))
        return app

    for registry in registries:
        if hasattr(registry, "adopt"):
            connected(registry)

    def make() -> Any:
        from nbqueue.app import App  # noqa: PLC0415

        app = App(by_value=True, set_as_current=False)
        app.conf.update(client["settings"])
        return connected(app)

    set_app_maker(make)


def _graft(sig: Any, packer: Packer) -> tuple[Graft, Any]:
    """Return a canvas that a task hands over, packed as a client would pack it, and its handle."""
    from nbqueue.plans import graft  # noqa: PLC0415 - as above

    return graft(sig, current_app(), packer)


def _registry(spec: str) -> Any:
    """Return the App that `-A` or `include` names; None for a module that only adds tasks to one elsewhere."""
    try:
        app = find_app(spec)
    except ImproperlyConfigured:
        if spec not in sys.modules:
            raise
        return None
    if hasattr(app, "import_modules"):
        app.import_modules()
    return app


def _become_child(parent: int, wait_s: float, descriptors: list[int], server: ForkServer, errors: int) -> NoReturn:
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        _die_with(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        time.sleep(wait_s)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        tasks, replies = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()  # as Python does for its own; else all children would draw the same
        Child(tasks, replies, server, errors).run()
        status = 0
    except BaseException:  # noqa: BLE001 - a forked process must not return into its parent's code
        if sys.__stderr__ is not None:
            sys.stderr = sys.__stderr__
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _become_host(parent: int, orders: socket.socket, server: ForkServer, own: tuple[socket.socket, ...]) -> NoReturn:
    status = 1
    try:
        for sock in (server.sock, *own):
            sock.close()
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        _die_with(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.suppress(OSError, AttributeError):
            faulthandler.register(STACKS_SIGNAL, os.fdopen(os.dup(2), "w"), all_threads=True)
        from nbqueue.threads import host_of  # noqa: PLC0415 - most workers have none, and start 2 ms sooner

        host_of(orders, server.registries, server.store, server.keep_s, _graft, server.accept, server.worker)
    except BaseException:  # noqa: BLE001 - a forked process must not return into its parent's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _die_with(parent: int) -> None:
    """Ask Linux to end this process with the fork server; elsewhere that one does it by hand."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@dataclass
class Wear:
    """How long a child is of use: so many tasks, or until it has grown to so many KiB; 0 is no limit."""

    max_tasks: int = 0
    max_memory_kib: int = 0
    tasks: int = 0

    def after_task(self) -> str:
        """Return why it should be replaced, now that it has run another task; empty if it shouldn't."""
        self.tasks += 1
        if self.max_tasks and self.tasks >= self.max_tasks:
            return f"replaced after {self.tasks} tasks"
        if self.max_memory_kib and (used := rss_bytes(os.getpid())) > self.max_memory_kib * 1024:
            return f"replaced, as it used {shown_size(used)}"
        return ""


class Child:
    """Runs one task after another, as they come.

    Args:
        tasks: brings code (`C`), tasks (`T`) and the end (`Q`), each as one message.
        replies: takes a length and then what happened: ready (`R`), a task with a limit has begun (`B`), an event
            (`E`), an outcome (`O`), or that a task's code has not come (`N`), as its supervisor took it back in the
            same instant, or that it ends, and why (`L`).
        server: has forked it: knows where tasks by name are looked up, where large data is, and what is accepted.
        errors: the file for what is written to descriptor 2; its parent reads there what this couldn't tell any more.
    """

    def __init__(
        self,
        tasks: socket.socket,
        replies: socket.socket,
        server: ForkServer,
        errors: int = -1,
    ) -> None:
        self.tasks = tasks
        self.errors = errors
        self.replies = replies
        self.wear = server.wear
        self.worker = server.worker
        self.interrupts = Interrupts()
        self.executor = Executor(
            self._event,
            server.registries,
            self.interrupts,
            store=server.store,
            keep_s=server.keep_s,
            accept=server.accept,
            worker=self.worker,
            graft=_graft,
        )
        self._lock = threading.Lock()
        self._forked = False

    def run(self) -> None:
        """Run tasks until told to end, until nobody is left to tell, or until it is worn out.

        What it has not read then is taken back by its supervisor.
        """
        with contextlib.suppress(OSError, AttributeError):  # without a stderr there is nowhere to write to
            # before descriptor 2 is the task's
            faulthandler.register(STACKS_SIGNAL, os.fdopen(os.dup(2), "w"), all_threads=True)
        self.executor.install_streams(self.errors)
        faulthandler.enable(2, all_threads=False)  # who dies of a signal says which line it was at
        signal.signal(signal.SIGINT, self.interrupts.handle)
        signal.signal(SOFT_SIGNAL, self.interrupts.handle)
        os.register_at_fork(after_in_child=self._disown)
        signals.worker_process_init.send(self.worker)
        try:
            self._serve()
        finally:
            signals.worker_process_shutdown.send(self.worker, pid=os.getpid(), exitcode=0)

    def _serve(self) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        self._reply(b"R")
        while True:
            frame = receive_frame(self.tasks, buffer)
            kind = bytes(frame[:1])
            if kind == b"T":
                task = _decode_task(frame[9:])
                del frame  # a large one is a mapped file
                self._run(task)
                if worn := self.wear.after_task():
                    self._reply(b"L" + worn.encode())
                    return
            elif kind == b"C":
                self.executor.keep_code(str(frame[1:33], "ascii"), bytes(frame[33:]))
            else:
                return

    def _run(self, task: ChildTask) -> None:
        if task.code and not self.executor.has_code(task.code):
            self._reply(b"N" + task.seq.to_bytes(8, "big"))
            return
        if task.limited:
            self._reply(b"B" + BEGAN.pack(task.seq, time.monotonic()))
        started = time.time()
        try:
            self.interrupts.armed = True
            self.interrupts.soft_limit_s = task.soft_time_limit
            outcome = self.executor.execute(task)
            self.interrupts.disarm()
        except KeyboardInterrupt:  # it came while the outcome was being packed
            outcome = Outcome(task.seq, REVOKED, b"", started, time.time(), "interrupted")
        except SoftTimeLimitExceeded as exc:  # as above
            outcome = failed(task.seq, exc, started)
        self.interrupts.disarm()  # the other of the two
        if self._forked:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(0)  # a process that the task forked has come back from it; only the task's own answers
        self._reply(b"O" + encode_said(_encode, outcome))

    def _event(self, seq: int, kind: str, data: bytes) -> None:
        self._reply(b"E" + _encode(ChildEvent(seq, kind, data, time.time())))

    def _reply(self, payload: bytes) -> None:
        if self._forked:
            return
        with self._lock:
            try:
                self.replies.sendall(len(payload).to_bytes(4, "big") + payload)
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # nobody is left to tell

    def _disown(self) -> None:
        """Let a process that the task forks write to the descriptors, by whole lines, and not in our replies."""
        self._forked = True
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True, write_through=False)
        leave_task()


def main() -> None:
    """Run the fork server on the socket that the supervisor passed."""
    ForkServer(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
