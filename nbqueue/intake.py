"""What a worker makes of a claimed message before anything runs: verify, look up, decide.

Nothing is parsed before its signature holds, and nothing here unpickles. A message that can't be trusted never
stops the worker; one that is meant for somebody else is left to them.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from nbqueue import states
from nbqueue.acks import DEFAULT_ACKS, EARLY, Acks
from nbqueue.backends.base import Backend, chunks
from nbqueue.contents import DEFAULT, refusal
from nbqueue.deliveries import Delivery, code_name
from nbqueue.exceptions import BadMessage
from nbqueue.graph import Drawn, Given, decode_given, open_graph
from nbqueue.messages import (
    Call,
    Changes,
    Facts,
    Failure,
    Fed,
    Message,
    Steering,
    Step,
    encode_failure,
    encode_fed,
    encode_steering,
    member_id,
    open_code,
    open_fact,
    open_group,
    open_mark,
    python_version,
    split_body,
)
from nbqueue.payloads import Ref, named
from nbqueue.signing import Signer
from nbqueue.times import has_expired

_GROUPS_KEPT: Final = 64
_CODES_KEPT: Final = 256
_READ_AT_ONCE: Final = 1_000  # records
# So long its sender, who has just seen that the backend has lost its code, may take to put it there again.
CODE_WAIT_S: Final = 3.0
# Signed by a key or in a version that another worker may understand, or to be judged again in a moment.
_NOT_MINE: Final = frozenset({"key", "version", "code"})


class Accepted(msgspec.Struct, frozen=True):
    """A task to run; `alone` if it is to have a worker to itself. `steering_text` is the JSON that its child gets."""

    delivery: Delivery
    steering: Steering
    steering_text: bytes
    code: bytes
    args: bytes
    blobs: tuple[Ref, ...] = ()  # large data that code and arguments name
    alone: bool = False
    drawn: Drawn | None = None  # the canvas it is a call of
    fed: bytes = b""  # what came before it there
    changes: Changes | None = None  # of a map's member or a call of a canvas: what it says otherwise than these


class Ended(msgspec.Struct, frozen=True):
    """A task that ends without running, with this state. `dead`: its message is to be kept."""

    delivery: Delivery
    steering: Steering
    state: str
    error: str
    body: bytes = b""
    dead: bool = False
    drawn: Drawn | None = None
    propagated: bool = False  # as what came before it has ended so
    told: frozenset[int] = frozenset()  # scopes of a canvas whose errbacks know of it


class _Lost(NamedTuple):
    """Why a call can't run, and the place of the member of its header that is to blame."""

    why: str
    place: int


class Repeat(msgspec.Struct, frozen=True):
    """A message whose task has ended already, or was sent or retried since: only to be acknowledged."""

    delivery: Delivery


class Refused(msgspec.Struct, frozen=True):
    """A message that nobody should run."""

    delivery: Delivery
    reason: str


class NotMine(msgspec.Struct, frozen=True):
    """A message that only another worker can judge."""

    delivery: Delivery
    reason: str


Verdict = Accepted | Ended | Repeat | Refused | NotMine


class Shared(msgspec.Struct, frozen=True):
    """What the members of a map have in common; `text` is the JSON of its steering."""

    steering: Steering
    text: bytes
    code: bytes
    blobs: tuple[Ref, ...]


