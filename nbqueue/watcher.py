"""The listening thread: one a process and app, one cursor over one stream for all tasks of a session.

Facts are pushed; a look at the records every few seconds catches what a capped stream or an outage has lost,
and says why a task waits. Nothing is believed that isn't signed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

import msgspec

from nbqueue import states
from nbqueue.backends.base import GAP, Backend
from nbqueue.exceptions import BackendUnavailable, BadMessage, ResultExpired, TaskError, UnknownTask
from nbqueue.messages import Fact, FactText, Steering, open_fact, open_facts, open_group, open_stored
from nbqueue.signing import Signer
from nbqueue.watched import WatchedMap, WatchedTask

CHECK_S: Final = 5.0
BLOCK_S: Final = 1.0
LINGER_S: Final = 2.0  # without anything to follow, until it stops reading
READ_AT_ONCE: Final = 500  # entries of a session, as backends give them
SENDING_S: Final = 60.0  # a map of which nothing more was sent for so long is sent no further
EXPLAIN_S: Final = 3.0  # a worker that is being started needs a moment
EXPECTED_MOST: Final = 10_000  # calls of canvases by ids of their own that are remembered
ALIVE_S: Final = 15.0  # a worker that has shown itself within this time lives

logger = logging.getLogger(__name__)


class Advert(msgspec.Struct, frozen=True):
    """What a worker says of itself: `queues` empty means all of them. `at` is the server's clock."""

    at: float = 0.0
    nbq: str = ""


