from __future__ import annotations

import errno
import gc
import os
import pickle
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbqueue import blobs as blobs_module
from nbqueue.backends.memory import MemoryBackend
from nbqueue.blobs import PART_BYTES, PARTS_AT_ONCE, Blobs, BlobStore, Download, Upload
from nbqueue.digests import digest_of
from nbqueue.exceptions import BlobMissing, BlobNotStored
from nbqueue.payloads import SPILL_BYTES, Packer, Ref
from tests.helpers import wait_until

LONG = 9e9  # a time that doesn't come


def ref_of(data: bytes) -> Ref:
    return Ref(digest_of(memoryview(data)), len(data))


def put(store: BlobStore, data: bytes, until: float = LONG) -> Ref:
    ref = ref_of(data)
    store.write(ref, memoryview(data), until)
    return ref


def file_of(store: BlobStore, ref: Ref) -> Path:
    return store.directory / ref.digest[:2] / ref.digest


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_store_returns_what_it_was_given(store: BlobStore, size: int) -> None:
    data = os.urandom(size)
    assert store.read(put(store, data)) == data


def test_content_may_be_written_to_and_the_next_reader_does_not_see_it(store: BlobStore) -> None:
    for size in (100_000, 3_000_000):
        ref = put(store, bytes(size))
        store.read(ref)[0] = 1
        assert store.read(ref)[0] == 0


