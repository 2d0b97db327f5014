"""`Reporter`: what a worker writes about a task, signed: that it started, what it said, how it ended or goes on."""

from __future__ import annotations

import binascii
import time
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from nbqueue import grafts, states
from nbqueue.backends.base import Told
from nbqueue.deliveries import Delivery, Outgoing, Settlement
from nbqueue.dispatch import Held
from nbqueue.exceptions import BadMessage
from nbqueue.formats import MARK, as_json
from nbqueue.grafts import Grafted
from nbqueue.graph import Drawn, Given, encode_given
from nbqueue.messages import (
    REPLACED,
    ChildEvent,
    Facts,
    Message,
    Outcome,
    Steering,
    Step,
    decode_again,
    decode_stated,
    pack_body,
    pending_facts,
    sign_event,
    sign_record,
)
from nbqueue.payloads import Ref, named
from nbqueue.signing import Signer

if TYPE_CHECKING:
    from nbqueue.announcer import Announcer

KEPT_ARGS_BYTES: Final = 2_048  # of a call whose record has its arguments; a signed text has no room for more
EARLY_OUTPUTS: Final = 1_000  # pieces of a task's output that are kept in any case
_BY_FORCE: Final = "signal 9 (SIGKILL)"


class Reporter:
    """Writes for one worker.

    Args:
        worker: its name.
        signer: of its key.
    """

    def __init__(self, worker: str, signer: Signer) -> None:
        self.worker = worker
        self.signer = signer
        self.announcer: Announcer | None = None  # tells those who want to know what is sent, if anybody does

    def started(self, held: Held, seconds: float, pid: int) -> Settlement:
        """Return that a task has run for so many seconds by now, in this process."""
        now = time.time()
        record = self._record(held, states.STARTED, now, started_at=now - seconds, pid=pid)
        return Settlement(held.delivery, record, held.steering.session, state=states.STARTED, ends=False)

    def stated(self, held: Held, event: ChildEvent) -> Settlement:
        """Return that a task stands as it has said itself.

        Raises:
            BadMessage: it has not said it properly.
        """
        said = decode_stated(event.data)
        if said.state in states.READY_STATES:
            raise BadMessage("fields", f"a task that runs says that it has ended as {said.state[:20]}")
        held.marked = True
        facts = self._facts(held, said.state[:64], event.at)
        record = sign_record(facts, said.body, self.signer, shown=said.shown)
        return Settlement(held.delivery, record, held.steering.session, state=states.STARTED, ends=False)

    def said(self, held: Held, event: ChildEvent) -> Told:
        """Return what a task has put out, or how far it has come."""
        s = held.steering
        facts = Facts(
            kind=event.kind,
            id=s.id,
            at=event.at,
            attempt=held.delivery.attempt,
            worker=self.worker,
            child=held.child,
            session=s.session,
            group=s.group,
            index=s.index,
        )
        keep = event.kind == "output"
        held.said += keep
        text = sign_event(facts, event.data, self.signer)
        return Told(s.session, s.id, text, keep=keep, late=held.said > EARLY_OUTPUTS)

    def ended(
        self, held: Held, state: str, body: bytes, error: str, outcome: Outcome | None = None, *, dead: bool = False
    ) -> Settlement:
        """Return the end of a task; `dead` keeps its message."""
        s = held.steering
        if s.group and state == states.SUCCESS and outcome is not None:
            record = self._member_succeeded(held, b"" if s.ignore_result else body, outcome)
            return Settlement(held.delivery, record, s.session, s.group, state)
        record = self._record(
            held,
            state,
            outcome.ended_at if outcome else time.time(),
            b"" if s.ignore_result and state == states.SUCCESS else body,
            started_at=outcome.started_at if outcome else 0.0,
            error=error[:500],
            summary=outcome.summary[:200] if outcome else "",
            call=_call_of(held),
            children=outcome.children if outcome else (),
            shown=as_json(body) if state == states.SUCCESS and body[:1] == MARK and not s.ignore_result else b"",
        )
        return Settlement(held.delivery, record, s.session, s.group, state, dead=dead)

    def never_began(
        self, delivery: Delivery, steering: Steering, state: str, body: bytes, error: str, *, dead: bool
    ) -> Settlement:
        """Return the end of a task that no child has seen."""
        facts = msgspec.structs.replace(
            pending_facts(steering, state, time.time()),
            attempt=delivery.attempt,
            worker=self.worker,
            error=error[:500],
        )
        record = sign_record(facts, body, self.signer)
        return Settlement(delivery, record, steering.session, steering.group, state, dead=dead)

    def followed(
        self,
        settlement: Settlement,
        drawn: Drawn | None,
        node: int,
        body: bytes,
        error: str,
        *,
        propagated: bool = False,
        told: Container[int] = (),
    ) -> Settlement:
        """Return the end of a task with what follows it: nothing, unless it is a call of a canvas."""
        if drawn is None:
            return settlement
        outbox, arrival = drawn.after(
            node, settlement.state, body, error[:500], self.signer, time.time(), propagated=propagated, told=told
        )
        settlement = msgspec.structs.replace(settlement, outbox=outbox, arrival=arrival)
        return settlement if self.announcer is None else self.announcer.begin(settlement, drawn)

    def retried(self, held: Held, outcome: Outcome, deaths: int = 0) -> Settlement:
        """Return the step in which a task's message is acknowledged and put off again; `deaths` of children are new."""
        again = decode_again(outcome.body)
        steering, delivery, job = held.steering, held.delivery, held.job
        args = job.task.args if again.args is None else again.args
        retries = steering.retries + 1
        next_one = msgspec.structs.replace(steering, retries=retries)
        changes = held.changes
        if again.changes is not None:
            next_one, changes = again.changes.on(next_one), again.changes.after(changes)
        if held.drawn is not None:
            body = delivery.body if again.args is None else encode_given(Given("args", body=again.args))
            kind = held.drawn.kinds[held.drawn.graph.nodes[steering.node].kind]
            headers = None if next_one.headers == kind.headers else next_one.headers
            if changes is not None and changes.headers is not None:
                changes = msgspec.structs.replace(changes, headers=None)  # a step has room for them
            step = Step(steering.graph, steering.node, retries, steering.sent_at, steering.eta, headers, changes)
            message = Message.sign_step(step, steering.id, body, self.signer)
        elif steering.group:
            message = Message.sign_call(steering.group, steering.index, args, self.signer, retries, changes=changes)
        else:
            message = Message.sign(next_one, pack_body(job.code, args), self.signer)
        record = self._record(
            held,
            states.RETRY,
            outcome.ended_at,
            again.failure,
            started_at=outcome.started_at,
            error=outcome.error[:500],
            retries=retries,
            eta=again.due,
            max_retries=again.max_retries,
            queue=next_one.queue,
            name=next_one.name,
        )
        follow = Outgoing(
            next_one.queue,
            message.id,
            message.header,
            message.body,
            int(again.due * 1000),
            priority=next_one.priority,
            attempt=delivery.attempt + 1,
            child_deaths=delivery.child_deaths + deaths,
            worker_losses=delivery.worker_losses,
        )
        settlement = Settlement(delivery, record, steering.session, steering.group, states.RETRY, outbox=(follow,))
        if self.announcer is None:
            return settlement
        eta = again.due or steering.eta
        return self.announcer.begin(settlement, msgspec.structs.replace(next_one, eta=eta))

    def replaced(self, held: Held, outcome: Outcome, grafted: Grafted) -> Settlement:
        """Return the step in which a task's message is acknowledged and a canvas takes its place."""
        record = self._record(held, states.PENDING, outcome.ended_at, retries=held.steering.retries + 1)
        # As a retry it has not ended, and its mark, if it has one, stays.
        settlement = Settlement(
            held.delivery, record, held.steering.session, held.steering.group, states.RETRY, outbox=grafted.outbox
        )
        return settlement if self.announcer is None else self.announcer.begin(settlement, grafted.drawn)

    def added(self, settlement: Settlement, canvases: Sequence[Grafted]) -> Settlement:
        """Return the end of a task with the canvases that it adds to its header."""
        outbox, published = settlement.outbox, settlement.published
        for grafted in canvases:
            messages = grafted.outbox
            if self.announcer is not None:
                messages, told = self.announcer.begin_each(messages, grafted.drawn)
                published += told
            outbox += messages
        arrival = settlement.arrival
        if arrival is not None:
            arrival = msgspec.structs.replace(arrival, more=tuple(grafted.tail for grafted in canvases))
        return msgspec.structs.replace(settlement, outbox=outbox, arrival=arrival, published=published)

    def _member_succeeded(self, held: Held, body: bytes, outcome: Outcome) -> bytes:
        """Return the record of a map's member, one of very many: what its map has in common stands there."""
        s = held.steering
        facts = Facts(
            kind="record",
            id=s.id,
            at=outcome.ended_at,
            state=states.SUCCESS,
            attempt=held.delivery.attempt,
            worker=self.worker,
            child=held.child,
            started_at=outcome.started_at,
            retries=s.retries,
            group=s.group,
            index=s.index,
            summary=outcome.summary[:200],
            call=_call_of(held),
        )
        return sign_record(facts, body, self.signer, children=outcome.children)

    def _record(
        self,
        held: Held,
        state: str,
        at: float,
        body: bytes = b"",
        *,
        children: Sequence[tuple[str, int]] = (),
        shown: bytes = b"",
        **more: object,
    ) -> bytes:
        return sign_record(self._facts(held, state, at, **more), body, self.signer, children=children, shown=shown)

    def _facts(self, held: Held, state: str, at: float, **more: object) -> Facts:
        return msgspec.structs.replace(
            pending_facts(held.steering, state, at),
            attempt=held.delivery.attempt,
            worker=self.worker,
            child=held.child,
            **more,
        )


