from __future__ import annotations

import hashlib
import os
import threading

import pytest

from nbqueue import digests
from nbqueue.digests import LEAF_BYTES, Digest, digest_of

SIZES = [0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 2 * LEAF_BYTES, 5 * LEAF_BYTES + 7]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1 << 20, LEAF_BYTES, LEAF_BYTES + 4095])
def test_digest_is_the_same_when_content_comes_in_parts(size: int, step: int) -> None:
    data = os.urandom(size)
    digest = Digest()
    for start in range(0, size, step):
        digest.update(data[start : start + step])
    assert digest.hexdigest() == digest_of(memoryview(data))


@pytest.mark.parametrize("lanes", [1, 2, 9])
def test_digest_is_the_same_when_other_threads_help(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = memoryview(bytes(range(256)) * (3 * LEAF_BYTES // 256) + b"end")
    monkeypatch.setattr(digests, "LANES", lanes)
    assert digest_of(data) == "abe5ad76de6d30a2572caf4463dcab8b242f9e1b2836eebce6ffdeae12806010"


def test_digest_is_sha256_when_content_is_no_larger_than_a_leaf() -> None:
    data = os.urandom(LEAF_BYTES)
    assert digest_of(memoryview(data)) == hashlib.sha256(data).hexdigest()


def test_digest_of_large_content_is_not_that_of_its_leaves_digests() -> None:
    data = os.urandom(2 * LEAF_BYTES)
    leaves = [hashlib.sha256(data[start : start + LEAF_BYTES]).digest() for start in (0, LEAF_BYTES)]
    assert digest_of(memoryview(data)) != digest_of(memoryview(b"".join(leaves)))


def test_digest_changes_when_leaves_change_places() -> None:
    one, other = os.urandom(LEAF_BYTES), os.urandom(LEAF_BYTES)
    assert digest_of(memoryview(one + other)) != digest_of(memoryview(other + one))


def test_every_part_is_used_once_when_something_is_done_with_each() -> None:
    data = os.urandom(6 * LEAF_BYTES + 3)
    parts: dict[int, bytes] = {}

    def use(start: int, part: memoryview) -> None:
        assert start not in parts
        parts[start] = bytes(part)

    digest_of(memoryview(data), use)
    assert b"".join(parts[start] for start in sorted(parts)) == data


def test_threads_have_ended_when_it_is_interrupted() -> None:
    before = threading.active_count()
    interrupted = threading.Event()
    used = []

    def use(start: int, _: memoryview) -> None:
        used.append(start)
        if threading.current_thread() is threading.main_thread():
            interrupted.set()
            raise KeyboardInterrupt
        interrupted.wait(10.0)

    with pytest.raises(KeyboardInterrupt):
        digest_of(memoryview(bytes(32 * LEAF_BYTES)), use)
    assert threading.active_count() == before
    assert len(used) < 32
