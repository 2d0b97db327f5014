"""What is known on Redis of tasks whose messages are on RabbitMQ: claims, leases, counters, and what is delayed.

A claim is a token, `consumer#number`, beside the id among the claims of its queue. It holds while its consumer's lease
does, whatever becomes of the channel that brought the message: so a copy that RabbitMQ delivers again is known as such,
and only who still has the claim can write how its task ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import redis

from nbqueue import states
from nbqueue.deliveries import (
    LAST,
    LIVE_S,
    RECORDS,
    SETTLED,
    WORKERS,
    Delivery,
    Outgoing,
    Settlement,
    queue_key,
)
from nbqueue.rates import Gates
from nbqueue.streams import Streams, arrived, run_script

LEASES: Final = "nbq:leases"
OUTBOX: Final = "nbq:outbox:"
MAX_LEVEL: Final = 9
_NONCE = re.compile(rb'"nonce":"([^"]*)"')
_pack = msgspec.msgpack.Encoder().encode
_Kept = tuple[str, str, str, bytes, int, int, int, int, int]  # an Outgoing between record and publish


@dataclass(frozen=True, slots=True)
class Claimed:
    """The message may be run. Counters are added to its own. `outbox` was to be sent before it is acknowledged."""

    attempt: int
    child_deaths: int
    worker_losses: int
    record: bytes
    mark: bytes
    outbox: tuple[Outgoing, ...]


@dataclass(frozen=True, slots=True)
class Mine:
    """The asker has the task already, under another token."""

    token: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another consumer has the task, and will for so long at least."""

    seconds: float


Verdict = Claimed | Mine | Elsewhere


@dataclass(frozen=True, slots=True)
class Due:
    """Delayed messages to be sent on, in time before others do. `next_s` is when the next is due, seconds from now."""

    messages: tuple[Outgoing, ...]
    members: tuple[tuple[str, str], ...]
    until: int
    next_s: float | None


