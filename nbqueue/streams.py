"""Task queues on Redis Streams: what the transport, the broker and the workers do with them, one script each.

A queue is two streams (new entries, and entries that came back), a sorted set of delayed ones, and a hash of
the ids that are claimed. An entry is claimed by a consumer group and never changes hands: to give one back is
to add it anew. So the place that the hash of claims still holds proves, in the same script as what depends on it, that
the claim held.

Nothing here opens messages; bodies and records are bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import itertools
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
import redis
from redis.exceptions import NoScriptError

from nbqueue.deliveries import (
    CODE_GONE,
    COUNTERS,
    DEAD,
    GROUP,
    LANES,
    LAST,
    LIVE_S,
    LOST,
    QUARANTINE,
    QUEUES,
    RATES,
    RECORDS,
    REVOKED,
    SENT,
    SETTLED,
    WORKERS,
    Arrival,
    Delivery,
    Kept,
    Outgoing,
    QueueSize,
    Revocation,
    Settlement,
    code_name,
    group_key,
    lane_of,
    queue_key,
    stream_key,
)
from nbqueue.rates import Gates
from nbqueue.wire import Command, Wire

LISTENS_MS = 1_000  # a consumer that has room asks at least that often
_CHUNK = 500  # messages in one script: about 5 ms of the server, so that nobody else waits longer
_CHUNK_BYTES = 64 << 20  # a server closes connections that send more than 1 GB in one command
_LEVELS = frozenset(b"%d" % level for level in range(1, 10))
CLAIM_MOST: Final = 1_000  # messages in one claim
FEW: Final = 4  # messages that are sent, or claimed, with plain commands, which cost less than a script each
_LIVE_MS: Final = int(LIVE_S * 1000)
_PARTS: Final = re.compile(r"^(?=local )", re.MULTILINE)  # of `common.lua`: each defines one name
_DEFINED: Final = re.compile(r"local (?:function )?(\w+)")
_WORDS: Final = re.compile(r"\w+")
_PADDING: Final = " " * 64  # of what the claims hash holds, as in the scripts
_NONCE: Final = re.compile(rb'"nonce":"([^"]*)"')
_CLAIMED: Final = struct.Struct(">HhIIIHIIIII")  # queue, place, counters, and the sizes of the parts
_pack = msgspec.msgpack.Encoder().encode


class Streams:
    """The queues of one Redis server.

    Args:
        client: a `redis.Redis`; used from the caller's thread only.
        records: the key prefix of task records, if the backend is this same server; else empty.
        record_ttl_ms: how long records are kept.
        failure_ttl_ms: how long those of tasks that failed are, and their messages; as others if None.
        session_maxlen: entries kept in a session's stream.
        session_ttl_ms: how long a session's stream outlives its last fact.
        wake_key: a list that gets one element when something is sent and no worker has shown itself.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        records: str = "",
        record_ttl_ms: int = 7 * 86_400_000,
        failure_ttl_ms: int | None = None,
        session_maxlen: int = 20_000,
        session_ttl_ms: int = 86_400_000,
        wake_key: str = "",
    ) -> None:
        self.client = client
        self.wire = Wire(client)
        self.records = records
        self.record_ttl_ms = record_ttl_ms
        self.failure_ttl_ms = record_ttl_ms if failure_ttl_ms is None else failure_ttl_ms
        self.session_maxlen = session_maxlen
        self.session_ttl_ms = session_ttl_ms
        self.wake_key = wake_key
        self.listeners: dict[str, int] = {}  # consumers that lately asked a queue for messages, as its sweeper counts
        self._levels: dict[str, list[int]] = {}  # priorities above 0 that were ever used, by queue, highest first

    def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        """Put messages on their queues; return `SENT` or another verdict for each. Confirmed when it returns."""
        if len(messages) <= FEW and all(map(_is_plain, messages)):
            return self._publish_few(messages)
        verdicts: list[int] = []
        for part in parts_of(messages):
            groups = []
            # Most come in one row: what they have in common goes once, the rest in columns.
            for (queue, due_ms, priority), grouped in itertools.groupby(part, key=_destination):
                row = list(grouped)
                texts = [m.record.decode() for m in row] if any(m.record for m in row) else []
                nonces = [m.nonce for m in row] if texts else []
                codes = [m.code for m in row] if any(m.code for m in row) else []
                ids, headers = [m.id for m in row], [m.header for m in row]
                groups.append((queue, due_ms, priority, ids, headers, nonces, texts, codes))
            blob = (self.records, self.record_ttl_ms, self.wake_key, groups, part[-1].group, part[-1].index + 1)
            verdicts += self._run("publish", blob, *[m.body for m in part]) or [SENT] * len(part)
        return verdicts

    def _publish_few(self, messages: Sequence[Outgoing]) -> list[int]:
        """Publish a few messages of new ids with plain commands, in one transaction: cheaper than the script.

        A message is sent also if the code that it names is gone, and then `CODE_GONE` says so: workers wait for it.
        """
        keep_ms = max(self.record_ttl_ms, _LIVE_MS)
        commands: list[Command] = [("MULTI",)]
        codes = [m.code for m in messages if m.code]
        if codes:
            commands.append(("EXISTS", *[group_key(code_name(code)) for code in codes]))
        if self.wake_key:
            commands.append(("HLEN", WORKERS))
        for m in messages:
            commands.append(("SADD", QUEUES, m.queue))
            if m.record:
                commands.append(("SET", self.records + m.id, m.record, "PX", keep_ms))
            commands.append(("XADD", stream_key(m.queue, "n"), "*", "i", m.id, "h", m.header, "b", m.body))
        commands.append(("EXEC",))
        answers = self.wire.call_all(commands)
        said = answers[-1]
        for answer in (*answers, *(said if isinstance(said, list) else ())):
            if isinstance(answer, redis.RedisError):
                raise answer
        if self.wake_key and said[bool(codes)] == 0:
            self._run("publish", (self.records, self.record_ttl_ms, self.wake_key, [], "", 0))  # wakes the keeper
        if codes and said[0] < len(codes):
            return [CODE_GONE if m.code else SENT for m in messages]
        return [SENT] * len(messages)

    def claim(
        self, consumer: str, limit: int, queues: Sequence[str], read: Sequence[Delivery] = ()
    ) -> tuple[list[Delivery], float | None]:
        """Claim up to `limit` messages that wait now; return them, and the seconds until a delayed one is due.

        Args:
            consumer: who claims.
            limit: at most `CLAIM_MOST`.
            queues: where from.
            read: what a blocking read has brought; of these, those that may run are returned first.
        """
        given = _by_place(read)
        columns = [
            (queue, lane, [d.entry for d in row], [d.id for d in row], [d.header.decode("latin-1") for d in row])
            for (queue, lane), row in given.items()
        ]
        reply = self._run("claim", (consumer, limit, self.records, queues, columns))
        return self.parse_claim(reply, queues, given.values())

    def claim_command(self, consumer: str, limit: int, queues: Sequence[str]) -> tuple[str | int | bytes, ...]:
        """Return the command of a claim, for who goes on until its reply comes.

        The server may have forgotten the script: then the reply is a `NoScriptError`, and nothing was claimed.
        """
        return "EVALSHA", script("claim")[1], 0, _pack((consumer, limit, self.records, queues, []))

    def parse_claim(
        self, reply: Any, queues: Sequence[str], given: Iterable[list[Delivery]] = ()
    ) -> tuple[list[Delivery], float | None]:
        """Return the deliveries in the reply of a claim, and the seconds until a delayed one is due.

        Args:
            reply: as the server sent it.
            queues: as they were given.
            given: what a blocking read had brought, by place.
        """
        rows, data, next_due, levels, verdicts = reply
        self._levels = {queue: seen for queue, seen in zip(queues, levels, strict=True) if seen}
        deliveries = []
        for row, said in zip(given, verdicts, strict=True):
            for delivery, verdict in zip(row, said, strict=True):
                if verdict:
                    delivery.record, delivery.mark = verdict
                    deliveries.append(delivery)
        at = 0
        for number, place, attempt, deaths, losses, *sizes in _CLAIMED.iter_unpack(rows):
            parts = []
            for size in sizes:
                parts.append(data[at : at + size])
                at += size
            entry, id_, header, body, record, mark = parts
            deliveries.append(
                Delivery(
                    queues[number - 1],
                    "r" if place < 0 else lane_of(place),
                    entry.decode(),
                    id_.decode(),
                    header,
                    body,
                    attempt,
                    deaths,
                    losses,
                    record,
                    mark,
                )
            )
        return deliveries, (next_due / 1000 if next_due >= 0 else None)

    def admit(self, read: Sequence[Delivery]) -> bool:
        """Claim the ids of a few entries that a blocking read has brought; as `claim` does, which costs more.

        Returns:
            Whether all may run, and then what is known of them is filled in. Else `claim` has to tell them apart.
        """
        places = [f"{d.lane}:{d.entry}{_PADDING}" for d in read]
        commands: list[tuple[str | int | bytes, ...]] = [
            ("HSETNX", queue_key(d.queue, "claims"), d.id, place) for d, place in zip(read, places, strict=True)
        ]
        # After the claims: who revokes a task from now on sees that it is held, and tells who holds it.
        commands.append(("HMGET", REVOKED, *[d.id for d in read]))
        if self.records:
            commands.append(("MGET", *[self.records + d.id for d in read]))
        answers = self.wire.call_all(commands)
        for answer in answers:
            if isinstance(answer, redis.RedisError):
                raise answer
        if 0 in answers[: len(read)]:
            return False
        marks = answers[len(read)]
        records = answers[len(read) + 1] if self.records else [None] * len(read)
        for delivery, mark, record in zip(read, marks, records, strict=True):
            delivery.mark = mark or b""
            delivery.record = b"" if record is None or _is_own_pending(record, delivery.header) else record
        return True

    def lanes(self, queue: str) -> tuple[str, ...]:
        """Return the lanes of a queue that the last claim has seen in use, in the order of claims."""
        return ("r", *(lane_of(level) for level in self._levels.get(queue, ())), "n")

    def read_command(
        self, consumer: str, limit: int, queues: Sequence[str], block_ms: int
    ) -> tuple[str | int | bytes, ...]:
        """Return the blocking read by which an idle worker waits for the next message.

        Its reply goes through `parse_read` and then `claim`. Redis serves blocked consumers in turn, one a message.
        The first message of a priority that its queue has not seen is found only by the claim that follows.
        """
        streams = [stream_key(queue, lane) for queue in queues for lane in self.lanes(queue)]
        command = ("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", limit, "BLOCK", block_ms, "STREAMS")
        return (*command, *streams, *[">"] * len(streams))

    @staticmethod
    def parse_read(reply: Any) -> list[Delivery]:
        """Return the deliveries in the raw reply of a blocking read."""
        deliveries = []
        for name, entries in reply or ():
            queue, _, lane = name.decode()[len("nbq:{") :].rpartition("}:")
            for entry, flat in entries:
                fields = dict(zip(flat[::2], flat[1::2], strict=False)) if flat else {}
                entry_id = entry.decode()
                deliveries.append(
                    Delivery(
                        queue,
                        lane,
                        entry_id,
                        _id_of(fields.get(b"i"), entry_id),
                        fields.get(b"h", b""),
                        fields.get(b"b", b""),
                        _number(fields.get(b"a"), 1),
                        _number(fields.get(b"c"), 0),
                        _number(fields.get(b"w"), 0),
                    )
                )
        return deliveries

    def settle(self, items: Sequence[Settlement]) -> list[int]:
        """Acknowledge, record, tell and send the outbox in one step; say of each `LOST`, `SETTLED` or `LAST`.

        Of one whose lease was lost nothing is written and nothing sent.
        """
        blob, bodies = self._settled(items)
        return self.parse_settle(self._run("settle", blob, *bodies), items)

    def settle_command(self, items: Sequence[Settlement]) -> Command:
        """Return the command of `settle`, for who goes on until its reply comes; see `claim_command`."""
        blob, bodies = self._settled(items)
        return "EVALSHA", script("settle")[1], 0, _pack(blob), *bodies

    @staticmethod
    def parse_settle(reply: Any, items: Sequence[Settlement]) -> list[int]:
        """Return what became of each item, by the reply to its command."""
        said = [SETTLED] * len(items)
        if reply:
            in_groups = list(_in_common(items).values())
            for word, places in zip((LOST, LAST), reply, strict=True):
                for group, place in places:
                    said[in_groups[group - 1][place - 1]] = word
        return said

    def _settled(self, items: Sequence[Settlement]) -> tuple[object, list[bytes]]:
        """Return the arguments of the script."""
        rows, outbox, bodies, arrivals = [], [], [], []
        for group, (common, numbers) in enumerate(_in_common(items).items(), 1):
            row = [items[number] for number in numbers]
            texts = [item.record.decode() for item in row]
            rows.append((*common, [item.delivery.entry for item in row], [item.delivery.id for item in row], texts))
            for place, item in enumerate(row, 1):
                for m in item.outbox:
                    counters = (m.attempt, m.child_deaths, m.worker_losses)
                    outbox.append((group, place, m.queue, m.id, m.header, m.due_ms, m.priority, *counters, 0))
                    bodies.append(m.body)
                if (a := item.arrival) is not None:
                    arrivals.append((group, place, arrived(a)))
                    for m in a.outbox:
                        row_of = (group, place, m.queue, m.id, m.header, m.due_ms, m.priority, 1, 0, 0)
                        outbox.append((*row_of, len(arrivals)))
                        bodies.append(m.body)
        kept = (self.record_ttl_ms, self.failure_ttl_ms, self.session_maxlen, self.session_ttl_ms)
        return (self.records, *kept, rows, outbox, arrivals), bodies

    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Return claimed messages to the head of their queues; `charge` is `none`, `task`, `child` or `worker`."""
        items = [(d.queue, d.lane, d.entry, charge) for d in deliveries]
        return sum(bool(back) for back in self._run("give_back", (items,)))

    def renew(
        self, consumer: str, deliveries: Sequence[Delivery], worker: str = "", advert: str = ""
    ) -> tuple[list[bool], dict[str, bytes]]:
        """Renew leases and show that the worker lives; return which still hold, and the marks of revoked ids."""
        items = [(d.queue, d.lane, d.entry, d.id) for d in deliveries]
        held, marks = self._run("renew", (consumer, worker, advert, items))
        return [one == 1 for one in held], {id_.decode(): mark for id_, mark in marks}

    def sweeps(self, queues: Sequence[str], consumer: str, hold_ms: int) -> list[str]:
        """Return those of these queues whose claims it falls to this consumer to look through, and let it keep them.

        A look goes through every claim of a queue. One consumer a queue does it, until it has not asked for `hold_ms`:
        if all did, what they cost the server would grow with the square of their number. It also counts for the others
        how many listen.
        """
        pipe = self.client.pipeline(transaction=False)
        for queue in queues:
            pipe.set(queue_key(queue, "sweeper"), consumer, nx=True, px=hold_ms)
            pipe.get(queue_key(queue, "sweeper"))
            pipe.smembers(queue_key(queue, "levels"))
            pipe.get(queue_key(queue, "listeners"))
        replies = pipe.execute()
        mine = []
        for queue, sweeper, levels, count in zip(queues, replies[1::4], replies[2::4], replies[3::4], strict=True):
            self.listeners[queue] = _number(count, 1)
            if sweeper == consumer.encode():
                mine.append(queue)
                # a worker that has long been busy has not seen what priorities were used since
                self._levels[queue] = sorted((int(level) for level in levels if level in _LEVELS), reverse=True)
        for queue in mine:
            pipe.pexpire(queue_key(queue, "sweeper"), hold_ms)
            pipe.xinfo_consumers(stream_key(queue, "n"), GROUP)
        counted = pipe.execute(raise_on_error=False)[1::2]
        for queue, consumers in zip(mine, counted, strict=True):
            if isinstance(consumers, list):  # there is such a stream
                self.listeners[queue] = sum(row["idle"] < LISTENS_MS for row in consumers)
                pipe.set(queue_key(queue, "listeners"), self.listeners[queue], px=4 * hold_ms)
        pipe.execute()
        return mine

    def lapsed(self, queues: Iterable[str], idle_ms: int, limit: int = 1000) -> list[tuple[str, str, str]]:
        """Return (queue, lane, entry) of claims not renewed for `idle_ms`. No proof yet: see `reap`."""
        places = [(queue, lane) for queue in queues for lane in self.lanes(queue)]
        pipe = self.client.pipeline(transaction=False)
        for queue, lane in places:
            pipe.xpending_range(stream_key(queue, lane), GROUP, min="-", max="+", count=limit, idle=idle_ms)
        found = []
        for (queue, lane), reply in zip(places, pipe.execute(raise_on_error=False), strict=True):
            if isinstance(reply, redis.ResponseError):  # no such stream or group yet
                continue
            if isinstance(reply, Exception):
                raise reply
            found += [(queue, lane, row["message_id"].decode()) for row in reply]
        return found

    def pass_gates(self, items: Sequence[tuple[Delivery, Gates]]) -> list[bool]:
        """Let claimed tasks through, or have them wait, claimed no more; tell which may run."""
        rows = [(d.queue, d.lane, d.entry, d.id, gates.name, gates.rate, gates.lock) for d, gates in items]
        return [passed == 1 for passed in self._run("gates", (rows,))]

    def unlock(self, locks: Sequence[str], *, elsewhere: bool = False) -> None:
        """Let those go on that wait for these locks, whose holders have ended.

        Args:
            locks: their names.
            elsewhere: messages are on another broker than this.
        """
        self._run("unlock", (locks, int(elsewhere)))

    def set_rate(self, name: str, rate: float | None, *, elsewhere: bool = False) -> None:
        """Set how many tasks of a name may begin a second; 0.0: any number, None: as they say themselves."""
        self._run("rates", (name, "" if rate is None else repr(rate), int(elsewhere)))

    def rates(self) -> dict[str, float]:
        """Return the rates that were set; what isn't a number was written by somebody else, and is passed over."""
        found = {}
        for name, rate in self.client.hgetall(RATES).items():
            with contextlib.suppress(ValueError):
                found[name.decode(errors="replace")] = float(rate)
        return found

    def put_off(self, deliveries: Sequence[Delivery], delay_ms: int) -> None:
        """Return messages that this worker can't judge (another key, a newer version) so that others see them."""
        self._run("put_off", (delay_ms, [(d.queue, d.lane, d.entry) for d in deliveries]))

    def quarantine(self, deliveries: Sequence[tuple[Delivery, str]]) -> None:
        """Take messages that nobody should run off their queues: counted by reason, their first bytes kept."""
        self.keep_refused(deliveries)
        self.settle([Settlement(delivery, b"") for delivery, _ in deliveries])

    def keep_refused(self, deliveries: Sequence[tuple[Delivery, str]], kept_bytes: int = 4096) -> None:
        """Count messages that nobody should run, and keep their first bytes."""
        pipe = self.client.pipeline(transaction=True)
        for delivery, reason in deliveries:
            entry = {"reason": reason, "queue": delivery.queue, "header": delivery.header[:kept_bytes]}
            pipe.xadd(QUARANTINE, {**entry, "body": delivery.body[:kept_bytes]}, maxlen=1_000, approximate=True)
            pipe.hincrby(COUNTERS, f"refused:{reason.partition(':')[0]}", 1)
        pipe.execute()

    def count(self, what: str, number: int = 1) -> None:
        """Count something that was refused or dropped."""
        self.client.hincrby(COUNTERS, what, number)

    def counters(self) -> dict[str, int]:
        """Return how often something was refused or dropped, by reason."""
        return {name.decode(): int(n) for name, n in self.client.hgetall(COUNTERS).items()}

    def reap(self, items: Sequence[tuple[str, str, str]], idle_ms: int) -> int:
        """Return lapsed claims to their queues, charged as a lost worker; return how many were lapsed still."""
        return int(self._run("reap", (idle_ms, items))) if items else 0

    def revoke(self, items: Sequence[Revocation]) -> list[str]:
        """Revoke tasks; say of each `revoked` (nobody held it), `held`, `ended` or `unknown`."""
        said: list[str] = []
        for start in range(0, len(items), _CHUNK):
            rows = [(r.queue, r.id, r.record, r.session, r.group, r.mark) for r in items[start : start + _CHUNK]]
            blob = (self.records or RECORDS, self.record_ttl_ms, self.session_maxlen, self.session_ttl_ms, rows)
            said += [word.decode() for word in self._run("revoke", blob)]
        return said

    def dead_letters(self) -> list[tuple[str, bytes]]:
        """Return the id of each dead letter and the record that says why it is one, the newest last."""
        return [(id_.decode(errors="replace"), record) for id_, record in self._run("dead", ("list", []))]

    def count_dead(self) -> int:
        """Return how many dead letters there are."""
        return int(self.client.hlen(DEAD))

    def drop_dead(self, ids: Sequence[str]) -> int:
        """Drop dead letters; return how many there were."""
        return int(self._run("dead", ("drop", ids)))

    def kept(self, ids: Sequence[str]) -> list[Kept | None]:
        """Return the messages of tasks that failed or were given up."""
        return [
            Kept(found[0].decode(errors="replace"), found[1], found[2], found[3]) if found else None
            for found in self._again("get", ids)
        ]

    def send_kept(self, messages: Sequence[tuple[Outgoing, str]]) -> list[str]:
        """Send messages, each with the id of its map, in place of kept ones; say `sent`, `unknown` or `live`."""
        rows = [(m.queue, m.id, m.header, m.record.decode(), group, m.priority) for m, group in messages]
        return [word.decode() for word in self._again("send", rows, *[m.body for m, _ in messages])]

    def release(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """Put delayed messages, by queue and id, where workers take them now; tell which of them were there."""
        return [found == 1 for found in self._again("release", items)]

    def _again(self, what: str, items: Sequence[object], *bodies: bytes) -> Any:
        if not items:
            return []
        return self._run("again", (what, self.records or RECORDS, self.record_ttl_ms, self.wake_key, items), *bodies)

    def size(self, queue: str) -> QueueSize:
        """Return how many messages of a queue wait, are claimed, and are delayed."""
        pipe = self.client.pipeline(transaction=False)
        for lane in LANES:
            pipe.xlen(stream_key(queue, lane))
        pipe.hlen(queue_key(queue, "claims"))
        pipe.hlen(queue_key(queue, "bodies"))  # of those delayed, and of those at gates
        *lanes, claimed, delayed = pipe.execute()
        return QueueSize(max(0, sum(lanes) - claimed), claimed, delayed)

    def delayed(self, queue: str, most: int) -> list[tuple[str, float]]:
        """Return up to `most` delayed messages of a queue, the soonest first: id, and when it is due (Unix seconds)."""
        found = self.client.zrange(queue_key(queue, "delayed"), 0, most - 1, withscores=True)
        ids = (row for row in found if not row[0].startswith(b"\1"))  # the timers of gates are no messages
        return [(id_.decode(errors="replace"), due_ms / 1000) for id_, due_ms in ids]

    def purge(self, queue: str) -> int:
        """Drop every message of a queue that no worker holds; return how many. Claims and groups stay."""
        dropped = 0
        for lane in LANES:
            name = stream_key(queue, lane)
            try:
                pending = self.client.xpending_range(name, GROUP, min="-", max="+", count=1_000_000)
            except redis.ResponseError:
                pending = []
            kept = {row["message_id"] for row in pending}
            while rows := [entry for entry, _ in self.client.xrange(name, count=1000 + len(kept)) if entry not in kept]:
                dropped += int(self.client.xdel(name, *rows))
        delayed = self.client.hlen(queue_key(queue, "bodies"))
        self.client.delete(queue_key(queue, "delayed"), queue_key(queue, "bodies"))
        return dropped + int(delayed)

    def forget_queue(self, queue: str) -> None:
        """Remove a queue that nobody listens to any more, with what waits in it. Nothing of it may be claimed."""
        kinds = ("delayed", "bodies", "claims", "levels", "sweeper", "listeners")
        keys = [*(stream_key(queue, lane) for lane in LANES), *(queue_key(queue, kind) for kind in kinds)]
        pipe = self.client.pipeline(transaction=True)
        pipe.unlink(*keys)
        pipe.srem(QUEUES, queue)
        pipe.execute()

    def queues(self) -> set[str]:
        """Return the names of all queues that anything was ever sent to."""
        return {name.decode() for name in self.client.smembers(QUEUES)}

    def ensure_groups(self, queues: Iterable[str]) -> None:
        """Create streams and consumer groups that are missing, from the first entry on."""
        for queue in queues:
            for lane in self.lanes(queue):
                try:
                    self.client.xgroup_create(stream_key(queue, lane), GROUP, id="0", mkstream=True)
                except redis.ResponseError as exc:
                    if "BUSYGROUP" not in str(exc):
                        raise

    def risks(self) -> list[str]:
        """Return what about the server's settings may cost tasks or results, a sentence each."""
        found = []
        memory, persistence = self.client.info("memory"), self.client.info("persistence")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            found.append(
                f"It drops tasks and results when its memory is full (maxmemory-policy {policy}); set it to noeviction."
            )
        if not persistence.get("aof_enabled", 1):
            found.append("What it has not yet saved is lost if it ends (appendonly no); set appendonly to yes.")
        return found

    def forget_consumer(self, consumer: str, queues: Iterable[str]) -> None:
        """Remove a consumer that holds nothing; with entries pending it stays, or they would be destroyed."""
        for queue in queues:
            for lane in self.lanes(queue):
                name = stream_key(queue, lane)
                self.client.eval(_FORGET_CONSUMER, 1, name, GROUP, consumer)

    def close(self) -> None:
        """Give up connections."""
        self.wire.close()
        self.client.close()

    def _run(self, name: str, blob: object, *raw: bytes) -> Any:
        return run_script(self.wire, name, blob, *raw)


@functools.cache
def script(name: str) -> tuple[str, str]:
    """Return a script's source, with what it needs of `common.lua`, and its SHA-1 as Redis computes it."""
    folder = importlib.resources.files("nbqueue") / "lua"
    source = (folder / f"{name}.lua").read_text()
    words = set(_WORDS.findall(source))
    # Each run of a script makes all of its functions anew, so those that it doesn't call are left out.
    for part in reversed(_PARTS.split((folder / "common.lua").read_text())):
        found = _DEFINED.match(part)
        if found is None or found[1] in words:
            source = part + source
            words.update(_WORDS.findall(part))
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def run_script(wire: Wire, name: str, blob: object, *raw: bytes) -> Any:
    """Return what a script of `lua/` answers.

    One packed argument costs a tenth of many. The server's msgpack reads text but no bytes, so these go beside.
    """
    source, digest = script(name)
    packed = _pack(blob)
    try:
        return wire.call("EVALSHA", digest, 0, packed, *raw)
    except NoScriptError:
        return wire.call("EVAL", source, 0, packed, *raw)


_FORGET_CONSUMER = """
for _, row in ipairs(redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]).err and {} or
                     redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local pending, name
  for i = 1, #row, 2 do
    if row[i] == 'pending' then pending = row[i + 1] end
    if row[i] == 'name' then name = row[i + 1] end
  end
  if name == ARGV[2] and pending == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
end
"""


def parts_of(messages: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """Yield messages in batches that one command can carry, in number and in bytes."""
    start = size_bytes = 0
    for at, message in enumerate(messages):
        if at > start and (at - start == _CHUNK or size_bytes + len(message.body) > _CHUNK_BYTES):
            yield messages[start:at]
            start, size_bytes = at, 0
        size_bytes += len(message.body)
    if messages:
        yield messages[start:]


def _is_plain(message: Outgoing) -> bool:
    """Tell whether a message can't be a repeat, and may run at once."""
    return message.fresh and not message.due_ms and not message.priority and message.attempt == 1


def _in_common(items: Sequence[Settlement]) -> dict[tuple[int, str, str, str, str, str, int], list[int]]:
    """Return the numbers of settlements by what they have in common."""
    groups: dict[tuple[int, str, str, str, str, str, int], list[int]] = {}
    for number, item in enumerate(items):
        d = item.delivery
        common = (int(item.ends), d.queue, d.lane, item.session, item.group, item.state, int(item.dead))
        groups.setdefault(common, []).append(number)
    return groups


def arrived(a: Arrival) -> tuple[object, ...]:
    """Return an arrival as the scripts take it."""
    return a.graph, a.node, a.join, a.place, a.size, a.more, int(a.goes_on)


def _destination(message: Outgoing) -> tuple[str, int, int]:
    return message.queue, message.due_ms, message.priority


def _is_own_pending(record: bytes, header: bytes) -> bool:
    """Tell whether a record is what was written when this message was sent; as in the scripts."""
    nonce = _NONCE.search(header)
    return bool(nonce and nonce[1] and b'"status":"PENDING"' in record and nonce[1] in record)


def _by_place(deliveries: Iterable[Delivery]) -> dict[tuple[str, str], list[Delivery]]:
    """Return deliveries by queue and lane."""
    found: dict[tuple[str, str], list[Delivery]] = {}
    for delivery in deliveries:
        found.setdefault((delivery.queue, delivery.lane), []).append(delivery)
    return found


def _number(text: bytes | None, otherwise: int) -> int:
    """Return an entry's counter; as `whole` in the scripts."""
    return int(text) if text is not None and len(text) < 7 and text.isdigit() else otherwise


def _id_of(text: bytes | None, entry: str) -> str:
    """Return an entry's id; as `id_of` in the scripts."""
    if text is not None:
        with contextlib.suppress(UnicodeDecodeError):
            return text.decode()
    return f"?{entry}"
