"""Entries of the schedule: what is to be sent, when, and what came of it. Forms and rules; says nothing of servers.

An entry is three texts, each signed or named by what is: the *entry* itself, small, so that all of them can be looked
at at once; its *call*, which may be large; and how it *stands*: when it was last due, and its last runs.

Source: Celery 5.7, "Periodic Tasks" of its user guide.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec

from nbqueue.deliveries import Outgoing
from nbqueue.exceptions import BadMessage, ImproperlyConfigured
from nbqueue.graph import Given, decode_graph, draw, sign_graph
from nbqueue.messages import (
    Decoder,
    FactText,
    Message,
    Steering,
    Step,
    decode_fact_text,
    decode_steering,
    decoded,
    id_from,
    open_fact,
    pending_facts,
    sign_record,
    split_body,
)
from nbqueue.payloads import Ref, named
from nbqueue.schedules import Rule, crontab, rule_of
from nbqueue.signing import Signer
from nbqueue.states import READY_STATES
from nbqueue.times import expiry_time

T = TypeVar("T")
RUNS_KEPT: Final = 30
LATE_S: Final = 15.0  # later than this a firing is one that was missed: nobody led meanwhile
MOST_AT_ONCE: Final = 1_000  # missed firings that are made good, where all of them are to be
POLICIES: Final = ("coalesce", "skip", "all")


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is sent, and when. Times are Unix seconds.

    Args:
        name: unique in the schedule.
        rule: text, as `schedules.rule_of` takes it.
        zone: in which a crontab's fields are meant.
        task: name of what is sent, for people.
        call: digest of the call.
        made: what tells this entry from an earlier one of its name.
        since: from when on it fires: when it was added, changed or resumed.
        enabled: False: paused.
        policy: what becomes of missed firings: `coalesce` sends one for all of them, `skip` none, `all` each.
        origin: `conf:` and an app's name where its settings have it; empty if it was added by hand.
        digest: of what the settings say.
        expires: seconds after which a run that has not started is dropped; 0.0: never.
        queue: where it is sent.
    """

    name: str
    rule: str
    zone: str = "UTC"
    task: str = ""
    call: str = ""
    made: str = ""
    since: float = 0.0
    enabled: bool = True
    policy: str = "coalesce"
    origin: str = ""
    digest: str = ""
    expires: float = 0.0
    queue: str = ""

    @property
    def parsed(self) -> Rule:
        """Return the rule.

        Raises:
            ImproperlyConfigured: it names none.
        """
        return rule_of(self.rule, self.zone)


class Run(msgspec.Struct, frozen=True, array_like=True):
    """One firing, or those that were missed before it. Times are Unix seconds.

    Args:
        due: when it was due.
        id: of its task; empty where nothing was sent.
        missed: how many were missed before it.
        by_hand: it was run now, beside its times.
        state: how it ended, once a beat has seen that; records are gone after a while, a history stays.
        started: when it began, of one that has ended.
        ended: when it ended.
    """

    due: float
    id: str = ""
    missed: int = 0
    by_hand: bool = False
    state: str = ""
    started: float = 0.0
    ended: float = 0.0


