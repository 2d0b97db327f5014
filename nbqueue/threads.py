"""The pool of threads: one process whose threads take tasks, each as a child of its own would.

Its main thread takes new threads and interrupts from the fork server. To its supervisor each thread is a child, but for
one thing: what ends the process ends all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

from nbqueue import signals
from nbqueue.blobs import BlobStore
from nbqueue.capture import SOFT_SIGNAL, Recorder, Stream
from nbqueue.exceptions import SoftTimeLimitExceeded
from nbqueue.execute import Executor, failed, leave_task
from nbqueue.frames import BEGAN, BUFFER_BYTES, receive_frame
from nbqueue.messages import ChildEvent, ChildTask, Outcome, encode_said
from nbqueue.modules import Importer, Module
from nbqueue.states import REVOKED

_encode = msgspec.msgpack.Encoder().encode
_decode_task = msgspec.msgpack.Decoder(ChildTask).decode
_raise_in: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)
_NOTHING: Final = ctypes.py_object()  # as NULL, which None is not


class ThreadsExecutor(Executor):
    """Runs tasks in several threads at once: what is printed in a thread is of the task that it runs."""

    @property
    def recorder(self) -> Recorder | None:
        """Return that of the task that this thread runs."""
        return getattr(self._local, "recorder", None)

    @recorder.setter
    def recorder(self, value: Recorder | None) -> None:
        self._local.recorder = value

    @property
    def _local(self) -> threading.local:
        local: threading.local = self.__dict__.setdefault("_of_thread", threading.local())
        return local

    def install_streams(self, errors: int = -1) -> None:
        """Let what is printed and displayed go to the task of the thread that does; the descriptors are everybody's."""
        del errors
        self.install_hooks()
        for name in ("stdout", "stderr"):
            setattr(sys, name, _ThreadStream(name, self._recorder, self.flusher, self.interrupts))


class _ThreadStream(Stream):
    """Stands for a stream; what no task's thread writes goes to the worker's own."""

    def write(self, text: str) -> int:
        """Take text."""
        if self._recorder() is None:
            out = sys.__stdout__ if self._name == "stdout" else sys.__stderr__
            if out is not None:
                out.write(text)
                out.flush()
            return len(text)
        return super().write(text)


class _SharedImporter(Importer):
    """Offers users' modules to all threads: those that are offered already stay beside the new ones."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def use(self, modules: Any) -> bool:
        """Offer these modules too; tell whether one that was imported had to be dropped for it."""
        with self._lock:
            both: dict[str, Module] = {**self._modules, **modules}
            return super().use(both)


class Host:
    """The process of the threads.

    Args:
        orders: from the fork server: descriptors of a new thread's sockets, or what is to be raised in a thread.
        registries: where tasks by name are looked up.
        store: where large data is.
        keep_s: how long that of results is kept.
        graft: packs canvases that tasks hand over.
        accept: serializers whose content is loaded; all if None.
        worker: whose process it is.
    """

    def __init__(
        self,
        orders: socket.socket,
        registries: list[Any],
        store: BlobStore | None,
        keep_s: float,
        graft: Any,
        accept: frozenset[str] | None,
        worker: str,
    ) -> None:
        self.worker = worker
        self.orders = orders
        self.threads: dict[int, ThreadChild] = {}  # by the number of the child
        self.by_seq: dict[int, ThreadChild] = {}
        self.executor = ThreadsExecutor(
            self._event,
            registries,
            store=store,
            keep_s=keep_s,
            graft=graft,
            importer=_SharedImporter(),
            accept=accept,
        )

    def run(self) -> NoReturn:
        """Serve until the last thread has ended."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(SOFT_SIGNAL, signal.SIG_IGN)
        faulthandler.enable(2)
        self.executor.install_streams()
        os.register_at_fork(after_in_child=self._disown)
        signals.worker_process_init.send(self.worker)
        while True:
            data, descriptors, _, _ = socket.recv_fds(self.orders, 4096, 2)
            if not data:
                os._exit(0)
            order = json.loads(data)
            if descriptors:
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
                tasks, replies = (socket.socket(fileno=descriptor) for descriptor in descriptors)
                child = ThreadChild(self, order["child"], tasks, replies)
                self.threads[child.number] = child
                threading.Thread(
                    target=child.run, args=(order["wait_s"],), name=f"nbqueue child {child.number}", daemon=True
                ).start()
            elif (found := self.by_seq.get(order["seq"])) is not None:
                found.interrupt(order["seq"], SoftTimeLimitExceeded if order["raise"] == "soft" else KeyboardInterrupt)

    def ended(self, child: ThreadChild) -> None:
        """Take the end of a thread; the process ends with the last."""
        if self.threads.get(child.number) is child:
            del self.threads[child.number]
        child.close()
        if not self.threads:
            signals.worker_process_shutdown.send(self.worker, pid=os.getpid(), exitcode=0)
            os._exit(0)

    def _event(self, seq: int, kind: str, data: bytes) -> None:
        if (child := self.by_seq.get(seq)) is not None:
            child.reply(b"E" + _encode(ChildEvent(seq, kind, data, time.time())))

    def _disown(self) -> None:
        """Leave a process that a task forks alone with its descriptors."""
        for child in self.threads.values():
            child.forked = True
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        leave_task()