class Shift(msgspec.Struct, frozen=True, array_like=True):
    """One child of a worker, and what it is at. `cpu` is the share of a core, `memory` bytes, `since` Unix seconds."""

    number: int
    pid: int
    cpu: float = 0.0
    memory: int = 0
    id: str = ""
    name: str = ""
    since: float = 0.0
    ready: bool = True


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The signed text of an advert. `done` and `failed` count since the start, `memory` is of all its processes."""

    name: str
    host: str
    pid: int
    key_id: str
    queues: tuple[str, ...] = ()
    all_queues: bool = False
    children: int = 0
    busy: int = 0
    started_at: float = 0.0
    python: str = ""
    done: int = 0
    failed: int = 0
    memory: int = 0
    stopping: bool = False
    shifts: tuple[Shift, ...] = ()


class Watcher:
    """Follows the streams of sessions and keeps watched tasks up to date. The thread starts at first need.

    Args:
        backend: where the streams are.
        signer: of what is believed.
        session: whose stream is followed from the first.
        is_empty: tells whether a queue has nothing that waits, runs or is delayed; None where nobody can say at once.
    """

    def __init__(
        self, backend: Backend, signer: Signer, session: str, is_empty: Callable[[str], bool] | None = None
    ) -> None:
        self.backend = backend
        self.signer = signer
        self.session = session
        self._tasks: dict[str, WatchedTask] = {}
        self._maps: dict[str, WatchedMap] = {}
        self._cursors: dict[str, str] = {session: ""}
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._next_check = 0.0
        self._is_empty = is_empty
        self._expected: dict[str, Steering] = {}  # calls of canvases that were sent, by ids of their own
        self._missed: set[str] = set()  # tasks that waited at the last look, and whose queue had nothing
        self._drained = True  # the last read left nothing behind in any stream

    def start(self) -> None:
        """Start the thread before there is anything to follow."""
        self._start()

    def watch(self, task: WatchedTask) -> WatchedTask:
        """Follow a task that is about to be sent by this session; return who is watched already, if any."""
        with self._lock:
            known = self._tasks.setdefault(task.id, task)
        self._start()
        return known

    def expect(self, calls: Mapping[str, Steering]) -> None:
        """Take note of calls of a canvas by the ids that they were given: handles on these wait for their turn."""
        with self._lock:
            self._expected.update(calls)
            while len(self._expected) > EXPECTED_MOST:
                del self._expected[next(iter(self._expected))]

    def watch_map(self, group: WatchedMap) -> None:
        """Follow a map."""
        with self._lock:
            self._maps[group.id] = group
        self._start()

    def follow_again(self, watched: WatchedTask | WatchedMap) -> None:
        """Follow something anew that has ended, and is about to run again."""
        with self._lock:
            if isinstance(watched, WatchedMap):
                self._maps[watched.id] = watched
            else:
                self._tasks[watched.id] = watched
        self._start()

    def unwatch(self, task: WatchedTask) -> None:
        """Stop following something that was not sent after all; another watch on the same id goes on."""
        with self._lock:
            if self._tasks.get(task.id) is task:
                del self._tasks[task.id]

    def unwatch_map(self, group: WatchedMap) -> None:
        """Stop following a map that was not sent after all."""
        with self._lock:
            self._maps.pop(group.id, None)

    def attach(self, id_: str) -> WatchedTask:
        """Follow a task that some session sent: what it said so far, then what it says from now on.

        Raises:
            BackendUnavailable: the backend can't be reached.
        """
        with self._lock:
            if (known := self._tasks.get(id_)) is not None:
                return known
            task = WatchedTask(id_, self._expected.get(id_))
        text = self.backend.load([id_])[0]
        if text is None:
            if not (self._is_to_come(task) or self._belongs_to_map(id_)):
                task.fail(UnknownTask(f"nobody sent a task {id_}, or nothing is kept of it any more"))
                return task
            known = self.watch(task)
            # It may have ended between the look and the watch; then nobody would tell this one.
            if known is not task or (text := self.backend.load([id_])[0]) is None:
                return known
        record = open_fact(text, self.signer, kind="record")
        if record.facts.id != id_:
            raise BadMessage("place", f"the record of task {record.facts.id} under the id {id_}")
        task.session = record.facts.session
        if record.facts.group and (group := self.backend.load_group(record.facts.group)) is not None:
            task.steering = open_group(group, self.signer)[0].member(record.facts.index)
            task.session = task.steering.session
        # The cursor first: what is told between here and the replay comes twice, and the second is dropped.
        if task.session and task.session not in self._cursors:
            cursor = self.backend.last(task.session)
            with self._lock:
                self._cursors.setdefault(task.session, cursor)
        known = self.watch(task)
        if known is task:
            task.add(_pending_view(record))
            self._replay(task)
            text = self.backend.load([id_])[0] or text
            self._take(task, text)
            self._forget_ended([task])
        return known

    def look(self, task: WatchedTask) -> None:
        """Take in what the backend has of a task that is followed, now.

        Raises:
            BackendUnavailable: it can't be reached.
        """
        if (text := self.backend.load([task.id])[0]) is not None:
            self._take(task, text)

    def attach_map(self, steering: Steering) -> WatchedMap:
        """Follow a map that some session sent.

        Raises:
            BackendUnavailable: the backend can't be reached.
        """
        with self._lock:
            if (known := self._maps.get(steering.id)) is not None:
                return known
        group = WatchedMap(steering, steering.session)
        if steering.session and steering.session not in self._cursors:
            cursor = self.backend.last(steering.session)
            with self._lock:
                self._cursors.setdefault(steering.session, cursor)
        self.watch_map(group)
        self._load_members(group)
        return group

    def check_soon(self) -> None:
        """Make the next look at the records come at once."""
        self._next_check = 0.0

    def close(self) -> None:
        """End the thread; what is watched stays as it is."""
        self._closed.set()
        self._work.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self.backend.stop_reading()
            self._thread.join(timeout=2 * BLOCK_S)

    def _belongs_to_map(self, id_: str) -> bool:
        group, _, index = id_.rpartition("-")
        if not group or not index.isdigit() or (text := self.backend.load_group(group)) is None:
            return False
        steering = open_group(text, self.signer)[0]
        with self._lock:
            followed = group in self._maps
        if not followed:
            self.attach_map(steering)
        return int(index) < steering.size

    def _is_to_come(self, task: WatchedTask) -> bool:
        """Tell whether a task is a call of a canvas that has yet to end."""
        if task.steering is not None and task.steering.graph:
            graph, node = task.steering.graph, task.steering.node
        else:
            graph, _, number = task.id.rpartition("-")
            node = int(number) if graph and number.isdecimal() and len(number) < 9 else -1
        if node < 0 or self.backend.load_graph(graph) is None:
            return False
        ended, behind = self.backend.has_ended(graph, node), task.behind
        task.behind = ended
        return not (ended and behind)

    def _replay(self, task: WatchedTask) -> None:
        for entry in self.backend.outputs(task.id):
            if entry == GAP:
                task.status.log.leave_out()
            for stored in _facts_of(entry):
                task.replayed.add(stored.nbq)
                fact = self._verified(stored)
                if fact is not None:
                    task.add(fact)

    def _start(self) -> None:
        self._work.set()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="nbqueue watcher", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        failures, busy_at = 0, time.monotonic()
        while not self._closed.is_set():
            with self._lock:
                if self._tasks or self._maps:
                    busy_at = time.monotonic()
                # Whoever sends one task after the other doesn't wake this thread for each.
                idle = time.monotonic() - busy_at > LINGER_S
                if idle:
                    self._work.clear()
                cursors = dict(self._cursors)
            if idle:
                self._work.wait()
                busy_at = time.monotonic()
                continue
            try:
                self._read(cursors)
                self._check_if_due()
            except BackendUnavailable as exc:
                if self._closed.is_set():
                    return
                failures += 1
                self._say_unreachable(exc)
                time.sleep(min(5.0, 0.1 * 2 ** min(failures, 6)))
            except Exception:
                if self._closed.is_set():
                    return
                logger.exception("the watcher met an error; it goes on")
                time.sleep(1.0)
            else:
                failures = 0

    def _read(self, cursors: dict[str, str]) -> None:
        news = self.backend.read(cursors, BLOCK_S)
        self._drained = len(news) < READ_AT_ONCE
        with self._lock:
            for task in (*self._tasks.values(), *self._maps.values()):
                task.unreachable_since = None
        for session, cursor, entry in news:
            self._dispatch(_facts_of(entry))
            with self._lock:
                self._cursors[session] = cursor

    def _dispatch(self, facts: list[FactText]) -> None:
        members: dict[str, list[Fact]] = {}
        ended = []
        for stored in facts:
            fact = self._verified(stored)
            if fact is None:
                continue
            if fact.facts.group and fact.facts.group in self._maps:
                members.setdefault(fact.facts.group, []).append(fact)
            task = self._tasks.get(fact.facts.id)
            if task is not None and stored.nbq not in task.replayed:
                task.add(fact)
                ended.append(task)
        for group, batch in members.items():
            self._maps[group].add_all(batch)
        self._forget_ended([*ended, *[self._maps[group] for group in members]])

    def _forget_ended(self, watched: Iterable[WatchedTask | WatchedMap]) -> None:
        with self._lock:
            for one in watched:
                if one.ended:
                    self._tasks.pop(one.id, None)
                    self._maps.pop(one.id, None)

    def _verified(self, stored: FactText) -> Fact | None:
        try:
            return open_stored(stored, self.signer)
        except BadMessage as exc:
            logger.warning("a fact was refused: %s", exc)
            return None

    def _check_if_due(self) -> None:
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CHECK_S
        with self._lock:
            tasks = [task for task in self._tasks.values() if task.wanted]
            maps = [group for group in self._maps.values() if group.wanted]
        if not tasks and not maps:
            return
        fates: dict[str, tuple[tuple[int, float] | None, int]] = {}
        texts = self.backend.load([task.id for task in tasks])
        for task, text in zip(tasks, texts, strict=True):
            if text is not None:
                self._take(task, text, overtaking=True)
            elif self._is_to_come(task):
                continue
            elif not self._belongs_to_map(task.id):
                task.fail(_gone(task))
            elif trouble := self._trouble_of_member(task, fates):
                task.fail(trouble)
        for group in maps:
            self._check_map(group)
        self._forget_ended([*tasks, *maps])
        self._explain([*tasks, *maps])

    def _check_map(self, group: WatchedMap) -> None:
        done = sum(self.backend.progress(group.id).values())
        # Facts on their way are no gap: only what is missing at two looks in a row was lost.
        if group.behind and done > len(group.arrived):
            self._load_members(group)
            left = group.size - len(group.arrived)
            if left and done >= group.size and self._drained:
                group.fail(
                    ResultExpired(f"{left:,} of the {group.size:,} results of map {group.id} are kept no longer")
                )
        group.behind = done > len(group.arrived)
        if not group.ended and (trouble := self._never_sent(group)):
            self._load_members(group)
            group.fail(trouble)

    def _never_sent(self, group: WatchedMap) -> UnknownTask | None:
        return _never_sent(group.id, group.size, len(group.arrived), self.backend.sent(group.id))

    def _trouble_of_member(
        self, task: WatchedTask, fates: dict[str, tuple[tuple[int, float] | None, int]]
    ) -> TaskError | None:
        """Return why a member of a map that has no record will never have one; `fates` is of this look, by map."""
        group, _, index = task.id.rpartition("-")
        followed = self._maps.get(group)
        if followed is None:
            return None
        if group not in fates:
            fates[group] = self.backend.sent(group), sum(self.backend.progress(group).values())
        sent, done = fates[group]
        if trouble := _never_sent(group, followed.size, int(index), sent):
            return trouble
        behind, task.behind = task.behind, done >= followed.size
        return ResultExpired(f"the result of task {task.id} is kept no longer") if behind and self._drained else None

    def _take(self, task: WatchedTask, text: bytes, *, overtaking: bool = False) -> None:
        task.refused = ""
        try:
            record = open_fact(text, self.signer, kind="record")
            if record.facts.id != task.id:
                raise BadMessage("place", f"it is of task {record.facts.id}")
            if task.is_of_earlier(record):
                raise BadMessage("replay", "it is of an earlier task of this id")
        except BadMessage as exc:
            logger.warning("the record of task %s was refused: %s", task.id, exc)
            task.refused = str(exc)
            return
        if overtaking and record.ready and not (task.behind and self._drained):
            # What it said last may still be on its way, and would be lost behind its end; so the stream is read first.
            task.behind, self._next_check = True, 0.0
            return
        if task.latest is None or record.facts.at != task.latest.facts.at:
            task.add(record)

    def _load_members(self, group: WatchedMap) -> None:
        found = []
        for text in self.backend.load(group.missing()):
            if text is not None:
                with suppress(BadMessage):
                    found.append(open_fact(text, self.signer, kind="record"))
        group.add_all(found)

    def _explain(self, watched: list[WatchedTask | WatchedMap]) -> None:
        waiting = [one for one in watched if not one.ended]
        patient = [one for one in waiting if time.monotonic() - one.since >= EXPLAIN_S]
        if len(patient) < len(waiting):
            self._next_check = time.monotonic() + BLOCK_S
        waiting = patient
        if not waiting:
            return
        now = self.backend.now()
        offers = live_offers(self.backend, self.signer, now)
        trouble = "" if offers else self.backend.trouble()
        missed, self._missed = self._missed, self._without_message(waiting)
        for one in waiting:
            steering = one.steering
            latest = one.latest.facts if isinstance(one, WatchedTask) and one.latest else None
            queue = steering.queue if steering is not None else (latest.queue if latest else "")
            if isinstance(one, WatchedTask) and one.refused:
                one.tell(f"Its record can't be believed ({one.refused}); its end will replace it.")
            elif latest is not None and latest.state == states.STARTED:
                one.tell("", lost=bool(latest.worker) and latest.worker not in {offer.name for offer in offers})
            elif queue and not any(offer.all_queues or queue in offer.queues for offer in offers):
                why = f" The local worker does not start: {trouble}" if trouble else ""
                one.tell(f"No worker listens to queue {queue}.{why}")
            elif offers and not any(offer.key_id == self.signer.key_id for offer in offers):
                one.tell(f"No worker holds key {self.signer.key_id}: give it the connection file.")
            elif one.id in missed and one.id in self._missed:
                one.tell(f"Queue {queue} is empty: the message of this task was lost or dropped. Send it again.")
            else:
                one.tell("")

    def _without_message(self, waiting: Iterable[WatchedTask | WatchedMap]) -> set[str]:
        """Return the tasks that wait for a worker while their queue has nothing, as far as one look can tell."""
        if self._is_empty is None:
            return set()
        queues: dict[str, list[str]] = {}
        for one in waiting:
            record = one.latest.facts if isinstance(one, WatchedTask) and one.latest else None
            # A call of a canvas may not have been sent yet, nor all of a map.
            if record is not None and record.state in (states.PENDING, states.RETRY) and not record.graph:
                queues.setdefault(record.queue, []).append(one.id)
        return {id_ for queue, ids in queues.items() if self._is_empty(queue) for id_ in ids}

    def _say_unreachable(self, exc: BackendUnavailable) -> None:
        with self._lock:
            watched = [*self._tasks.values(), *self._maps.values()]
        now = time.monotonic()
        for one in watched:
            if one.unreachable_since is None:
                one.unreachable_since = now
            one.tell(f"No answer from the backend for {now - one.unreachable_since:.0f} s; trying again.")
        logger.info("%s", exc)


def _never_sent(group: str, size: int, ended: int, sent: tuple[int, float] | None) -> UnknownTask | None:
    """Return what to say of a map whose sender is gone, once as many have ended as were sent."""
    if sent is None or sent[0] >= size or sent[0] > ended or sent[1] < SENDING_S:
        return None
    text = f"whoever sent map {group} stopped after {sent[0]:,} of its {size:,} calls were confirmed"
    return UnknownTask(f"{text}; send the others again")


def _gone(task: WatchedTask) -> TaskError:
    """Return what to say of a task of which nothing is kept."""
    if task.steering is None and task.latest is None:
        return UnknownTask(f"nothing is kept of task {task.id} any more: neither queued nor ended")
    return ResultExpired(
        f"nothing is kept of task {task.id} any more: it expired, was forgotten, or the server dropped it"
    )


def live_offers(backend: Backend, signer: Signer, now: float) -> list[Offer]:
    """Return what the workers that live say of themselves; what isn't signed with our key is told apart by name."""
    return [offer for offer, at in known_offers(backend, signer) if now - at <= ALIVE_S]


