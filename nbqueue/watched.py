"""What is known of one task, or of all tasks of a map, that somebody here waits for or looks at.

The watcher's thread feeds these; any thread may wait on them. Callbacks run on the thread that fed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from nbqueue import states
from nbqueue.exceptions import TaskError
from nbqueue.messages import Fact, Steering, member_id
from nbqueue.status import MapStatus, TaskStatus

_HISTORY: Final = 5_000  # facts kept of a task that nobody looks at yet

logger = logging.getLogger(__name__)
Callback = Callable[[], object]


class Watched:
    """What tasks and maps have in common: waiting for an end, and callbacks on the watcher's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event: threading.Event | None = None
        self._subscribers: list[Callback] = []
        self._ends: list[Callback] = []
        self._teller = 0  # the thread that calls those for the end now
        self.waiters = 0
        self.since = time.monotonic()
        self.note = ""
        self.unreachable_since: float | None = None
        self.behind = False  # at the last look the backend knew more of it than had arrived

    @property
    def ended(self) -> bool:
        """Tell whether there is nothing more to wait for."""
        raise NotImplementedError

    @property
    def away_s(self) -> float:
        """Return for how long the backend has not answered."""
        return 0.0 if self.unreachable_since is None else time.monotonic() - self.unreachable_since

    def tell(self, note: str, *, lost: bool = False) -> None:
        """Say why it waits."""
        raise NotImplementedError

    @property
    def wanted(self) -> bool:
        """Tell whether anybody waits or looks, so that a periodic check is worth its round trip."""
        return not self.ended and bool(self.waiters or self._subscribers or self._ends)

    def subscribe(self, callback: Callback) -> Callback:
        """Call `callback` on the watcher's thread at every change; return what ends that."""
        with self._lock:
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock, suppress(ValueError):
                self._subscribers.remove(callback)

        return unsubscribe

    def when_ended(self, callback: Callback) -> None:
        """Call `callback` once it has ended: on the watcher's thread, or at once."""
        with self._lock:
            if not self.ended:
                self._ends.append(callback)
                return
        callback()

    @contextmanager
    def subscribing(self) -> Iterator[None]:
        """Count as somebody who waits, so that the records are looked at now and then."""
        with self._lock:
            self.waiters += 1
        try:
            yield
        finally:
            with self._lock:
                self.waiters -= 1

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it has ended, and those who wanted to hear of it have heard; tell whether it has."""
        with self._lock:
            # who is just told of the end may ask for the value
            if self.ended and (not self._ends or self._teller == threading.get_ident()):
                return True
            if self._event is None:
                self._event = threading.Event()
            event = self._event
        with self.subscribing():
            return event.wait(timeout_s)

    def _changed(self) -> None:
        with self._lock:
            callbacks = list(self._subscribers)
            mine = self.ended and not self._teller
            ends = list(self._ends) if mine else []
            if mine:
                self._teller = threading.get_ident()
        for callback in (*callbacks, *ends):
            try:
                callback()
            except Exception:
                logger.exception("a callback on a task failed")
        if mine:
            with self._lock:
                del self._ends[: len(ends)]
                self._teller = 0
                if self._event is not None:
                    self._event.set()


class WatchedTask(Watched):
    """One task: its terminal fact once there is one, and what was said of it until then."""

    def __init__(self, id_: str, steering: Steering | None = None, session: str = "") -> None:
        super().__init__()
        self.id = id_
        self.session = session
        self.steering = steering
        self.fact: Fact | None = None
        self.latest: Fact | None = None  # the newest record, terminal or not
        self.trouble: TaskError | None = None
        self.refused = ""  # why the record that the backend has isn't believed
        self.replayed: set[str] = set()
        self._history: list[Fact] = []
        self._status: TaskStatus | None = None
        self._past: Fact | None = None  # how it ended before it was sent again

    @property
    def ended(self) -> bool:
        """Tell whether there is nothing more to wait for."""
        return self.fact is not None or self.trouble is not None

    @property
    def status(self) -> TaskStatus:
        """Return what a view shows, folded from everything heard so far and kept up to date from now on."""
        with self._lock:
            if self._status is None:
                s = self.steering
                status = TaskStatus(self.id, s.shown_name if s else "")
                if s is not None:
                    status.queue, status.sent_at, status.retries = s.queue, s.sent_at, s.retries
                    status.due = s.eta
                for fact in self._history:
                    status.apply(fact)
                self._history.clear()
                self._status = status
            return self._status

    def begin_again(self) -> None:
        """Forget how it ended: it is about to be sent again."""
        status = self.status
        with self._lock:
            self._past, self.fact, self.latest, self._event = self.fact, None, None, None
            self.since = time.monotonic()
            status.begin_again(time.time())
        self._changed()

    def resume_end(self) -> None:
        """Take its end for true again: it was not sent again after all."""
        with self._lock:
            past, self._past = self._past, None
        if past is not None:
            self.add(past)

    def is_of_earlier(self, fact: Fact) -> bool:
        """Tell whether a record is of an earlier task that had the same id: told late, or put there by somebody."""
        facts, mine = fact.facts, self.steering
        if mine is None or facts.kind != "record" or not (facts.nonce and mine.nonce):
            return False
        # One that was sent again later, also from elsewhere, has another nonce too, and counts.
        return facts.nonce != mine.nonce and facts.sent < mine.sent_at

    def add(self, fact: Fact) -> None:
        """Take in one verified fact."""
        with self._lock:
            if self.fact is not None or _is_same(fact, self._past) or self.is_of_earlier(fact):
                return
            if fact.facts.kind == "record":
                self.latest = fact
            if self._status is not None:
                self._status.apply(fact)
            elif len(self._history) < _HISTORY or fact.ready:
                self._history.append(fact)
            if fact.ready:
                self.fact = fact
            self.note = ""
            if self._status is not None:
                self._status.note, self._status.lost = "", False
        self._changed()

    def fail(self, trouble: TaskError) -> None:
        """End the wait without a record."""
        with self._lock:
            self.trouble = trouble
        self._changed()

    def tell(self, note: str, *, lost: bool = False) -> None:
        """Say why it waits."""
        with self._lock:
            status = self._status
            if note == self.note and (status is None or status.lost == lost):
                return
            self.note = note
            if status is not None:
                status.note, status.lost = note, lost
        self._changed()


class WatchedMap(Watched):
    """All members of one map: their terminal facts by index, and the order in which they came."""

    def __init__(self, steering: Steering, session: str = "") -> None:
        super().__init__()
        self.id = steering.id
        self.steering = steering
        self.size = steering.size
        self.session = session
        self.facts: list[Fact | None] = [None] * steering.size
        self.arrived: list[int] = []
        self.news = threading.Condition()
        self.trouble: TaskError | None = None
        self.failed = 0
        self._past: dict[int, Fact] = {}  # how members ended before they were sent again
        self._status: MapStatus | None = None

    @property
    def ended(self) -> bool:
        """Tell whether every member has ended."""
        return len(self.arrived) >= self.size or self.trouble is not None

    @property
    def status(self) -> MapStatus:
        """Return what a view shows, kept up to date from now on."""
        with self._lock:
            if self._status is None:
                self._status = MapStatus(self.id, self.steering.shown_name, self.size)
                self._status.queue, self._status.sent_at = self.steering.queue, self.steering.sent_at
                for fact in self.facts:
                    if fact is not None:
                        self._status.apply(fact)
            return self._status

    def begin_again(self, indexes: Iterable[int]) -> None:
        """Forget how members ended: they are about to be sent again."""
        status = self.status
        with self._lock:
            again = {index: fact for index in indexes if (fact := self.facts[index]) is not None}
            self._past |= again
            self._event = None
            self.since = time.monotonic()
            for index, fact in again.items():
                self.facts[index] = None
                self.failed -= fact.facts.state != states.SUCCESS
            self.arrived = [index for index in self.arrived if index not in again]
            errors = ((index, fact.facts.error) for index, fact in enumerate(self.facts) if fact and _has_failed(fact))
            status.begin_again(again, errors)
        self._changed()

    def resume_end(self, indexes: Iterable[int]) -> None:
        """Take the end of members for true again: they were not sent again after all."""
        with self._lock:
            past = [self._past.pop(index) for index in indexes if index in self._past]
        self.add_all(past)

    def failures(self, like: int = -1) -> list[int]:
        """Return the members that failed, all or those with the error of one of them."""
        facts = self.facts[:]
        kind = facts[like] if like >= 0 else None
        error = kind.facts.error if kind is not None else None
        return [
            index
            for index, fact in enumerate(facts)
            if fact is not None and _has_failed(fact) and error in (None, fact.facts.error)
        ]

    def add_all(self, facts: Iterable[Fact]) -> None:
        """Take in verified facts of members; one round of callbacks for all of them."""
        new = []
        with self._lock:
            for fact in facts:
                index = fact.facts.index
                if not 0 <= index < self.size or _is_same(fact, self._past.get(index)):
                    continue
                if self._status is not None:
                    self._status.apply(fact)
                if fact.ready and self.facts[index] is None:
                    self.facts[index] = fact
                    self.failed += fact.facts.state != states.SUCCESS
                    new.append(index)
            self.arrived += new
            self.note = ""
            if self._status is not None:
                self._status.note = ""
        if new:
            with self.news:
                self.news.notify_all()
        self._changed()

    def fail(self, trouble: TaskError) -> None:
        """End the wait for members that will never end."""
        with self._lock:
            self.trouble = trouble
        with self.news:
            self.news.notify_all()
        self._changed()

    def missing(self) -> list[str]:
        """Return the ids of members that have not ended as far as is known here."""
        with self._lock:
            return [member_id(self.id, index) for index, fact in enumerate(self.facts) if fact is None]

    def tell(self, note: str, *, lost: bool = False) -> None:
        """Say why it waits."""
        del lost
        with self._lock:
            if note == self.note:
                return
            self.note = note
            if self._status is not None:
                self._status.note = note
        self._changed()


def _has_failed(fact: Fact) -> bool:
    return fact.facts.state == states.FAILURE


def _is_same(fact: Fact, past: Fact | None) -> bool:
    """Tell whether a fact is the end of a task that was sent again since, told late."""
    return past is not None and fact.ready and fact.facts.at == past.facts.at
