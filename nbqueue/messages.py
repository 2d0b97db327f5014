"""What travels: signed steering fields, bodies that are bytes, and their wire forms.

Three things go over the wire, all signed with `signing.Signer`:

- a *message*: a `Steering` and a body, from a client to a worker; a member of a map is a `Call`, whose
  steering stands once in its group's;
- a *fact*: `Facts` and a body, from a worker to whoever listens, stored as one JSON text. A record is a
  fact that says how a task stands, in the form Celery's clients read; an event is any other fact;
- an *order*: a `Control`, from a client to the workers.

Between a supervisor and its children nothing is signed; `ChildTask`, `Outcome` and `ChildEvent` go there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Protocol, TypeVar

import msgspec

from nbqueue import states
from nbqueue.acks import Acks
from nbqueue.exceptions import BadMessage
from nbqueue.signing import Signer
from nbqueue.times import UNSET

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Decoder(Protocol[T_co]):
    """Is either of msgspec's decoders."""

    def decode(self, buf: Any, /) -> T_co:
        """Return the object that bytes hold."""


MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
# Of the JSON of a steering. A record has most of it, and an error and a summary of 700 characters, 12 bytes each at
# worst: together less than a signed text may have, or nobody would believe it.
MAX_STEERING_BYTES: Final = 6 * 1024
CELL_TASK: Final = "nbqueue.cell"
REPLACED: Final = "REPLACED"  # the outcome of a task whose place a canvas takes; no state of any record
_DRAWN: Final = 64  # ids drawn at once
_NONCE: Final = 20  # characters


def python_version() -> str:
    """Return this Python's minor version, which pickled code depends on."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


class Ids:
    """Draws ids and nonces, many from the system at once: to ask it lets other threads go first each time."""

    def __init__(self) -> None:
        self._drawn: list[str] = []
        self._pid = 0

    def draw(self) -> tuple[str, str]:
        """Return a new task id and a new nonce, as `new_id` and `new_nonce` do."""
        if self._pid != os.getpid():  # a fork must not draw what its parent does
            self._drawn, self._pid = [], os.getpid()
        try:
            text = self._drawn.pop()
        except IndexError:
            many = os.urandom(32 * _DRAWN).hex()
            *self._drawn, text = (many[at : at + 64] for at in range(0, len(many), 64))
        return id_from(text), text[32 : 32 + _NONCE]


def new_id() -> str:
    """Return a new task id, in Celery's form: a random UUID (RFC 9562, version 4)."""
    return id_from(os.urandom(16).hex())


def id_from(text: str) -> str:
    """Return an id of 32 random hexadecimal characters; more of them are passed over."""
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) & 3]}{text[17:20]}-{text[20:32]}"