def listened_queues(backend: Backend, signer: Signer) -> list[str]:
    """Return the queues that workers listen to which live and aren't about to stop."""
    offers = live_offers(backend, signer, backend.now())
    return [queue for offer in offers if not offer.stopping for queue in offer.queues]


def known_offers(backend: Backend, signer: Signer) -> list[tuple[Offer, float]]:
    """Return what each worker said of itself last, and when by the server's clock, whether or not it still lives."""
    offers = []
    for name, text in backend.adverts().items():
        try:
            advert = _ADVERT.decode(text)
        except (msgspec.DecodeError, RecursionError):
            continue
        try:
            offer = _OFFER.decode(signer.verify("worker", advert.nbq))
        except (BadMessage, msgspec.DecodeError, RecursionError):
            offer = Offer(name, "", 0, advert.nbq.split(".")[1] if advert.nbq.count(".") else "")
        offers.append((offer, advert.at))
    return offers


def _pending_view(record: Fact) -> Fact:
    """Return a record as it stood before it ended, so that the outputs replayed after it still count."""
    if not record.ready:
        return record
    facts = msgspec.structs.replace(record.facts, state=states.PENDING, at=0.0)
    return Fact(facts, b"")


def _facts_of(entry: bytes) -> list[FactText]:
    try:
        return open_facts(entry)
    except BadMessage as exc:
        logger.warning("an entry of a session was refused: %s", exc)
        return []


_ADVERT = msgspec.json.Decoder(Advert)
_OFFER = msgspec.json.Decoder(Offer)