def _call_of(held: Held) -> str:
    """Return what a call was called with, as its record has it; nothing, unless it is to be kept, whole and short."""
    task = held.job.task
    if not held.steering.extended or task.fed or len(task.args) > KEPT_ARGS_BYTES or named(task.args):
        return ""
    return f"{held.steering.serializer}:{binascii.b2a_base64(task.args, newline=False).decode()}"


def blobs_of(state: str, body: bytes, also: tuple[bytes, ...] = ()) -> tuple[Ref, ...]:
    """Return the large data that an outcome names: of a value, of the arguments of a retry, of canvases that follow."""
    if also:
        return (*blobs_of(state, body), *(ref for graft in also for ref in blobs_of(REPLACED, graft)))
    if state not in (states.SUCCESS, states.RETRY, REPLACED):
        return ()
    try:
        if state == REPLACED:
            return grafts.blobs_of(body)
        return named(body if state == states.SUCCESS else decode_again(body).args or b"")
    except BadMessage:
        return ()  # nobody will read it, but that is no reason to stop


def cause_of_death(cause: str, *, out_of_memory: bool) -> str:
    """Return how a child ended, as people read it.

    Args:
        cause: as its pool says.
        out_of_memory: whether the kernel has just ended a process for want of memory.
    """
    if cause != _BY_FORCE:
        return cause
    return f"out of memory, {cause}" if out_of_memory else "signal 9 (SIGKILL, out of memory?)"
