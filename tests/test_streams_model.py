"""The scripts on a real server against a model: random sendings, claims, losses and ends, in any order.

Each run is drawn from a seed, and repeated by it. Actions are drawn by hand, not by hypothesis, which leaves out some
in each run: one in which nothing is claimed, lost or ended shows nothing.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from nbqueue import states
from nbqueue.backends.redis import RedisBackend
from nbqueue.deliveries import (
    LIVE,
    RECORDS,
    REPEAT,
    REVOKED,
    SENT,
    Delivery,
    Outgoing,
    Revocation,
    Settlement,
    queue_key,
)
from nbqueue.intake import Accepted, Ended, Intake
from nbqueue.intake import Repeat as Repeated
from nbqueue.messages import (
    Control,
    Failure,
    Message,
    Steering,
    encode_failure,
    open_fact,
    open_facts,
    open_stored,
    pack_body,
    pending_facts,
    sign_control,
    sign_group,
    sign_record,
)
from nbqueue.signing import Signer
from nbqueue.streams import FEW, Streams
from nbqueue.wire import connect
from tests.helpers import RedisServer

SIGNER: Final = Signer(b"k" * 32)
QUEUES: Final = ("p", "q")
IDS: Final = ("a", "b", "c")
GROUP: Final = "g"
MEMBERS: Final = 3
LOSSES: Final = 1  # one lost worker more ends a task here
CONSUMERS: Final = ("one", "two", "three")
FAR_MS: Final = 10**14
RUNS: Final = 30
STEPS: Final = 60
HOW: Final = ("SUCCESS", "FAILURE", "dead", "RETRY", "STARTED", "REJECTED")  # a task ends, or goes on

# Each has to happen in some run, or the machine shows nothing of it.
HAPPENS: Final = frozenset(
    {
        *("sent", "sent with plain commands", "refused: lives", "known as a repeat", "copied"),
        *("claimed", "claimed by a read that waits", "claimed by a read that waits and the script"),
        *("accepted", "repeat", "revoked before it ran", "given up"),
        *HOW,
        *("given back: none", "given back: task", "given back: child", "given back: worker", "put off"),
        *(f"lost: {how}" for how in HOW),
        *("lost: given back", "lost: put off", "lost: renewed", "renewed", "renewed and revoked", "lapsed"),
        *("revoke: unknown", "revoke: ended", "revoke: held", "revoke: revoked", "dropped as a copy"),
        *("again: sent", "again: live", "again: unknown", "again: member"),
    }
)

T = TypeVar("T")
Counters = tuple[int, int, int]


@dataclass(eq=False)
class Sending:
    """One sending of an id: what the model believes of it."""

    steering: Steering
    message: Message
    retries: int = 0
    state: str = ""  # how it has ended
    shown: str = ""  # what its record says; a member of a map has none before it runs
    waiting: list[Counters] = field(default_factory=lambda: [(1, 0, 0)])
    copied: bool = False  # its entries can't be told apart any more
    highest: int = 0  # the last attempt that was claimed

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def is_member(self) -> bool:
        return bool(self.steering.group)


@dataclass(eq=False)
class Claim:
    """What one consumer believes to hold."""

    sending: Sending
    retries: int
    delivery: Delivery
    verdict: object


class Queues:
    """Plays clients and workers; a worker may go on with what it has lost.

    Args:
        server: is emptied.
        seed: of what happens.
        happened: counts that.
    """

    def __init__(self, server: RedisServer, seed: int, happened: Counter[str]) -> None:
        server.flush()
        self.seed = seed
        self.random = random.Random(seed)
        self.happened = happened
        self.client = connect(server.url, name="model")
        self.streams = Streams(self.client, records=RECORDS)
        self.backend = RedisBackend(server.url)
        self.intake = Intake(SIGNER, self.backend, "w@host", LOSSES)
        now = time.time()
        self.map = Steering(id=GROUP, nonce="n", task="t", queue="p", sent_at=now, session="s", size=MEMBERS)
        self.backend.store_group(GROUP, sign_group(self.map, b"code", SIGNER), 600)
        self.newest: dict[str, Sending] = {}
        self.sendings: list[Sending] = []
        self.by_header: dict[bytes, tuple[Sending, int]] = {}
        self.held: dict[str, list[Claim]] = {consumer: [] for consumer in CONSUMERS}
        self.owner: dict[tuple[str, str], Claim] = {}  # by queue and id
        self.marked: set[str] = set()
        self.failed: dict[str, Sending] = {}  # whose message is kept, by id
        self.dead: dict[str, Sending] = {}
        self.told: Counter[tuple[str, str, str]] = Counter()
        self.entries = 0
        self.copies = 0
        self.tried = 0
        self.repeats = 0

    def run(self, steps: int) -> None:
        """Do something so often, then let everything end."""
        actions: dict[Callable[[], None], float] = {
            self.send: 3,
            self.send_few: 1,
            self.send_member: 1,
            self.send_again: 1,
            self.replay: 1,
            self.revoke: 2,
            self.run_again: 2,
            self.claim: 5,
            self.settle: 4,
            self.settle_late: 2,
            self.give_back: 2,
            self.put_off: 1,
            self.renew: 1,
            self.lapse: 2,
            self.time_passes: 1,
        }
        done = []
        try:
            for action in self.random.choices(list(actions), list(actions.values()), k=steps):
                done.append(action.__name__)
                action()
                self._check()
            self._end_all()
        except BaseException as exc:
            exc.add_note(f"seed {self.seed}, after {' '.join(done)}")
            raise
        finally:
            self.backend.close()
            self.streams.close()

    # ---- clients

    def send(self) -> None:
        """Send a new task under an id: refused while another of that id lives."""
        id_, queue = self._one_of(IDS), self._one_of(QUEUES)
        sending = self._new(id_, queue, self._one_of((0, 0, 3, 9)))
        due = self._one_of((0, 0, 1, FAR_MS))
        known = self.newest.get(id_)
        expected = LIVE if known is not None and not known.state else SENT
        assert self.streams.publish([self._outgoing(sending, due)]) == [expected]
        self.happened["sent" if expected == SENT else "refused: lives"] += 1
        if expected == SENT:
            self._sent(sending)
            self._take_out(id_)

    def send_few(self) -> None:
        """Send some new tasks whose ids were made for them."""
        queue, number = self._one_of(QUEUES), self.random.randint(1, FEW)
        sendings = [self._new(f"new-{self.tried}-{n}", queue) for n in range(number)]
        messages = [msgspec.structs.replace(self._outgoing(sending, 0), fresh=True) for sending in sendings]
        assert self.streams.publish(messages) == [SENT] * number
        for sending in sendings:
            self._sent(sending)
        self.happened["sent with plain commands"] += 1

    def send_member(self) -> None:
        """Send a member of the map, once."""
        index, level, due = self.random.randrange(MEMBERS), self._one_of((0, 5)), self._one_of((0, 0, FAR_MS))
        id_ = f"{GROUP}-{index}"
        if id_ not in self.newest:
            message = Message.sign_call(GROUP, index, b"args", SIGNER)
            sending = Sending(self.map.member(index), message)
            assert self.streams.publish([self._outgoing(sending, due, level)]) == [SENT]
            self._sent(sending)

    def send_again(self) -> None:
        """Repeat a sending whose answer was lost: recognised, or for a member a copy that does no harm."""
        if not self.newest:
            return
        sending = self._one_of(list(self.newest.values()))
        if sending.is_member:
            self._copy(sending)
        else:
            assert self.streams.publish([self._outgoing(sending, 0)]) == [REPEAT]
            self.happened["known as a repeat"] += 1

    def replay(self) -> None:
        """Put a message on its queue once more, as somebody may who only reads and writes the server."""
        if self.sendings:
            self._copy(self._one_of(self.sendings))

    def revoke(self) -> None:
        """Revoke whatever has some id."""
        which = self._one_of(("any", "held", "waiting", "unknown"))
        if which == "unknown" or not self.newest:
            assert self.streams.revoke([Revocation("", "nobody", "", "", "", "mark")]) == ["unknown"]
            self.happened["revoke: unknown"] += 1
            return
        chosen = [s for s in self.newest.values() if which == "waiting" and not s.state]
        if which == "held":
            chosen = [claim.sending for claim in self.owner.values() if self.newest[claim.sending.id] is claim.sending]
        sending = self._one_of(chosen or list(self.newest.values()))
        id_ = sending.id
        s = sending.steering
        record = self._record(sending, states.REVOKED).decode()
        held = (s.queue, id_) in self.owner
        said = self.streams.revoke([Revocation(s.queue, id_, record, s.session, s.group, _mark(id_))])
        self.happened[f"revoke: {said[0]}"] += 1
        if sending.state:
            assert said == ["ended"]
        elif held:
            assert said == ["held"]
            self.marked.add(id_)
        else:
            assert said == ["revoked"]
            self._ended(sending, states.REVOKED)
            self._take_out(id_, revoked=True)

    def run_again(self) -> None:
        """Send again what failed or was given up, as long as nothing else lives or has ended under its id."""
        if not (self.failed or self.dead):
            return
        id_ = self._one_of(sorted({*self.failed, *self.dead}))
        newest = self.newest[id_]
        failed = newest.state == states.FAILURE
        kept = self.failed[id_] if failed and id_ in self.failed else self.dead.get(id_) or self.failed[id_]
        (found,) = self.streams.kept([id_])
        assert found is not None
        assert self.by_header[found.header][0] is kept
        if kept.is_member:
            again, record = kept, b""
            m = Message.sign_call(GROUP, kept.steering.index, b"args", SIGNER, nonce=f"again-{self.tried}")
            self.tried += 1
        else:
            again = self._new(id_, kept.steering.queue, kept.steering.priority)
            record, m = self._record(again, states.PENDING), again.message
        s = again.steering
        message = Outgoing(s.queue, id_, m.header, m.body, record=record, priority=s.priority)
        expected = "live" if not newest.state else "sent" if failed or id_ in self.dead else "unknown"
        assert self.streams.send_kept([(message, s.group)]) == [expected]
        self.happened[f"again: {expected}"] += 1
        if expected != "sent":
            return
        self.failed.pop(id_, None)
        self.dead.pop(id_, None)
        if not kept.is_member:
            self._sent(again)
            return
        self.happened["again: member"] += 1
        self.by_header[m.header.encode()] = (kept, 0)
        kept.state = kept.shown = ""
        kept.retries = kept.highest = 0
        kept.waiting.append((1, 0, 0))
        self.entries += 1

    # ---- workers

    def claim(self) -> None:
        """Let somebody claim, with a script or with a read that waits."""
        limit, waits = self._one_of((1, 2, 50)), self._one_of((False, True))
        self._claim(self._one_of(CONSUMERS), limit, self.random.sample(QUEUES, len(QUEUES)), waits=waits)

    def _claim(self, consumer: str, limit: int, queues: list[str], *, waits: bool) -> None:
        """Claim: nothing that somebody holds, nothing with another's counters, repeats dropped and counted."""
        read = self._read(consumer, limit, queues) if waits else []
        if read and len(read) <= FEW and self.streams.admit(read):
            deliveries = read
            self.happened["claimed by a read that waits"] += 1
        else:
            deliveries, _ = self.streams.claim(consumer, max(0, limit - len(read)), queues, read)
            self.happened["claimed by a read that waits and the script" if read else "claimed"] += bool(deliveries)
        assert len(deliveries) <= max(limit, len(read)), "a read brings up to the limit of each stream"
        for delivery in deliveries:
            sending, retries = self.by_header[delivery.header]
            place = (delivery.queue, delivery.id)
            assert delivery.id == sending.id
            assert place not in self.owner, "two hold one task"
            counters = (delivery.attempt, delivery.child_deaths, delivery.worker_losses)
            if counters in sending.waiting:
                sending.waiting.remove(counters)
            else:
                assert sending.copied or sending.state, f"{counters} instead of {sending.waiting}"
            verdict = self.intake.judge(delivery, time.time())
            self._check_verdict(sending, retries, delivery, verdict)
            if isinstance(verdict, Accepted) and not sending.copied:
                assert delivery.attempt >= sending.highest
                sending.highest = delivery.attempt
            claim = Claim(sending, retries, delivery, verdict)
            self.owner[place] = claim
            self.held[consumer].append(claim)
        self._set_due(FAR_MS)  # nothing comes back by itself
        repeats = self.streams.counters().get("repeat", 0)
        self.happened["dropped as a copy"] += repeats - self.repeats
        self.entries -= repeats - self.repeats
        self.repeats = repeats
        assert self.repeats <= self.copies, "something was dropped that was no copy"

    def settle(self) -> None:
        """End a task, or say that it has started or is to run again: it counts for whoever holds it, and once."""
        for consumer, claim in self._any_claim():
            self._settle(consumer, claim, self._one_of(HOW))

    def settle_late(self) -> None:
        """Say of a task that was lost meanwhile how it has ended."""
        for consumer, claim in self._any_claim(late=True):
            self._settle(consumer, claim, self._one_of(HOW))

    def give_back(self) -> None:
        """Give a task back, charged or not."""
        charge = self._one_of(("none", "task", "child", "worker"))
        for consumer, claim in self._any_claim(late=self._one_of((False, False, True))):
            self._give_back(consumer, claim, charge)

    def _give_back(self, consumer: str, claim: Claim, charge: str) -> None:
        ours = self._lets_go(consumer, claim)
        assert self.streams.give_back([claim.delivery], charge) == int(ours)
        self.happened[f"given back: {charge}" if ours else "lost: given back"] += 1
        if ours:
            self._came_back(claim, charge)

    def put_off(self) -> None:
        """Leave a task to other workers."""
        for consumer, claim in self._any_claim(late=self._one_of((False, False, True))):
            self._put_off(consumer, claim)

    def _put_off(self, consumer: str, claim: Claim) -> None:
        ours = self._lets_go(consumer, claim)
        self.streams.put_off([claim.delivery], 3_600_000)
        self.happened["put off" if ours else "lost: put off"] += 1
        if ours:
            self._came_back(claim, "none")

    def renew(self) -> None:
        """Renew: what is held still, and which of it was revoked."""
        consumer = self._one_of(CONSUMERS)
        claims = self.held[consumer]
        held, marks = self.streams.renew(consumer, [claim.delivery for claim in claims], "w", '{"nbq":"x"}')
        assert held == [self._is_ours(claim) for claim in claims]
        assert set(marks) == self.marked & {claim.delivery.id for claim in claims}
        self.happened["renewed"] += any(held)
        self.happened["lost: renewed"] += False in held
        self.happened["renewed and revoked"] += bool(marks)

    def lapse(self) -> None:
        """Let one worker's claims lapse: they come back, and the worker doesn't know."""
        consumer = self._one_of(CONSUMERS)
        places = self.streams.lapsed(QUEUES, 0)
        everyones = {(c.delivery.queue, c.delivery.lane, c.delivery.entry): c for c in self.owner.values()}
        assert set(places) == set(everyones)
        lost = [place for place in places if everyones[place] in self.held[consumer]]
        assert self.streams.reap(lost, 10**9) == 0, "not lapsed for so long"
        assert self.streams.reap(lost, 0) == len(lost)
        assert self.streams.reap(lost, 0) == 0
        self.happened["lapsed"] += len(lost)
        for place in lost:
            claim = everyones[place]
            del self.owner[claim.delivery.queue, claim.delivery.id]
            self._came_back(claim, "worker")

    def time_passes(self) -> None:
        """Make everything due that is delayed."""
        self._set_due(1)

    # ---- what always holds

    def _check(self) -> None:
        """See that every entry is somewhere, and that records say what has happened."""
        sizes = {queue: self.streams.size(queue) for queue in QUEUES}
        for queue, size in sizes.items():
            assert size.claimed == sum(place[0] == queue for place in self.owner)
        assert sum(size.queued + size.claimed + size.delayed for size in sizes.values()) == self.entries
        assert {id_.decode() for id_ in self.client.hkeys(REVOKED)} == self.marked
        for (id_, sending), text in zip(self.newest.items(), self.backend.load(list(self.newest)), strict=True):
            facts = None if text is None else open_fact(text, SIGNER, kind="record").facts
            assert (facts.state if facts else "") == sending.shown, id_
            assert facts is None or (facts.id, facts.nonce) == (id_, sending.steering.nonce)
        members = Counter(sending.state for sending in self.newest.values() if sending.is_member and sending.state)
        assert Counter(self.backend.progress(GROUP)) == members
        assert {id_ for id_, _ in self.streams.dead_letters()} == set(self.dead)

    def _end_all(self) -> None:
        """Let everything end, and see that it did, once."""
        for _ in range(30):
            for consumer in CONSUMERS:
                for claim in list(self.held[consumer]):
                    self._settle(consumer, claim, "SUCCESS")
            if not self.entries:
                break
            self.time_passes()
            self._claim("one", 1000, list(QUEUES), waits=False)
        self._check()
        assert self.entries == 0, "something is stuck"
        assert not self.marked
        assert all(sending.state for sending in self.sendings)
        assert self._told() == self.told

    # ---- the model

    def _one_of(self, items: Sequence[T]) -> T:
        return self.random.choice(items)

    def _new(self, id_: str, queue: str, level: int = 0) -> Sending:
        steering = Steering(
            id=id_,
            nonce=f"nonce-{len(self.sendings)}-{self.tried}",
            task="t",
            queue=queue,
            sent_at=time.time(),
            session="s",
            priority=level,
        )
        self.tried += 1
        return Sending(steering, Message.sign(steering, pack_body(b"", b"args"), SIGNER))

    def _read(self, consumer: str, limit: int, queues: list[str]) -> list[Delivery]:
        """Read what a worker that waits is told of; where there are no streams yet it makes them, and waits anew."""
        self.streams.ensure_groups(queues)
        return Streams.parse_read(self.streams.wire.call(*self.streams.read_command(consumer, limit, queues, 1)))

    def _outgoing(self, sending: Sending, due: int, level: int = 0) -> Outgoing:
        s, m = sending.steering, sending.message
        if sending.is_member:
            return Outgoing(s.queue, m.id, m.header, m.body, due, priority=level)
        record = self._record(sending, states.PENDING)
        return Outgoing(s.queue, m.id, m.header, m.body, due, s.nonce, record, s.priority)

    def _record(self, sending: Sending, state: str, retries: int = 0) -> bytes:
        steering = sending.steering
        facts = pending_facts(steering, state, time.time())
        body = _FAILURE if state in (states.FAILURE, states.RETRY) else b""
        return sign_record(_with_retries(facts, retries), body, SIGNER)

    def _sent(self, sending: Sending) -> None:
        self.newest[sending.id] = sending
        sending.shown = "" if sending.is_member else states.PENDING
        self.sendings.append(sending)
        self.by_header[sending.message.header.encode()] = (sending, 0)
        self.entries += 1

    def _copy(self, sending: Sending) -> None:
        s, m = sending.steering, sending.message
        assert self.streams.publish([Outgoing(s.queue, m.id, m.header, m.body)]) == [SENT]
        sending.copied = True
        self.entries += 1
        self.copies += 1
        self.happened["copied"] += 1

    def _take_out(self, id_: str, *, revoked: bool = False) -> None:
        """Count what may have been delayed under this id: it was revoked, or what followed took its place."""
        sizes = [self.streams.size(queue) for queue in QUEUES]
        left = sum(size.queued + size.claimed + size.delayed for size in sizes)
        assert self.entries - left in (0, 1)
        assert left == self.entries or revoked or any(s.copied for s in self.sendings if s.id == id_)
        self.entries = left

    def _check_verdict(self, sending: Sending, retries: int, delivery: Delivery, verdict: object) -> None:
        over = sending.state or self.newest[sending.id] is not sending or retries < sending.retries
        if over:
            assert isinstance(verdict, Repeated)
            self.happened["repeat"] += 1
        elif sending.id in self.marked:
            assert isinstance(verdict, Ended)
            assert verdict.state == states.REVOKED
            self.happened["revoked before it ran"] += 1
        elif delivery.worker_losses > LOSSES:
            assert isinstance(verdict, Ended)
            assert verdict.dead
            self.happened["given up"] += 1
        else:
            assert isinstance(verdict, Accepted)
            self.happened["accepted"] += 1

    def _any_claim(self, *, late: bool = False) -> list[tuple[str, Claim]]:
        """Draw a claim, or none if nobody has any; one that was lost when it is to be `late`."""
        claims = [(consumer, claim) for consumer, claims in self.held.items() for claim in claims]
        claims = self._lost() if late else claims
        return [self._one_of(claims)] if claims else []

    def _lost(self) -> list[tuple[str, Claim]]:
        """Return the claims that their holders don't know to be lost."""
        held = [(consumer, claim) for consumer, claims in self.held.items() for claim in claims]
        return [(consumer, claim) for consumer, claim in held if not self._is_ours(claim)]

    def _is_ours(self, claim: Claim) -> bool:
        return self.owner.get((claim.delivery.queue, claim.delivery.id)) is claim

    def _lets_go(self, consumer: str, claim: Claim) -> bool:
        ours = self._is_ours(claim)
        self.held[consumer].remove(claim)
        if ours:
            del self.owner[claim.delivery.queue, claim.delivery.id]
        return ours

    def _set_due(self, due_ms: int) -> None:
        # In an order that doesn't depend on the clock, so that a run can be repeated.
        for queue in QUEUES:
            delayed = queue_key(queue, "delayed")
            for at, member in enumerate(sorted(self.client.zrange(delayed, 0, -1))):
                self.client.zadd(delayed, {member: due_ms + at})

    def _came_back(self, claim: Claim, charge: str) -> None:
        d = claim.delivery
        counters = (
            d.attempt + (charge != "none"),
            d.child_deaths + (charge == "child"),
            d.worker_losses + (charge == "worker"),
        )
        claim.sending.waiting.append(counters)

    def _settle(self, consumer: str, claim: Claim, how: str) -> None:
        if how == "STARTED" and isinstance(claim.verdict, Accepted):
            self._start(claim)
            return
        sending, delivery = claim.sending, claim.delivery
        state, dead = _end_of(claim.verdict, how)
        ours = self._lets_go(consumer, claim)
        retries = claim.retries + (state == "RETRY")
        record = self._record(sending, state, retries) if state else b""
        outbox = [self._next(sending, delivery, retries)] if state == "RETRY" else []
        s = sending.steering
        item = Settlement(delivery, record)
        if state:
            item = Settlement(delivery, record, s.session, s.group, state, outbox=tuple(outbox), dead=dead)
        assert self.streams.settle([item, item]) == [ours, False]
        if isinstance(claim.verdict, Accepted):
            self.happened[how if ours else f"lost: {how}"] += 1
        if ours and state == "RETRY":
            sending.retries, sending.shown = retries, state
            sending.waiting.append((delivery.attempt + 1, delivery.child_deaths, delivery.worker_losses))
            self.by_header[outbox[0].header.encode()] = (sending, retries)
            self._take_out(sending.id)
        elif ours:
            self.entries -= 1
            if state:
                self._ended(sending, state, dead=dead)

    def _start(self, claim: Claim) -> None:
        sending, ours = claim.sending, self._is_ours(claim)
        record = self._record(sending, states.STARTED, claim.retries)
        item = Settlement(claim.delivery, record, sending.steering.session, state=states.STARTED, ends=False)
        assert self.streams.settle([item]) == [ours]
        self.happened["STARTED" if ours else "lost: STARTED"] += 1
        if ours:
            sending.shown = states.STARTED

    def _next(self, sending: Sending, delivery: Delivery, retries: int) -> Outgoing:
        s, body = sending.steering, sending.message.body
        if sending.is_member:
            message = Message.sign_call(GROUP, s.index, body, SIGNER, retries)
        else:
            message = Message.sign(_with_retries(s, retries), body, SIGNER)
        due = FAR_MS if retries % 2 else 0
        return Outgoing(
            s.queue,
            message.id,
            message.header,
            body,
            due,
            priority=s.priority,
            attempt=delivery.attempt + 1,
            child_deaths=delivery.child_deaths,
            worker_losses=delivery.worker_losses,
        )

    def _ended(self, sending: Sending, state: str, *, dead: bool = False) -> None:
        assert not sending.state, "ended twice"
        sending.state = sending.shown = state
        self.told[sending.id, sending.steering.nonce, state] += 1
        self.marked.discard(sending.id)
        if dead:
            self.dead[sending.id] = sending
            self.failed.pop(sending.id, None)
        elif state == states.FAILURE:
            self.failed[sending.id] = sending

    def _told(self) -> Counter[tuple[str, str, str]]:
        """Return how often the session was told of each end."""
        ends: Counter[tuple[str, str, str]] = Counter()
        cursor = ""
        while news := self.backend.read({"s": cursor}, 0.001):
            for _, at, entry in news:
                cursor = at
                for stored in open_facts(entry):
                    facts = open_stored(stored, SIGNER).facts
                    if facts.state in states.READY_STATES:
                        ends[facts.id, facts.nonce, facts.state] += 1
        return ends


def _end_of(verdict: object, how: str) -> tuple[str, bool]:
    """Return the state in which a task ends that was judged so, and whether it is dead; no state for a repeat."""
    if isinstance(verdict, Accepted):
        return (states.FAILURE, True) if how == "dead" else (how, False)
    return (verdict.state, verdict.dead) if isinstance(verdict, Ended) else ("", False)


def _mark(id_: str) -> str:
    return sign_control(Control(order="revoke", at=1.0, nonce="n", ids=(id_,)), SIGNER)


def _with_retries(struct: Any, retries: int) -> Any:
    return msgspec.structs.replace(struct, retries=retries)


_FAILURE: Final = encode_failure(Failure("T", "m", "t"))


def test_scripts_do_what_the_model_says(redis_server: RedisServer) -> None:
    happened: Counter[str] = Counter()
    for seed in range(RUNS):
        Queues(redis_server, seed, happened).run(STEPS)
    assert not HAPPENS - set(+happened), "never happened in any run"