class ThreadChild:
    """One thread, which runs one task after another; speaks as `nbqueue.child.Child` does.

    Args:
        host: of its process.
        number: of the child that it is to its supervisor.
        tasks: brings code, tasks and the end.
        replies: takes what happens.
    """

    def __init__(self, host: Host, number: int, tasks: socket.socket, replies: socket.socket) -> None:
        self.host = host
        self.number = number
        self.tasks = tasks
        self.replies = replies
        self.forked = False
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held while it is changed what runs, or something is raised in it
        self._seq = 0
        self._ident = 0

    def run(self, wait_s: float) -> None:
        """Run tasks until told to end, or until nobody is left to tell."""
        self._ident = threading.get_ident()
        time.sleep(wait_s)
        try:
            self._serve()
        except OSError:
            pass  # its supervisor has gone
        except BaseException:  # noqa: BLE001 - of the machinery: what it was at must not be waited for
            faulthandler.dump_traceback(2)
            sys.__excepthook__(*sys.exc_info())
            os._exit(1)
        self.host.ended(self)

    def _serve(self) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        executor = self.host.executor
        self.reply(b"R")
        while True:
            frame = receive_frame(self.tasks, buffer)
            kind = bytes(frame[:1])
            if kind == b"T":
                task = _decode_task(frame[9:])
                del frame
                self._run(task)
            elif kind == b"C":
                executor.keep_code(str(frame[1:33], "ascii"), bytes(frame[33:]))
            else:
                return

    def _run(self, task: ChildTask) -> None:
        executor = self.host.executor
        if task.code and not executor.has_code(task.code):
            self.reply(b"N" + task.seq.to_bytes(8, "big"))
            return
        if task.limited:
            self.reply(b"B" + BEGAN.pack(task.seq, time.monotonic()))
        started = time.time()
        try:
            self.host.by_seq[task.seq] = self
            with self._turn:
                self._seq = task.seq
            outcome = executor.execute(task)
        except KeyboardInterrupt:
            outcome = Outcome(task.seq, REVOKED, b"", started, time.time(), "interrupted")
        except SoftTimeLimitExceeded as exc:
            outcome = failed(task.seq, exc, started)
        while not self._is_over():
            pass
        self.host.by_seq.pop(task.seq, None)
        self.reply(b"O" + encode_said(_encode, outcome))

    def _is_over(self) -> bool:
        """Let nothing be raised from now on; False if just that came in between."""
        try:
            with self._turn:
                self._seq = 0
                _raise_in(self._ident, _NOTHING)  # what was to be raised is late
        except (KeyboardInterrupt, SoftTimeLimitExceeded):
            return False
        return True

    def interrupt(self, seq: int, error: type[BaseException]) -> None:
        """Have an error raised in a task, as soon as it runs Python again; called from another thread."""
        with self._turn:
            if self._seq == seq:
                _raise_in(self._ident, error)

    def reply(self, payload: bytes) -> None:
        """Tell the supervisor something.

        Raises:
            OSError: it has gone.
        """
        if not self.forked:
            with self._lock:
                self.replies.sendall(len(payload).to_bytes(4, "big") + payload)

    def close(self) -> None:
        """Close its sockets, which tells the supervisor that it has ended."""
        for sock in (self.tasks, self.replies):
            with contextlib.suppress(OSError):
                sock.close()


def host_of(
    orders: socket.socket,
    registries: list[Any],
    store: BlobStore | None,
    keep_s: float,
    graft: Callable[..., Any],
    accept: frozenset[str] | None,
    worker: str,
) -> NoReturn:
    """Be the process of the threads."""
    Host(orders, registries, store, keep_s, graft, accept, worker).run()
