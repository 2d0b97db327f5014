"""The calls of an executor on their way: what gathered is sent together, and its ends set futures.

One thread an executor sends, and closes everything in the end. How calls get to workers, and what became of them back,
is a `Way`: straight to a worker of the executor's own (`owner`), or through the broker of an app (`brokered`). The
thread doesn't hold the executor itself, so one that nobody refers to any more is closed as the standard library's is.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from nbqueue import states
from nbqueue.app import App
from nbqueue.exceptions import BackendUnavailable, SendFailed, TaskRevokedError, WorkerLostError
from nbqueue.handles import error_of, value_of
from nbqueue.messages import Fact, Output, Steering
from nbqueue.payloads import Packer
from nbqueue.prepared import InitializerFailed
from nbqueue.tasks import Task

SERIALIZER: Final = "cloudpickle"  # of arguments, whatever the app's settings say: whatever is submitted has to travel
AT_ONCE: Final = 500  # calls that are sent together
GATHER_S: Final = 0.002  # so long more is waited for, in a loop
MOST: Final = 5_000  # that wait to be sent; then whoever submits waits
MOST_BYTES: Final = 64_000_000
TICK_S: Final = 0.5  # between two looks at the worker and the server
TRIES: Final = 3  # to store what calls share


class LostCall(WorkerLostError, BrokenExecutor):
    """Says which process died under a call, and how, once too often. The executor goes on."""


class CallFuture(Future[Any]):
    """The future of a call of an executor.

    Args:
        calls: what it belongs to.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls
        self.sending: Sending | None = None
        self.index = 0
        self.taken = False  # somebody ends it

    def cancel(self) -> bool:
        """Cancel the call if no worker holds it yet; return whether it is cancelled."""
        if self.cancelled():
            return True
        if self.running() or self.done():
            return False
        return bool(self.calls.cancel([self]))

    def end_cancelled(self) -> None:
        """Be cancelled, and let all who wait know. One caller only may end it; see `Calls.take`."""
        if super().cancel():
            self.set_running_or_notify_cancel()
        else:  # a worker had begun it that was lost since
            self.set_exception(TaskRevokedError("cancelled"))

    def set_running(self) -> None:
        """Be shown as running; it can't be cancelled any more."""
        with self._condition:
            if self._state == "PENDING":
                self._state = "RUNNING"


@dataclass(slots=True)
class Parts:
    """The large data of code that many calls name; `stored`: it is where workers find it."""

    packer: Packer
    stored: bool = False


@dataclass(slots=True)
class Call:
    """One call that waits to be sent. `packer` has its large data, if there is any; `losses` are of workers."""

    future: CallFuture
    task: Task
    digest: str
    code: bytes
    args: bytes
    packer: Packer | None
    parts: Parts | None = None
    losses: int = 0


