"""The protocol of a backend: what outlives processes. It stores bytes and texts, and opens none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

GAP: Final = b"[]"  # among outputs: some are missing here


@dataclass(frozen=True, slots=True)
class Told:
    """A fact for a session, kept for replay with the task's output too if `keep`.

    Those that are `late` are many: the newest of them are kept, and all that are not late.
    """

    session: str
    id: str
    text: bytes
    keep: bool = True
    late: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """Under which name and identity a person will look for a task again."""

    id: str
    label: str
    identity: str
    at: float


class Backend(Protocol):
    """Keeps task records, groups, outputs, sessions and blobs. Every method may raise `BackendUnavailable`.

    Methods may be called from any thread. A cursor is the id of the last entry seen; `""` is before the first.
    """

    def store(self, records: Mapping[str, bytes], ttl_s: float) -> None:
        """Keep records by task id, replacing what was there."""

    def load(self, ids: Sequence[str]) -> list[bytes | None]:
        """Return the record of each id."""

    def forget(self, ids: Sequence[str]) -> None:
        """Drop records and outputs."""

    def store_group(self, group: str, text: bytes, ttl_s: float) -> None:
        """Keep what the members of a map share."""

    def forget_group(self, group: str, members: Sequence[str]) -> None:
        """Drop what is known of a map, and the records of members; their output, if they have any, stays."""

    def save(self, group: str, text: bytes | None, ttl_s: float) -> None:
        """Keep of which tasks a group is; None forgets it."""

    def saved(self, group: str) -> bytes | None:
        """Return of which tasks a group is."""

    def load_group(self, group: str) -> bytes | None:
        """Return what the members of a map share."""

    def store_graph(self, graph: str, text: bytes, ttl_s: float) -> None:
        """Keep a canvas."""

    def load_graph(self, graph: str) -> bytes | None:
        """Return a canvas."""

    def added_to(self, graph: str, join: int) -> list[str]:
        """Return the ids of calls that were added to the members of a join while it ran."""

    def has_ended(self, graph: str, node: int) -> bool:
        """Tell whether a call of a canvas has ended."""

    def sent(self, group: str) -> tuple[int, float] | None:
        """Return how many members of a map have been sent, and seconds since the last were; None: nobody says."""

    def progress(self, group: str) -> dict[str, int]:
        """Return how many members of a map have ended, by state."""

    def tell(self, facts: Sequence[Told]) -> None:
        """Append facts to their sessions' streams, and to their tasks' outputs."""

    def outputs(self, id_: str) -> list[bytes]:
        """Return the facts kept of a task's output, oldest first."""

    def read(self, cursors: Mapping[str, str], block_s: float) -> list[tuple[str, str, bytes]]:
        """Wait for news of sessions; return (session, cursor, JSON array of facts), oldest first."""

    def stop_reading(self) -> None:
        """End a `read` that another thread waits in: it raises `BackendUnavailable`, or returns nothing."""

    def last(self, session: str) -> str:
        """Return the cursor of the newest entry of a session."""

    def label(self, label: Label) -> None:
        """Remember a task's label and identity."""

    def labelled(self, label: str) -> list[str]:
        """Return the ids that bear a label, newest first."""

    def identified(self, identity: str) -> str | None:
        """Return the newest id of an identity."""

    def unidentify(self, identity: str, id_: str) -> None:
        """Forget an identity, if this id is still its newest."""

    def keep_blobs(self, sizes: Mapping[str, int], until: float) -> set[str]:
        """Let blobs stay until `until` (Unix seconds) at least; return the digests of those that are here, whole.

        Args:
            sizes: bytes, by digest.
            until: 0.0 only asks.
        """

    def store_blob(self, digest: str, first: int, parts: Sequence[bytes], until: float) -> None:
        """Keep parts of a blob, from number `first` on."""

    def seal_blob(self, digest: str, size: int, until: float) -> None:
        """Say that all parts of a blob are here."""

    def load_blob(self, digest: str, first: int, count: int) -> list[bytes | None]:
        """Return parts of a blob."""

    def clean_blobs(self, max_bytes: int) -> int:
        """Drop blobs that would go soonest until the others have `max_bytes` at most; return the bytes dropped."""

    def adverts(self) -> dict[str, bytes]:
        """Return what each worker last said of itself, by name."""

    def trouble(self) -> str:
        """Return why no local worker starts, one line; empty if the keeper has nothing to say."""

    def now(self) -> float:
        """Return the backend's own clock, Unix seconds."""

    def order(self, text: str) -> None:
        """Append a signed order for the workers."""

    def orders(self, cursor: str) -> list[tuple[str, bytes]]:
        """Return (cursor, text) of the orders after `cursor`."""

    def last_order(self) -> str:
        """Return the cursor of the newest order."""

    def reply(self, name: str, text: bytes, ttl_s: float) -> None:
        """Add a worker's answer to those under this name; they go when no other has come for `ttl_s`."""

    def replies(self, name: str, wait_s: float) -> list[bytes]:
        """Return the answers that have come since the last call, waiting for one up to `wait_s`."""

    def close(self) -> None:
        """Give up connections."""


def chunks(ids: Iterable[str], size: int) -> Iterable[list[str]]:
    """Yield lists of at most `size` ids."""
    part: list[str] = []
    for one in ids:
        part.append(one)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
