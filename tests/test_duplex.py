"""`nbqueue.duplex`: what goes over the socket comes out at the other end, in whatever pieces."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from nbqueue.duplex import (
    CODES_KEPT,
    Cancel,
    Cancelled,
    Duplex,
    Ended,
    Refused,
    Said,
    SentCalls,
    ToOwner,
    encode,
    keep_code,
)

PAIR = tuple[Duplex, Duplex]


@pytest.fixture
def pair() -> Iterator[PAIR]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    owner, worker = Duplex(ours, owner=True), Duplex(theirs, owner=False)
    yield owner, worker
    owner.close()
    worker.close()


def test_messages_arrive_in_order_both_ways(pair: PAIR) -> None:
    owner, worker = pair
    there: list[SentCalls | Cancel] = [
        SentCalls(b"{}", b"code", [b"1", b""], 2),
        Cancel(1, ["a-0"]),
        SentCalls(b"{}", b"", []),
    ]
    for one in there:
        owner.send(one)
    assert worker.receive() == there
    back: list[ToOwner] = [Ended("a", [1, 0], [b"x", b""]), Said([b"{}"]), Cancelled(1, []), Refused("a-1", "why")]
    for said in back:
        worker.put(said, 0.0)
    assert owner.receive() == back


def test_message_may_come_in_pieces(pair: PAIR) -> None:
    owner, worker = pair
    data = encode(Cancel(7, ["a-0"]))
    framed = len(data).to_bytes(4, "big") + data
    for at in range(len(framed)):
        assert worker.receive() == []
        owner.sock.sendall(framed[at : at + 1])
    assert worker.receive() == [Cancel(7, ["a-0"])]


def test_message_that_is_larger_than_the_socket_arrives_whole(pair: PAIR) -> None:
    owner, worker = pair
    large = SentCalls(b"{}", b"", [bytes(30_000_000)])
    thread = threading.Thread(target=owner.send, args=(large,))
    thread.start()
    got: list[SentCalls] = []
    while not got:
        got = worker.receive()
    thread.join()
    assert got == [large]


def test_message_that_fills_a_read_to_the_last_byte_is_not_kept_back(pair: PAIR) -> None:
    owner, worker = pair
    whole = 1 << 18
    empty = len(encode(Said([bytes(100_000)]))) - 100_000 + 4
    worker.put(Said([bytes(whole - empty)]), 0.0)
    owner.sock.settimeout(5.0)
    assert owner.receive() == [Said([bytes(whole - empty)])]


def test_what_finds_no_room_is_kept_and_sent_later(pair: PAIR) -> None:
    owner, worker = pair
    sent = [Ended("a", [n], [bytes(1_000_000)]) for n in range(20)]
    for one in sent:
        worker.put(one, 0.0)  # nobody reads
    got: list[Ended] = []
    while len(got) < len(sent):
        worker.flush()
        got += owner.receive()
    assert got == sent


def test_end_of_the_other_side_is_seen_after_what_it_said(pair: PAIR) -> None:
    owner, worker = pair
    worker.put(Said([b"{}"]), 0.0)
    worker.close()
    assert owner.receive() == [Said([b"{}"])]
    assert owner.receive() == []
    assert owner.closed
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        owner.send(Cancel(1, []))


def test_nothing_is_sent_to_a_side_that_is_gone(pair: PAIR) -> None:
    owner, worker = pair
    owner.close()
    worker.put(Said([b"{}"]), 1.0)
    worker.flush(1.0)
    assert worker.closed


@pytest.mark.parametrize("data", [b"\x00", b"\x91\xa1x", encode(Ended("a", [0], [b""]))])
def test_what_is_no_message_is_an_error_and_the_next_one_is_read(pair: PAIR, data: bytes) -> None:
    owner, worker = pair
    owner.sock.sendall(len(data).to_bytes(4, "big") + data)
    owner.send(Cancel(1, []))
    with pytest.raises(msgspec.DecodeError):
        worker.receive()
    assert worker.receive() == [Cancel(1, [])]


def test_both_sides_keep_the_same_codes() -> None:
    owner: dict[str, bytes] = {}
    worker: dict[str, bytes] = {}
    for n in [*range(CODES_KEPT + 20), 0, 5, *range(60, 200)]:
        digest = str(n)
        code = b"" if digest in owner else digest.encode()
        keep_code(owner, digest, b"")
        keep_code(worker, digest, code)
        assert worker[digest] == digest.encode()
    assert list(owner) == list(worker)
    assert len(owner) == CODES_KEPT
