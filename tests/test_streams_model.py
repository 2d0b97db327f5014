"""The scripts on a real server against a model: random sendings, claims, losses and ends, in any order."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

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
    open_facts,
    open_stored,
    pack_body,
    pending_facts,
    sign_control,
    sign_group,
    sign_record,
)
from nbqueue.signing import Signer
from nbqueue.streams import Streams
from nbqueue.wire import connect
from tests.helpers import RedisServer

SIGNER: Final = Signer(b"k" * 32)
QUEUES: Final = ("p", "q")
IDS: Final = ("a", "b", "c")
GROUP: Final = "g"
MEMBERS: Final = 3
LOSSES: Final = 3  # so many lost workers end a task here
CONSUMERS: Final = ("one", "two", "three")
FAR_MS: Final = 10**14

T = TypeVar("T")
Counters = tuple[int, int, int]


@dataclass(eq=False)
class Sending:
    """One sending of an id: what the model believes of it."""

    steering: Steering
    message: Message
    retries: int = 0
    state: str = ""  # how it has ended
    ends: int = 0
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


class Queues(RuleBasedStateMachine):
    """Plays clients and workers; a worker may go on with what it has lost."""

    server: ClassVar[RedisServer]

    @initialize()
    def begin(self) -> None:
        self.server.flush()
        self.client = connect(self.server.url, name="model")
        self.streams = Streams(self.client, records=RECORDS)
        self.backend = RedisBackend(self.server.url)
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
        self.entries = 0
        self.copies = 0
        self.tried = 0
        self.repeats = 0

    # ---- clients

    @rule(
        id_=st.sampled_from(IDS),
        queue=st.sampled_from(QUEUES),
        level=st.sampled_from([0, 0, 3, 9]),
        due=st.sampled_from([0, 0, 1, FAR_MS]),
    )
    def send(self, id_: str, queue: str, level: int, due: int) -> None:
        """Send a new task under an id: refused while another of that id lives."""
        steering = Steering(
            id=id_,
            nonce=f"nonce-{len(self.sendings)}-{self.tried}",
            task="t",
            queue=queue,
            sent_at=time.time(),
            session="s",
            priority=level,
        )
        body = pack_body(b"", b"args")
        sending = Sending(steering, Message.sign(steering, body, SIGNER))
        self.tried += 1
        known = self.newest.get(id_)
        expected = LIVE if known is not None and not known.state else SENT
        assert self.streams.publish([self._outgoing(sending, due)]) == [expected]
        if expected == SENT:
            self._sent(sending)
            if known is not None and known.copied:
                self._take_out(known)

    @rule(index=st.integers(0, MEMBERS - 1), level=st.sampled_from([0, 5]), due=st.sampled_from([0, 0, FAR_MS]))
    def send_member(self, index: int, level: int, due: int) -> None:
        """Send a member of the map, once."""
        id_ = f"{GROUP}-{index}"
        if id_ not in self.newest:
            message = Message.sign_call(GROUP, index, b"args", SIGNER)
            sending = Sending(self.map.member(index), message)
            assert self.streams.publish([self._outgoing(sending, due, level)]) == [SENT]
            self._sent(sending)

    @precondition(lambda self: self.newest)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """Repeat a sending whose answer was lost: recognised, or for a member a copy that does no harm."""
        sending = _one_of(data, list(self.newest.values()))
        if sending.is_member:
            self._copy(sending)
        else:
            assert self.streams.publish([self._outgoing(sending, 0)]) == [REPEAT]

    @precondition(lambda self: self.sendings)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Put a message on its queue once more, as somebody may who only reads and writes the server."""
        self._copy(_one_of(data, self.sendings))

    @rule(id_=st.sampled_from([*IDS, *(f"{GROUP}-{n}" for n in range(MEMBERS)), "nobody"]))
    def revoke(self, id_: str) -> None:
        """Revoke whatever has this id."""
        sending = self.newest.get(id_)
        if sending is None:
            assert self.streams.revoke([Revocation("", id_, "", "", "", "mark")]) == ["unknown"]
            return
        s = sending.steering
        record = self._record(sending, states.REVOKED).decode()
        held = (s.queue, id_) in self.owner
        said = self.streams.revoke([Revocation(s.queue, id_, record, s.session, s.group, _mark(id_))])
        if sending.state:
            assert said == ["ended"]
        elif held:
            assert said == ["held"]
            self.marked.add(id_)
        else:
            assert said == ["revoked"]
            self._ended(sending, states.REVOKED)
            self.marked.discard(id_)
            self._take_out(sending)

    # ---- workers

    @rule(consumer=st.sampled_from(CONSUMERS), limit=st.sampled_from([1, 2, 50]), queues=st.permutations(QUEUES))
    def claim(self, consumer: str, limit: int, queues: list[str]) -> None:
        """Claim: nothing that somebody holds, nothing with another's counters, repeats dropped and counted."""
        deliveries, _ = self.streams.claim(consumer, limit, queues)
        assert len(deliveries) <= limit
        for delivery in deliveries:
            sending, retries = self.by_header[delivery.header]
            place = (delivery.queue, delivery.id)
            assert delivery.id == sending.id
            assert place not in self.owner, "two hold one task"
            counters = (delivery.attempt, delivery.child_deaths, delivery.worker_losses)
            if counters in sending.waiting:
                sending.waiting.remove(counters)
            else:
                assert sending.copied, f"{counters} instead of {sending.waiting}"
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
        self.entries -= repeats - self.repeats
        self.copies -= repeats - self.repeats
        self.repeats = repeats
        assert self.copies >= 0, "something was dropped that was no copy"

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), how=st.sampled_from(["SUCCESS", "FAILURE", "dead", "RETRY", "STARTED", "REJECTED"]))
    def settle(self, data: st.DataObject, how: str) -> None:
        """End a task, or say that it has started or is to run again: it counts for whoever holds it, and once."""
        consumer, claim = self._any_claim(data)
        self._settle(consumer, claim, how)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), charge=st.sampled_from(["none", "task", "child", "worker"]))
    def give_back(self, data: st.DataObject, charge: str) -> None:
        """Give a task back, charged or not."""
        consumer, claim = self._any_claim(data)
        ours = self._lets_go(consumer, claim)
        assert self.streams.give_back([claim.delivery], charge) == int(ours)
        if ours:
            self._came_back(claim, charge)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def put_off(self, data: st.DataObject) -> None:
        """Leave a task to other workers."""
        consumer, claim = self._any_claim(data)
        ours = self._lets_go(consumer, claim)
        self.streams.put_off([claim.delivery], 3_600_000)
        if ours:
            self._came_back(claim, "none")

    @rule(consumer=st.sampled_from(CONSUMERS))
    def renew(self, consumer: str) -> None:
        """Renew: what is held still, and which of it was revoked."""
        claims = self.held[consumer]
        held, marks = self.streams.renew(consumer, [claim.delivery for claim in claims], "w", '{"nbq":"x"}')
        assert held == [self._is_ours(claim) for claim in claims]
        assert set(marks) == self.marked & {claim.delivery.id for claim in claims}

    @rule(consumer=st.sampled_from(CONSUMERS))
    def lapse(self, consumer: str) -> None:
        """Let one worker's claims lapse: they come back, and the worker doesn't know."""
        places = self.streams.lapsed(QUEUES, 0)
        everyones = {(c.delivery.queue, c.delivery.lane, c.delivery.entry): c for c in self.owner.values()}
        assert set(places) == set(everyones)
        lost = [place for place in places if everyones[place] in self.held[consumer]]
        assert self.streams.reap(lost, 10**9) == 0, "not lapsed for so long"
        assert self.streams.reap(lost, 0) == len(lost)
        assert self.streams.reap(lost, 0) == 0
        for place in lost:
            claim = everyones[place]
            del self.owner[claim.delivery.queue, claim.delivery.id]
            self._came_back(claim, "worker")

    @rule()
    def time_passes(self) -> None:
        """Make everything due that is delayed."""
        self._set_due(1)

    # ---- what always holds

    @invariant()
    def every_entry_is_somewhere(self) -> None:
        if not hasattr(self, "owner"):
            return
        sizes = {queue: self.streams.size(queue) for queue in QUEUES}
        for queue, size in sizes.items():
            assert size.claimed == sum(place[0] == queue for place in self.owner)
        assert sum(size.queued + size.claimed + size.delayed for size in sizes.values()) == self.entries
        assert {id_.decode() for id_ in self.client.hkeys(REVOKED)} == self.marked

    def teardown(self) -> None:
        """Let everything end, and see that it did, once."""
        if not hasattr(self, "owner"):
            return
        for _ in range(30):
            for consumer in CONSUMERS:
                for claim in list(self.held[consumer]):
                    self._settle(consumer, claim, "SUCCESS")
            if not self.entries:
                break
            self.time_passes()
            self.claim("one", 1000, list(QUEUES))
        self.every_entry_is_somewhere()
        assert self.entries == 0, "something is stuck"
        assert not self.marked
        assert all(sending.ends == 1 for sending in self.sendings)
        for id_, sending in self.newest.items():
            (text,) = self.backend.load([id_])
            assert text is not None
            assert open_stored(open_facts(b"[%b]" % text)[0], SIGNER).facts.state == sending.state
        members = Counter(sending.state for sending in self.sendings if sending.is_member)
        assert Counter(self.backend.progress(GROUP)) == members
        assert self._told() == Counter((s.id, s.steering.nonce, s.state) for s in self.sendings)
        self.backend.close()
        self.client.close()

    # ---- the model

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
        self.sendings.append(sending)
        self.by_header[sending.message.header.encode()] = (sending, 0)
        self.entries += 1

    def _copy(self, sending: Sending) -> None:
        s, m = sending.steering, sending.message
        assert self.streams.publish([Outgoing(s.queue, m.id, m.header, m.body)]) == [SENT]
        sending.copied = True
        self.entries += 1
        self.copies += 1

    def _take_out(self, sending: Sending) -> None:
        """Count the one that may have been delayed under this id: revoked, or replaced by what followed it."""
        sizes = [self.streams.size(queue) for queue in QUEUES]
        left = sum(size.queued + size.claimed + size.delayed for size in sizes)
        assert self.entries - left in (0, 1)
        if left < self.entries:
            self.copies -= sending.copied
            if not sending.copied:
                sending.waiting.clear()
        self.entries = left

    def _check_verdict(self, sending: Sending, retries: int, delivery: Delivery, verdict: object) -> None:
        over = sending.state or self.newest[sending.id] is not sending or retries < sending.retries
        if over:
            assert isinstance(verdict, Repeated)
        elif sending.id in self.marked:
            assert isinstance(verdict, Ended)
            assert verdict.state == states.REVOKED
        elif delivery.worker_losses > LOSSES:
            assert isinstance(verdict, Ended)
            assert verdict.dead
        else:
            assert isinstance(verdict, Accepted)

    def _any_claim(self, data: st.DataObject) -> tuple[str, Claim]:
        return _one_of(data, [(consumer, claim) for consumer, claims in self.held.items() for claim in claims])

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
        sending, delivery, verdict = claim.sending, claim.delivery, claim.verdict
        if isinstance(verdict, Accepted):
            state, dead = ("FAILURE", True) if how == "dead" else (how, False)
        elif isinstance(verdict, Ended):
            state, dead = verdict.state, verdict.dead
        else:
            state, dead = "", False
        s = sending.steering
        if state == "STARTED":
            item = Settlement(delivery, self._record(sending, state, claim.retries), s.session, state=state, ends=False)
            assert self.streams.settle([item]) == [self._is_ours(claim)]
            return
        ours = self._lets_go(consumer, claim)
        retries = claim.retries + (state == "RETRY")
        record = self._record(sending, state, retries) if state else b""
        outbox = [self._next(sending, delivery, retries)] if state == "RETRY" else []
        item = Settlement(delivery, record)
        if state:
            item = Settlement(delivery, record, s.session, s.group, state, outbox=tuple(outbox), dead=dead)
        assert self.streams.settle([item, item]) == [ours, False]
        if not ours:
            return
        if state == "RETRY":
            sending.retries = retries
            sending.waiting.append((delivery.attempt + 1, delivery.child_deaths, delivery.worker_losses))
            self.by_header[outbox[0].header.encode()] = (sending, retries)
            if sending.copied:
                self._take_out(sending)
            return
        self.entries -= 1
        if state:
            self._ended(sending, state)
            self.marked.discard(sending.id)

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

    def _ended(self, sending: Sending, state: str) -> None:
        assert not sending.state, "ended twice"
        sending.state = state
        sending.ends += 1

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


def _one_of(data: st.DataObject, items: list[T]) -> T:
    # by number: what is drawn is printed when a run fails
    return items[data.draw(st.integers(0, len(items) - 1))]


def _mark(id_: str) -> str:
    return sign_control(Control(order="revoke", at=1.0, nonce="n", ids=(id_,)), SIGNER)


def _with_retries(struct: Any, retries: int) -> Any:
    return msgspec.structs.replace(struct, retries=retries)


_FAILURE: Final = encode_failure(Failure("T", "m", "t"))


def test_scripts_do_what_the_model_says(redis_server: RedisServer) -> None:
    Queues.server = redis_server
    run_state_machine_as_test(
        Queues,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
