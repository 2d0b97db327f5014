"""The disk is full: what doesn't fit fails by name, what was begun leaves nothing behind, and work goes on."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from nbqueue.deliveries import QueueSize
from nbqueue.exceptions import BlobNotStored
from tests.faults.test_messages import still_works
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(60)]

DISK_BYTES = 4 << 20
TOO_LARGE = 1 << 20  # of float64: twice the disk
FITS = DISK_BYTES // 4 // 8


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield the directory of a disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk, and not in every container")
    try:
        yield folder
    finally:
        # what a process that just ended had mapped keeps it busy for a moment
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def large_files(folder: Path) -> list[Path]:
    """Return the files of arrays, finished or not; code is smaller."""
    return sorted(path for path in folder.glob("**/blobs/**/*") if path.is_file() and path.stat().st_size > FITS)


def ramp(n: int) -> object:
    return np.arange(n, dtype=float)


def total(array: object) -> float:
    return float(np.asarray(array).sum())


def test_result_that_the_disk_has_no_room_for_is_a_named_failure_and_the_worker_goes_on(site: Site, disk: Path) -> None:
    worker = site.worker(home=disk)
    task = site.app.task(ramp, by_value=True)
    with pytest.raises(BlobNotStored, match=rf"8\.4 MB .*can't be kept in {disk}.*: No space left on device"):
        task.delay(TOO_LARGE).get(timeout=20)
    assert large_files(disk) == [], "what was begun is removed, and makes room"
    assert len(task.delay(FITS).get(timeout=20)) == FITS
    assert still_works(site)
    assert worker.process.poll() is None


def test_argument_that_the_workers_disk_has_no_room_for_is_a_named_failure(site: Site, disk: Path) -> None:
    worker = site.worker(home=disk)
    task = site.app.task(total, by_value=True)
    with pytest.raises(BlobNotStored, match=rf"can't be kept in {disk}.*: No space left on device"):
        task.delay(np.ones(TOO_LARGE)).get(timeout=20)
    assert large_files(disk) == []
    assert task.delay(np.ones(FITS)).get(timeout=20) == FITS
    assert worker.process.poll() is None


def test_argument_that_the_callers_disk_has_no_room_for_is_refused_before_anything_is_sent(
    site: Site, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBQUEUE_HOME", str(disk))
    app = site.new_app(by_value=True)
    task = app.task(total)
    with pytest.raises(BlobNotStored, match=rf"Not sent: .*total.*can't be kept in {disk}.*: No space left on device"):
        task.delay(np.ones(TOO_LARGE))
    with pytest.raises(BlobNotStored, match="Not sent"):
        task.map([np.ones(TOO_LARGE)] * 3)
    assert site.app.broker.size("nbqueue") == QueueSize(0, 0, 0)
    assert list(site.streams.client.scan_iter("celery-task-meta-*")) == []
    assert list(site.streams.client.scan_iter("nbq:group:*")) == []
    assert large_files(disk) == []
    site.worker()
    assert task.delay(np.ones(FITS)).get(timeout=20) == FITS
    app.close()


def test_result_beyond_a_limit_of_file_sizes_is_a_named_failure_and_the_worker_goes_on(site: Site) -> None:
    worker = site.worker()
    for process in [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))
    task = site.app.task(ramp, by_value=True)
    before = large_files(site.app.link.directory)
    with pytest.raises(BlobNotStored, match=r"can't be kept in .*: File too large"):
        task.delay(TOO_LARGE).get(timeout=20)
    assert large_files(site.app.link.directory) == before
    assert len(task.delay(FITS).get(timeout=20)) == FITS
    assert still_works(site)
    assert worker.process.poll() is None
