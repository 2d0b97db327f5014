"""The calls of an executor with an app: they go to the app's workers, as maps through its broker.

What gathered is one map, and what is alone a task of its own, which takes half the time. Ends come on the watcher's
thread. Nobody else knows of these tasks, so what is known of them goes once they have ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final

from nbqueue import states
from nbqueue.app import App
from nbqueue.calls import Call, CallFuture, Calls, Sending, print_here
from nbqueue.deliveries import Revocation
from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured, TaskError
from nbqueue.handles import AsyncResult
from nbqueue.messages import Fact, Steering, member_id, revoked_facts, sign_record
from nbqueue.payloads import Packer
from nbqueue.watched import Watched, WatchedMap, WatchedTask

LOOK_S: Final = 5.0  # between two looks at what is recorded of a batch, with few of them
FORGET_AT: Final = 2_000  # ends of which nothing needs to be kept any more are dropped together

logger = logging.getLogger(__name__)


class BrokeredSending(Sending):
    """Calls that are being sent together as a map, or as a task.

    Args:
        way: sends them.
        calls: in order.
    """

    def __init__(self, way: Brokered, calls: Sequence[Call]) -> None:
        super().__init__(calls)
        self.way = way
        self.told: Told | None = None

    def watch(self, steering: Steering, session: str) -> Batch:
        """Return what is told of their ends."""
        self.give_up()
        self.told = made = Batch(steering, session, self.way, self.futures)
        return made

    def watch_one(self, id_: str, steering: Steering, session: str) -> Lone:
        """Return what is told of the end of the only one."""
        self.give_up()
        self.told = made = Lone(id_, steering, session, self.way, self.futures[0])
        return made

    def give_up(self) -> None:
        """Forget about what could not be sent."""
        told, self.told = self.told, None
        if told is not None:
            self.way.forget(told)

    def fail(self, error: BaseException) -> None:
        """Let all of them fail: they were not sent."""
        self.give_up()
        super().fail(error)


class Told(Watched):
    """What calls that were sent together have in common, whether that is one or many: their ends set futures.

    Args:
        way: sent them.
        futures: theirs, in order.
    """

    id: str

    def __init__(self, way: Brokered, futures: Sequence[CallFuture]) -> None:
        self.way = way
        self.futures: list[CallFuture | None] = list(futures)
        self.next_look = time.monotonic() + LOOK_S
        self.more: set[int] = set()  # those of which more is kept than a record: output, or a message to send again
        way.follow(self)

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
        self.next_look = now + max(LOOK_S, 0.02 * len(self.way.sent))
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
                print_here(fact)
        self.way.calls.end(ended)

    def end_all(self, error: BaseException) -> None:
        """Let the futures fail that have not ended."""
        left = [future for future in self.futures if future is not None]
        self.futures = [None] * len(self.futures)
        for future in left:
            self.way.calls.fail(future, error)
        self.way.forget(self)


class Batch(Told, WatchedMap):
    """Calls that were sent together, as a map."""

    def __init__(self, steering: Steering, session: str, way: Brokered, futures: Sequence[CallFuture]) -> None:
        WatchedMap.__init__(self, steering, session)
        Told.__init__(self, way, futures)

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
            self.way.forget(self)

    def fail(self, trouble: TaskError) -> None:
        """End the wait of those that have not ended."""
        super().fail(trouble)
        self.end_all(trouble)


class Lone(Told, WatchedTask):
    """A call that was sent by itself, in half the time that a map of one would take."""

    def __init__(self, id_: str, steering: Steering, session: str, way: Brokered, future: CallFuture) -> None:
        WatchedTask.__init__(self, id_, steering, session)
        Told.__init__(self, way, [future])

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
            self.way.forget(self)

    def fail(self, trouble: TaskError) -> None:
        """End the wait."""
        super().fail(trouble)
        self.end_all(trouble)


class Brokered:
    """The way of calls to the workers of an app.

    Args:
        app: sends them.
    """

    calls: Calls

    def __init__(self, app: App) -> None:
        self.app = app
        self.sent: set[Told] = set()
        self._lock = threading.Lock()
        self._ended: list[Told] = []  # of which nothing needs to be kept any more

    def open(self) -> None:
        """Connect, and listen for ends."""
        self.app.watcher.start()
        _ = self.app.broker

    def begin(self, calls: Sequence[Call]) -> BrokeredSending:
        """Return what calls of one function are sent as."""
        return BrokeredSending(self, calls)

    def send(self, sending: Sending, steering: Steering, calls: Sequence[Call], packer: Packer) -> None:
        """Send calls, as a map if there are several."""
        assert isinstance(sending, BrokeredSending), "as it began"
        code, rows = calls[0].code, [call.args for call in calls]
        if len(rows) == 1:
            self.app.sender.send(steering, code, rows[0], packer, watched_by=sending.watch_one)
        else:
            self.app.sender.send_map(steering, code, rows, packer, watched_by=sending.watch, shown=False)

    def cancel(self, futures: Sequence[CallFuture], *, insist: bool) -> list[CallFuture]:
        """Cancel calls that nobody holds."""
        rows: list[tuple[CallFuture, Steering]] = []
        for future in futures:
            assert isinstance(future.sending, BrokeredSending), "it was sent"
            future.sending.settled.wait()
            told = future.sending.told
            if told is not None and not future.done():
                rows.append((future, told.steering_of(future.index)))
        try:
            if not rows:
                return []
            if insist:
                tasks = [WatchedTask(steering.id, steering) for _, steering in rows]
                self.app.revoke([AsyncResult(task.id, self.app, watched=task) for task in tasks])
                return []
            said = self.app.broker.revoke([self._revocation(steering) for _, steering in rows])
        except (BackendUnavailable, ImproperlyConfigured) as exc:
            logger.warning("%d calls could not be cancelled, they go on: %s", len(rows), exc)
            return []
        return [future for (future, _), word in zip(rows, said, strict=True) if word == "revoked"]

    def _revocation(self, steering: Steering) -> Revocation:
        """Return what revokes a call that nobody holds, and leaves one alone that somebody does."""
        record = sign_record(revoked_facts(steering, "cancelled", time.time()), b"", self.app.signer)
        return Revocation(steering.queue, steering.id, record.decode(), steering.session, steering.group, "")

    def left(self) -> list[CallFuture]:
        """Return the futures of what was sent and has not ended."""
        with self._lock:
            return [future for told in self.sent for future in told.futures if future is not None]

    def fail_all(self, error: BaseException) -> None:
        """Let everything fail that was sent and has not ended; workers must not run what nobody waits for."""
        self.calls.cancel(self.left(), insist=True)
        with self._lock:
            sent = list(self.sent)
        for told in sent:
            told.end_all(error)

    def follow(self, told: Told) -> None:
        """Take note of what is about to be sent."""
        with self._lock:
            self.sent.add(told)

    def forget(self, told: Told) -> None:
        """Take note that all that were sent together have ended."""
        with self._lock:
            self.sent.discard(told)
            self._ended.append(told)

    def look(self, *, idle: bool) -> bool:
        """See to a server that stays away, and to what needs to be kept no longer."""
        longest = self.app.conf.backend_timeout
        with self._lock:
            sent = list(self.sent)
        for told in sent:
            if told.away_s > longest:
                text = f"no answer from the backend for {told.away_s:.0f} s; it may run yet"
                told.end_all(BackendUnavailable(text))
        if self._ended and (idle or sum(len(told.futures) for told in self._ended) >= FORGET_AT):
            self._forget()
        return bool(self._ended)

    def _forget(self) -> None:
        """Let the server drop what nobody will ask for: only these futures knew of it."""
        with self._lock:
            ended, self._ended = self._ended, []
        with contextlib.suppress(BackendUnavailable):  # it expires
            for told in ended:
                if isinstance(told, Batch):
                    self.app.backend.forget_group(told.id, [member_id(told.id, n) for n in range(told.size)])
            self.app.backend.forget([id_ for told in ended for id_ in told.with_more])

    def close(self) -> None:
        """Leave nothing on the server."""
        if self.sent or self._ended:
            self._forget()
