"""The backend in this process's memory, for tests and eager runs. Gone with the process."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from nbqueue.backends.base import Label, Told


class MemoryBackend:
    """Keeps everything in dicts, under one lock.

    Args:
        now: the clock that expiry runs on, Unix seconds.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._news = threading.Condition()
        self._records: dict[str, tuple[bytes, float]] = {}
        self._groups: dict[str, tuple[bytes, float]] = {}
        self._saved: dict[str, tuple[bytes, float]] = {}
        self._graphs: dict[str, tuple[bytes, float]] = {}
        self._sessions: dict[str, list[bytes]] = defaultdict(list)
        self._outputs: dict[str, list[bytes]] = defaultdict(list)
        self._labels: list[Label] = []
        self._orders: list[str] = []
        self._replies: dict[str, list[bytes]] = {}
        self._stopped = False
        self._blobs: dict[str, dict[int, bytes]] = {}
        self._sealed: dict[str, tuple[int, float]] = {}  # bytes, and until when

    def store(self, records: Mapping[str, bytes], ttl_s: float) -> None:
        """Keep records by task id, replacing what was there."""
        with self._news:
            for id_, record in records.items():
                self._records[id_] = (record, self._now() + ttl_s)

    def load(self, ids: Sequence[str]) -> list[bytes | None]:
        """Return the record of each id."""
        with self._news:
            return [_alive(self._records.get(id_), self._now()) for id_ in ids]

    def forget(self, ids: Sequence[str]) -> None:
        """Drop records and outputs."""
        with self._news:
            for id_ in ids:
                self._records.pop(id_, None)
                self._outputs.pop(id_, None)

    def store_group(self, group: str, text: bytes, ttl_s: float) -> None:
        """Keep what the members of a map share."""
        with self._news:
            self._groups[group] = (text, self._now() + ttl_s)

    def forget_group(self, group: str, members: Sequence[str]) -> None:
        """Drop what is known of a map, and the records of members; their output, if they have any, stays."""
        with self._news:
            self._groups.pop(group, None)
            for id_ in members:
                self._records.pop(id_, None)

    def save(self, group: str, text: bytes | None, ttl_s: float) -> None:
        """Keep of which tasks a group is; None forgets it."""
        with self._news:
            self._saved.pop(group, None)
            if text is not None:
                self._saved[group] = (text, self._now() + ttl_s)

    def saved(self, group: str) -> bytes | None:
        """Return of which tasks a group is."""
        with self._news:
            return _alive(self._saved.get(group), self._now())

    def load_group(self, group: str) -> bytes | None:
        """Return what the members of a map share."""
        with self._news:
            return _alive(self._groups.get(group), self._now())

    def store_graph(self, graph: str, text: bytes, ttl_s: float) -> None:
        """Keep a canvas."""
        with self._news:
            self._graphs[graph] = (text, self._now() + ttl_s)

    def load_graph(self, graph: str) -> bytes | None:
        """Return a canvas."""
        with self._news:
            return _alive(self._graphs.get(graph), self._now())

    def added_to(self, graph: str, join: int) -> list[str]:
        """Return nothing: nothing here runs."""
        return []

    def has_ended(self, graph: str, node: int) -> bool:
        """Return False: nothing here runs."""
        return False

    def sent(self, group: str) -> tuple[int, float] | None:
        """Return None: nothing that sends writes here."""
        return None

    def progress(self, group: str) -> dict[str, int]:
        """Return no counts: nothing settles records here but `store`."""
        return {}

    def tell(self, facts: Sequence[Told]) -> None:
        """Append facts to their sessions' streams, and to their tasks' outputs."""
        with self._news:
            for fact in facts:
                text = b"[" + fact.text + b"]"
                if fact.session:
                    self._sessions[fact.session].append(text)
                if fact.keep:
                    self._outputs[fact.id].append(text)
            self._news.notify_all()

    def outputs(self, id_: str) -> list[bytes]:
        """Return the facts kept of a task's output, oldest first: one JSON array an entry."""
        with self._news:
            return list(self._outputs.get(id_, ()))

    def read(self, cursors: Mapping[str, str], block_s: float) -> list[tuple[str, str, bytes]]:
        """Wait for news of sessions; return (session, cursor, JSON array of facts), oldest first."""

        def news() -> list[tuple[str, str, bytes]]:
            return [
                (session, str(number + 1), text)
                for session, cursor in cursors.items()
                for number, text in enumerate(self._sessions.get(session, ()))
                if number >= int(cursor or 0)
            ]

        with self._news:
            self._stopped = False
            self._news.wait_for(lambda: self._stopped or news(), block_s)
            return news()

    def stop_reading(self) -> None:
        """End a `read` that another thread waits in."""
        with self._news:
            self._stopped = True
            self._news.notify_all()

    def last(self, session: str) -> str:
        """Return the cursor of the newest entry of a session."""
        with self._news:
            return str(len(self._sessions.get(session, ()))) if self._sessions.get(session) else ""

    def label(self, label: Label) -> None:
        """Remember a task's label and identity."""
        with self._news:
            self._labels.append(label)

    def labelled(self, label: str) -> list[str]:
        """Return the ids that bear a label, newest first."""
        with self._news:
            return [one.id for one in sorted(self._labels, key=lambda x: -x.at) if one.label == label]

    def identified(self, identity: str) -> str | None:
        """Return the newest id of an identity."""
        with self._news:
            found = [one.id for one in self._labels if one.identity == identity]
            return found[-1] if found else None

    def unidentify(self, identity: str, id_: str) -> None:
        """Forget an identity, if this id is still its newest."""
        if self.identified(identity) == id_:
            with self._news:
                self._labels = [one for one in self._labels if one.identity != identity]

    def keep_blobs(self, sizes: Mapping[str, int], until: float) -> set[str]:
        """Let blobs stay until `until` at least; return the digests of those that are here, whole."""
        with self._news:
            for digest, (size, old) in list(self._sealed.items()):
                if old <= self._now():
                    del self._sealed[digest]
                    self._blobs.pop(digest, None)
                elif digest in sizes:
                    self._sealed[digest] = (size, max(old, until))
            return {digest for digest, size in sizes.items() if self._sealed.get(digest, (None,))[0] == size}

    def store_blob(self, digest: str, first: int, parts: Sequence[bytes], until: float) -> None:
        """Keep parts of a blob, from number `first` on."""
        with self._news:
            self._blobs.setdefault(digest, {}).update(enumerate(parts, first))

    def seal_blob(self, digest: str, size: int, until: float) -> None:
        """Say that all parts of a blob are here."""
        with self._news:
            self._sealed[digest] = (size, until)

    def load_blob(self, digest: str, first: int, count: int) -> list[bytes | None]:
        """Return parts of a blob."""
        with self._news:
            parts = self._blobs.get(digest, {})
            return [parts.get(number) for number in range(first, first + count)]

    def clean_blobs(self, max_bytes: int) -> int:
        """Drop blobs that would go soonest until the others have `max_bytes` at most; return the bytes dropped."""
        with self._news:
            total = sum(size for size, _ in self._sealed.values())
            dropped = 0
            for digest, (size, _) in sorted(self._sealed.items(), key=lambda item: item[1][1]):
                if total - dropped <= max_bytes:
                    break
                del self._sealed[digest]
                self._blobs.pop(digest, None)
                dropped += size
            return dropped

    def adverts(self) -> dict[str, bytes]:
        """Return nothing: no worker shares this memory."""
        return {}

    def trouble(self) -> str:
        """Return nothing: no keeper looks after this memory."""
        return ""

    def now(self) -> float:
        """Return the clock this backend runs on."""
        return self._now()

    def order(self, text: str) -> None:
        """Append a signed order for the workers."""
        with self._news:
            self._orders.append(text)

    def orders(self, cursor: str) -> list[tuple[str, bytes]]:
        """Return (cursor, text) of the orders after `cursor`."""
        with self._news:
            return [(str(n + 1), text.encode()) for n, text in enumerate(self._orders) if n >= int(cursor or 0)]

    def last_order(self) -> str:
        """Return the cursor of the newest order."""
        with self._news:
            return str(len(self._orders)) if self._orders else ""

    def reply(self, name: str, text: bytes, ttl_s: float) -> None:
        """Add an answer to those under this name."""
        with self._news:
            self._replies.setdefault(name, []).append(text)
            self._news.notify_all()

    def replies(self, name: str, wait_s: float) -> list[bytes]:
        """Return the answers that have come since the last call, waiting for one up to `wait_s`."""
        with self._news:
            self._news.wait_for(lambda: name in self._replies, wait_s)
            return self._replies.pop(name, [])

    def close(self) -> None:
        """Do nothing."""


def _alive(kept: tuple[bytes, float] | None, now: float) -> bytes | None:
    return kept[0] if kept is not None and kept[1] > now else None
