"""The backend on Redis: records under Celery's keys, sessions and outputs as capped streams."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import redis

from nbqueue.backends.base import GAP, Label, Told, chunks
from nbqueue.config import mask
from nbqueue.deliveries import (
    CONTROL,
    KEEPER_TROUBLE,
    LIVE_S,
    RECORDS,
    WORKERS,
    ended_key,
    failed_key,
    group_key,
    reply_key,
)
from nbqueue.exceptions import BackendUnavailable
from nbqueue.wire import Wire, connect

OUTPUT_MAXLEN: Final = 3_000  # entries of one task's output, and of its late output; one holds what came in 50 ms
ORDERS_MAXLEN: Final = 1_000
SAVED: Final = "celery-taskset-meta-"
LABEL_TTL_S: Final = 30 * 86_400
BLOBS: Final = "nbq:blobs"  # what blobs there are and their bytes, by when they go
BLOCK_S: Final = 5.0  # the longest that a wait for news blocks
_CHUNK: Final = 1_000


class RedisBackend:
    """Keeps everything on one Redis server. Reconnects by itself; a call during an outage raises."""

    def __init__(self, url: str, *, name: str = "nbq-client", record_ttl_s: float = 7 * 86_400) -> None:
        self.url = url
        self.ttl_s = record_ttl_s
        self.client = connect(url, name=name)
        # Longer than it blocks: a network that swallows everything would keep it waiting for hours.
        self._blocking = connect(url, name=name, timeout_s=BLOCK_S + 5.0)
        self._news = Wire(self._blocking, spins=False)

    def store(self, records: Mapping[str, bytes], ttl_s: float) -> None:
        """Keep records by task id, replacing what was there."""
        with self._pipeline() as pipe:
            for id_, record in records.items():
                pipe.set(RECORDS + id_, record, px=int(ttl_s * 1000))
                pipe.publish(RECORDS + id_, record)

    def load(self, ids: Sequence[str]) -> list[bytes | None]:
        """Return the record of each id."""
        found: list[bytes | None] = []
        with self._translated():
            for part in chunks(ids, _CHUNK):
                found += self.client.mget([RECORDS + id_ for id_ in part])
        return found

    def forget(self, ids: Sequence[str]) -> None:
        """Drop records, outputs, and what was kept to run them again."""
        with self._translated():
            for part in chunks(ids, _CHUNK):
                keys = [key(id_) for id_ in part for key in (_record, _output, _late_output, failed_key)]
                self.client.delete(*keys)

    def store_group(self, group: str, text: bytes, ttl_s: float) -> None:
        """Keep what the members of a map share."""
        with self._translated():
            self.client.set(group_key(group), text, px=int(ttl_s * 1000))

    def forget_group(self, group: str, members: Sequence[str]) -> None:
        """Drop what is known of a map, and the records of members; their output, if they have any, stays."""
        keys = [group_key(group), f"nbq:sent:{group}", f"nbq:progress:{group}", *(map(_record, members))]
        with self._translated():
            for part in chunks(keys, _CHUNK):
                self.client.unlink(*part)

    def save(self, group: str, text: bytes | None, ttl_s: float) -> None:
        """Keep of which tasks a group is, where Celery's clients find it; None forgets it."""
        with self._translated():
            if text is None:
                self.client.delete(SAVED + group)
            else:
                self.client.set(SAVED + group, text, px=max(1, int(ttl_s * 1000)))

    def saved(self, group: str) -> bytes | None:
        """Return of which tasks a group is."""
        with self._translated():
            found: bytes | None = self.client.get(SAVED + group)
        return found

    def load_group(self, group: str) -> bytes | None:
        """Return what the members of a map share."""
        with self._translated():
            found: bytes | None = self.client.get(group_key(group))
            return found

    def store_graph(self, graph: str, text: bytes, ttl_s: float) -> None:
        """Keep a canvas."""
        with self._translated():
            self.client.set(f"nbq:graph:{graph}", text, px=int(ttl_s * 1000))

    def load_graph(self, graph: str) -> bytes | None:
        """Return a canvas."""
        with self._translated():
            found: bytes | None = self.client.get(f"nbq:graph:{graph}")
        return found

    def added_to(self, graph: str, join: int) -> list[str]:
        """Return the ids of calls that were added to the members of a join while it ran."""
        with self._translated():
            return [id_.decode() for id_ in self.client.lrange(f"nbq:join:{graph}:{join}:more", 0, -1)]

    def has_ended(self, graph: str, node: int) -> bool:
        """Tell whether a call of a canvas has ended."""
        with self._translated():
            return bool(self.client.getbit(ended_key(graph), node))

    def sent(self, group: str) -> tuple[int, float] | None:
        """Return how many members of a map have been sent, and seconds since the last were; None: nobody says."""
        with self._translated():
            pipe = self.client.pipeline(transaction=True)
            pipe.get(f"nbq:sent:{group}")
            pipe.pttl(f"nbq:sent:{group}")
            number, left_ms = pipe.execute()
        return None if number is None or left_ms < 0 else (int(number), LIVE_S - left_ms / 1000)

    def progress(self, group: str) -> dict[str, int]:
        """Return how many members of a map have ended, by state."""
        with self._translated():
            return {state.decode(): int(n) for state, n in self.client.hgetall(f"nbq:progress:{group}").items()}

    def tell(self, facts: Sequence[Told]) -> None:
        """Append facts to their sessions' streams, and to their tasks' outputs."""
        sessions: dict[str, list[bytes]] = {}
        outputs: dict[str, list[bytes]] = {}
        for fact in facts:
            if fact.session:
                sessions.setdefault(fact.session, []).append(fact.text)
            if fact.keep:
                outputs.setdefault((_late_output if fact.late else _output)(fact.id), []).append(fact.text)
        # In one transaction: whoever replays outputs and then follows the session misses nothing between.
        with self._pipeline(transaction=True) as pipe:
            for session, texts in sessions.items():
                pipe.xadd(_session(session), {"f": _array(texts)}, maxlen=20_000, approximate=True)
                pipe.expire(_session(session), 86_400)
            for key, texts in outputs.items():
                pipe.xadd(key, {"f": _array(texts)}, maxlen=OUTPUT_MAXLEN, approximate=True)
                pipe.expire(key, int(self.ttl_s))

    def outputs(self, id_: str) -> list[bytes]:
        """Return the facts kept of a task's output, oldest first: a JSON array an entry, GAP where some are missing."""
        with self._translated():
            early, late = (self.client.xrange(key) for key in (_output(id_), _late_output(id_)))
            gap = late and self.client.xinfo_stream(_late_output(id_)).get("entries-added", 0) > len(late)
        parts = [[fields[b"f"] for _, fields in entries if b"f" in fields] for entries in (early, late)]
        return [*parts[0], *([GAP] if gap else []), *parts[1]]

    def read(self, cursors: Mapping[str, str], block_s: float) -> list[tuple[str, str, bytes]]:
        """Wait for news of sessions; return (session, cursor, JSON array of facts), oldest first."""
        names = [_session(session) for session in cursors]
        after = [cursor or "0" for cursor in cursors.values()]
        with self._translated():
            block_ms = max(1, int(min(block_s, BLOCK_S) * 1000))
            reply = self._news.call("XREAD", "COUNT", 500, "BLOCK", block_ms, "STREAMS", *names, *after)
        return [
            (name.decode().removeprefix("nbq:session:"), entry.decode(), flat[1] if flat[0] == b"f" else b"[]")
            for name, entries in reply or ()
            for entry, flat in entries
        ]

    def stop_reading(self) -> None:
        """End a `read` that another thread waits in."""
        self._news.close()

    def last(self, session: str) -> str:
        """Return the cursor of the newest entry of a session."""
        return self._last(_session(session))

    def label(self, label: Label) -> None:
        """Remember a task's label and identity."""
        with self._pipeline() as pipe:
            if label.label:
                pipe.zadd(f"nbq:label:{label.label}", {label.id: label.at})
                pipe.zremrangebyrank(f"nbq:label:{label.label}", 0, -101)
                pipe.expire(f"nbq:label:{label.label}", LABEL_TTL_S)
            if label.identity:
                pipe.set(f"nbq:identity:{label.identity}", label.id, ex=LABEL_TTL_S)

    def labelled(self, label: str) -> list[str]:
        """Return the ids that bear a label, newest first."""
        with self._translated():
            return [id_.decode() for id_ in self.client.zrevrange(f"nbq:label:{label}", 0, -1)]

    def identified(self, identity: str) -> str | None:
        """Return the newest id of an identity."""
        with self._translated():
            found: bytes | None = self.client.get(f"nbq:identity:{identity}")
            return found.decode() if found else None

    def unidentify(self, identity: str, id_: str) -> None:
        """Forget an identity, if this id is still its newest."""
        if self.identified(identity) == id_:
            with self._translated():
                self.client.delete(f"nbq:identity:{identity}")

    def keep_blobs(self, sizes: Mapping[str, int], until: float) -> set[str]:
        """Let blobs stay until `until` at least; return the digests of those that are here, whole."""
        with self._pipeline() as pipe:
            for digest, size in sizes.items():
                pipe.hget(_blob(digest), "size")
                pipe.pexpireat(_blob(digest), int(until * 1000), gt=True)
                pipe.zadd(BLOBS, {f"{digest}:{size}": until}, xx=True, gt=True)
            found = pipe.execute()[::3]
        return {digest for digest, size in zip(sizes, found, strict=True) if size == b"%d" % sizes[digest]}

    def store_blob(self, digest: str, first: int, parts: Sequence[bytes], until: float) -> None:
        """Keep parts of a blob, from number `first` on."""
        key = _blob(digest)
        with self._pipeline() as pipe:
            for number, part in enumerate(parts, first):
                pipe.hset(key, str(number), part)
            # Each time: it may have expired since the part before, and what is left would stay for ever.
            pipe.pexpireat(key, int(until * 1000), nx=True)

    def seal_blob(self, digest: str, size: int, until: float) -> None:
        """Say that all parts of a blob are here."""
        with self._pipeline(transaction=True) as pipe:
            pipe.hset(_blob(digest), "size", size)
            pipe.pexpireat(_blob(digest), int(until * 1000), gt=True)
            pipe.zadd(BLOBS, {f"{digest}:{size}": until}, gt=True)

    def load_blob(self, digest: str, first: int, count: int) -> list[bytes | None]:
        """Return parts of a blob."""
        with self._translated():
            numbers = [str(number) for number in range(first, first + count)]
            parts: list[bytes | None] = self.client.hmget(_blob(digest), numbers) if numbers else []
            return parts

    def clean_blobs(self, max_bytes: int) -> int:
        """Drop blobs that would go soonest until the others have `max_bytes` at most; return the bytes dropped."""
        with self._translated():
            self.client.zremrangebyscore(BLOBS, "-inf", self.now())
            names = [name.decode() for name in self.client.zrange(BLOBS, 0, -1)]
            total = sum(int(name.partition(":")[2]) for name in names)
            dropped = 0
            for name in names:
                digest, _, size = name.partition(":")
                if total - dropped <= max_bytes:
                    break
                self.client.unlink(_blob(digest))
                self.client.zrem(BLOBS, name)
                dropped += int(size)
            return dropped

    def adverts(self) -> dict[str, bytes]:
        """Return what each worker last said of itself, by name."""
        with self._translated():
            return {name.decode("utf-8", "replace"): text for name, text in self.client.hgetall(WORKERS).items()}

    def trouble(self) -> str:
        """Return why no local worker starts, one line; empty if the keeper has nothing to say."""
        with self._translated():
            text = self.client.get(KEEPER_TROUBLE)
        try:
            lines = str(json.loads(text or b"{}").get("text", "")).strip().splitlines()
        except (ValueError, AttributeError, RecursionError):
            return ""
        return lines[-1].strip() if lines else ""

    def now(self) -> float:
        """Return the server's clock, Unix seconds."""
        with self._translated():
            seconds, micros = self.client.time()
            return float(seconds + micros / 1e6)

    def order(self, text: str) -> None:
        """Append a signed order for the workers."""
        with self._translated():
            self.client.xadd(CONTROL, {"o": text}, maxlen=ORDERS_MAXLEN, approximate=True)

    def orders(self, cursor: str) -> list[tuple[str, bytes]]:
        """Return (cursor, text) of the orders after `cursor`."""
        with self._translated():
            entries = self.client.xrange(CONTROL, min=f"({cursor}" if cursor else "-")
        return [(entry.decode(), fields.get(b"o", b"")) for entry, fields in entries]

    def last_order(self) -> str:
        """Return the cursor of the newest order."""
        return self._last(CONTROL)

    def reply(self, name: str, text: bytes, ttl_s: float) -> None:
        """Add a worker's answer to those under this name."""
        with self._pipeline(transaction=True) as pipe:
            pipe.rpush(reply_key(name), text)
            pipe.pexpire(reply_key(name), int(ttl_s * 1000))

    def replies(self, name: str, wait_s: float) -> list[bytes]:
        """Return the answers that have come since the last call, waiting for one up to `wait_s`."""
        key = reply_key(name)
        with self._translated():
            # 0 would wait for ever
            found = self._blocking.blpop([key], timeout=min(max(wait_s, 0.001), BLOCK_S))
            return [] if found is None else [found[1], *(self.client.lpop(key, _CHUNK) or ())]

    def close(self) -> None:
        """Give up connections."""
        self.client.close()
        self._news.close()
        self._blocking.close()

    def _last(self, stream: str) -> str:
        with self._translated():
            newest = self.client.xrevrange(stream, count=1)
        return newest[0][0].decode() if newest else ""

    @contextmanager
    def _pipeline(self, *, transaction: bool = False) -> Iterator[Any]:
        with self._translated():
            pipe = self.client.pipeline(transaction=transaction)
            yield pipe
            pipe.execute()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as exc:
            raise BackendUnavailable(f"no answer from {mask(self.url)}: {exc}") from exc
        except redis.RedisError as exc:
            raise BackendUnavailable(f"{mask(self.url)} refuses: {exc}") from exc


def _session(session: str) -> str:
    return f"nbq:session:{session}"


def _blob(digest: str) -> str:
    return f"nbq:blob:{digest}"


def _record(id_: str) -> str:
    return RECORDS + id_


def _output(id_: str) -> str:
    return f"nbq:output:{id_}"


def _late_output(id_: str) -> str:
    return f"nbq:output:{id_}:late"


def _array(texts: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(texts) + b"]"
