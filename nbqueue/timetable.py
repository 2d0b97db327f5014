"""The schedule on a Redis server: its entries, who leads, and firings in one step. Nothing here opens a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import redis

from nbqueue.config import mask
from nbqueue.deliveries import RECORDS, Outgoing
from nbqueue.exceptions import BackendUnavailable
from nbqueue.streams import run_script
from nbqueue.wire import Wire, connect

ENTRIES: Final = "nbq:beat:entries"
STANDS: Final = "nbq:beat:stands"
CALLS: Final = "nbq:beat:calls"
CHANGES: Final = "nbq:beat:changes"
OUTBOX: Final = "nbq:beat:outbox"
DELETED: Final = "nbq:beat:deleted:"
UNDELETE_S: Final = 3_600.0

FIRED: Final = 1
LEADS_NO_MORE: Final = 0
CHANGED: Final = -1


@dataclass(frozen=True, slots=True)
class Lead:
    """Who leads, as a beat is told when it asks.

    Args:
        token: the asker's own; 0 where another leads.
        now: the server's clock, Unix seconds.
        leader: its name.
        since: when it began, Unix seconds.
        standby: how many wait to take over.
        cursor: of the last change.
    """

    token: int
    now: float
    leader: str
    since: float
    standby: int
    cursor: str


@dataclass(frozen=True, slots=True)
class Row:
    """One entry as it is stored; `stand` is empty where it has not fired yet."""

    entry: bytes
    stand: bytes


class Timetable:
    """Keeps the schedule. A call during an outage raises `BackendUnavailable`.

    Args:
        url: of the backend.
        name: what the server shows of the connections.
        joined: queues are on this server too.
        record_ttl_s: how long records are kept.
        wake_key: a list that gets one element when something is sent and no worker has shown itself.
    """

    def __init__(
        self, url: str, *, name: str = "nbq-client", joined: bool, record_ttl_s: float, wake_key: str = ""
    ) -> None:
        self.url = url
        self.joined = joined
        self._ttl_ms = int(record_ttl_s * 1000)
        self._wake_key = wake_key
        self._client = connect(url, name=name)
        self._blocking = connect(url, name=name, timeout_s=10.0)
        self._wire = Wire(self._client)
        self._news = Wire(self._blocking, spins=False)

    def lead(self, me: str, name: str, lease_s: float, *, resign: bool = False) -> Lead:
        """Ask to lead, or to go on leading, or give it up.

        Args:
            me: unique, without spaces.
            name: what people are shown.
            lease_s: how long that holds.
            resign: give it up.
        """
        with self._translated():
            answer = run_script(self._wire, "beat_lead", (me, name, int(lease_s * 1000), int(resign)))
        token, now, leader, since, standby, cursor = answer
        return Lead(int(token), int(now) / 1000, leader.decode(), int(since) / 1000, int(standby), cursor.decode())

    def leader(self) -> tuple[str, float, int] | None:
        """Return who leads, since when, and how many stand by; None if nobody leads."""
        with self._translated():
            text, standby = self._client.get("nbq:beat:leader"), self._client.hlen("nbq:beat:standby")
        if text is None:
            return None
        _, since, _, name = text.decode().split(" ", 3)
        return name, int(since) / 1000, int(standby)

    def rows(self) -> dict[str, Row]:
        """Return all entries by name."""
        with self._translated():
            pipe = self._client.pipeline(transaction=True)
            pipe.hgetall(ENTRIES)
            pipe.hgetall(STANDS)
            entries, stands = pipe.execute()
        return {name.decode(): Row(text, stands.get(name, b"")) for name, text in entries.items()}

    def is_empty(self) -> bool:
        """Tell whether there are no entries."""
        with self._translated():
            return not self._client.hlen(ENTRIES)

    def row(self, name: str) -> Row | None:
        """Return one entry."""
        with self._translated():
            pipe = self._client.pipeline(transaction=True)
            pipe.hget(ENTRIES, name)
            pipe.hget(STANDS, name)
            entry, stand = pipe.execute()
        return None if entry is None else Row(entry, stand or b"")

    def call(self, name: str) -> bytes | None:
        """Return what an entry sends."""
        with self._translated():
            found: bytes | None = self._client.hget(CALLS, name)
        return found

    def write(
        self, name: str, was: Row | None, text: bytes, *, stand: bytes = b"", call: bytes = b"", enabled: bool
    ) -> bool:
        """Change an entry if it is still as it was read; an empty text removes it. Tell whether it was.

        Args:
            name: of the entry.
            was: as it was read; None: there was none.
            text: signed.
            stand: how it stands, signed; empty: it has not fired yet.
            call: what it sends; empty leaves that.
            enabled: it isn't paused.
        """
        before = was or Row(b"", b"")
        blob = (name, before.entry.decode(), before.stand.decode(), text.decode(), stand.decode(), int(enabled))
        with self._translated():
            return bool(run_script(self._wire, "beat_write", (*blob, int(UNDELETE_S * 1000)), call))

    def deleted(self, name: str) -> tuple[Row, bytes] | None:
        """Return an entry that was removed a moment ago, and what it sent."""
        with self._translated():
            found = self._client.hgetall(DELETED + name)
        if not found:
            return None
        return Row(found[b"entry"], found[b"stand"]), found[b"call"]

    def fire(self, token: int, name: str, was: Row, stand: bytes, messages: Sequence[Outgoing]) -> int:
        """Send what an entry sends, and write how it stands, in one step; see `beat_fire.lua` for what is returned.

        Where queues are elsewhere it is kept in the outbox, for `outbox` to return.
        """
        rows = [(m.queue, m.id, m.header, m.priority, m.nonce, m.record.decode()) for m in messages]
        blob = (token, name, was.entry.decode(), was.stand.decode(), stand.decode(), int(not self.joined))
        more = (RECORDS, self._ttl_ms, self._wake_key, rows)
        with self._translated():
            return int(run_script(self._wire, "beat_fire", (*blob, *more), *[m.body for m in messages]))

    def outbox(self) -> list[Outgoing]:
        """Return what was fired and has yet to be sent."""
        with self._translated():
            pipe = self._client.pipeline(transaction=True)
            pipe.hgetall(OUTBOX)
            pipe.hgetall(f"{OUTBOX}:bodies")
            packed, bodies = pipe.execute()
        found = []
        for id_, row in packed.items():
            queue, message_id, header, level, nonce, record = msgspec.msgpack.decode(row)
            found.append(
                Outgoing(
                    queue, message_id, header, bodies.get(id_, b""), nonce=nonce, record=record.encode(), priority=level
                )
            )
        return found

    def sent(self, ids: Sequence[str]) -> None:
        """Forget what has been sent."""
        with self._translated():
            pipe = self._client.pipeline(transaction=True)
            pipe.hdel(OUTBOX, *ids)
            pipe.hdel(f"{OUTBOX}:bodies", *ids)
            pipe.execute()

    def changed_since(self, cursor: str, block_s: float) -> str:
        """Wait for a change after `cursor`; return the cursor of the newest, or `cursor` itself if there was none."""
        with self._translated():
            block_ms = max(1, int(min(block_s, 5.0) * 1000))
            reply = self._news.call("XREAD", "BLOCK", block_ms, "STREAMS", CHANGES, cursor)
        return reply[0][1][-1][0].decode() if reply else cursor

    def close(self) -> None:
        """Give up connections."""
        for client in (self._client, self._blocking):
            client.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as exc:
            raise BackendUnavailable(f"{mask(self.url)} can't be used: {exc}") from exc