class Stand(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How an entry stands: when it was last due (Unix seconds), how often it fired, and its last runs, oldest first."""

    name: str
    made: str = ""
    last_due: float = 0.0
    count: int = 0
    runs: tuple[Run, ...] = ()


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What an entry sends: the template of a message, or of a canvas.

    Args:
        steering: JSON of a `Steering` without id, nonce and times.
        body: of the message.
        graph: msgpack of a `Graph` without id, nonce and times; empty for a message.
        heads: calls of it that are sent first.
        result: the call whose end is the end of it all.
        parts: the queues that each get a copy of a message, and whether each is a broadcast; empty for one queue.
    """

    steering: bytes = b""
    body: bytes = b""
    graph: bytes = b""
    heads: tuple[int, ...] = ()
    result: int = 0
    parts: tuple[tuple[str, bool], ...] = ()


class Firing(msgspec.Struct, frozen=True):
    """A time at which an entry fires, and how many it stands for that were `missed`; so is this one without `send`."""

    due: float
    missed: int = 0
    send: bool = True


def firings(entry: Entry, stand: Stand, now: float, deadline_s: float | None = None) -> list[Firing]:
    """Return the firings of an entry that are due, as its policy has it; oldest first.

    Args:
        entry: enabled.
        stand: how it stands.
        now: Unix seconds, of the server's clock.
        deadline_s: how long the firing of a cron rule may be due, and still be sent; None: however long.
    """
    rule = entry.parsed
    start = max(stand.last_due, entry.since)
    due = []
    for instant in _after(rule, start):
        if instant > now:
            break
        due.append(instant)
        if entry.policy == "all" and len(due) >= MOST_AT_ONCE:
            break
        if len(due) > 10 * MOST_AT_ONCE:  # seconds missed in months: their number isn't worth the time
            due = [last_before(rule, now, instant)]
            break
    if not due:
        return []
    too_old = now - deadline_s if deadline_s is not None and isinstance(rule, crontab) else -math.inf
    if entry.policy == "all":
        return [Firing(instant, *(() if instant >= too_old else (1, False))) for instant in due]
    late = now - due[-1] > LATE_S
    if (entry.policy == "skip" and late) or due[-1] < too_old:
        return [Firing(due[-1], len(due), send=False)]
    return [Firing(due[-1], len(due) - 1)]


def _after(rule: Rule, start: float) -> Iterator[float]:
    at = datetime.fromtimestamp(start, UTC)
    while True:
        at = rule.next_after(at)
        yield at.timestamp()


def last_before(rule: Rule, now: float, known: float) -> float:
    """Return the newest firing up to `now` of a rule that is due very often; `known` is an earlier one."""
    step = 1.0
    while step < now - known:
        found = next(_after(rule, now - step))
        if found <= now:
            newest = found
            for instant in _after(rule, found):
                if instant > now:
                    return newest
                newest = instant
        step *= 2
    return known


def next_due(entry: Entry, stand: Stand) -> float:
    """Return when an entry fires next, Unix seconds; in the past if it should have."""
    return next(_after(entry.parsed, max(stand.last_due, entry.since)))


def after_firing(stand: Stand, entry: Entry, run: Run, *, by_hand: bool = False) -> Stand:
    """Return how an entry stands after a firing."""
    if stand.made != entry.made:
        stand = Stand(name=entry.name, made=entry.made)
    return msgspec.structs.replace(
        stand,
        last_due=stand.last_due if by_hand else max(stand.last_due, run.due),
        count=stand.count + bool(run.id),
        runs=(*stand.runs, run)[-RUNS_KEPT:],
    )


def known_of(record: bytes | None, run: Run, signer: Signer) -> Run:
    """Return a run with what its record says, as far as that can be believed."""
    if record is None:
        return run
    try:
        facts = open_fact(record, signer, kind="record").facts
    except BadMessage:
        return run
    if facts.id != run.id:
        return run
    ended = facts.at if facts.state in READY_STATES else 0.0
    return msgspec.structs.replace(run, state=facts.state, started=facts.started_at, ended=ended)


def with_ends(stand: Stand, records: Mapping[str, bytes | None], signer: Signer) -> Stand:
    """Return how an entry stands with the ends of its runs; the same object if none is new.

    Args:
        stand: as it is stored.
        records: of tasks, by their ids.
        signer: verifies them.
    """
    runs = []
    for run in stand.runs:
        known = known_of(records.get(run.id), run, signer) if run.id and not run.ended else run
        runs.append(known if known.ended else run)
    return stand if runs == list(stand.runs) else msgspec.structs.replace(stand, runs=tuple(runs))


def ids_of(entry: Entry, due: float) -> tuple[str, str]:
    """Return id and nonce of what an entry sends at a time: always the same, so that it can't be sent twice."""
    digest = hashlib.sha256(f"{entry.made}/{round(due * 1000)}".encode()).hexdigest()
    return id_from(digest), digest[32:52]


def copy_id(id_: str, queue: str) -> str:
    """Return the id of the copy of a task that goes to another queue."""
    return id_from(hashlib.sha256(f"{id_}/{queue}".encode()).hexdigest())


class Sent(msgspec.Struct, frozen=True):
    """What one firing sends. `id` is of the task whose end is its end; `graph` is the text of a canvas, by its id.

    Of a call that goes to several queues that is the first copy.
    """

    id: str
    messages: tuple[Outgoing, ...]
    steering: Steering
    graph: tuple[str, bytes] | None = None


def sent_by(
    entry: Entry,
    call: Call,
    id_: str,
    nonce: str,
    now: float,
    signer: Signer,
    queues: Sequence[str] = (),
    told: Callable[[Steering], Steering] | None = None,
) -> Sent:
    """Return what an entry sends at a time.

    Args:
        entry: whose call it is.
        call: what is sent.
        id_: of the task, or of the canvas.
        nonce: what tells this sending from others.
        now: Unix seconds.
        signer: signs it.
        queues: that each get a copy, where it doesn't go to one.
        told: of each message; returns its steering, maybe with other headers.
    """
    session = f"beat-{entry.made}"
    if call.graph:
        template = decode_graph(call.graph)
        graph = msgspec.structs.replace(template, id=id_, nonce=nonce, session=session, sent_at=now)
        drawn = draw(graph)
        headers = {}
        if told is not None:
            headers = {head: told(drawn.steering(Step(id_, head, 0, now, 0.0))).headers for head in call.heads}
        messages = tuple(drawn.step(head, Given("nothing"), now, signer, headers.get(head)) for head in call.heads)
        first = drawn.steering(Step(id_, call.result, 0, now, 0.0))
        return Sent(graph.id_of(call.result), messages, first, (id_, sign_graph(graph, signer)))
    steering = msgspec.structs.replace(
        decode_steering(call.steering),
        id=id_,
        nonce=nonce,
        session=session,
        sent_at=round(now, 3),
        eta=0.0,
        expires=expiry_time(now, entry.expires or None, 0.0),
    )
    copies = [
        msgspec.structs.replace(steering, queue=queue, id=copy_id(id_, queue) if number else id_)
        for number, queue in enumerate(queues)
    ]
    copies = copies or [steering]
    if told is not None:
        copies = [told(one) for one in copies]
    messages = tuple(_outgoing(one, call.body, signer) for one in copies)
    return Sent(id_, messages, steering)


def _outgoing(steering: Steering, body: bytes, signer: Signer) -> Outgoing:
    message = Message.sign(steering, body, signer)
    record = sign_record(pending_facts(steering), b"", signer)
    return Outgoing(
        steering.queue,
        steering.id,
        message.header,
        body,
        nonce=steering.nonce,
        record=record,
        priority=steering.priority,
    )


def check(entry: Entry, now: float) -> Entry:
    """Return an entry if it can be.

    Raises:
        ImproperlyConfigured: its rule, zone or policy names nothing.
    """
    if not entry.name.strip():
        raise ImproperlyConfigured("an entry of the schedule has a name")
    if entry.policy not in POLICIES:
        raise ImproperlyConfigured(f"policy={entry.policy!r} is none of {', '.join(POLICIES)}")
    entry.parsed.next_after(datetime.fromtimestamp(now, UTC))
    return entry


def digest_of(call: bytes) -> str:
    """Return what an entry names its call by."""
    return hashlib.sha256(call).hexdigest()


def encode_call(call: Call) -> bytes:
    """Return a call as it is kept."""
    return msgspec.msgpack.encode(call)


def open_call(data: bytes, entry: Entry) -> Call:
    """Return the call of an entry.

    Raises:
        BadMessage: it is another's, or can't be understood.
    """
    if digest_of(data) != entry.call:
        raise BadMessage("place", f"the call of entry {entry.name[:80]} is another's")
    return decoded(_CALL, data)


def blobs_of(call: Call) -> tuple[Ref, ...]:
    """Return the large data that a call names."""
    parts = decode_graph(call.graph).packed if call.graph else split_body(call.body)
    return tuple(ref for data in parts for ref in named(data))


def sign_entry(entry: Entry, signer: Signer) -> bytes:
    """Return the JSON text of an entry, as it is stored."""
    return _sign("entry", msgspec.json.encode(entry), entry.name, signer)


def open_entry(text: bytes, name: str, signer: Signer) -> Entry:
    """Return a stored entry, once its signature holds and it is the one of this name.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    entry = _open("entry", text, _ENTRY, signer)
    if entry.name != name:
        raise BadMessage("place", f"entry {entry.name[:80]} under the name {name[:80]}")
    return entry


def sign_stand(stand: Stand, signer: Signer) -> bytes:
    """Return the JSON text of how an entry stands."""
    return _sign("stand", msgspec.json.encode(stand), stand.name, signer)


def stand_of(text: bytes, entry: Entry, signer: Signer) -> Stand:
    """Return how an entry stands by what is stored of it, which may be nothing yet.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    return open_stand(text, entry, signer) if text else Stand(name=entry.name, made=entry.made)


def open_stand(text: bytes, entry: Entry, signer: Signer) -> Stand:
    """Return how an entry stands; anew if what is stored is of an earlier entry of its name.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    stand = _open("stand", text, _STAND, signer)
    if stand.name != entry.name:
        raise BadMessage("place", f"what is stored of {stand.name[:80]} under the name {entry.name[:80]}")
    return stand if stand.made == entry.made else Stand(name=entry.name, made=entry.made)


def _sign(kind: str, body: bytes, name: str, signer: Signer) -> bytes:
    # What is signed in plain sight is ASCII and short, and a name may be neither.
    sign = msgspec.json.encode(digest_of(name.encode()))
    return msgspec.json.encode(FactText(signer.sign(kind, sign, body), body))


def _open(kind: str, text: bytes, decoder: Decoder[T], signer: Signer) -> T:
    stored = decode_fact_text(text)
    signer.verify(kind, stored.nbq, stored.body)
    return decoded(decoder, stored.body)


_ENTRY = msgspec.json.Decoder(Entry)
_STAND = msgspec.json.Decoder(Stand)
_CALL: Decoder[Call] = msgspec.msgpack.Decoder(Call)
