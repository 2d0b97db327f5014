"""Digests of large data, which several threads reckon together.

Up to `LEAF_BYTES` a digest is the SHA-256 of the content; beyond that it is the SHA-256 of a mark and of the digests
of the content's parts, so that no content of one kind has the digest of one of the other.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from typing import Final

LEAF_BYTES: Final = 4 << 20  # less of it would be over before another thread has begun
LANES: Final = min(4, os.cpu_count() or 1)
_OF_LEAVES: Final = b"nbqueue leaves 1\x00"  # the number is the version

Use = Callable[[int, memoryview], None]


class Digest:
    """The digest of what comes part by part."""

    def __init__(self) -> None:
        self._leaves: list[bytes] = []
        self._leaf = hashlib.sha256()
        self._room = LEAF_BYTES

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        rest = memoryview(data)
        while rest.nbytes:
            if not self._room:
                self._leaves.append(self._leaf.digest())
                self._leaf = hashlib.sha256()
                self._room = LEAF_BYTES
            taken, rest = rest[: self._room], rest[self._room :]
            self._leaf.update(taken)
            self._room -= taken.nbytes

    def hexdigest(self) -> str:
        """Return the digest of all that came."""
        if not self._leaves:
            return self._leaf.hexdigest()
        return _joined([*self._leaves, self._leaf.digest()])


def digest_of(data: memoryview, use: Use | None = None) -> str:
    """Return the digest of a buffer of bytes, in hexadecimal.

    Args:
        data: one-dimensional, of single bytes.
        use: is called with each part and where it begins, in no order and by several threads; must not raise.
    """
    leaves = _Leaves(data, use)
    others = [
        threading.Thread(target=leaves.reckon, name="nbqueue digest") for _ in range(min(LANES, leaves.count) - 1)
    ]
    for other in others:
        other.start()
    try:
        leaves.reckon()
    finally:
        leaves.stopped = True  # after an interrupt: else nothing is left
        for other in others:
            other.join()
    digests = [leaves.digests[start] for start in sorted(leaves.digests)]
    return digests[0].hex() if len(digests) == 1 else _joined(digests)


class _Leaves:
    """The parts of a buffer; each is taken by one thread."""

    def __init__(self, data: memoryview, use: Use | None) -> None:
        self._data = data
        self._use = use
        starts = range(0, max(1, data.nbytes), LEAF_BYTES)
        self.count = len(starts)
        self._starts = iter(starts)
        self._lock = threading.Lock()
        self.digests: dict[int, bytes] = {}
        self.stopped = False

    def reckon(self) -> None:
        """Take one part after the other until none is left."""
        while not self.stopped:
            with self._lock:
                start = next(self._starts, None)
            if start is None:
                return
            leaf = self._data[start : start + LEAF_BYTES]
            self.digests[start] = hashlib.sha256(leaf).digest()
            if self._use is not None:
                self._use(start, leaf)


def _joined(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(_OF_LEAVES + b"".join(digests)).hexdigest()
