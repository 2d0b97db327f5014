from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nbqueue.backends.memory import MemoryBackend
from nbqueue.blobs import PART_BYTES, PARTS_AT_ONCE, Blobs, BlobStore
from nbqueue.digests import digest_of
from nbqueue.exceptions import BackendUnavailable, BlobMissing, NBQueueError
from nbqueue.payloads import Ref
from nbqueue.transfers import Transfers


def kept(store: BlobStore, size: int) -> Ref:
    data = os.urandom(size)
    ref = Ref(digest_of(memoryview(data)), size)
    store.write(ref, memoryview(data), time.time() + 60)
    return ref


@pytest.fixture
def here(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "there")


def test_what_is_here_needs_no_transfer(here: BlobStore) -> None:
    ref = kept(here, 10)
    transfers = Transfers(here, MemoryBackend(), 60)
    assert transfers.fetch([ref], lambda _: pytest.fail("called"))
    assert not transfers.busy


def test_what_nobody_can_have_is_said_at_once_where_all_share_the_files(here: BlobStore) -> None:
    told: list[NBQueueError | None] = []
    assert not Transfers(here, None, 60).fetch([Ref("a" * 64, 5)], told.append)
    assert isinstance(told[0], BlobMissing)


def test_nothing_is_sent_where_all_share_the_files(here: BlobStore) -> None:
    assert Transfers(here, None, 60).send([kept(here, 10)], lambda _: pytest.fail("called"))


def test_blobs_go_there_and_come_back_some_parts_a_step(here: BlobStore, there: BlobStore) -> None:
    backend = MemoryBackend()
    refs = [kept(here, PART_BYTES * PARTS_AT_ONCE * 2), kept(here, 10)]
    told: list[NBQueueError | None] = []
    out, back = Transfers(here, backend, 60), Transfers(there, backend, 60)
    assert not out.send(refs, told.append)
    steps = 0
    while out.busy:
        out.step()
        steps += 1
    assert told == [None]
    assert 3 <= steps <= 6
    assert not back.fetch(refs, told.append)
    while back.busy:
        back.step()
    assert told == [None, None]
    assert [there.read(ref) == here.read(ref) for ref in refs] == [True, True]


def test_small_transfers_need_not_wait_for_a_large_one(here: BlobStore, there: BlobStore) -> None:
    backend = MemoryBackend()
    large, small = kept(here, PART_BYTES * PARTS_AT_ONCE * 10), kept(here, 10)
    Blobs(here, backend).save({large: here.read(large), small: here.read(small)}, time.time() + 60)
    ended: list[str] = []
    transfers = Transfers(there, backend, 60)
    transfers.fetch([large], lambda _: ended.append("large"))
    transfers.fetch([small], lambda _: ended.append("small"))
    while transfers.busy:
        transfers.step()
    assert ended == ["small", "large"]


def test_two_tasks_that_want_the_same_fetch_it_once(here: BlobStore, there: BlobStore) -> None:
    backend = MemoryBackend()
    ref = kept(here, 10)
    Blobs(here, backend).save({ref: here.read(ref)}, time.time() + 60)
    told: list[NBQueueError | None] = []
    transfers = Transfers(there, backend, 60)
    for _ in range(2):
        transfers.fetch([ref], told.append)
    while transfers.busy:
        transfers.step()
    assert told == [None, None]


def test_outage_is_raised_and_the_transfer_goes_on_after(
    here: BlobStore, there: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MemoryBackend()
    ref = kept(here, PART_BYTES * PARTS_AT_ONCE * 2)
    Blobs(here, backend).save({ref: here.read(ref)}, time.time() + 60)
    told: list[NBQueueError | None] = []
    transfers = Transfers(there, backend, 60)
    transfers.fetch([ref], told.append)
    transfers.step()
    with monkeypatch.context() as away:

        def unavailable(*_: object) -> None:
            raise BackendUnavailable("away")

        away.setattr(backend, "load_blob", unavailable)
        with pytest.raises(BackendUnavailable):
            transfers.step()
    assert told == []
    while transfers.busy:
        transfers.step()
    assert told == [None]
    assert there.read(ref) == here.read(ref)


def test_what_is_gone_is_told_and_others_go_on(here: BlobStore, there: BlobStore) -> None:
    backend = MemoryBackend()
    ref = kept(here, 10)
    Blobs(here, backend).save({ref: here.read(ref)}, time.time() + 60)
    told: list[NBQueueError | None] = []
    transfers = Transfers(there, backend, 60)
    transfers.fetch([Ref("a" * 64, 5)], told.append)
    transfers.fetch([ref], told.append)
    while transfers.busy:
        transfers.step()
    assert isinstance(told[0], BlobMissing)
    assert told[1] is None


def test_closing_leaves_no_unfinished_file(here: BlobStore, there: BlobStore) -> None:
    backend = MemoryBackend()
    ref = kept(here, PART_BYTES * PARTS_AT_ONCE * 2)
    Blobs(here, backend).save({ref: here.read(ref)}, time.time() + 60)
    transfers = Transfers(there, backend, 60)
    transfers.fetch([ref], lambda _: None)
    transfers.step()
    assert list(there.directory.glob("*/.*"))
    transfers.close()
    assert not list(there.directory.glob("*/.*"))