class Intake:
    """Judges deliveries for one worker.

    Args:
        signer: of this worker's key.
        backend: where groups are looked up.
        worker: this worker's name, for errors.
        max_losses: a task that lost so many workers runs alone, and ends if it loses another: those that a worker
            holds are charged together with the one that is its end.
        acks_of: tells what a call says of its message.
        accept: serializers whose content this worker's children load; all if None.
    """

    def __init__(
        self,
        signer: Signer,
        backend: Backend,
        worker: str,
        max_losses: int,
        acks_of: Callable[[Steering], Acks] = lambda _: DEFAULT_ACKS,
        accept: frozenset[str] | None = None,
    ) -> None:
        self.signer = signer
        self.backend = backend
        self.worker = worker
        self.max_losses = max_losses
        self.acks_of = acks_of
        self.accept = accept
        self._groups: OrderedDict[str, Shared] = OrderedDict()
        self._codes: OrderedDict[str, bytes] = OrderedDict()
        self._graphs: OrderedDict[str, Drawn] = OrderedDict()

    def judge(self, delivery: Delivery, now: float) -> Verdict:
        """Return what to do with a delivery.

        Args:
            delivery: as it was claimed.
            now: Unix seconds.

        Raises:
            BackendUnavailable: a map's shared part could not be read; judge it again later.
        """
        try:
            message = _open(delivery, self.signer)
            if isinstance(message.steering, Step):
                return self._step(message.steering, delivery, now)
            if message.id != delivery.id:
                raise BadMessage("place", f"task {message.id} under the id {delivery.id[:80]}")
            task = self._task(message, delivery)
            if task.steering.queue != delivery.queue:
                raise BadMessage("place", f"sent to queue {task.steering.queue}, found in {delivery.queue}")
        except BadMessage as exc:
            return (NotMine if exc.reason in _NOT_MINE else Refused)(delivery, str(exc))
        except _Missing as exc:
            return Ended(delivery, exc.steering, states.FAILURE, *failure_of("BlobMissing", str(exc)))
        alone = delivery.worker_losses >= self.max_losses
        return (
            self._known(task)
            or self._unfit(task, now)
            or (msgspec.structs.replace(task, alone=True) if alone else task)
        )

    def _task(self, message: Message, delivery: Delivery) -> Accepted:
        if isinstance(message.steering, Call):
            group = delivery.shared or self._group(message.steering)
            steering = group.steering.member(message.steering.index, message.steering.retries)
            if not 0 <= steering.index < group.steering.size:
                raise BadMessage("place", f"member {steering.index} of a map of {group.steering.size}")
            blobs = (*group.blobs, *named(message.body))
            task = Accepted(delivery, steering, group.text, group.code, message.body, blobs)
            return task if message.steering.changes is None else _changed(task, message.steering.changes)
        assert isinstance(message.steering, Steering), "a step is judged apart"
        code, args = split_body(message.body)
        if message.steering.code and not code:
            code = self._code(message.steering)
        blobs = (*named(code), *named(args))
        return Accepted(delivery, message.steering, encode_steering(message.steering), code, args, blobs)

    def _code(self, steering: Steering) -> bytes:
        """Return code that a call names."""
        known = self._codes.get(steering.code)
        if known is None:
            text = self.backend.load_group(code_name(steering.code))
            if text is None:
                if abs(time.time() - steering.sent_at) < CODE_WAIT_S:
                    raise BadMessage("code", f"the code of {steering.shown_name} isn't in the backend yet")
                raise _Missing(steering, f"the code of {steering.shown_name} is gone from the backend; send it again")
            self._codes[steering.code] = known = open_code(text, steering.code, self.signer)
            if len(self._codes) > _CODES_KEPT:
                self._codes.popitem(last=False)
        return known

    def _step(self, step: Step, delivery: Delivery, now: float) -> Verdict:
        """Return what to do with a call of a canvas."""
        drawn = self._drawn(step.graph)
        if drawn is None:
            text = "the canvas it is a call of is gone from the backend; send it again"
            lost = Steering(id=delivery.id, nonce="", task="", queue="", sent_at=now)
            return Ended(delivery, lost, states.FAILURE, *failure_of("BlobMissing", text))
        steering = drawn.steering(step)
        if steering.id != delivery.id:
            raise BadMessage("place", f"task {steering.id} under the id {delivery.id[:80]}")
        if steering.queue != delivery.queue:
            raise BadMessage("place", f"sent to queue {steering.queue}, found in {delivery.queue}")
        code = drawn.graph.codes.get(steering.code, b"")
        given = decode_given(delivery.body)
        args = given.body if given.how == "args" else drawn.graph.nodes[step.node].args
        own_text = encode_steering(steering)
        task = Accepted(delivery, steering, own_text, code, args, drawn=drawn, changes=step.changes)
        early = self._known(task) or self._unfit(task, now)
        if isinstance(early, Ended):
            return msgspec.structs.replace(early, drawn=drawn)
        if early is not None:
            return early
        if given.how == "failed":
            if given.state not in states.READY_STATES:
                raise BadMessage("fields", f"what came before has ended as {given.state[:20]!r}")
            ended = Ended(delivery, steering, given.state, given.error, given.body)
            return msgspec.structs.replace(ended, drawn=drawn, propagated=True)
        fed = self._fed(drawn, given, step.node)
        if isinstance(fed, _Lost):
            ended = Ended(delivery, steering, states.FAILURE, *failure_of("ChordError", fed.why))
            return msgspec.structs.replace(
                ended, drawn=drawn, told=self._scopes_told(drawn, given, step.node, fed.place)
            )
        if drawn.graph.nodes[step.node].immutable:
            fed = Fed("nothing")
        blobs = (*named(code), *named(args), *(ref for payload in fed.payloads for ref in _refs(fed, payload)))
        encoded = b"" if fed.how == "nothing" else encode_fed(fed)
        alone = delivery.worker_losses >= self.max_losses
        return msgspec.structs.replace(task, blobs=blobs, fed=encoded, alone=alone)

    def _scopes_told(self, drawn: Drawn, given: Given, node: int, place: int) -> frozenset[int]:
        """Return the scopes whose errbacks know why a body can't run: those of what failed on the way to a member."""
        if given.how != "gather" or not drawn.scopes([node]):
            return frozenset()
        path = drawn.path_to(given.join, place)
        failed: list[int] = []
        texts = self._records(drawn.graph.id_of(number) for number in path)
        for number, (_, text) in zip(path, texts, strict=True):
            if text is None or open_fact(text, self.signer, kind="record").facts.state == states.SUCCESS:
                break
            failed.append(number)
        return drawn.scopes(failed)

    def _records(self, ids: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield ids with the records of their tasks, which are read as they are needed."""
        for part in chunks(ids, _READ_AT_ONCE):
            yield from zip(part, self.backend.load(part), strict=True)

    def _fed(self, drawn: Drawn, given: Given, node: int) -> Fed | _Lost:
        """Return what came before a call, or why it can't run."""
        match given.how:
            case "value":
                return Fed("value", (given.body,))
            case "error":
                return _of_failure(drawn, given, node)
            case "record":
                return self._recorded("value", [given.id])
            case "gather":
                ids = [*drawn.members_of(given.join), *self.backend.added_to(drawn.graph.id, given.join)]
                return self._recorded("gather", ids)
        return Fed("nothing")

    def _recorded(self, how: str, ids: Iterable[str]) -> Fed | _Lost:
        """Return values that are in the records of tasks, or which of them has none, and why."""
        payloads: list[bytes] = []
        for id_, text in self._records(ids):
            if text is None:
                return _Lost(f"Dependency {id_} has no result any more", len(payloads))
            record = open_fact(text, self.signer, kind="record")
            if record.facts.id != id_:
                raise BadMessage("place", f"the record of task {record.facts.id} under the id {id_}")
            if record.facts.state != states.SUCCESS:
                return _Lost(f"Dependency {id_} raised {record.facts.error or record.facts.state}", len(payloads))
            payloads.append(record.body)
        return Fed(how, tuple(payloads))

    def _drawn(self, id_: str) -> Drawn | None:
        known = self._graphs.get(id_)
        if known is None:
            text = self.backend.load_graph(id_)
            if text is None:
                return None
            known = open_graph(text, id_, self.signer)
            if known.graph.onward:
                known = msgspec.structs.replace(known, onward=self._drawn(known.graph.onward))
            self._graphs[id_] = known
            if len(self._graphs) > _GROUPS_KEPT:
                self._graphs.popitem(last=False)
        return known

    def _group(self, call: Call) -> Shared:
        known = self._groups.get(call.group)
        if known is not None:
            return known
        text = self.backend.load_group(call.group)
        if text is None:
            why = f"what the calls of map {call.group} share is gone from the backend; send the map again"
            raise _Missing(_stand_in(call), why)
        steering, code = open_group(text, self.signer)
        if steering.id != call.group:
            raise BadMessage("place", f"map {steering.id} under the id {call.group}")
        self._groups[call.group] = known = Shared(steering, encode_steering(steering), code, named(code))
        if len(self._groups) > _GROUPS_KEPT:
            self._groups.popitem(last=False)
        return known

    def _known(self, task: Accepted) -> Verdict | None:
        """Return what follows from the record and mark that the backend already had."""
        delivery = task.delivery
        if delivery.record:
            try:
                record = open_fact(delivery.record, self.signer, kind="record")
            except BadMessage:
                record = None  # not believed, and overwritten when the task ends
            about_it = record is not None and record.facts.id == delivery.id
            if record is not None and about_it and _is_over(record.facts, task.steering):
                return Repeat(delivery)
        if delivery.mark:
            with contextlib.suppress(BadMessage):
                open_mark(delivery.mark, delivery.id, self.signer)
                return Ended(delivery, task.steering, states.REVOKED, "cancelled")
        return None

    def _unwanted(self, steering: Steering) -> str:
        """Return the serializer of a call that isn't accepted here; empty if all is. Code is a pickle."""
        accept = self.accept
        if accept is None:
            return ""
        if steering.serializer not in accept:
            return steering.serializer
        return DEFAULT if steering.code and DEFAULT not in accept else ""

    def _unfit(self, task: Accepted, now: float) -> Verdict | None:
        """Return why a task can't run here or any more."""
        s = steering = task.steering
        delivery = task.delivery
        if has_expired(now, s.expires, s.sent_at, s.eta, s.retries - s.base):
            return Ended(delivery, steering, states.REVOKED, "expired")
        acks = self.acks_of(steering) if delivery.worker_losses or delivery.child_deaths else DEFAULT_ACKS
        if not acks.late and (delivery.worker_losses or not acks.retry):
            text = f"Its {'worker' if delivery.worker_losses else 'child'} was lost; {EARLY}"
            return Ended(delivery, steering, states.FAILURE, *failure_of("WorkerLostError", text))
        if delivery.worker_losses > self.max_losses:
            text = f"Given up: it lost its worker {delivery.worker_losses} times, the last time while it ran alone."
            return Ended(delivery, steering, states.FAILURE, *failure_of("WorkerLostError", text), dead=True)
        if unwanted := self._unwanted(steering):
            text = refusal(unwanted, self.accept or (), f"worker {self.worker}")
            return Ended(delivery, steering, states.FAILURE, *failure_of("ContentDisallowed", text))
        here = python_version()
        if steering.python and steering.python != here:
            text = f"sent from Python {steering.python}, worker {self.worker} runs {here}; "
            text += f"start a worker with Python {steering.python}"
            return Ended(delivery, steering, states.FAILURE, *failure_of("PythonMismatch", text))
        return None


def _open(delivery: Delivery, signer: Signer) -> Message:
    """Return the message in a delivery; an owner's own calls are signed by nobody.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    if delivery.shared is not None and not delivery.header:
        call = Call(delivery.shared.steering.id, delivery.index)
        return Message(delivery.id, "", delivery.body, call)
    return Message.open(delivery.header, delivery.body, signer)


def _changed(member: Accepted, changes: Changes) -> Accepted:
    """Return a member of a map that says something else than its map."""
    steering = changes.on(member.steering)
    return msgspec.structs.replace(member, steering=steering, steering_text=encode_steering(steering), changes=changes)


def _of_failure(drawn: Drawn, given: Given, node: int) -> Fed:
    """Return what an errback is told: the failure, and of which call."""
    graph = drawn.graph
    number = graph.nodes[node].parent
    failed, first = graph.nodes[number], drawn.roots[number]
    kind = drawn.kinds[failed.kind]
    whole = (failed.immutable or failed.parent < 0) and not named(failed.args)
    args = failed.args if whole else b""
    root = graph.root or graph.id_of(first)
    parent = graph.id_of(failed.parent) if failed.parent >= 0 else graph.parent
    return Fed("error", (given.body,), given.id, kind.task, args, kind.serializer, root, parent)


def _refs(fed: Fed, payload: bytes) -> tuple[Ref, ...]:
    return () if fed.how == "error" else named(payload)


def _is_over(facts: Facts, steering: Steering) -> bool:
    """Tell whether a record says that this call of a task has ended, or was followed by another."""
    # The records of a map's members have none: their ids are used once.
    later = (facts.nonce not in ("", steering.nonce)) or facts.retries > steering.retries
    return later or facts.state in states.READY_STATES


class _Missing(Exception):
    """What a call needs is gone from the backend; `steering` is as much as is known of the call."""

    def __init__(self, steering: Steering, why: str) -> None:
        super().__init__(why)
        self.steering = steering


def _stand_in(call: Call) -> Steering:
    """Return what is known of a member of a map by itself."""
    id_ = member_id(call.group, call.index)
    return Steering(id=id_, nonce="", task="", queue="", sent_at=time.time(), group=call.group, index=call.index)


def failure_of(type_: str, message: str) -> tuple[str, bytes]:
    """Return the one line and the body of a failure that no task raised; `type_` is a class of `exceptions`."""
    line = f"{type_}: {message}"
    return line, encode_failure(Failure(type_, message, line))
