from __future__ import annotations

import hashlib
import pickle

import msgspec
import pytest

from nbqueue.exceptions import BadMessage
from nbqueue.payloads import BLOB_BYTES, Packer, Ref, named, no_blobs, parts
from nbqueue.serialization import dumps_args, dumps_value, loads, loads_args

numpy = pytest.importorskip("numpy")


def reader(packer: Packer) -> dict[Ref, memoryview]:
    """Return copies of a packer's blobs, as a store would have them."""
    return {ref: memoryview(bytearray(data)) for ref, data in packer.blobs.items()}


def test_small_payload_is_a_plain_pickle() -> None:
    packer = Packer()
    payload = dumps_value({"a": numpy.arange(10)}, packer)
    assert pickle.loads(payload)["a"].sum() == 45
    assert (named(payload), packer.blobs, packer.size) == ((), {}, 0)


def test_large_array_travels_beside_its_pickle_and_can_be_written_to() -> None:
    packer = Packer()
    array = numpy.arange(100_000)
    payload = dumps_value([array, "x"], packer)
    assert len(payload) < 500
    assert named(payload) == (Ref(hashlib.sha256(array.tobytes()).hexdigest(), array.nbytes),)
    back, other = loads(payload, reader(packer).__getitem__)
    back += 1
    assert (back.sum(), other) == (array.sum() + array.size, "x")


def test_small_array_that_was_read_back_can_be_written_to() -> None:
    back = loads(dumps_value(numpy.zeros(10), Packer()))
    back += 1
    assert back.sum() == 10


@pytest.mark.parametrize("value", ["x" * BLOB_BYTES, b"y" * BLOB_BYTES, list(range(BLOB_BYTES))])
def test_large_pickle_is_a_blob_itself(value: object) -> None:
    packer = Packer()
    payload = dumps_value(value, packer)
    assert len(payload) < 200
    assert loads(payload, reader(packer).__getitem__) == value


def test_large_json_is_a_blob_too() -> None:
    packer = Packer()
    payload = dumps_args(("x" * BLOB_BYTES,), {"n": 1}, "json", packer)
    assert len(payload) < 200
    assert loads_args(payload, "json", reader(packer).__getitem__) == (("x" * BLOB_BYTES,), {"n": 1})


def test_array_that_is_not_contiguous_arrives_all_the_same() -> None:
    packer = Packer()
    array = numpy.arange(200_000).reshape(100, 2000)[::2, ::3]
    back = loads(dumps_value(array, packer), reader(packer).__getitem__)
    assert (back == array).all()


def test_what_is_sent_often_is_kept_once() -> None:
    packer = Packer()
    array = numpy.arange(100_000)
    payloads = [dumps_args((array, number), {}, packer=packer) for number in range(50)]
    assert len(packer.blobs) == 1
    assert packer.size == array.nbytes
    read = reader(packer).__getitem__
    assert [loads_args(payload, read=read)[0][1] for payload in payloads] == list(range(50))


def test_parts_of_one_buffer_are_told_apart() -> None:
    base = bytearray(3 * BLOB_BYTES)
    base[0], base[BLOB_BYTES] = 1, 2
    one, two = (pickle.PickleBuffer(memoryview(base)[n * BLOB_BYTES : (n + 1) * BLOB_BYTES]) for n in (0, 1))
    packer = Packer()
    payload = dumps_value([one, two], packer)
    back = loads(payload, reader(packer).__getitem__)
    assert [part[0] for part in back] == [1, 2]


def test_copies_of_what_is_kept_are_not_kept_too() -> None:
    packer = Packer()
    array = numpy.arange(100_000)
    for _ in range(3):
        dumps_value(array.copy(), packer)
    assert len(packer.blobs) == 1


def test_pickle_that_failed_leaves_no_buffers_behind() -> None:
    packer = Packer()
    with pytest.raises(TypeError):
        dumps_value([numpy.arange(100_000), (n for n in range(3))], packer)
    assert named(dumps_value(1, packer)) == ()


@pytest.mark.parametrize(
    "payload",
    [
        b"\x00",
        b"\x00nbq\x02rest",
        b"\x00nbq\x01" + b"\xff" * 20,
        b"\x00nbq\x01" + msgspec.msgpack.encode([b"", [["../../etc/passwd", 10]]]),
        b"\x00nbq\x01" + msgspec.msgpack.encode([b"", [["a" * 64, -1]]]),
        b"\x00nbq\x01" + msgspec.msgpack.encode([["A" * 64, 1], []]),
    ],
)
def test_head_that_no_packer_made_is_refused(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        named(payload)
    with pytest.raises(BadMessage):
        parts(payload, no_blobs)


def test_pandas_and_arrow_travel_without_a_copy_in_the_pickle() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": numpy.arange(100_000), "b": numpy.arange(100_000) * 0.5})
    packer = Packer()
    payload = dumps_value(frame, packer)
    assert len(payload) < 5_000
    back = loads(payload, reader(packer).__getitem__)
    assert back.equals(frame)
    back.loc[0, "a"] = 7
    assert back["a"][0] == 7
