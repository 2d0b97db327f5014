"""A worker's claims on RabbitMQ: deliveries that are not acknowledged yet, each with an attempt on Redis.

The order in which a task ends: its record, in a script that sees that the attempt is still this one; what follows
it, confirmed; the acknowledgement. A crash between any two brings the message back, and the record says what is left.

With one queue and no priorities the server is asked once for as many messages as there is room for, and sends the next
at each acknowledgement. With more of them each claim first asks how many messages wait in each queue, takes what there
is room for in their order, and leaves the rest to others.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis
from amqp import spec

from nbqueue.amqp import ERRORS, Connection, Nodes, Publisher, Queues, ack_frames, version_of
from nbqueue.attempts import Attempts, Claimed, Elsewhere, Mine, Verdict
from nbqueue.config import mask
from nbqueue.consumer import Batch
from nbqueue.deliveries import KEPT, LOST, Delivery, Outgoing, Settlement, lane_of, stream_key
from nbqueue.exceptions import BackendUnavailable, SendFailed, SendUncertain
from nbqueue.rates import Gates

LOOK_S: Final = 0.5  # between two looks for delayed messages and for priorities that were not in use before
HOLD_S: Final = 10.0  # a delayed message that somebody sends on is sent by others after this
MAX_DUE: Final = 200
SURPLUS_S: Final = 0.25  # what came and finds no room for so long goes back
ARRIVAL_S: Final = 0.1  # how long a claim waits for messages that the server has counted
AGAIN_S: Final = 1.0  # what has the id of something that this worker holds, and differs, is looked at again after this
MARGIN_S: Final = 0.2  # beyond the lapse of a lease
MAX_PREFETCH: Final = 2_000
# How long a consumer may hold a message, milliseconds: 24 days, as some servers take no more than 2^31. Those before
# `_PATIENT` pass over it, and go by their `consumer_timeout`.
_CONSUMER: Final = {"x-consumer-timeout": 24 * 86_400_000}
_PATIENT: Final = (3, 12)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Got:
    """A message that was delivered. `channel` is the one to answer on, and None once that is closed."""

    delivery: Delivery
    level: int
    tag: int
    channel: Any
    since: float
    counters: tuple[int, int, int]  # that the message itself carries


@dataclass(slots=True)
class _Subscription:
    tag: str
    prefetch: int


class AmqpConsumer:
    """Claims for one worker.

    Args:
        url: of RabbitMQ.
        attempts: what Redis knows.
        publisher: sends what follows a task.
        name: under which it claims.
        lease_s: how long its claims hold without renewal.
        client_name: what the server shows of the connection.
        steady: with one queue and no priorities let the server send what there is room for, unasked.
    """

    def __init__(
        self,
        url: str,
        attempts: Attempts,
        publisher: Publisher,
        name: str,
        *,
        lease_s: float,
        client_name: str,
        steady: bool = True,
    ) -> None:
        self.url = url
        self._nodes = Nodes(url)
        self.attempts = attempts
        self.publisher = publisher
        self.name = name
        self.lease_s = lease_s
        self.waiting = False
        self.settling = None
        self._client_name = client_name
        self._steady = steady
        self._connection: Connection | None = None
        self._channel: Any = None
        self._queues: Queues | None = None
        self._lanes: dict[str, tuple[str, int]] = {}  # queues on the server, in the order of claims: queue, priority
        self._known: list[tuple[str, int]] = []  # all of them so far; a subscription's tag begins with the place here
        self._look_at = 0.0
        self._next_due: float | None = None
        self._listening = False
        self._followed: tuple[str, ...] = ()
        self._subscriptions: dict[str, _Subscription] = {}
        self._arrived: list[_Got] = []
        self._taken: dict[str, _Got] = {}
        self._number = 0
        self._patient_until = 0.0
        self._broken = ""
        self._said = False
        self._unsure: set[str] = set()  # entries that may be claimed: the answer was lost
        self._let_go: list[tuple[str, str, str, str]] = []  # claims to be ended, as `Attempts.give_back` takes them

    # ---- connection

    @property
    def arrived(self) -> bool:
        """Tell whether messages are here that `claim` has yet to return."""
        return bool(self._arrived)

    def open(self, queues: Sequence[str]) -> None:
        """Connect unless the connection stands, and make queues that are missing."""
        self._release()
        # Others may have been away for as long as this one: they get the time to renew what they hold.
        self._patient_until = time.monotonic() + self.lease_s
        with self._translated():
            if self._connection is None:
                # Between two tries the lease of what runs is renewed, so each must end long before that.
                answer_s = max(2.0, self.lease_s / 5)
                self._connection = self._nodes.connect(
                    name=self._client_name,
                    heartbeat_s=max(2, math.ceil(self.lease_s)),
                    answer_s=answer_s,
                    longest_s=answer_s if self._taken else math.inf,
                )
                self._queues = Queues(self._connection)
                self._say_how_patient(version_of(self._connection))
                self._channel = self._connection.channel()
                self._channel.auto_decode = False
        self._follow(queues, at_once=True)

    def follow(self, queues: Sequence[str]) -> None:
        """Take messages of these queues only from now on, and make those that are missing."""
        self._follow(queues, at_once=True)
        if self.waiting:
            with self._translated():
                self._subscribe(dict.fromkeys(self._lanes, 1))

    def listen(self) -> None:
        """Be ready to wait for news."""
        self._listening = True

    def fileno(self) -> int:
        """Return the socket of the connection.

        Raises:
            ValueError: there is none, as selectors expect.
        """
        # py-amqp would connect anew to tell the socket of a connection that has ended.
        if self._connection is None or not self._connection.connected:
            raise ValueError("not connected")
        return int(self._connection.sock.fileno())

    def hang_up(self) -> None:
        """Give up the connection if it is broken; while only Redis is away, RabbitMQ need not deliver again."""
        self._listening = False
        if self._broken:
            self._disconnect()

    def leave(self, worker: str, queues: Sequence[str]) -> None:
        """Forget this consumer's lease and its worker's advert."""
        self.attempts.leave(self.name, worker)

    def close(self) -> None:
        """Give up connections; what was not acknowledged goes back to its queue."""
        self._disconnect()
        self.publisher.close()

    def tend(self) -> None:
        """Keep the connection alive, and give back what finds no room."""
        if self._connection is None or self._broken:
            return
        now = time.monotonic()
        with self._translated():
            self._connection.heartbeat_tick()
            self._pump()
            if self._arrived and now - self._arrived[0].since > SURPLUS_S:
                self._return_surplus()
        if self._listening:
            if self._let_go:
                self._release()
            self._follow(self._followed)
            if self.waiting:
                with self._translated():
                    self._subscribe(dict.fromkeys(self._lanes, 1))

    # ---- claiming

    def claim(self, limit: int, queues: Sequence[str]) -> Batch:
        """Claim up to `limit` messages that wait now."""
        self._follow(queues, at_once=not self._steady)
        with self._translated():
            self._pump()
            if self._steady and len(self._lanes) == 1:
                self._adjust(limit)
            elif limit > 0:
                self._fetch(limit)
        order = list(self._lanes)
        batch = sorted(self._arrived, key=lambda got: order.index(_name(got)) if _name(got) in order else -1)[:limit]
        return Batch(self._admit(batch) if batch else [], self._next_due, len(batch) < limit)

    def wait(self, limit: int, queues: Sequence[str], longest_ms: int) -> bool:
        """Let the server send a message of each queue as soon as there is one."""
        self._follow(queues)
        if self._steady and len(self._lanes) == 1:
            return True  # it does so already
        with self._translated():
            self._subscribe(dict.fromkeys(self._lanes, 1))
        self.waiting = True
        return True

    def news(self, room: int, queues: Sequence[str]) -> Batch:
        """Read what has come; what are messages is for `claim` to return."""
        with self._translated():
            self._pump()
            if self.waiting and self._arrived:
                self._subscribe({})
                self.waiting = False
        return Batch([], self._next_due, drained=False)

    def stop_waiting(self) -> None:
        """Claim nothing any more, and give back what has come unasked."""
        self.waiting = False
        if self._connection is None:
            return
        with self._translated():
            self._subscribe({})
            self._pump(ARRIVAL_S if self._arrived else 0.0)
            self._return_arrived()

    # ---- how claims end

    def begin_settle(self, items: Sequence[Settlement]) -> bool:
        """Begin nothing: there are three steps to it."""
        del items
        return False

    def end_settle(self) -> list[int]:
        """Return nothing, as nothing can have begun."""
        return []

    def settle(self, items: Sequence[Settlement]) -> list[int]:
        """Record, send the outbox, acknowledge; say of each `LOST`, `SETTLED`, `LAST` or `KEPT`."""
        follows = self.attempts.settle(items)
        unsent = self._send_outbox(
            {item.delivery.id: outbox for item, (_, outbox) in zip(items, follows, strict=True) if outbox}
        )
        said = [
            KEPT if word and item.delivery.id in unsent else word
            for item, (word, _) in zip(items, follows, strict=True)
        ]
        done = []
        for item, word in zip(items, said, strict=True):
            if item.ends and (got := self._taken.pop(item.delivery.entry, None)) is not None:
                # One whose claim is gone comes back, and what is known of it then decides.
                if word in (LOST, KEPT):
                    self._answer(got, back=True)
                else:
                    done.append(got)
        self._acknowledge(done)
        if any(message.due_ms for item in items for message in _outbox_of(item)):
            self._look_at = 0.0  # a retry may be due at once
        return said

    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Return claimed messages to the head of their queues."""
        held = self.attempts.give_back([(d.queue, d.id, d.entry, charge) for d in deliveries])
        for delivery in deliveries:
            if (got := self._taken.pop(delivery.entry, None)) is not None:
                self._answer(got, back=True)
        return sum(held)

    def pass_gates(self, items: Sequence[tuple[Delivery, Gates]]) -> list[bool]:
        """Let claimed tasks through, or keep them on Redis until they may run."""
        known = [(self._taken[delivery.entry], gates) for delivery, gates in items if delivery.entry in self._taken]
        said = self.attempts.pass_gates([(got.delivery, gates, got.level, got.counters) for got, gates in known])
        wait = [got for (got, _), passed in zip(known, said, strict=True) if not passed]
        for got in wait:
            self._taken.pop(got.delivery.entry, None)
        self._acknowledge(wait)
        if wait:
            self._look_at = 0.0
        return [delivery.entry in self._taken for delivery, _ in items]

    def unlock(self, locks: Sequence[str]) -> None:
        """Let those go on that wait for these locks, whose holders have ended."""
        self.attempts.streams.unlock(locks, elsewhere=True)
        self._look_at = 0.0

    def put_off(self, deliveries: Sequence[Delivery], delay_ms: int) -> None:
        """Keep messages that this worker can't judge on Redis for a while, so that others see them."""
        self._put_off([(self._taken[d.entry], delay_ms / 1000) for d in deliveries if d.entry in self._taken])
        self.attempts.streams.count("put off", len(deliveries))

    def abandon(self, deliveries: Sequence[Delivery]) -> None:
        """Give up claims while Redis can't be told: messages go back now, and the claims end once it can."""
        for delivery in deliveries:
            if (got := self._taken.get(delivery.entry)) is not None:
                self._abandon(got)

    def quarantine(self, deliveries: Sequence[tuple[Delivery, str]]) -> None:
        """Take messages that nobody should run off their queues: counted by reason, their first bytes kept."""
        self.attempts.streams.keep_refused(deliveries)
        self.settle([Settlement(delivery, b"") for delivery, _ in deliveries])

    def count(self, what: str, number: int = 1) -> None:
        """Count something that was refused or dropped."""
        self.attempts.streams.count(what, number)

    # ---- leases

    def renew(
        self, consumer: str, deliveries: Sequence[Delivery], worker: str = "", advert: str = ""
    ) -> tuple[list[bool], dict[str, bytes]]:
        """Renew the lease of all claims; a message whose claim is gone goes back."""
        held, marks = self.attempts.renew(consumer, self.lease_s, deliveries, worker, advert)
        for delivery, ours in zip(deliveries, held, strict=True):
            if not ours and (got := self._taken.pop(delivery.entry, None)) is not None:
                self._answer(got, back=True)
        return held, marks

    def sweeps(self, queues: Sequence[str], consumer: str, hold_ms: int) -> list[str]:
        """Return nothing: there is nothing to look through."""
        return []

    def lapsed(self, queues: Iterable[str], idle_ms: int) -> list[tuple[str, str, str]]:
        """Return nothing: RabbitMQ delivers again what a worker that went away has held."""
        return []

    def reap(self, items: Sequence[tuple[str, str, str]], idle_ms: int) -> int:
        """Return nothing, as there is never anything to reap."""
        return 0

    def _say_how_patient(self, version: tuple[int, int]) -> None:
        """Say once what a task means to this server that takes longer than it waits for an acknowledgement."""
        if version < _PATIENT and not self._said:
            logger.info(
                "RabbitMQ %d.%d delivers again what takes longer than its consumer_timeout (30 minutes, unless set "
                "otherwise); such copies are set aside while their tasks run",
                *version,
            )
        self._said = True

    # ---- what is asked of the server

    def _follow(self, queues: Sequence[str], *, at_once: bool = False) -> None:
        """See what is due and which priorities are in use, twice a second; make queues that are missing."""
        now = time.monotonic()
        followed = tuple(queues)
        if not at_once and followed == self._followed and now < self._look_at:
            return
        self._send_due(queues)
        levels = self.attempts.levels(queues)
        lanes = {stream_key(queue, lane_of(level)): (queue, level) for queue in queues for level in levels[queue]}
        with self._translated():
            assert self._queues is not None, "open comes first"
            for queue, level in lanes.values():
                self._queues.declare(queue, level)
            if lanes != self._lanes:
                self._subscribe({})  # how to ask may change too
        self._lanes, self._followed = lanes, followed
        next_s = LOOK_S if self._next_due is None else min(LOOK_S, max(0.01, self._next_due))
        self._look_at = now + next_s

    def _send_due(self, queues: Sequence[str]) -> None:
        """Send on the delayed messages that are due."""
        due = self.attempts.take_due(queues, HOLD_S, MAX_DUE)
        self._next_due = due.next_s
        if due.messages:
            with self._translated():
                self.publisher.send(due.messages)
            self.attempts.sent_due(due)

    def _adjust(self, limit: int) -> None:
        """Let the server send as much as there is room for, roughly where tasks are quick and many."""
        room = max(1, min(MAX_PREFETCH, len(self._taken) + limit))
        (name,) = self._lanes
        now = self._subscriptions.get(name)
        if now is None or now.prefetch < room or now.prefetch > 2 * room:
            self._subscribe({name: room})

    def _fetch(self, limit: int) -> None:
        """Take messages in the order of their queues, as many as there are, until `limit` of them are here."""
        here = Counter(_name(got) for got in self._arrived)
        if here[next(iter(self._lanes))] >= limit:
            return  # nothing comes before these
        if self._subscriptions:
            self._subscribe({})
        self._channel.counts.clear()
        for name in self._lanes:
            self._channel.send_method(spec.Queue.Declare, "BsbbbbbF", (0, name, True, False, False, False, False, {}))
        self._wait_for(lambda: len(self._channel.counts) >= len(self._lanes), 10 * ARRIVAL_S)
        here = Counter(_name(got) for got in self._arrived)  # more, if some were on their way
        wanted = {}
        for name, number in zip(self._lanes, self._channel.counts, strict=False):
            if (missing := min(number, limit - here[name])) > 0:
                wanted[name] = missing
            limit -= here[name] + max(0, missing)
            if limit <= 0:
                break
        if wanted:
            goal = len(self._arrived) + sum(wanted.values())
            self._subscribe(wanted)
            self._wait_for(lambda: len(self._arrived) >= goal, ARRIVAL_S)
            self._subscribe({})

    def _wait_for(self, done: Any, longest_s: float) -> None:
        deadline = time.monotonic() + longest_s
        while not done() and (left := deadline - time.monotonic()) > 0:
            self._pump(left)

    def _subscribe(self, wanted: dict[str, int]) -> None:
        """Consume from these queues, and no others, each up to a number of unacknowledged messages."""
        for name, now in list(self._subscriptions.items()):
            if wanted.get(name) != now.prefetch:
                self._channel.send_method(spec.Basic.Cancel, "sb", (now.tag, True))
                del self._subscriptions[name]
        for name, prefetch in wanted.items():
            if name not in self._subscriptions:
                self._number += 1
                if (lane := self._lanes[name]) not in self._known:
                    self._known.append(lane)
                tag = f"{self._known.index(lane)}.{self._number}"
                self._channel.send_method(spec.Basic.Qos, "lBb", (0, prefetch, False))
                self._channel.send_method(
                    spec.Basic.Consume, "BssbbbbF", (0, name, tag, False, False, False, True, _CONSUMER)
                )
                self._subscriptions[name] = _Subscription(tag, prefetch)

    def _return_surplus(self) -> None:
        """Give back what came when there was more room."""
        held = max(1, len(self._taken))
        self._subscribe({name: min(now.prefetch, held) for name, now in self._subscriptions.items()})
        self._return_arrived()

    def _return_arrived(self) -> None:
        """Give back what has come and was not claimed, as far as is known."""
        for got in self._arrived:
            if got.delivery.entry in self._unsure:
                self._abandon(got)
            else:
                self._answer(got, back=True)
        self._arrived.clear()

    def _abandon(self, got: _Got) -> None:
        """Give back a message that is claimed, or may be: while this consumer lives others would wait for its end."""
        self._taken.pop(got.delivery.entry, None)
        self._unsure.discard(got.delivery.entry)
        self._let_go.append((got.delivery.queue, got.delivery.id, got.delivery.entry, "none"))
        self._answer(got, back=True)

    def _release(self) -> None:
        """End claims on what was given back while Redis could not be told; fails while that can't be reached."""
        self.attempts.client.ping()
        if self._let_go:
            self.attempts.give_back(self._let_go)
            self._let_go = []

    def _pump(self, wait_s: float = 0.0) -> None:
        assert self._connection is not None
        self._connection.pump(wait_s)
        now = time.monotonic()
        for tag, consumer_tag, message in self._channel.arrived:
            queue, level = self._known[int(consumer_tag.partition(".")[0])]
            self._number += 1
            delivery = _delivery(queue, lane_of(level), f"{self.name}#{self._number}", message)
            counters = (delivery.attempt, delivery.child_deaths, delivery.worker_losses)
            self._arrived.append(_Got(delivery, level, tag, self._channel, now, counters))
        self._channel.arrived.clear()

    def _admit(self, batch: list[_Got]) -> list[Delivery]:
        """Claim what has come; what somebody has already waits for its end."""
        patient = time.monotonic() < self._patient_until
        self._unsure.update(got.delivery.entry for got in batch)
        verdicts = self.attempts.claim(self.name, self.lease_s, [got.delivery for got in batch], patient=patient)
        # Not before: were the answer lost, the same would be asked again.
        answered = {got.delivery.entry for got in batch}
        self._arrived = [got for got in self._arrived if got.delivery.entry not in answered]
        self._unsure.difference_update(answered)
        open_still = {got.delivery.entry: got for got in batch}
        try:
            claimed, later = self._decide(batch, verdicts, open_still)
            if later:
                self._put_off(later)
        except (BackendUnavailable, redis.RedisError):
            for got in open_still.values():
                self._abandon(got)
            raise
        return claimed

    def _decide(
        self, batch: Sequence[_Got], verdicts: Sequence[Verdict], open_still: dict[str, _Got]
    ) -> tuple[list[Delivery], list[tuple[_Got, float]]]:
        """Return what is claimed, and what is to be put off, for how long; take out of `open_still` what is neither."""
        claimed: list[Delivery] = []
        later: list[tuple[_Got, float]] = []
        for got, verdict in zip(batch, verdicts, strict=True):
            match verdict:
                case Claimed():
                    self._take(got, verdict)
                    claimed.append(got.delivery)
                case Mine(token):
                    if wait := self._again(got, token):
                        later.append((got, wait))
                    else:
                        del open_still[got.delivery.entry]
                case Elsewhere(seconds):
                    later.append((got, seconds + MARGIN_S))
        return claimed, later

    def _take(self, got: _Got, known: Claimed) -> None:
        if known.outbox:
            # Its task has ended, but what follows was not sent: nobody knows whether the server has it.
            with self._translated():
                self.publisher.send(known.outbox)
            self.attempts.sent([got.delivery.id])
        delivery = got.delivery
        delivery.attempt += known.attempt
        delivery.child_deaths += known.child_deaths
        delivery.worker_losses += known.worker_losses
        delivery.record, delivery.mark = known.record, known.mark
        self._taken[delivery.entry] = got

    def _again(self, got: _Got, token: str) -> float:
        """Take a message whose id is held here: in place of the one whose channel was closed, or as a copy.

        A true copy is dropped. One that differs may be the genuine one, as nothing is verified here, so it waits.

        Returns:
            For how many seconds it is to be put off; 0.0 if that is not to be.
        """
        held = self._taken.get(token)
        if held is None:
            # A claim whose answer was lost. Now it can be claimed anew.
            self.attempts.give_back([(got.delivery.queue, got.delivery.id, token, "none")])
            self._arrived.append(got)
        elif held.channel is None:
            held.channel, held.tag = got.channel, got.tag
        elif (held.delivery.header, held.delivery.body) == (got.delivery.header, got.delivery.body):
            self.count("repeat")
            self._answer(got)
        else:
            return AGAIN_S
        return 0.0

    # ---- what is told to the server

    def _put_off(self, items: Sequence[tuple[_Got, float]]) -> None:
        """Keep messages on Redis for some seconds, in place of those that were delivered."""
        self.attempts.put_off([(got.delivery, delay_s, got.level, got.counters) for got, delay_s in items])
        for got, _ in items:
            self._taken.pop(got.delivery.entry, None)
        self._acknowledge([got for got, _ in items])

    def _send_outbox(self, outbox: Mapping[str, Sequence[Outgoing]]) -> set[str]:
        """Send what follows tasks, by their ids; return the ids of those that wait, as nothing could be sent."""
        try:
            self.publisher.send([message for messages in outbox.values() for message in messages])
        except (SendFailed, SendUncertain) as exc:
            logger.warning("what follows %d tasks waits: %s", len(outbox), exc)
            return set(outbox)
        self.attempts.sent(list(outbox))
        return set()

    def _answer(self, got: _Got, *, back: bool = False) -> None:
        """Acknowledge a message, or return it. If the channel has gone the server returns it by itself."""
        if got.channel is None or self._broken:
            return
        try:
            if back:
                got.channel.send_method(spec.Basic.Nack, "Lbb", (got.tag, False, True))
            else:
                got.channel.send_method(spec.Basic.Ack, "Lb", (got.tag, False))
        except ERRORS as exc:
            self._broken = str(exc) or type(exc).__name__

    def _acknowledge(self, messages: Sequence[_Got]) -> None:
        """Acknowledge messages, all of them at once."""
        tags = [got.tag for got in messages if got.channel is self._channel]
        if not tags or self._connection is None or self._broken:
            return
        if not self._channel.is_open:
            self._broken = "the channel was closed"
            return
        try:
            self._connection.write(ack_frames(tags, self._channel.channel_id))
        except ERRORS as exc:
            self._broken = str(exc) or type(exc).__name__

    def _disconnect(self) -> None:
        connection, self._connection, self._channel, self._queues = self._connection, None, None, None
        self._subscriptions.clear()
        self._return_arrived()
        self.waiting = False
        for got in self._taken.values():
            got.channel = None
        if connection is not None:
            with contextlib.suppress(*ERRORS):
                if self._broken:
                    self._nodes.failed()
                    connection.collect()
                else:
                    connection.close()
        self._broken = ""

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            if self._broken:
                raise BackendUnavailable(f"no answer from {mask(self.url)}: {self._broken}")
            yield
        except ERRORS as exc:
            self._broken = str(exc) or type(exc).__name__
            raise BackendUnavailable(f"no answer from {mask(self.url)}: {self._broken}") from exc
        except (SendFailed, SendUncertain) as exc:
            raise BackendUnavailable(str(exc)) from exc


def _outbox_of(item: Settlement) -> tuple[Outgoing, ...]:
    return (*item.outbox, *item.arrival.outbox) if item.arrival is not None else item.outbox


def _name(got: _Got) -> str:
    return stream_key(got.delivery.queue, got.delivery.lane)


def _delivery(queue: str, lane: str, token: str, message: Any) -> Delivery:
    """Return what was delivered; whoever may write to the queue may have written anything."""
    headers = message.properties.get("application_headers")
    headers = headers if isinstance(headers, dict) else {}
    id_, header = headers.get("id"), headers.get("nbq")
    body = message.body
    return Delivery(
        queue,
        lane,
        token,
        id_ if isinstance(id_, str) and _is_text(id_) else f"?{token}",
        str(header).encode("utf-8", "replace") if header else b"",
        body if isinstance(body, bytes) else bytes(str(body or ""), "utf-8", "replace"),
        _number(headers.get("a"), 1),
        _number(headers.get("c"), 0),
        _number(headers.get("w"), 0),
    )


def _is_text(value: str) -> bool:
    """Tell whether there is a text, and it can be written as UTF-8."""
    return bool(value) and not any("\ud800" <= c <= "\udfff" for c in value)


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1_000_000 else otherwise
