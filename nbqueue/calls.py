"""The calls of an executor on their way: what gathered is sent together as a map, and its ends set futures.

One thread an executor sends, looks after its worker, and closes everything in the end. Ends come on the watcher's
thread. Neither holds the executor itself, so one that nobody refers to any more is closed as the standard library's is.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nbqueue import states
from nbqueue.app import App
from nbqueue.deliveries import Revocation
from nbqueue.exceptions import (
    BackendUnavailable,
    ImproperlyConfigured,
    SendFailed,
    TaskError,
    TaskRevokedError,
    WorkerLostError,
)
from nbqueue.handles import AsyncResult, error_of, value_of
from nbqueue.launchers.owned import OwnedWorker, Terms, start_owned
from nbqueue.messages import Fact, Output, Steering, member_id, revoked_facts, sign_record
from nbqueue.payloads import Packer
from nbqueue.prepared import InitializerFailed
from nbqueue.tasks import Task
from nbqueue.watched import Watched, WatchedMap, WatchedTask

SERIALIZER: Final = "cloudpickle"  # of arguments, whatever the app's settings say: whatever is submitted has to travel
AT_ONCE: Final = 500  # calls in one map
GATHER_S: Final = 0.002  # so long more is waited for, in a loop
MOST: Final = 5_000  # that wait to be sent; then whoever submits waits
MOST_BYTES: Final = 64_000_000
TICK_S: Final = 0.5  # between two looks at the worker and the server
LOOK_S: Final = 5.0  # between two looks at what is recorded of a batch, with few of them
FORGET_AT: Final = 2_000  # ends of which nothing needs to be kept any more are dropped together
TRIES: Final = 3
RESTARTS: Final = 3  # of a worker that ends again and again before it has lived for so long:
LIVED_S: Final = 10.0

logger = logging.getLogger(__name__)


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
class Call:
    """One call that waits to be sent. `packer` has its large data, if there is any."""

    future: CallFuture
    task: Task
    digest: str
    code: bytes
    args: bytes
    packer: Packer | None


class Sending:
    """Calls that are being sent together, or have been.

    Args:
        calls: what they belong to.
        futures: theirs, in order.
    """

    def __init__(self, calls: Calls, futures: Sequence[CallFuture]) -> None:
        self.calls = calls
        self.futures = futures
        self.settled = threading.Event()  # it is known whether the broker has them
        self.told: Told | None = None
        for index, future in enumerate(futures):
            future.index, future.sending = index, self

    def watch(self, steering: Steering, session: str) -> Batch:
        """Return what is told of their ends."""
        self.told = made = Batch(steering, session, self.calls, self.futures)
        return made

    def watch_one(self, id_: str, steering: Steering, session: str) -> Lone:
        """Return what is told of the end of the only one."""
        self.told = made = Lone(id_, steering, session, self.calls, self.futures[0])
        return made

    def give_up(self) -> None:
        """Forget about what could not be sent."""
        told, self.told = self.told, None
        if told is not None:
            self.calls.forget(told)

    def fail(self, error: BaseException) -> None:
        """Let all of them fail: they were not sent."""
        told, self.told = self.told, None
        self.settled.set()
        if told is not None:
            told.end_all(error)
        else:
            for future in self.futures:
                self.calls.fail(future, error)


class Told(Watched):
    """What calls that were sent together have in common, whether that is one or many: their ends set futures.

    Args:
        calls: what they belong to.
        futures: theirs, in order.
    """

    id: str

    def __init__(self, calls: Calls, futures: Sequence[CallFuture]) -> None:
        self.calls = calls
        self.futures: list[CallFuture | None] = list(futures)
        self.next_look = time.monotonic() + LOOK_S
        self.more: set[int] = set()  # those of which more is kept than a record: output, or a message to send again
        calls.follow(self)

    @property
    def with_more(self) -> list[str]:
        """Return the ids of which more is kept than a record."""
        return [member_id(self.id, index) for index in self.more]

    def steering_of(self, index: int) -> Steering:
        """Return what a call was sent with."""
        raise NotImplementedError

    def to_be_looked_at(self) -> bool:
        """Tell whether its records are to be looked at: now and then, and more rarely where there are many."""
        now = time.monotonic()
        if now < self.next_look:
            return False
        self.next_look = now + max(LOOK_S, 0.02 * len(self.calls.sent))
        return True

    def take_in(self, facts: Iterable[tuple[int, Fact]]) -> None:
        """Set the futures of calls that have ended; facts come with their places."""
        ended: list[tuple[CallFuture, Fact]] = []
        for index, fact in facts:
            if not 0 <= index < len(self.futures) or (future := self.futures[index]) is None:
                continue
            if fact.ready:
                self.futures[index] = None
                ended.append((future, fact))
                if fact.facts.state != states.SUCCESS:
                    self.more.add(index)
            elif fact.facts.state == states.STARTED:
                future.set_running()
            elif fact.facts.kind == "output":
                self.more.add(index)
                _print(fact)
        self.calls.end(ended)

    def end_all(self, error: BaseException) -> None:
        """Let the futures fail that have not ended."""
        left = [future for future in self.futures if future is not None]
        self.futures = [None] * len(self.futures)
        for future in left:
            self.calls.fail(future, error)
        self.calls.forget(self)


class Batch(Told, WatchedMap):
    """Calls that were sent together, as a map."""

    def __init__(self, steering: Steering, session: str, calls: Calls, futures: Sequence[CallFuture]) -> None:
        WatchedMap.__init__(self, steering, session)
        Told.__init__(self, calls, futures)

    @property
    def wanted(self) -> bool:
        """Tell whether its records are to be looked at."""
        return not self.ended and self.to_be_looked_at()

    def steering_of(self, index: int) -> Steering:
        """Return what a call was sent with."""
        return self.steering.member(index)

    def add_all(self, facts: Iterable[Fact]) -> None:
        """Take in facts of members."""
        facts = list(facts)
        super().add_all(facts)
        self.take_in((fact.facts.index, fact) for fact in facts)
        if self.ended:
            self.calls.forget(self)

    def fail(self, trouble: TaskError) -> None:
        """End the wait of those that have not ended."""
        super().fail(trouble)
        self.end_all(trouble)


class Lone(Told, WatchedTask):
    """A call that was sent by itself, in half the time that a map of one would take."""

    def __init__(self, id_: str, steering: Steering, session: str, calls: Calls, future: CallFuture) -> None:
        WatchedTask.__init__(self, id_, steering, session)
        Told.__init__(self, calls, [future])

    @property
    def wanted(self) -> bool:
        """Tell whether its record is to be looked at."""
        return not self.ended and self.to_be_looked_at()

    @property
    def with_more(self) -> list[str]:
        """Return its id."""
        return [self.id]

    def steering_of(self, index: int) -> Steering:
        """Return what it was sent with."""
        assert self.steering is not None, "it is known from the first"
        return self.steering

    def add(self, fact: Fact) -> None:
        """Take in a fact."""
        super().add(fact)
        self.take_in([(0, fact)])
        if self.ended:
            self.calls.forget(self)

    def fail(self, trouble: TaskError) -> None:
        """End the wait."""
        super().fail(trouble)
        self.end_all(trouble)


class Calls:
    """Takes the calls of one executor, and sees them through.

    Args:
        app: sends them.
        queue: where they wait.
        terms: of a worker of their own; None where others work for the app.
        own_app: close the app in the end.
    """

    def __init__(self, app: App, queue: str, terms: Terms | None, *, own_app: bool) -> None:
        self.app = app
        self.queue = queue
        self.terms = terms
        self.own_app = own_app
        self.sent: set[Told] = set()
        self.broken: BrokenExecutor | None = None
        self.closing = False
        self.worker: OwnedWorker | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[Call] = deque()
        self._bytes = 0
        self._unended = 0
        self._ended: list[Told] = []  # of which nothing needs to be kept any more
        self._thread: threading.Thread | None = None
        self._opened = False
        self._teller = 0
        self._opening = threading.Lock()
        self._pid = os.getpid()
        self._in_loop = False
        self._short_lives = 0

    # ---- called by those who submit and wait

    def open(self) -> None:
        """Make ready what calls need: in the caller's thread, as nothing of it can be had once the program ends."""
        if self._opened:
            return
        with self._opening:
            if not self._opened:
                self._start_worker()  # it starts while this process loads what connects
                self.app.watcher.start()
                self._opened = self.app.broker is not None

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
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def cancel(self, futures: Iterable[CallFuture], *, insist: bool = False) -> int:
        """Cancel the calls that no worker holds yet; return how many were.

        Args:
            futures: of the calls.
            insist: have workers drop what they hold and have not begun, too; that is seen a moment later.
        """
        here: list[CallFuture] = []
        sent: list[CallFuture] = []
        with self._changed:
            for future in futures:
                if future.sending is not None:
                    sent.append(future)
                elif not future.taken:
                    future.taken = True
                    here.append(future)
        for future in here:
            future.end_cancelled()
            self._ended_now(1)
        return len(here) + self._revoke(sent, insist=insist)

    def close(self) -> None:
        """Take no more; everything is closed once the last call has ended."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
            idle = self._thread is None
        if idle:
            self._close()

    def cancel_all(self) -> None:
        """Cancel every call that no worker holds yet."""
        with self._changed:
            futures = [call.future for call in self._waiting]
            sent = [future for told in self.sent for future in told.futures if future is not None]
        self.cancel([*futures, *sent], insist=True)

    def join(self) -> None:
        """Wait until everything is closed."""
        if self._thread is not None and threading.get_ident() not in (self._thread.ident, self._teller):
            self._thread.join()

    def finish(self) -> None:
        """Wait, at the end of the program, for what was submitted."""
        if self._pid == os.getpid():  # a fork has no threads that would ever end it
            self.close()
            self.join()

    # ---- how they end; called on the watcher's thread

    def end(self, ended: Sequence[tuple[CallFuture, Fact]]) -> None:
        """Set what calls came to."""
        with self._lock:
            mine = [pair for pair in ended if not pair[0].taken]
            for future, _ in mine:
                future.taken = True
        self._teller = threading.get_ident()  # callbacks run here, and may shut the executor down
        for future, fact in mine:
            self._set(future, fact)
        self._teller = 0
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
            self._break(error)

    def fail(self, future: CallFuture, error: BaseException) -> None:
        """Let a call fail, unless it has ended."""
        if self.take(future):
            future.set_exception(error)
            self._ended_now(1)

    def take(self, future: CallFuture) -> bool:
        """Tell whether the caller is the one who is to end a future."""
        with self._lock:
            taken, future.taken = future.taken, True
        return not taken

    def follow(self, told: Told) -> None:
        """Take note of what is about to be sent."""
        with self._lock:
            self.sent.add(told)

    def forget(self, told: Told) -> None:
        """Take note that all that were sent together have ended."""
        with self._lock:
            self.sent.discard(told)
            self._ended.append(told)

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
            self._close()

    def _turn(self) -> bool:
        """Send what has gathered; return whether there may be more to do."""
        with self._changed:
            while not self._waiting:
                if self.closing and not self._unended:
                    return False
                self._in_loop = False
                if not self._changed.wait(TICK_S if self._unended or self._ended else None):
                    break
            if self._in_loop:  # whoever submits one call and waits for it isn't kept waiting
                self._changed.wait_for(self._enough, GATHER_S)
            part = [call for call, _ in zip(self._waiting, range(AT_ONCE), strict=False)]
            for call in part:
                self._waiting.popleft()
                self._bytes -= len(call.args)
            self._in_loop = len(part) > 1
            batches = self._sorted([call for call in part if not call.future.taken])
            self._changed.notify_all()
        for calls, futures in batches:
            self._send(calls, futures)
        self._look(idle=not part)
        return True

    def _enough(self) -> bool:
        return self.closing or len(self._waiting) >= AT_ONCE or self._bytes > MOST_BYTES

    def _sorted(self, calls: Sequence[Call]) -> list[tuple[list[Call], Sending]]:
        """Return the calls by their code; from now on they count as sent."""
        kinds: dict[tuple[int, str], list[Call]] = {}
        for call in calls:
            kinds.setdefault((id(call.task), call.digest), []).append(call)
        return [(part, Sending(self, [call.future for call in part])) for part in kinds.values()]

    def _send(self, calls: Sequence[Call], sending: Sending) -> None:
        packer = Packer()
        for call in calls:
            if call.packer is not None:
                packer.blobs |= call.packer.blobs
                packer.spilled |= call.packer.spilled
        first = calls[0]
        try:
            if self.broken is not None:
                raise self.broken
            steering, _ = first.task.steering_of(Packer(), ((), {}), {"queue": self.queue, "serializer": SERIALIZER})
            steering = msgspec.structs.replace(steering, code=first.digest)
            rows = [call.args for call in calls]
            for attempt in range(TRIES):
                try:
                    if len(rows) == 1:
                        self.app.sender.send(steering, first.code, rows[0], packer, watched_by=sending.watch_one)
                    else:
                        self.app.sender.send_map(
                            steering, first.code, rows, packer, watched_by=sending.watch, shown=False
                        )
                    break
                except BackendUnavailable as exc:  # what they share could not be stored, so none was sent
                    if attempt == TRIES - 1:
                        raise SendFailed(f"not sent: {exc}") from exc
                    sending.give_up()
                    time.sleep(0.2 * (attempt + 1))
            sending.settled.set()
        except BaseException as exc:  # noqa: BLE001 - whatever it is, those who wait are told
            sending.fail(exc)

    def _revoke(self, futures: Sequence[CallFuture], *, insist: bool) -> int:
        """Cancel calls that have been sent, and that nobody holds; return how many were."""
        rows: list[tuple[CallFuture, Steering]] = []
        for future in futures:
            assert future.sending is not None
            future.sending.settled.wait()
            told = future.sending.told
            if told is not None and not future.done():
                rows.append((future, told.steering_of(future.index)))
        try:
            if not rows:
                return 0
            if insist:
                tasks = [WatchedTask(steering.id, steering) for _, steering in rows]
                self.app.revoke([AsyncResult(task.id, self.app, watched=task) for task in tasks])
                return 0
            said = self.app.broker.revoke([self._revocation(steering) for _, steering in rows])
        except (BackendUnavailable, ImproperlyConfigured) as exc:
            logger.warning("%d calls could not be cancelled, they go on: %s", len(rows), exc)
            return 0
        cancelled = [future for (future, _), word in zip(rows, said, strict=True) if word == "revoked"]
        for future in cancelled:
            if self.take(future):
                future.end_cancelled()
                self._ended_now(1)
        return len(cancelled)

    def _revocation(self, steering: Steering) -> Revocation:
        """Return what revokes a call that nobody holds, and leaves one alone that somebody does."""
        record = sign_record(revoked_facts(steering, "cancelled", time.time()), b"", self.app.signer)
        return Revocation(steering.queue, steering.id, record.decode(), steering.session, steering.group, "")

    def _look(self, *, idle: bool) -> None:
        """See to the worker, to a server that stays away, and to what needs to be kept no longer."""
        if self.worker is not None and self.worker.exit_code is not None and not self.broken:
            self._replace_worker(self.worker)
        longest = self.app.conf.backend_timeout
        with self._lock:
            sent = list(self.sent)
        for told in sent:
            if told.away_s > longest:
                text = f"no answer from the backend for {told.away_s:.0f} s; it may run yet"
                told.end_all(BackendUnavailable(text))
        if self._ended and (idle or sum(len(told.futures) for told in self._ended) >= FORGET_AT):
            self._forget()

    def _forget(self) -> None:
        """Let the server drop what nobody will ask for: only these futures knew of it."""
        with self._lock:
            ended, self._ended = self._ended, []
        with contextlib.suppress(BackendUnavailable):  # it expires
            for told in ended:
                if isinstance(told, Batch):
                    self.app.backend.forget_group(told.id, [member_id(told.id, n) for n in range(told.size)])
            self.app.backend.forget([id_ for told in ended for id_ in told.with_more])
            if self.own_app:
                self.app.watcher.drop_read()

    def _start_worker(self) -> None:
        if self.terms is not None and self.worker is None:
            self.worker = start_owned(self.app, self.terms)

    def _replace_worker(self, worker: OwnedWorker) -> None:
        """Start another worker in place of one that has ended; what it held runs again once its lease has lapsed."""
        self.worker = None
        lived = time.monotonic() - worker.started_at >= LIVED_S
        self._short_lives = 1 if lived else self._short_lives + 1
        how = f"the worker of this executor has ended, exit code {worker.exit_code}"
        worker.stop()
        if self._short_lives >= RESTARTS:
            self._break(BrokenExecutor(f"{how}, {RESTARTS} times in a row; what it said is on stderr"))
            return
        logger.warning("%s; another one is started", how)
        self._start_worker()

    def _break(self, error: BrokenExecutor) -> None:
        """Let all that was submitted fail, and take no more."""
        with self._changed:
            if self.broken is not None:
                return
            self.broken = error
            self.closing = True
            sent, waiting = list(self.sent), list(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            self._changed.notify_all()
        if self.terms is None:  # those of others must not run what nobody waits for
            left = [future for told in sent for future in told.futures if future is not None]
            self.cancel(left, insist=True)
        for told in sent:
            told.end_all(_like(error))
        for call in waiting:
            self.fail(call.future, _like(error))

    def _close(self) -> None:
        """End the worker, and leave nothing on the server."""
        if self.worker is not None:
            self.worker.stop(0.0 if self.broken is not None else 10.0)
        if self.sent or self._ended or self.worker is not None:
            self._forget()
            if self.terms is not None:
                with contextlib.suppress(Exception):  # a server that is away keeps it
                    self.app.broker.forget_queue(self.queue)  # type: ignore[attr-defined] # a worker has no other kind
        if self.own_app:
            self.app.close()

    def _is_own_thread(self) -> bool:
        return threading.current_thread() is self._thread


def _print(fact: Fact) -> None:
    """Print here what a call has printed, as the standard library's processes do, which share our terminal."""
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