def test_files_are_readable_by_their_user_only(store: BlobStore) -> None:
    ref = put(store, b"x" * 100_000)
    assert stat.S_IMODE(file_of(store, ref).stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(store.directory.stat().st_mode) & 0o077 == 0


def test_missing_blob_is_named_with_its_size(store: BlobStore) -> None:
    with pytest.raises(BlobMissing, match=r"3\.0 MB.*gone"):
        store.read(Ref("0" * 64, 3_000_000))


def test_file_that_was_cut_short_is_missing(store: BlobStore) -> None:
    ref = put(store, b"x" * 100_000)
    path = file_of(store, ref)
    path.chmod(0o600)
    os.truncate(path, 50)
    with pytest.raises(BlobMissing):
        store.read(ref)
    put(store, b"x" * 100_000)
    assert len(store.read(ref)) == 100_000


def test_content_stays_readable_while_its_file_is_removed(store: BlobStore) -> None:
    ref = put(store, b"x" * 3_000_000)
    content = store.read(ref)
    file_of(store, ref).unlink()
    assert content[2_999_999] == ord("x")


def test_keeping_extends_and_never_shortens(store: BlobStore) -> None:
    now = time.time()
    ref = put(store, b"x" * 100_000, now + 100)
    assert store.keep(ref, now + 200)
    assert store.keep(ref, now + 50)
    assert store.clean(now + 150, 10**12) == 0
    assert store.clean(now + 201, 10**12) == 100_000
    assert not store.keep(ref, now + 300)


def test_writing_again_extends(store: BlobStore) -> None:
    now = time.time()
    put(store, b"x" * 100_000, now + 100)
    put(store, b"x" * 100_000, now + 200)
    assert store.clean(now + 150, 10**12) == 0


def test_cleaning_makes_room_with_what_was_of_no_use_for_longest(store: BlobStore) -> None:
    now = time.time()
    refs = [put(store, bytes([n]) * 100_000) for n in range(4)]
    for age, ref in zip((4, 3, 2, 0), refs, strict=True):
        os.utime(file_of(store, ref), (now - age * 3_600 - 1, LONG))
    assert store.clean(now, 250_000) == 200_000
    assert [store.keep(ref, 0) for ref in refs] == [False, False, True, True]


def test_cleaning_spares_what_was_of_use_lately(store: BlobStore) -> None:
    refs = [put(store, bytes([n]) * 100_000) for n in range(4)]
    assert store.clean(time.time(), 0) == 0
    assert all(store.keep(ref, 0) for ref in refs)


def test_cleaning_removes_what_a_killed_process_left_unfinished(store: BlobStore) -> None:
    program = """
import os, sys
from pathlib import Path
from nbqueue.blobs import BlobStore
from nbqueue.payloads import SPILL_BYTES, Packer, Ref
BlobStore(Path(sys.argv[1])).begin(Ref("a" * 64, 9), 0.0).write(b"x")
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", program, str(store.directory)], check=False, timeout=60)
    left = list(store.directory.glob("*/.*"))
    assert len(left) == 1
    store.clean(time.time(), 10**12)
    assert left[0].exists()  # it may still be written
    os.utime(left[0], (0, time.time() - 7_200))
    store.clean(time.time(), 10**12)
    assert not left[0].exists()


def test_disk_that_is_full_is_named_and_leaves_nothing(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nbqueue.blobs.os.utime", full)
    with pytest.raises(BlobNotStored, match=r"0\.1 MB.*No space left on device"):
        put(store, b"x" * 100_000)
    assert list(store.directory.glob("*/.*")) == []


def test_directory_that_can_not_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BlobNotStored, match="file"):
        put(BlobStore(tmp_path / "file"), b"x" * 100_000)


def test_files_are_marked_once_they_are_on_the_disk(store: BlobStore) -> None:
    ref = put(store, b"x" * 100_000)
    wait_until(lambda: not file_of(store, ref).stat().st_mode & 0o200, 10, "the file to be synced")


@pytest.mark.parametrize("whole", [True, False])
def test_file_that_may_not_have_reached_the_disk_before_a_crash_is_looked_at(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    ref = put(store, b"x" * 100_000)
    path = file_of(store, ref)
    wait_until(lambda: not path.stat().st_mode & 0o200, 10, "the file to be synced")
    path.chmod(0o600)  # as it was before
    if not whole:
        path.write_bytes(bytes(100_000))
    monkeypatch.setattr(blobs_module, "_booted_at", lambda: time.time() + 1)
    assert store.keep(ref, 0) is whole
    assert path.exists() is whole


def test_blob_travels_through_a_backend_in_parts(tmp_path: Path) -> None:
    backend = MemoryBackend()
    here, there = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "there")
    data = os.urandom(PART_BYTES * (PARTS_AT_ONCE + 1) + 17)
    ref = ref_of(data)
    Blobs(here, backend).save({ref: memoryview(data)}, time.time() + 60)
    assert Blobs(there, backend).read(ref) == data
    assert there.read(ref) == data


def test_blob_that_the_backend_has_is_not_sent_again(tmp_path: Path) -> None:
    backend = MemoryBackend()
    data = os.urandom(100_000)
    ref = ref_of(data)
    blobs = Blobs(BlobStore(tmp_path / "here"), backend)
    blobs.save({ref: memoryview(data)}, time.time() + 60)
    backend.store_blob = None  # type: ignore[assignment]
    blobs.save({ref: memoryview(data)}, time.time() + 90)


def test_blob_that_was_changed_on_its_way_is_refused_and_not_kept(tmp_path: Path) -> None:
    backend, store = MemoryBackend(), BlobStore(tmp_path / "there")
    ref = ref_of(b"right" * 20_000)
    backend.store_blob(ref.digest, 0, [b"wrong" * 20_000], LONG)
    backend.seal_blob(ref.digest, ref.size, LONG)
    with pytest.raises(BlobMissing, match="not whole"):
        Blobs(store, backend).read(ref)
    assert list(store.directory.glob("*/*")) == []


def test_blob_whose_part_is_gone_is_missing_and_leaves_no_file(tmp_path: Path) -> None:
    backend, store = MemoryBackend(), BlobStore(tmp_path / "there")
    ref = Ref("a" * 64, 3 * PART_BYTES)
    backend.store_blob(ref.digest, 0, [bytes(PART_BYTES)], LONG)
    backend.seal_blob(ref.digest, ref.size, LONG)
    download = Download(store, backend, ref, LONG)
    with pytest.raises(BlobMissing, match="gone"):
        download.step()
    download.close()
    assert list(store.directory.glob("*/.*")) == []


def test_upload_goes_on_where_an_outage_stopped_it(tmp_path: Path) -> None:
    store, backend = BlobStore(tmp_path / "here"), MemoryBackend()
    data = os.urandom(PART_BYTES * (2 * PARTS_AT_ONCE + 1))
    ref = put(store, data)
    upload = Upload(store, backend, ref, LONG)
    assert not upload.step()
    working, backend.store_blob = backend.store_blob, None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        upload.step()
    backend.store_blob = working  # type: ignore[method-assign]
    while not upload.step():
        pass
    assert Blobs(BlobStore(tmp_path / "there"), backend).read(ref) == data


def packed(store: BlobStore, data: bytes) -> Packer:
    packer = Packer(spill=store.spill)
    packer.pack(pickle.dumps(pickle.PickleBuffer(data), 5, buffer_callback=packer.keep))
    return packer


def files(store: BlobStore) -> list[str]:
    return [path.name for path in store.directory.glob("*/*")]


def test_large_buffer_is_written_while_its_digest_is_reckoned(store: BlobStore) -> None:
    data = os.urandom(SPILL_BYTES + 1)
    packer = packed(store, data)
    assert list(packer.spilled) == [ref_of(data)]
    store.save(packer.blobs, LONG, packer.spilled)
    assert store.read(ref_of(data)) == data
    assert files(store) == [ref_of(data).digest]
    again = packed(store, data)
    assert not again.spilled
    store.save(again.blobs, LONG, again.spilled)
    other = os.urandom(SPILL_BYTES + 1)  # of the same size
    packer = packed(store, other)
    assert packer.spilled
    store.save(packer.blobs, LONG, packer.spilled)
    assert store.read(ref_of(other)) == other


def test_buffer_that_is_not_sent_after_all_leaves_nothing(store: BlobStore) -> None:
    packer = packed(store, os.urandom(3 * SPILL_BYTES))
    del packer
    gc.collect()
    assert files(store) == []


def test_buffer_that_is_here_already_is_not_kept_twice(store: BlobStore) -> None:
    data = os.urandom(SPILL_BYTES)
    put(BlobStore(store.directory), data)
    packer = packed(store, data)
    store.save(packer.blobs, LONG, packer.spilled)
    del packer
    assert files(store) == [ref_of(data).digest]


def test_buffer_that_no_room_is_left_for_is_named(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "pwrite", refuse)
    packer = packed(store, os.urandom(3 * SPILL_BYTES))
    with pytest.raises(BlobNotStored, match="no room"):
        store.save(packer.blobs, LONG, packer.spilled)
    del packer
    assert files(store) == []