class Sending:
    """Calls of one function that are being sent together, or have been.

    Args:
        calls: in order.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.futures = [call.future for call in calls]
        self.settled = threading.Event()  # it is known whether they were sent
        for index, future in enumerate(self.futures):
            future.index, future.sending = index, self

    def fail(self, error: BaseException) -> None:
        """Let all of them fail: they were not sent."""
        self.settled.set()
        for future in self.futures:
            future.calls.fail(future, error)


class Way(Protocol):
    """How calls get to workers. `calls` is set by those, before anything else happens."""

    calls: Calls

    def open(self) -> None:
        """Make ready what calls need: in the caller's thread, as nothing of it can be had once the program ends.

        Raises:
            BackendUnavailable: there is no server.
        """

    def begin(self, calls: Sequence[Call]) -> Sending:
        """Return what calls of one function are sent as. The lock of `calls` is held."""

    def send(self, sending: Sending, steering: Steering, calls: Sequence[Call], packer: Packer) -> None:
        """Send calls; what raises lets them fail.

        Args:
            sending: as `begin` returned it.
            steering: that of all of them, but for id and nonce.
            calls: at least one.
            packer: holds what they name of large data.
        """

    def cancel(self, futures: Sequence[CallFuture], *, insist: bool) -> list[CallFuture]:
        """Cancel calls that were sent and that nobody has begun; return those that nobody else will end.

        Args:
            futures: of the calls.
            insist: have workers drop what they hold and have not begun, too, even if that is seen a moment later.
        """

    def left(self) -> list[CallFuture]:
        """Return the futures of what was sent and has not ended."""

    def fail_all(self, error: BaseException) -> None:
        """Let everything fail that was sent and has not ended."""

    def look(self, *, idle: bool) -> bool:
        """Do what is due now and then; tell whether it should be done again soon."""

    def close(self) -> None:
        """End what was started, and leave nothing behind."""


class Calls:
    """Takes the calls of one executor, and sees them through.

    Args:
        app: whose settings they have.
        queue: where they wait.
        way: how they get to workers.
    """

    def __init__(self, app: App, queue: str, way: Way) -> None:
        self.app = app
        self.queue = queue
        self.way = way
        way.calls = self
        self.broken: BrokenExecutor | None = None
        self.closing = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[Call] = deque()
        self._bytes = 0
        self._sendings: list[Sending] = []  # that are being sent just now
        self._unended = 0
        self._thread: threading.Thread | None = None
        self._opened = False
        self._tellers: set[int] = set()  # threads that run callbacks, which may shut the executor down
        self._opening = threading.Lock()
        self._pid = os.getpid()
        self._in_loop = False
        self._busy = False  # something is to be looked at again soon

    # ---- called by those who submit and wait

    def open(self) -> None:
        """Make ready what calls need."""
        if self._opened:
            return
        with self._opening:
            if not self._opened:
                self.way.open()
                self._opened = True

    def add(self, call: Call) -> None:
        """Take a call; waits while very many have gathered."""
        with self._lock:
            self.check()
            while (len(self._waiting) >= MOST or self._bytes > MOST_BYTES) and not self._is_own_thread():
                self._changed.wait(TICK_S)
                self.check()
            self._waiting.append(call)
            self._bytes += len(call.args)
            self._unended += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nbqueue executor", daemon=True)
                self._thread.start()
                atexit.register(self.finish)
            if len(self._waiting) in (1, AT_ONCE):
                self._changed.notify_all()

    def check(self) -> None:
        """Raise if no call can be taken."""
        if self.broken is not None:
            raise _like(self.broken)
        if self._pid != os.getpid():
            raise RuntimeError("this executor is of the process that this one is a fork of; make another one here")
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def cancel(self, futures: Iterable[CallFuture], *, insist: bool = False) -> int:
        """Cancel the calls that no worker holds yet; return how many were.

        Args:
            futures: of the calls.
            insist: as `Way.cancel` takes it.
        """
        if self._pid != os.getpid():  # a fork: they are its parent's
            return 0
        here: list[CallFuture] = []
        sent: dict[CallFuture, Sending] = {}
        with self._changed:
            for future in futures:
                if future.sending is not None:
                    sent[future] = future.sending
                elif not future.taken:
                    future.taken = True
                    here.append(future)
        self._end_cancelled(here)
        told = self.way.cancel(list(sent), insist=insist) if sent else []
        self.end_cancelled(told)
        # Those whose worker was lost meanwhile wait here again, or have been sent again.
        again = [future for future, sending in sent.items() if future.sending is not sending and not future.taken]
        return len(here) + len(told) + (self.cancel(again, insist=insist) if again else 0)

    def close(self) -> None:
        """Take no more; everything is closed once the last call has ended."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self.closing = True
            self._changed.notify_all()
            idle = self._thread is None
        if idle:
            self.way.close()

    def cancel_all(self) -> None:
        """Cancel every call that no worker holds yet."""
        with self._changed:
            waiting = [call.future for call in self._waiting]
            waiting += [future for sending in self._sendings for future in sending.futures]
        self.cancel(dict.fromkeys([*waiting, *self.way.left()]), insist=True)

    def join(self) -> None:
        """Wait until everything is closed."""
        if self._thread is not None and threading.get_ident() not in {self._thread.ident, *self._tellers}:
            self._thread.join()

    def finish(self) -> None:
        """Wait, at the end of the program, for what was submitted."""
        if self._pid == os.getpid():  # a fork has no threads that would ever end it
            self.close()
            self.join()

    # ---- how they end; called by whoever hears of it

    def end(self, ended: Sequence[tuple[CallFuture, Fact]]) -> None:
        """Set what calls came to."""
        with self._lock:
            mine = [pair for pair in ended if not pair[0].taken]
            for future, _ in mine:
                future.taken = True
        with self._telling():
            for future, fact in mine:
                self._set(future, fact)
        self._ended_now(len(mine))

    def _set(self, future: CallFuture, fact: Fact) -> None:
        try:
            if fact.facts.state == states.SUCCESS:
                future.set_result(value_of(fact, self.app))
                return
            error = error_of(fact, self.app)
        except BaseException as exc:  # noqa: BLE001 - users' classes may raise anything
            error = exc
        if fact.facts.state == states.REVOKED and fact.facts.error == "cancelled":
            future.end_cancelled()
        else:
            future.set_exception(_lost(error) if isinstance(error, WorkerLostError) else error)
        if isinstance(error, InitializerFailed):
            self.break_off(error)

    def fail(self, future: CallFuture, error: BaseException) -> None:
        """Let a call fail, unless it has ended."""
        if self.take(future):
            with self._telling():
                future.set_exception(error)
            self._ended_now(1)

    def end_cancelled(self, futures: Iterable[CallFuture]) -> None:
        """Let calls be cancelled that nobody has begun, unless they have ended."""
        self._end_cancelled([future for future in futures if self.take(future)])

    def _end_cancelled(self, futures: Sequence[CallFuture]) -> None:
        for future in futures:
            with self._telling():
                future.end_cancelled()
            self._ended_now(1)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Have callbacks run here: if one shuts the executor down, it doesn't wait for itself."""
        me = threading.get_ident()
        nested = me in self._tellers
        self._tellers.add(me)
        try:
            yield
        finally:
            if not nested:
                self._tellers.discard(me)

    def take(self, future: CallFuture) -> bool:
        """Tell whether the caller is the one who is to end a future."""
        with self._lock:
            taken, future.taken = future.taken, True
        return not taken

    def put_back(self, calls: Sequence[Call]) -> None:
        """Have calls sent again that were lost with their worker, before all others."""
        with self._changed:
            for call in calls:
                call.future.sending = None
                self._bytes += len(call.args)
            self._waiting.extendleft(reversed(calls))
            self._changed.notify_all()

    def break_off(self, error: BrokenExecutor) -> None:
        """Let all that was submitted fail, and take no more."""
        with self._changed:
            if self.broken is not None:
                return
            self.broken = error
            self.closing = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            self._changed.notify_all()
        self.way.fail_all(_like(error))
        for call in waiting:
            self.fail(call.future, _like(error))

    def _ended_now(self, number: int) -> None:
        if number:
            with self._lock:
                self._unended -= number
                if not self._unended:
                    self._changed.notify_all()

    # ---- the thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            atexit.unregister(self.finish)
            self.way.close()

    def _turn(self) -> bool:
        """Send what has gathered; return whether there may be more to do."""
        with self._changed:
            while not self._waiting:
                if self.closing and not self._unended:
                    return False
                self._in_loop = False
                if not self._changed.wait(TICK_S if self._unended or self._busy else None):
                    break
            if self._in_loop:  # whoever submits one call and waits for it isn't kept waiting
                self._changed.wait_for(self._enough, GATHER_S)
            part = [call for call, _ in zip(self._waiting, range(AT_ONCE), strict=False)]
            for call in part:
                self._waiting.popleft()
                self._bytes -= len(call.args)
            self._in_loop = len(part) > 1
            batches = self._sorted([call for call in part if not call.future.taken])
            self._sendings = [sending for _, sending in batches]
            self._changed.notify_all()
        failed = [(sending, exc) for calls, sending in batches if (exc := self._send(calls, sending)) is not None]
        for sending, exc in failed:  # callbacks run, which may cancel what was sent after it
            sending.fail(exc)
        self._sendings = []
        self._busy = self.way.look(idle=not part)
        return True

    def _enough(self) -> bool:
        return self.closing or len(self._waiting) >= AT_ONCE or self._bytes > MOST_BYTES

    def _sorted(self, calls: Sequence[Call]) -> list[tuple[list[Call], Sending]]:
        """Return the calls by their code; from now on they count as sent."""
        kinds: dict[tuple[int, str, int], list[Call]] = {}
        for call in calls:
            kinds.setdefault((id(call.task), call.digest, call.losses), []).append(call)
        return [(part, self.way.begin(part)) for part in kinds.values()]

    def _send(self, calls: Sequence[Call], sending: Sending) -> BaseException | None:
        first, packer = calls[0], Packer()
        packers = [call.packer for call in calls if call.packer is not None]
        parts = first.parts if first.parts is not None and not first.parts.stored else None
        for one in packers if parts is None else (*packers, parts.packer):
            packer.blobs |= one.blobs
            packer.spilled |= one.spilled
        try:
            if self.broken is not None:
                raise _like(self.broken)
            steering, _ = first.task.steering_of(Packer(), ((), {}), {"queue": self.queue, "serializer": SERIALIZER})
            steering = msgspec.structs.replace(steering, code=first.digest)
            for attempt in range(TRIES):
                try:
                    self.way.send(sending, steering, calls, packer)
                    break
                except BackendUnavailable as exc:  # what they share could not be stored, so none was sent
                    if attempt == TRIES - 1:
                        raise SendFailed(f"not sent: {exc}") from exc
                    time.sleep(0.2 * (attempt + 1))
        except BaseException as exc:  # noqa: BLE001 - whatever it is, those who wait are told
            return exc
        else:
            if parts is not None:
                parts.stored = True
            sending.futures = []  # one that somebody keeps would keep all of them, and their values
            return None
        finally:
            sending.settled.set()

    def _is_own_thread(self) -> bool:
        return threading.current_thread() is self._thread


def print_here(fact: Fact) -> None:
    """Print what a call has printed, as the standard library's processes do, which share our terminal."""
    said = msgspec.json.decode(fact.body, type=Output)
    stream = sys.stderr if said.name == "stderr" else sys.stdout
    if said.type == "stream" and stream is not None:
        with contextlib.suppress(OSError, ValueError):  # it is closed
            stream.write(said.text)
            stream.flush()


def _lost(error: WorkerLostError) -> LostCall:
    """Return the same in the words of an executor."""
    made = LostCall(*error.args)
    made.__cause__ = error.__cause__
    return made


def _like(error: BrokenExecutor) -> BrokenExecutor:
    """Return an error for one more to raise: a traceback belongs to one."""
    made = type(error)(*error.args)
    made.__cause__ = error.__cause__
    return made
