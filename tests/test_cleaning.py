"""What `nbqueue clean` removes, and what it leaves alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nbqueue.cleaning import OLD_S, leftovers, remove
from nbqueue.embedded import Places
from tests.test_service import nbqueue


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Return places with something of each kind, all of it new."""
    found = Places.find({"NBQUEUE_HOME": str(tmp_path)})
    found.make()
    for folder in (found.workers, found.data / "blobs" / "ab"):
        folder.mkdir(parents=True)
    for path in (
        *(found.logs / name for name in ("server.log", "server.log.1", "local-1.log", "local-2.log", "worker.log")),
        *(found.workers / name for name in ("local-1.pid", "0123.json")),
        *(found.data / name for name in ("key", "key.123", ".nbqueue-abc", "connection.json", "lock")),
        found.data / "blobs" / "ab" / "abcd",
    ):
        path.write_bytes(b"x" * 1000)
    os.utime(found.data / "blobs" / "ab" / "abcd", (time.time(), time.time() + 3600))  # needed for an hour yet
    return found


def names(places: Places, now: float, most: int = 10**9) -> set[str]:
    return {found.path.name for found in leftovers(places, now, most)}


def test_what_is_new_or_needed_stays(places: Places) -> None:
    assert names(places, time.time()) == set()


def test_what_is_old_goes_but_for_keys_locks_and_logs_of_servers(places: Places) -> None:
    later = time.time() + OLD_S + 1
    old = {"server.log.1", "local-1.log", "local-2.log", "0123.json", "key.123", ".nbqueue-abc", "abcd"}
    assert names(places, later) == old
    for found in list(leftovers(places, later, 10**9)):
        assert remove(found)
        assert not remove(found)
    assert names(places, later) == set()
    assert (places.data / "key").exists()
    assert (places.data / "lock").exists()


def test_log_and_connection_file_of_a_living_worker_stay(places: Places) -> None:
    process = places.started()[0]
    held = process.take()
    assert held is not None
    try:
        assert {"local-1.log", "0123.json"} & names(places, time.time() + OLD_S + 1) == set()
    finally:
        os.close(held)


def test_large_data_beyond_its_limit_goes(places: Places) -> None:
    os.utime(places.data / "blobs" / "ab" / "abcd", (time.time() - 7200, time.time() + 7200))
    assert names(places, time.time(), 1000) == set()
    assert names(places, time.time(), 999) == {"abcd"}


def test_clean_shows_what_it_removes_and_a_dry_run_removes_nothing(places: Places, tmp_path: Path) -> None:
    blob = places.data / "blobs" / "ab" / "abcd"
    os.utime(blob, (0, 0))
    dry = nbqueue(tmp_path, "clean", "--dry-run", NBQUEUE_HOME=str(tmp_path))
    assert dry.stdout.splitlines() == [
        f"    1 KB  {blob}",
        "would be removed: 1 files, 1 KB: large data that nobody needs",
    ], dry.stderr
    assert blob.exists()
    assert "removed: 1 files" in nbqueue(tmp_path, "clean", NBQUEUE_HOME=str(tmp_path)).stdout
    assert not blob.exists()
    assert nbqueue(tmp_path, "clean", NBQUEUE_HOME=str(tmp_path)).stdout == f"Nothing to remove in {places.data}.\n"
