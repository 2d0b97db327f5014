"""What lies in a user's data directory that nobody needs any more: for `nbqueue clean`.

Locks and pid files stay: they are empty or tiny, and to remove one that somebody is about to take is never safe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbqueue import server
from nbqueue.blobs import SPARED_S, BlobStore
from nbqueue.embedded import Places

OLD_S: Final = 7 * 86_400.0


@dataclass(frozen=True)
class Leftover:
    """One file that may go.

    Args:
        path: of it.
        size: in bytes.
        why: what it is, for people.
    """

    path: Path
    size: int
    why: str


def leftovers(places: Places, now: float, max_blob_bytes: int) -> Iterator[Leftover]:
    """Yield what may go; the caller removes it soon, or not at all.

    Args:
        places: whose.
        now: Unix seconds.
        max_blob_bytes: of large data; beyond them goes what was of no use for longest.
    """
    for path, size in BlobStore(places.data / "blobs").surplus(now, max_blob_bytes):
        yield Leftover(path, size, "large data that nobody needs")
    living = {process.path.stem for process in places.started() if process.held()}
    for path in places.logs.glob("*.log*"):
        of_a_worker = path.name.startswith("local-") and path.name.partition(".")[0] not in living
        if of_a_worker or path.name.endswith(".log.1"):
            yield from _older(path, now - OLD_S, "old logs")
    if not living:
        for path in places.workers.glob("*.json"):
            yield from _older(path, now - OLD_S, "connection files of workers that have ended")
    for pattern in ("key.*", ".nbqueue-*"):
        for path in places.data.glob(pattern):
            yield from _older(path, now - SPARED_S, "files that were not finished")
    if places.socket.exists() and not places.server.held() and server.state(places.socket) == "gone":
        yield from _older(places.socket, now, "the socket of a server that has ended")


def remove(found: Leftover) -> bool:
    """Remove a file; tell whether it is gone now, and was not before."""
    with contextlib.suppress(OSError):
        found.path.unlink()
        return True
    return False


def _older(path: Path, than: float, why: str) -> Iterator[Leftover]:
    with contextlib.suppress(OSError):
        seen = path.lstat()
        if seen.st_mtime <= than:
            yield Leftover(path, seen.st_size, why)
