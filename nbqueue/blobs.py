"""Blobs: large data under the digest of its content, as files of this host and in parts in the backend.

A file's modification time is when it may go, its access time when it was last of use: that is all that cleaning up
asks for, and both can be set by whoever names the blob again. Files are private, and are never changed once they
have their name, so they can be mapped into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Protocol

from nbqueue.digests import LEAF_BYTES, Digest
from nbqueue.exceptions import BlobMissing, BlobNotStored
from nbqueue.payloads import Ref, Spilled
from nbqueue.processes import make_private

PART_BYTES: Final = 1 << 20  # of what travels through the backend at once
PARTS_AT_ONCE: Final = 4
SPARED_S: Final = 3_600.0  # what was of use this lately is not removed to make room
_WRITE_BYTES: Final = 1 << 26
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 64
_SAMPLES_KEPT: Final = 1_000
_NONE: Final[Mapping[Ref, Spilled]] = {}
_MAPPED_BYTES: Final = 1 << 20  # smaller ones are read: a process may have some 65,000 mappings
_SYNCED: Final = 0o400  # the mode of a file that is safely on the disk; before that it is 0o600


class BlobStore:
    """Keeps blobs as files below one directory. Any number of processes may share it.

    Args:
        directory: made when first needed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._numbers = itertools.count()
        self._spilled: dict[bytes, None] = {}  # samples, the oldest first
        self._unsynced: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._syncing: threading.Thread | None = None
        self._lock = threading.Lock()

    def keep(self, ref: Ref, until: float) -> bool:
        """Let a blob stay until `until` (Unix seconds) at least; tell whether it is here."""
        path = self.path(ref)
        found = self._usable(path, ref)
        if found is None:
            return False
        with contextlib.suppress(OSError):
            os.utime(path, (time.time(), max(until, found.st_mtime)))
        return True

    def save(self, blobs: Mapping[Ref, memoryview], until: float, spilled: Mapping[Ref, Spilled] = _NONE) -> None:
        """Keep blobs, some of which are being written already.

        Raises:
            BlobNotStored: there is no room for one, or the directory can't be written to.
        """
        for ref, data in blobs.items():
            if ref in spilled:
                spilled[ref].commit(ref, until)
            else:
                self.write(ref, data, until)

    def write(self, ref: Ref, data: memoryview, until: float) -> None:
        """Keep a blob, if it isn't here.

        Raises:
            BlobNotStored: there is no room for it, or the directory can't be written to.
        """
        if self.keep(ref, until):
            return
        unfinished = self.begin(ref, until)
        try:
            flat = data.cast("B") if data.nbytes else memoryview(b"")
            for start in range(0, flat.nbytes, _WRITE_BYTES):
                unfinished.write(flat[start : start + _WRITE_BYTES])
            unfinished.commit()
        finally:
            unfinished.abort()

    def spill(self, data: memoryview) -> Spilled | None:
        """Begin a file for a buffer whose digest isn't known yet; None where that would be in vain."""
        sample = _sample(data)
        if sample in self._spilled:  # the same again, most likely: its digest will tell
            return None
        self._spilled[sample] = None
        if len(self._spilled) > _SAMPLES_KEPT:
            self._spilled.pop(next(iter(self._spilled)), None)
        try:
            return SpilledFile(self, data.nbytes)
        except BlobNotStored:
            return None  # who writes it later is told

    def begin(self, ref: Ref, until: float) -> Unfinished:
        """Return a file to write a blob's content to.

        Raises:
            BlobNotStored: the directory can't be written to.
        """
        path = self.path(ref)
        unfinished = path.with_name(f".{ref.digest}.{os.getpid()}.{next(self._numbers)}")
        return Unfinished(ref, unfinished, path, until, self._sync_later)

    def read(self, ref: Ref) -> memoryview:
        """Return a blob's content; writing to it changes nobody else's.

        A large one is mapped: it is read when it is looked at.

        Raises:
            BlobMissing: it isn't here.
        """
        path = self.path(ref)
        if not self.keep(ref, 0.0):
            raise BlobMissing(f"{described(ref)} is gone from {self.directory}")
        try:
            with path.open("rb") as file:
                if ref.size >= _MAPPED_BYTES:
                    with contextlib.suppress(OSError):  # a process has a bounded number of mappings
                        return memoryview(mmap.mmap(file.fileno(), ref.size, access=mmap.ACCESS_COPY))
                content = bytearray(ref.size)
                if file.readinto(content) == ref.size:
                    return memoryview(content)
        except OSError as exc:
            raise BlobMissing(f"{described(ref)} can't be read: {exc}") from exc
        raise BlobMissing(f"{described(ref)} is not whole any more")

    def clean(self, now: float, max_bytes: int) -> int:
        """Remove what nobody names any more, and beyond `max_bytes` what was of no use for longest; return bytes."""
        removed = 0
        for path, size in self.surplus(now, max_bytes):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += size
        return removed

    def surplus(self, now: float, max_bytes: int) -> Iterator[tuple[Path, int]]:
        """Yield the files that `clean` removes, each with its size in bytes."""
        total = 0
        kept: list[tuple[float, int, Path]] = []
        for path in self.directory.glob("*/*"):
            with contextlib.suppress(OSError):
                found = path.stat()
                unfinished = path.name.startswith(".")
                if found.st_mtime < now and not (unfinished and now - found.st_mtime < SPARED_S):
                    yield path, found.st_size
                elif not unfinished:
                    kept.append((found.st_atime, found.st_size, path))
                    total += found.st_size
        for used_at, size, path in sorted(kept):
            if total <= max_bytes or now - used_at < SPARED_S:
                break
            yield path, size
            total -= size

    def path(self, ref: Ref) -> Path:
        """Return where a blob is, or would be."""
        return self.directory / ref.digest[:2] / ref.digest

    def _usable(self, path: Path, ref: Ref) -> os.stat_result | None:
        try:
            found = path.stat()
        except OSError:
            return None
        if found.st_size != ref.size:
            return None
        if found.st_mode & stat.S_IWUSR and found.st_ctime < _booted_at() and not self._checked(path, ref):
            return None
        return found

    def _checked(self, path: Path, ref: Ref) -> bool:
        """Look at what may not have reached the disk before the machine went down: the file may hold anything."""
        with contextlib.suppress(OSError), path.open("rb") as file:
            digest = Digest()
            while part := file.read(LEAF_BYTES):
                digest.update(part)
            if digest.hexdigest() == ref.digest:
                path.chmod(_SYNCED)
                return True
        with contextlib.suppress(OSError):
            path.unlink()
        return False

    def _sync_later(self, path: Path) -> None:
        """Bring a file to the disk while others go on; its mode says when that is done."""
        self._unsynced.put(path)
        with self._lock:
            if self._syncing is None or not self._syncing.is_alive():
                self._syncing = threading.Thread(target=self._sync, name="nbqueue blobs", daemon=True)
                self._syncing.start()

    def _sync(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                path = self._unsynced.get(timeout=5.0)
                with contextlib.suppress(OSError), path.open("rb") as file:
                    os.fsync(file.fileno())
                    path.chmod(_SYNCED)


class Unfinished:
    """A file that becomes a blob once all of it is written."""

    def __init__(self, ref: Ref, path: Path, final: Path, until: float, sync: Callable[[Path], None]) -> None:
        self._ref = ref
        self._path = path
        self._final = final
        self._until = until
        self._sync = sync
        self._file: IO[bytes] | None = None
        with self._explained():
            make_private(path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Append content."""
        assert self._file is not None
        with self._explained():
            rest = memoryview(data)
            while rest.nbytes:
                rest = rest[self._file.write(rest) :]

    def write_at(self, start: int, data: memoryview) -> None:
        """Write content to its place."""
        assert self._file is not None
        with self._explained():
            rest = data
            while rest.nbytes:
                written = os.pwrite(self._file.fileno(), rest, start)
                rest, start = rest[written:], start + written

    def commit_as(self, ref: Ref, final: Path, until: float) -> None:
        """Give it the name of what it turned out to be."""
        self._ref, self._final, self._until = ref, final, until
        with self._explained():
            make_private(final.parent)
        self.commit()

    def commit(self) -> None:
        """Give it its name."""
        assert self._file is not None
        with self._explained():
            self._file.close()
            self._file = None
            os.utime(self._path, (time.time(), self._until))
            self._path.replace(self._final)
        self._sync(self._final)

    def abort(self) -> None:
        """Remove what isn't finished; nothing if it is."""
        if self._file is not None:
            self._file.close()
            self._file = None
        with contextlib.suppress(OSError):
            self._path.unlink()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            self.abort()
            raise BlobNotStored(f"{described(self._ref)} can't be kept in {self._path.parent}: {exc.strerror}") from exc


class SpilledFile:
    """A buffer that is written to a file while its digest is reckoned; the file goes if nobody asks for it."""

    def __init__(self, store: BlobStore, size: int) -> None:
        self._store = store
        self._lock = threading.Lock()  # on the file, which is closed when something goes wrong
        self._error: BlobNotStored | None = None
        self._unfinished = store.begin(Ref(f"{id(self):032x}", size), time.time() + SPARED_S)

    def __del__(self) -> None:
        if hasattr(self, "_unfinished"):
            self._unfinished.abort()

    def write(self, start: int, part: memoryview) -> None:
        """Write a part; what goes wrong is said by `commit`."""
        with self._lock:
            if self._error is None:
                try:
                    self._unfinished.write_at(start, part)
                except BlobNotStored as exc:
                    self._error = exc

    def commit(self, ref: Ref, until: float) -> None:
        """Give the file its blob's name.

        Raises:
            BlobNotStored: there is no room for it.
        """
        if self._error is not None:
            raise self._error
        if not self._store.keep(ref, until):
            self._unfinished.commit_as(ref, self._store.path(ref), until)


class BlobBackend(Protocol):
    """Is what blobs need of a backend. Every method may raise `BackendUnavailable`."""

    def keep_blobs(self, sizes: Mapping[str, int], until: float) -> set[str]:
        """Let blobs stay until `until` at least; return those that are there, whole."""

    def store_blob(self, digest: str, first: int, parts: Sequence[bytes], until: float) -> None:
        """Keep parts of a blob, from number `first` on."""

    def seal_blob(self, digest: str, size: int, until: float) -> None:
        """Say that all parts of a blob are there."""

    def load_blob(self, digest: str, first: int, count: int) -> list[bytes | None]:
        """Return parts of a blob."""


class Upload:
    """Brings one blob from the store to the backend, some parts at a time."""

    def __init__(self, store: BlobStore, backend: BlobBackend, ref: Ref, until: float) -> None:
        self._store = store
        self._backend = backend
        self._ref = ref
        self._until = until
        self._next = -1

    def step(self) -> bool:
        """Bring the next parts; tell whether all is done. After an error it can be tried again.

        Raises:
            BlobMissing: the store has lost it.
        """
        ref = self._ref
        if self._next < 0:
            if self._backend.keep_blobs({ref.digest: ref.size}, self._until):
                return True
            self._next = 0
        with self._store.read(ref) as data:
            starts = range(self._next * PART_BYTES, ref.size, PART_BYTES)[:PARTS_AT_ONCE]
            parts = [bytes(data[start : start + PART_BYTES]) for start in starts]
        self._backend.store_blob(ref.digest, self._next, parts, self._until)
        self._next += len(parts)
        if self._next * PART_BYTES < ref.size:
            return False
        self._backend.seal_blob(ref.digest, ref.size, self._until)
        return True


class Download:
    """Brings one blob from the backend to the store, some parts at a time."""

    def __init__(self, store: BlobStore, backend: BlobBackend, ref: Ref, until: float) -> None:
        self._store = store
        self._backend = backend
        self._ref = ref
        self._until = until
        self._next = 0
        self._digest = Digest()
        self._file: Unfinished | None = None

    def step(self) -> bool:
        """Bring the next parts; tell whether all is done. After `BackendUnavailable` it can be tried again.

        Raises:
            BlobMissing: the backend doesn't have it, or what it has is something else.
            BlobNotStored: there is no room for it here.
        """
        ref = self._ref
        if self._file is None:
            if not self._backend.keep_blobs({ref.digest: ref.size}, 0.0):
                raise BlobMissing(f"{described(ref)} is gone from the backend")
            self._file = self._store.begin(ref, self._until)
        count = min(PARTS_AT_ONCE, -(-ref.size // PART_BYTES) - self._next)
        for part in self._backend.load_blob(ref.digest, self._next, count):
            if part is None:
                raise BlobMissing(f"{described(ref)} is gone from the backend")
            self._digest.update(part)
            self._file.write(part)
            self._next += 1
        if self._next * PART_BYTES < ref.size:
            return False
        if self._digest.hexdigest() != ref.digest:
            raise BlobMissing(f"{described(ref)} is not whole any more in the backend")
        self._file.commit()
        return True

    def close(self) -> None:
        """Leave it, done or not."""
        if self._file is not None:
            self._file.abort()


class Blobs:
    """What a client has of blobs: files of this host, and for other hosts the backend.

    Args:
        store: the files.
        backend: where blobs travel; None where all workers share the files.
    """

    def __init__(self, store: BlobStore, backend: BlobBackend | None) -> None:
        self.store = store
        self.backend = backend

    def save(self, blobs: Mapping[Ref, memoryview], until: float, spilled: Mapping[Ref, Spilled] = _NONE) -> None:
        """Keep blobs where workers find them, until `until` (Unix seconds) at least.

        Raises:
            BlobNotStored: there is no room.
            BackendUnavailable: the backend does not answer.
        """
        self.store.save(blobs, until, spilled)
        if self.backend is None or not blobs:
            return
        there = self.backend.keep_blobs({ref.digest: ref.size for ref in blobs}, until)
        for ref in blobs:
            if ref.digest not in there:
                upload = Upload(self.store, self.backend, ref, until)
                while not upload.step():
                    pass

    def keep(self, refs: Iterable[Ref], until: float) -> None:
        """Let blobs stay until `until` (Unix seconds) at least, those that are still here."""
        found = {ref.digest: ref.size for ref in refs if self.store.keep(ref, until) or self.backend is not None}
        if self.backend is not None and found:
            self.backend.keep_blobs(found, until)

    def read(self, ref: Ref) -> memoryview:
        """Return a blob's content.

        Raises:
            BlobMissing: nobody has it any more.
            BackendUnavailable: the backend does not answer.
        """
        if self.backend is not None and not self.store.keep(ref, 0.0):
            download = Download(self.store, self.backend, ref, time.time() + 86_400.0)
            try:
                while not download.step():
                    pass
            finally:
                download.close()
        return self.store.read(ref)


def described(ref: Ref) -> str:
    """Return what an error calls a blob."""
    size = f"{ref.size / 1e6:,.1f} MB" if ref.size >= 100_000 else f"{ref.size / 1e3:,.1f} kB"
    return f"a part of {size} ({ref.digest[:12]})"


def _booted_at() -> float:
    """Return when this machine was started, Unix seconds; 0.0 where that isn't known, so that nothing is checked."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.time() - time.clock_gettime(clock)


def _sample(data: memoryview) -> bytes:
    """Return what tells one large buffer from another in most cases, and is soon made."""
    steps = range(0, data.nbytes, max(1, data.nbytes // _SAMPLES))
    pieces = b"".join(data[start : start + _SAMPLE_BYTES] for start in steps)
    return hashlib.sha256(pieces + data.nbytes.to_bytes(8, "big")).digest()
