"""What a supervisor fetches before a task can run, and brings away once it has ended: large data, part by part.

A turn of the supervisor's loop moves a few megabytes at most, so that leases are renewed in between.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nbqueue.blobs import BlobBackend, BlobStore, Download, Upload, described
from nbqueue.exceptions import BlobMissing, BlobNotStored, NBQueueError
from nbqueue.payloads import Ref

DAY_S = 86_400.0


@dataclass(slots=True)
class _Job:
    refs: deque[Ref]
    done: Callable[[NBQueueError | None], None]
    outward: bool
    moving: Upload | Download | None = field(default=None)


class Transfers:
    """Moves blobs between this machine's store and the backend.

    Args:
        store: the files of this machine.
        backend: where blobs travel; None where everybody shares the files.
        keep_s: how long what is brought away is kept.
    """

    def __init__(self, store: BlobStore, backend: BlobBackend | None, keep_s: float) -> None:
        self.store = store
        self.backend = backend
        self.keep_s = keep_s
        self._jobs: deque[_Job] = deque()

    @property
    def busy(self) -> bool:
        """Tell whether there is anything left to move."""
        return bool(self._jobs)

    def fetch(self, refs: Iterable[Ref], done: Callable[[NBQueueError | None], None]) -> bool:
        """Make blobs be here; return True if they are, else call `done` once they are, or can't be had."""
        missing = [ref for ref in refs if not self.store.keep(ref, 0.0)]
        if not missing:
            return True
        if self.backend is None:
            done(BlobMissing(f"{described(missing[0])} is gone from {self.store.directory}"))
        else:
            self._jobs.append(_Job(deque(missing), done, outward=False))
        return False

    def send(self, refs: Iterable[Ref], done: Callable[[NBQueueError | None], None]) -> bool:
        """Make blobs be where others find them; return True if they are, else call `done` once they are."""
        pending = deque(refs)
        if self.backend is None or not pending:
            return True
        self._jobs.append(_Job(pending, done, outward=True))
        return False

    def step(self) -> None:
        """Move some parts of one blob; those that wait take turns.

        Raises:
            BackendUnavailable: it can be tried again.
        """
        if not self._jobs:
            return
        job = self._jobs[0]
        try:
            finished = self._move(job)
        except (BlobMissing, BlobNotStored) as exc:
            if isinstance(job.moving, Download):
                job.moving.close()
            self._jobs.popleft()
            job.done(exc)
            return
        self._jobs.popleft()
        if not finished:
            self._jobs.append(job)
            return
        job.done(None)

    def close(self) -> None:
        """Leave what is under way."""
        for job in self._jobs:
            if isinstance(job.moving, Download):
                job.moving.close()
        self._jobs.clear()

    def _move(self, job: _Job) -> bool:
        assert self.backend is not None
        if job.moving is None:
            ref, now = job.refs[0], time.time()
            if job.outward:
                job.moving = Upload(self.store, self.backend, ref, now + self.keep_s)
            elif self.store.keep(ref, 0.0):  # it came for another task meanwhile
                job.refs.popleft()
                return not job.refs
            else:
                job.moving = Download(self.store, self.backend, ref, now + DAY_S)
        if job.moving.step():
            job.moving = None
            job.refs.popleft()
        return not job.refs