class Attempts:
    """The attempts at tasks of one Redis server.

    Args:
        streams: of that server; has the client, and how long things are kept.
    """

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.client: redis.Redis = streams.client

    def announce(self, messages: Sequence[Outgoing]) -> list[int]:
        """Write pending records, before messages are sent; return `SENT`, `REPEAT` or `LIVE` for each.

        Those that are delayed wait here: they are not to be sent.

        Args:
            messages: as many as `parts_of` puts together, at least one.
        """
        raw: list[bytes] = []
        rows = []
        for m in messages:
            header = ""
            if m.due_ms:
                header = m.header
                raw.append(m.body)
            # ARGV counts from 1, and begins with the blob
            rows.append((m.queue, m.id, header, m.due_ms, m.priority, m.nonce, m.record.decode(), len(raw) + 1))
        first, last = messages[0], messages[-1]
        # What is delayed is as good as sent; otherwise only that is certain which came before.
        sent = last.index + 1 if last.due_ms else first.index
        blob = (RECORDS, self.streams.record_ttl_ms, rows, first.group, sent)
        verdicts: list[int] = self._run("amqp_announce", blob, *raw)
        return verdicts

    def withdraw(self, messages: Sequence[Outgoing]) -> None:
        """Take back what was written of messages that were not sent after all."""
        self._run("amqp_withdraw", (RECORDS, [(m.id, m.nonce) for m in messages]))

    def take_due(self, queues: Sequence[str], hold_s: float, limit: int) -> Due:
        """Return delayed messages that are due, up to `limit` a queue; after `hold_s` they are due again.

        Whoever has sent them on says so with `sent_due`.
        """
        until, next_ms, lent = self._run("amqp_due", (int(hold_s * 1000), limit, queues))
        messages = []
        members = []
        for queue, member, id_, header, body, *counters, level in lent:
            name = queue.decode()
            members.append((name, member.decode("utf-8", "surrogateescape")))
            text = header.decode("utf-8", "replace")
            messages.append(Outgoing(name, id_.decode("utf-8", "replace"), text, body, 0, "", b"", level, *counters))
        return Due(tuple(messages), tuple(members), until, None if next_ms < 0 else next_ms / 1000)

    def sent_due(self, due: Due) -> None:
        """Drop delayed messages that were sent on."""
        self._run("amqp_due_sent", (due.until, due.members))

    def put_off(self, items: Sequence[tuple[Delivery, float, int, tuple[int, int, int]]]) -> None:
        """Keep messages until they may be sent again, and end the claims on them.

        Args:
            items: each with the seconds, its priority and the counters that it carries.
        """
        raw = [part for delivery, *_ in items for part in (delivery.header, delivery.body)]
        rows = [
            (d.queue, d.id, d.entry, int(delay_s * 1000), level, *counters) for d, delay_s, level, counters in items
        ]
        self._run("amqp_put_off", (rows,), *raw)

    def pass_gates(self, items: Sequence[tuple[Delivery, Gates, int, tuple[int, int, int]]]) -> list[bool]:
        """Let claimed tasks through, or keep them until they may be sent again, and end their claims.

        Args:
            items: each with its gates, its priority and the counters that it carries.
        """
        raw = [part for delivery, *_ in items for part in (delivery.header, delivery.body)]
        rows = [
            (d.queue, d.id, d.entry, gates.name, gates.rate, gates.lock, level, *counters)
            for d, gates, level, counters in items
        ]
        return [passed == 1 for passed in self._run("amqp_gates", (rows,), *raw)]

    def levels(self, queues: Sequence[str]) -> dict[str, list[int]]:
        """Return the priorities of each queue that were ever used, the highest first, 0 always among them."""
        pipe = self.client.pipeline(transaction=False)
        for queue in queues:
            pipe.smembers(queue_key(queue, "levels"))
        found = {}
        for queue, members in zip(queues, pipe.execute(), strict=True):
            used = {int(text) for text in members if text.isdigit() and int(text) <= MAX_LEVEL}
            found[queue] = sorted(used | {0}, reverse=True)
        return found

    def claim(self, consumer: str, lease_s: float, deliveries: Sequence[Delivery], *, patient: bool) -> list[Verdict]:
        """Claim what was delivered, each under the token that is its entry.

        Args:
            consumer: the one that claims.
            lease_s: how long that holds without renewal.
            deliveries: as RabbitMQ brought them.
            patient: take nothing over from consumers whose lease has lapsed.
        """
        rows = []
        for delivery in deliveries:
            nonce = _NONCE.search(delivery.header)
            text = nonce.group(1).decode("utf-8", "replace") if nonce else ""
            rows.append((delivery.queue, delivery.id, delivery.entry, text))
        blob = (consumer, int(lease_s * 1000), int(patient), RECORDS, self.streams.record_ttl_ms, rows)
        return [_verdict(*answer) for answer in self._run("amqp_claim", blob)]

    def settle(self, items: Sequence[Settlement]) -> list[tuple[int, tuple[Outgoing, ...]]]:
        """Write how tasks ended; return of each `LOST`, `SETTLED` or `LAST`, and what is to be sent now after it.

        Of one whose claim no longer held nothing is written. What follows the others is put off until it is due, or
        kept until `sent` says that it was sent.
        """
        raw: list[bytes] = []
        rows = []
        outbox = []
        for number, item in enumerate(items, 1):
            delivery = item.delivery
            message = 0
            if item.dead or (item.ends and item.state == states.FAILURE):
                message = len(raw) + 2  # ARGV counts from 1, and begins with the blob
                raw += [delivery.header, delivery.body]
            after: tuple[object, ...] = ()
            kept = kept_last = _keep(raw, item.outbox)
            if (a := item.arrival) is not None:
                after = arrived(a)
                if a.outbox:
                    kept_last = _keep(raw, (*item.outbox, *a.outbox))
            last = a.outbox if a is not None else ()
            for needs, m in (*((SETTLED, m) for m in item.outbox), *((LAST, m) for m in last)):
                raw.append(m.body if m.due_ms else b"")
                counters = (m.attempt, m.child_deaths, m.worker_losses)
                outbox.append((number, needs, m.queue, m.id, m.header, m.due_ms, m.priority, len(raw) + 1, *counters))
            rows.append(
                (
                    *(int(item.ends), delivery.queue, delivery.id, delivery.entry, item.record.decode()),
                    *(item.session, item.group, item.state, int(item.dead), _level(delivery.lane), message),
                    *(kept, kept_last, after),
                )
            )
        s = self.streams
        blob = (RECORDS, s.record_ttl_ms, s.failure_ttl_ms, s.session_maxlen, s.session_ttl_ms, rows, outbox)
        said = self._run("amqp_settle", blob, *raw)
        return [(word, _to_send(item, word)) for item, word in zip(items, said, strict=True)]

    def sent(self, ids: Sequence[str]) -> None:
        """Forget what was kept to be sent after these tasks."""
        if ids:
            self.client.delete(*[OUTBOX + id_ for id_ in ids])

    def give_back(self, items: Sequence[tuple[str, str, str, str]]) -> list[bool]:
        """End claims: (queue, id, token, charge); False for each that no longer held."""
        return [back == 1 for back in self._run("amqp_give_back", (self.streams.record_ttl_ms, items))]

    def renew(
        self, consumer: str, lease_s: float, deliveries: Sequence[Delivery], worker: str, advert: str
    ) -> tuple[list[bool], dict[str, bytes]]:
        """Renew a consumer's lease; return which claims hold, and the marks of revoked ids."""
        items = [(d.queue, d.id, d.entry) for d in deliveries]
        held, marks = self._run("amqp_renew", (consumer, int(lease_s * 1000), worker, advert, items))
        return [one == 1 for one in held], {id_.decode(): mark for id_, mark in marks}

    def leave(self, consumer: str, worker: str) -> None:
        """Forget a consumer that holds nothing, and its worker's advert."""
        self.client.zrem(LEASES, consumer)
        self.client.hdel(WORKERS, worker)

    def count(self, queue: str) -> tuple[int, int]:
        """Return how many messages of a queue are claimed, and how many are delayed."""
        pipe = self.client.pipeline(transaction=False)
        pipe.hlen(queue_key(queue, "claims"))
        pipe.hlen(queue_key(queue, "bodies"))
        claimed, delayed = pipe.execute()
        return claimed, delayed

    def mark_sent(self, group: str, number: int) -> None:
        """Say that the first members of a map have been sent."""
        self.client.set(f"nbq:sent:{group}", number, ex=int(LIVE_S))

    def release(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """Let delayed messages, by queue and id, be due now; tell which of them were there."""
        pipe = self.client.pipeline(transaction=False)
        for queue, id_ in items:
            pipe.zadd(queue_key(queue, "delayed"), {id_: 0}, xx=True, ch=True)
        return [bool(changed) for changed in pipe.execute()]

    def purge(self, queue: str) -> int:
        """Drop the delayed messages of a queue; return how many."""
        pipe = self.client.pipeline(transaction=True)
        pipe.hlen(queue_key(queue, "bodies"))
        pipe.delete(queue_key(queue, "delayed"), queue_key(queue, "bodies"))
        return int(pipe.execute()[0])

    def send_kept(self, messages: Sequence[tuple[Outgoing, str]]) -> list[str]:
        """Let tasks begin anew, each with the id of its map; say `sent`, `unknown` or `live`.

        Workers send them on: in a step of its own whoever asks for it could be gone before the second.
        """
        rows = [(m.queue, m.id, m.header, m.record.decode(), group, m.priority) for m, group in messages]
        blob = (RECORDS, self.streams.record_ttl_ms, rows)
        return [word.decode() for word in self._run("amqp_requeue", blob, *[m.body for m, _ in messages])]

    def _run(self, name: str, blob: object, *raw: bytes) -> Any:
        return run_script(self.streams.wire, name, blob, *raw)


def _level(lane: str) -> int:
    return int(lane) if lane.isdigit() else 0


def _keep(raw: list[bytes], messages: Sequence[Outgoing]) -> int:
    """Add to `raw` those of the messages that are sent at once; return the place among ARGV, 0 if there are none."""
    if not (at_once := [_kept(message) for message in messages if not message.due_ms]):
        return 0
    raw.append(_pack(at_once))
    return len(raw) + 1


def _to_send(item: Settlement, said: int) -> tuple[Outgoing, ...]:
    if said < SETTLED:
        return ()
    last = item.arrival.outbox if said == LAST and item.arrival is not None else ()
    return tuple(message for message in (*item.outbox, *last) if not message.due_ms)


def _kept(m: Outgoing) -> _Kept:
    return m.queue, m.id, m.header, m.body, m.due_ms, m.priority, m.attempt, m.child_deaths, m.worker_losses


def _verdict(kind: int, *rest: Any) -> Verdict:
    if kind == 1:
        attempt, deaths, losses, record, mark, outbox = rest
        kept = msgspec.msgpack.decode(outbox, type=list[_Kept]) if outbox else []
        messages = tuple(
            Outgoing(queue, id_, header, body, due_ms, "", b"", level, attempts, deaths_, losses_)
            for queue, id_, header, body, due_ms, level, attempts, deaths_, losses_ in kept
        )
        return Claimed(attempt, deaths, losses, record, mark, messages)
    if kind == 2:
        return Mine(rest[0].decode())
    return Elsewhere(rest[0] / 1000)