def new_nonce() -> str:
    """Return what tells one sending of an id from another: 20 random hexadecimal characters."""
    return os.urandom(_NONCE // 2).hex()


class Steering(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Everything that decides what happens to one task, or to all members of a map. Times are Unix seconds."""

    id: str
    nonce: str
    task: str
    queue: str
    sent_at: float
    code: str = ""  # digest of the code that the body brings along; empty: the task goes by name
    python: str = ""  # minor version that pickled the code, e.g. "3.11"
    session: str = ""  # the client's stream, where results and events go
    name: str = ""  # what a view calls it; empty: `task`
    eta: float = UNSET
    expires: float = UNSET
    retries: int = 0
    group: str = ""
    index: int = -1
    size: int = 0  # members of the map, in its group's steering
    ignore_result: bool = False
    bind: bool = False  # the function takes the task itself as its first argument
    serializer: str = "cloudpickle"
    label: str = ""
    identity: str = ""  # notebook path and cell id or name, digested; see `attach`
    digest: str = ""  # of code and inputs
    time_limit: float = UNSET  # seconds it may run; 0.0: as its worker says
    soft_time_limit: float = UNSET  # seconds after which SoftTimeLimitExceeded is raised in it
    memory_limit: int = 0  # bytes
    priority: int = 0  # up to 9, which is the soonest
    max_retries: int = 0  # of a cell: how often an error runs it again; functions bring their own rules
    graph: str = ""  # id of the canvas it is a call of
    node: int = -1  # its place in that
    acks: Acks | None = None  # what it says of its message itself
    root: str = ""  # id of the call that it all began with; empty: this one
    parent: str = ""  # id of the call that made this one
    headers: dict[str, Any] = {}  # of the caller's own; JSON
    reply_to: str = ""  # where the caller wants an answer; nothing here sends one
    argsrepr: str = ""  # arguments as text, where the caller wants others shown
    kwargsrepr: str = ""
    unheard: bool = False  # its task sends no events
    extended: bool = False  # its result has its arguments
    rate_limit: float = UNSET  # tasks of its name a second; 0.0: as its worker says
    lock: str = ""  # of those with the same lock one runs at a time
    base: int = 0  # of what takes a task's place: of `retries`, those that were the task's

    @property
    def shown_name(self) -> str:
        """Return what a person calls this task."""
        return self.name or self.task

    def member(self, index: int, retries: int = 0) -> Steering:
        """Return the steering of one member of this map."""
        id_ = member_id(self.id, index)
        return msgspec.structs.replace(self, id=id_, group=self.id, index=index, size=0, retries=retries)


class Changes(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a retry says otherwise than its call was sent with, as in `Steering`; None: that stays."""

    queue: str | None = None
    priority: int | None = None
    expires: float | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    memory_limit: int | None = None
    name: str | None = None
    ignore_result: bool | None = None
    serializer: str | None = None
    headers: dict[str, Any] | None = None
    reply_to: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    lock: str | None = None

    @property
    def said(self) -> dict[str, Any]:
        """Return what isn't None, by name."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in fields.items() if value is not None}

    def on(self, steering: Steering) -> Steering:
        """Return steering that says so."""
        return msgspec.structs.replace(steering, **self.said)

    def after(self, earlier: Changes | None) -> Changes:
        """Return these, and of those before them what these leave."""
        return self if earlier is None else msgspec.structs.replace(earlier, **self.said)


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One member of a map: the rest of its steering is its group's.

    `nonce` is of one that runs again: it must not pass for a copy of what was sent before.
    """

    group: str
    index: int
    retries: int = 0
    nonce: str = ""
    changes: Changes | None = None


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One call of a canvas whose turn has come: the rest of its steering is in the graph. Times are Unix seconds.

    `headers` take the place of those in the graph, where whoever sent the call was told to add some.
    """

    graph: str
    node: int
    retries: int = 0
    sent_at: float = 0.0
    eta: float = 0.0
    headers: dict[str, Any] | None = None
    changes: Changes | None = None


def member_id(group: str, index: int) -> str:
    """Return the task id of one member of a map."""
    return f"{group}-{index}"


class Message(msgspec.Struct, frozen=True):
    """A task on its way: the signed text and the body exactly as they travel, and what the text says."""

    id: str
    header: str
    body: bytes
    steering: Steering | Call | Step

    @classmethod
    def sign(cls, steering: Steering, body: bytes, signer: Signer) -> Message:
        """Return the message of one task."""
        return cls(steering.id, signer.sign("task", _encode(steering), body), body, steering)

    @classmethod
    def sign_call(
        cls,
        group: str,
        index: int,
        body: bytes,
        signer: Signer,
        retries: int = 0,
        nonce: str = "",
        changes: Changes | None = None,
    ) -> Message:
        """Return the message of one member of a map; `body` is its arguments alone."""
        call = Call(group, index, retries, nonce, changes)
        # Most are sent for the first time, and a map has very many.
        text = _encode(call if retries or nonce else (group, index))
        return cls(member_id(group, index), signer.sign("call", text, body), body, call)

    @classmethod
    def sign_step(cls, step: Step, id_: str, body: bytes, signer: Signer) -> Message:
        """Return the message of one call of a canvas, whose task id only the graph knows."""
        return cls(id_, signer.sign("step", _encode((step,)), body), body, step)

    @classmethod
    def open(cls, header: str | bytes, body: bytes, signer: Signer) -> Message:
        """Return what travelled, once its signature holds.

        Raises:
            BadMessage: it can't be trusted or understood.
        """
        if isinstance(header, bytes):
            try:
                header = header.decode("ascii")
            except UnicodeDecodeError:
                raise BadMessage("format", "the signed text isn't ASCII") from None
        steering: Steering | Call
        # A call's JSON is an array, a step's one in another, a task's an object; the key differs too, so the guess
        # can't be abused.
        if header[-1:] == "]":
            if header[-2:] == "]]":
                (step,) = decoded(_STEP, signer.verify("step", header, body))
                return cls("", header, body, step)
            steering = decoded(_CALL, signer.verify("call", header, body))
            return cls(member_id(steering.group, steering.index), header, body, steering)
        steering = decode_steering(signer.verify("task", header, body))
        return cls(steering.id, header, body, steering)


def pack_body(code: bytes, args: bytes) -> bytes:
    """Return the body of a task: its code (may be empty), then its arguments."""
    return len(code).to_bytes(4, "big") + code + args


def split_body(body: bytes) -> tuple[bytes, bytes]:
    """Return code and arguments of a task's body."""
    if len(body) < 4:
        raise BadMessage("format", "the body has no frames")
    end = 4 + int.from_bytes(body[:4], "big")
    if end > len(body):
        raise BadMessage("format", "the body is shorter than its first frame says")
    return body[4:end], body[end:]


class Facts(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one fact says of one task; signed. Times are Unix seconds.

    `kind` is `record` (state, and the value or failure as body), or an event: `started`, `output`,
    `progress`. `group` facts hold a map's steering and code.
    """

    kind: str
    id: str
    at: float = UNSET
    state: str = ""
    attempt: int = 0
    nonce: str = ""
    task: str = ""
    name: str = ""
    queue: str = ""
    session: str = ""
    worker: str = ""
    child: int = 0
    sent_at: float = UNSET
    started_at: float = UNSET
    retries: int = 0
    group: str = ""
    index: int = -1
    label: str = ""
    identity: str = ""
    digest: str = ""
    graph: str = ""  # id of the canvas, and its place in that
    node: int = -1
    error: str = ""  # "Type: message", one line, for lists and logs
    summary: str = ""  # what came out, one line
    eta: float = UNSET  # of what waits, or is to run again: when it may
    max_retries: int = -1  # of a RETRY: how often it may; -1 for as often as it likes
    children: str = ""  # digest of the text's `children`, which may be many
    pid: int = 0  # of a STARTED: the process that runs it
    call: str = ""  # of an end: serializer and arguments, if its call wants them kept

    @property
    def sent(self) -> float:
        """Return when it was sent; 0.0 if this fact doesn't say."""
        return self.at if not self.sent_at and self.state == states.PENDING else self.sent_at


class FactText(msgspec.Struct, omit_defaults=True):
    """The JSON text of a fact. The first fields are what Celery's clients read; they are not trusted here."""

    nbq: str
    body: bytes = b""  # base64 in JSON
    task_id: str = ""
    status: str = ""
    result: Any = None
    traceback: str | None = None
    children: Any = ()
    date_done: str | None = None


class CeleryText(msgspec.Struct):
    """A stored record's JSON text: Celery requires every one of its fields to be there."""

    task_id: str
    status: str
    result: Any
    traceback: str | None
    children: Any
    date_done: str | None
    nbq: str
    body: bytes


class Failure(msgspec.Struct, array_like=True):
    """The body of a FAILURE's or RETRY's record: the error as text for people, and pickled for `get()`."""

    type: str
    message: str
    traceback: str  # the remote traceback without nbqueue's own frames
    pickled: bytes = b""  # of the exception itself; empty when it can't be pickled


class Fact(msgspec.Struct, frozen=True, dict=True):
    """A verified fact and the exact text it came in."""

    facts: Facts
    body: bytes
    children: tuple[tuple[str, bool], ...] = ()  # calls that the task has made: ids, and whether it is a map

    @cached_property
    def failure(self) -> Failure:
        """Return the body as the failure it holds."""
        return decode_failure(self.body)

    @property
    def ready(self) -> bool:
        """Tell whether this is a record that no other will follow."""
        return self.facts.kind == "record" and self.facts.state in states.READY_STATES


def pending_facts(steering: Steering, state: str = states.PENDING, at: float = 0.0) -> Facts:
    """Return what a record says of a task before it runs."""
    return Facts(
        kind="record",
        id=steering.id,
        at=at or steering.sent_at,
        state=state,
        nonce=steering.nonce,
        task=steering.task,
        name=steering.name,
        queue=steering.queue,
        session=steering.session,
        sent_at=UNSET if state == states.PENDING and not at else steering.sent_at,  # `at` says it
        retries=steering.retries,
        eta=steering.eta if state == states.PENDING else UNSET,
        group=steering.group,
        index=steering.index,
        label=steering.label,
        identity=steering.identity,
        digest=steering.digest,
        graph=steering.graph,
        node=steering.node,
    )


def revoked_facts(steering: Steering, why: str, at: float) -> Facts:
    """Return what the record of a cancelled or expired task says."""
    return msgspec.structs.replace(pending_facts(steering, states.REVOKED, at), error=why)


def sign_event(facts: Facts, body: bytes, signer: Signer) -> bytes:
    """Return the JSON text of an event."""
    return _encode(FactText(signer.sign("event", _encode(facts), body), body))


def sign_group(steering: Steering, code: bytes, signer: Signer) -> bytes:
    """Return the JSON text of what all members of a map share."""
    return _encode(FactText(signer.sign("group", _encode(steering), code), code))


def sign_code(digest: str, code: bytes, signer: Signer) -> bytes:
    """Return the JSON text of code that calls name by its digest."""
    return _encode(FactText(signer.sign("code", _encode(digest), code), code))


def open_code(text: bytes, digest: str, signer: Signer) -> bytes:
    """Return code, once its signature holds and it is what the digest names.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    stored = decoded(_FACT_TEXT, text)
    if signer.verify("code", stored.nbq, stored.body) != _encode(digest):
        raise BadMessage("place", f"other code under the digest {digest[:32]}")
    return stored.body


def open_group(text: bytes, signer: Signer) -> tuple[Steering, bytes]:
    """Return the steering and code that the members of a map share, once their signature holds."""
    stored = decoded(_FACT_TEXT, text)
    return decode_steering(signer.verify("group", stored.nbq, stored.body)), stored.body


def sign_record(
    facts: Facts, body: bytes, signer: Signer, *, children: Sequence[tuple[str, int]] = (), shown: bytes = b""
) -> bytes:
    """Return the JSON text of a record, readable by Celery's clients as far as JSON goes.

    Args:
        facts: what it says.
        body: value or failure.
        signer: signs it.
        children: calls that the task has made: ids, and how many members those of maps have.
        shown: the value as JSON, for Celery's clients.
    """
    result: Any = None
    traceback = None
    made: Any = ()
    if children:
        made = [[[id_, None], [] if size else None] for id_, size in children]
        facts = msgspec.structs.replace(facts, children=_children_digest(made))
    if facts.state in (states.FAILURE, states.RETRY):
        failure = decode_failure(body)
        result = {"exc_type": failure.type, "exc_message": [failure.message], "exc_module": "builtins"}
        traceback = failure.traceback
    elif facts.state == states.REVOKED:
        result = {"exc_type": "TaskRevokedError", "exc_message": [facts.error], "exc_module": "celery.exceptions"}
    elif shown:
        result = _json_of(shown)
    done = datetime.fromtimestamp(facts.at, UTC).isoformat() if facts.state in states.READY_STATES else None
    header = signer.sign("record", _encode(facts), body)
    return _encode(CeleryText(facts.id, facts.state, result, traceback, made, done, header, body))


def _children_digest(children: object) -> str:
    return hashlib.sha256(msgspec.json.encode(children)).hexdigest()[:32]


def _json_of(text: bytes) -> Any:
    """Return what JSON holds that a child has written; None if it holds nothing."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def open_fact(text: bytes | str, signer: Signer, *, kind: str | None = None) -> Fact:
    """Return the fact in a JSON text, once its signature holds.

    Args:
        text: as `sign_event` or `sign_record` made it.
        kind: `record` or `event` where only that may stand; None takes either.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    stored = decoded(_FACT_TEXT, text)
    return open_stored(stored, signer, kind=kind)


def open_facts(text: bytes | str) -> list[FactText]:
    """Return the facts of one stream entry (a JSON array), not yet verified."""
    return decoded(_FACT_TEXTS, text)


def open_stored(stored: FactText, signer: Signer, *, kind: str | None = None) -> Fact:
    """Return the fact of a decoded JSON text, once its signature holds."""
    if kind is None:
        kind = "record" if stored.task_id else "event"
    facts = decoded(_FACTS, signer.verify(kind, stored.nbq, stored.body))
    if (facts.kind == "record") != (kind == "record"):
        raise BadMessage("place", f"a {facts.kind} where a {kind} was expected")
    if not facts.children:
        return Fact(facts, stored.body)
    if _children_digest(stored.children) != facts.children:
        raise BadMessage("signature", "the children of a task aren't those that were signed")
    return Fact(facts, stored.body, tuple((one[0][0], one[1] is not None) for one in stored.children))


class Control(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An order to workers, fresh for a minute.

    `revoke` (ids, terminate, signal) is for whoever holds the tasks; `shutdown` (terminate: without waiting for what
    runs), `resize` (size) and `restart` are for the workers named. `command` is for the workers named, those whose name
    fits the pattern, or all of them; what each answers goes where `reply` says.
    """

    order: str
    at: float
    nonce: str
    ids: tuple[str, ...] = ()
    terminate: bool = False
    signal: str = ""
    workers: tuple[str, ...] = ()
    size: int = 0
    command: str = ""  # of a `command`: which
    arguments: dict[str, Any] = {}
    pattern: str = ""
    matcher: str = ""  # how the pattern is read: "glob" or "pcre"
    reply: str = ""  # empty: nobody waits for an answer


class Reply(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a worker answers to a command; the body is JSON. `to` is the nonce of the order, so it answers no other."""

    to: str
    worker: str
    at: float


def sign_reply(reply: Reply, body: bytes, signer: Signer) -> bytes:
    """Return the JSON text of an answer."""
    return _encode(FactText(signer.sign("reply", _encode(reply), body), body))


def open_reply(text: bytes | str, to: str, signer: Signer) -> tuple[Reply, bytes]:
    """Return the answer in a JSON text, once its signature holds and it is one to the order with the nonce `to`.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    stored = decoded(_FACT_TEXT, text)
    reply = decoded(_REPLY, signer.verify("reply", stored.nbq, stored.body))
    if reply.to != to:
        raise BadMessage("place", f"an answer of {reply.worker[:80]} to another order")
    return reply, stored.body


def sign_control(order: Control, signer: Signer) -> str:
    """Return the signed text of an order."""
    return signer.sign("control", _encode(order))


def open_control(text: str | bytes, signer: Signer) -> Control:
    """Return the order in a signed text, once its signature holds."""
    return decoded(_CONTROL, signer.verify("control", text))


def open_mark(text: str | bytes, id_: str, signer: Signer) -> Control:
    """Return the order that was left to revoke a task, once its signature holds and it is about this task.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    order = open_control(text, signer)
    if order.order != "revoke" or id_ not in order.ids:
        raise BadMessage("place", f"an order to {order.order[:20]} other tasks, left with {id_[:80]}")
    return order


class ChildTask(msgspec.Struct, array_like=True):
    """One task as a supervisor hands it to a child. `steering` is the JSON of its (or its group's) `Steering`."""

    seq: int
    attempt: int
    id: str
    task: str
    code: str  # digest; the code itself was sent before, once per child
    index: int
    steering: bytes
    args: bytes
    wants_output: bool = True  # somebody may watch: capture and stream what it prints
    retries: int = 0
    limited: bool = False  # its supervisor is to be told when it begins
    time_limit: float = 0.0
    soft_time_limit: float = 0.0
    fed: bytes = b""  # an encoded `Fed`: what came before it in a canvas
    in_header: bool = False  # of a chord, to which it may add
    replaced: int = 0  # as often something took the place of a task, of which this is a part


class Fed(msgspec.Struct, array_like=True):
    """What goes in front of a call's own arguments.

    `how` is `value` (one payload), `gather` (a list of them) or `error`: the failure of the task `id`, which was called
    with `args`, packed by `serializer`, if these are all it was called with. A payload that is empty stands for None.
    """

    how: str
    payloads: tuple[bytes, ...] = ()
    id: str = ""
    task: str = ""
    args: bytes = b""
    serializer: str = ""
    root: str = ""
    parent: str = ""


class Outcome(msgspec.Struct, array_like=True):
    """How one task ended in a child. `body` is finished: a pickled value, an encoded `Failure`, or an `Again`.

    A REJECTED one with a body, whatever it is, goes back to its queue.
    """

    seq: int
    state: str
    body: bytes
    started_at: float
    ended_at: float
    error: str = ""
    summary: str = ""
    children: tuple[tuple[str, int], ...] = ()  # calls that it has made: ids, and members of those that are maps
    also: tuple[bytes, ...] = ()  # each a `Graft` that joins the header the task is in
    expected: bool = False  # a failure of a kind that its task `throws`


class Stated(msgspec.Struct, array_like=True):
    """The data of a `state` event: a state of the task's own, the packed value that goes with it, and that as JSON.

    The JSON is empty where there is none.
    """

    state: str
    body: bytes
    shown: bytes = b""


class Graft(msgspec.Struct, array_like=True):
    """A canvas that takes a task's place, or joins the header it is in; `graph` is a packed `Graph`.

    `heads` are sent at once, and the end of `tail` is the end of it.
    """

    graph: bytes
    heads: tuple[int, ...]
    tail: int


class Again(msgspec.Struct, array_like=True):
    """The body of a RETRY's outcome: how a task is to run again."""

    failure: bytes  # encoded; what went wrong this time
    due: float  # Unix seconds; 0.0: at once
    max_retries: int = -1  # as in `Facts`
    args: bytes | None = None  # packed; None: the same
    changes: Changes | None = None


class ChildEvent(msgspec.Struct, array_like=True):
    """What a task said while it ran: `kind` is `output`, `progress` or `event`, `data` one JSON object; or `state`."""

    seq: int
    kind: str
    data: bytes
    at: float


class Output(msgspec.Struct, omit_defaults=True):
    """The data of an `output` event: text of a stream, or a MIME bundle of one displayed object.

    `update_display_data` takes the place of what was displayed with the same `id`; `clear_output` takes all of it away.
    """

    type: str  # "stream", "display_data", "execute_result", "update_display_data" or "clear_output", as in Jupyter
    name: str = ""  # "stdout" or "stderr"
    text: str = ""
    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    id: str = ""
    wait: bool = False  # of `clear_output`: only when something new comes


class Progress(msgspec.Struct, omit_defaults=True):
    """The data of a `progress` event: one bar. `total` None means it isn't known."""

    bar: int = 0
    done: float = 0.0
    total: float | None = None
    message: str = ""
    closed: bool = False
    parent: int = -1
    unit: str = ""
    note: str = ""  # what else is told of it
    rate: float | None = None  # units a second, if whoever counts them knows better than whoever looks on
    leave: bool = True  # it stays when it is closed


def encode_said(encode: Callable[[Any], bytes], value: Any) -> bytes:
    """Return what a task has said, encoded; lone surrogates, as in names of files that are no UTF-8, become escapes."""
    try:
        return encode(value)
    except UnicodeEncodeError:
        return encode(_without_surrogates(value))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(part) for part in value]
    if isinstance(value, msgspec.Struct):
        fields = {name: _without_surrogates(getattr(value, name)) for name in value.__struct_fields__}
        return type(value)(**fields)
    return value


def encode_failure(failure: Failure) -> bytes:
    """Return the body of a failure's record."""
    return encode_said(msgspec.msgpack.encode, failure)


def decode_failure(body: bytes) -> Failure:
    """Return the failure in a record's body."""
    return decoded(_FAILURE, body)


def encode_again(again: Again) -> bytes:
    """Return the body of a RETRY's outcome."""
    return msgspec.msgpack.encode(again)


def decode_again(body: bytes) -> Again:
    """Return how a task is to run again."""
    return decoded(_AGAIN, body)


def encode_stated(stated: Stated) -> bytes:
    """Return the data of a `state` event."""
    return msgspec.msgpack.encode(stated)


def decode_stated(data: bytes) -> Stated:
    """Return the data of a `state` event."""
    return decoded(_STATED, data)


def encode_graft(graft: Graft) -> bytes:
    """Return a canvas as a child hands it to its supervisor."""
    return msgspec.msgpack.encode(graft)


def decode_graft(body: bytes) -> Graft:
    """Return the canvas that a child has handed over."""
    return decoded(_GRAFT, body)


def encode_fed(fed: Fed) -> bytes:
    """Return what goes in front of a call's own arguments."""
    return msgspec.msgpack.encode(fed)


def decode_fed(data: bytes) -> Fed:
    """Return what goes in front of a call's own arguments."""
    return decoded(_FED, data)


def decode_fact_text(text: bytes | str) -> FactText:
    """Return a stored text, not yet verified."""
    return decoded(_FACT_TEXT, text)


def encode_steering(steering: Steering) -> bytes:
    """Return the JSON text of a steering, as it is signed."""
    return _encode(steering)


def decode_steering(text: bytes) -> Steering:
    """Return the steering in a JSON text."""
    return decoded(_STEERING, text)


_encode_utf8 = msgspec.json.Encoder().encode
_STEERING = msgspec.json.Decoder(Steering)
_CALL = msgspec.json.Decoder(Call)
_STEP = msgspec.json.Decoder(tuple[Step])
_FED: Decoder[Fed] = msgspec.msgpack.Decoder(Fed)
_FACTS = msgspec.json.Decoder(Facts)
_FACT_TEXT = msgspec.json.Decoder(FactText)
_FACT_TEXTS = msgspec.json.Decoder(list[FactText])
_CONTROL = msgspec.json.Decoder(Control)
_REPLY = msgspec.json.Decoder(Reply)
_STATED: Decoder[Stated] = msgspec.msgpack.Decoder(Stated)
_AGAIN: Decoder[Again] = msgspec.msgpack.Decoder(Again)
_GRAFT: Decoder[Graft] = msgspec.msgpack.Decoder(Graft)
_FAILURE: Decoder[Failure] = msgspec.msgpack.Decoder(Failure)


def _encode(value: Any) -> bytes:
    """Return ASCII JSON: brokers don't carry other header text byte for byte."""
    text = _encode_utf8(value)
    return text if text.isascii() else json.dumps(json.loads(text), separators=(",", ":")).encode()


def decoded(decoder: Decoder[T], data: Any) -> T:
    """Return what a decoder makes of bytes.

    Raises:
        BadMessage: nothing.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage("fields", str(exc)) from None
