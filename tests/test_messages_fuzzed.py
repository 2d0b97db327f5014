"""Bytes from outside: whatever they are, each decoder says `BadMessage` or understands them, and does nothing else."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbqueue import states
from nbqueue.exceptions import BadMessage
from nbqueue.graph import Given, Graph, Join, Node, decode_given, encode_given, kinds_of, open_graph, sign_graph
from nbqueue.messages import (
    Again,
    Control,
    Facts,
    Failure,
    Message,
    Steering,
    Step,
    decode_again,
    decode_failure,
    encode_again,
    encode_failure,
    open_code,
    open_control,
    open_fact,
    open_facts,
    open_group,
    open_mark,
    open_stored,
    pack_body,
    sign_code,
    sign_control,
    sign_event,
    sign_group,
    sign_record,
    split_body,
)
from nbqueue.payloads import BLOB_BYTES, Packer, modules_of, named
from nbqueue.signing import KINDS, Signer

SIGNER: Final = Signer(b"k" * 32)
BODY: Final = pack_body(b"code", b"\x80\x05arguments")
STEERING: Final = Steering(id="i", nonce="n", task="os.system", queue="q", sent_at=1.5, label="naïve")
FACTS: Final = Facts(kind="record", id="i", at=2.5, state=states.FAILURE, nonce="n")
STEP: Final = Step("i", 1, 0, 1.5, 2.5)
GRAPH: Final = Graph(
    *("i", "n", "s", 1.5, {"d": b"code"}, kinds_of([STEERING])),
    (Node(0, b"args", (1,), (), 0, 0), Node(0, b"args", parent=0)),
    (Join((0,), (1,)),),
)
FAILURE: Final = encode_failure(Failure("OSError", "m", "t", b"cos\nsystem\n(S'true'\ntR."))


def open_session(text: bytes) -> None:
    for stored in open_facts(text):
        open_stored(stored, SIGNER)


def payload() -> bytes:
    return Packer().pack(b"x" * BLOB_BYTES, b"modules")


# name -> genuine bytes, what opens them, whether a signature covers each of them
DECODERS: Final[dict[str, tuple[bytes, Callable[[bytes], object], bool]]] = {
    "task": (
        Message.sign(STEERING, BODY, SIGNER).header.encode(),
        lambda text: Message.open(text, BODY, SIGNER),
        True,
    ),
    "call": (
        Message.sign_call("g", 7, BODY, SIGNER).header.encode(),
        lambda text: Message.open(text, BODY, SIGNER),
        True,
    ),
    "body": (
        BODY,
        lambda body: Message.open(Message.sign(STEERING, BODY, SIGNER).header, body, SIGNER),
        True,
    ),
    "order": (
        sign_control(Control(order="revoke", at=1.0, nonce="n", ids=("i",)), SIGNER).encode(),
        lambda text: open_control(text, SIGNER),
        True,
    ),
    # Celery's fields and JSON's blanks are covered by nothing, and steer nothing.
    "record": (sign_record(FACTS, FAILURE, SIGNER), lambda text: open_fact(text, SIGNER), False),
    "event": (
        sign_event(Facts(kind="output", id="i"), b"data", SIGNER),
        lambda text: open_fact(text, SIGNER),
        False,
    ),
    "session": (b"[" + sign_record(FACTS, FAILURE, SIGNER) + b"]", open_session, False),
    "map": (sign_group(STEERING, b"code", SIGNER), lambda text: open_group(text, SIGNER), False),
    "code": (sign_code("d", b"code", SIGNER), lambda text: open_code(text, "d", SIGNER), False),
    "canvas": (sign_graph(GRAPH, SIGNER), lambda text: open_graph(text, "i", SIGNER), False),
    "step": (
        Message.sign_step(STEP, "i-1", BODY, SIGNER).header.encode(),
        lambda text: Message.open(text, BODY, SIGNER),
        True,
    ),
    "given": (encode_given(Given("failed", "i", FAILURE, "FAILURE", "m")), decode_given, False),
    "mark": (
        sign_control(Control(order="revoke", at=1.0, nonce="n", ids=("i",)), SIGNER).encode(),
        lambda text: open_mark(text, "i", SIGNER),
        True,
    ),
    "frames": (BODY, split_body, False),
    "head": (payload(), lambda data: (named(data), modules_of(data)), False),
    "failure": (FAILURE, decode_failure, False),
    "again": (encode_again(Again(FAILURE, 2.5, 3, b"args")), decode_again, False),
}

HOSTILE: Final[dict[str, bytes]] = {
    "deep arrays": b"[" * 1_000_000,
    "deep objects": b'{"id":' * 200_000,
    "deep in a field": b'{"nbq":"x","other":' + b"[" * 1_000_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "many digits": b'{"id":"i","at":' + b"9" * 1_000_000 + b"}",
    "large exponent": b'{"terminate":1e999999999}',
    "many fields": b"{" + b",".join(b'"f%d":1' % n for n in range(50_000)) + b"}",
    "broken text": b'{"nbq":"\xff\xfe\xed\xa0\x80"}',
    "lone surrogate": b'{"nbq":"\\ud800"}',
    "array of 4 thousand million": b"\xdd\xff\xff\xff\xff",
    "map of 4 thousand million": b"\xdf\xff\xff\xff\xff",
    "bytes of 4 GB": b"\x94\xc6\xff\xff\xff\xff",
    "text of 4 GB": b"\xdb\xff\xff\xff\xff",
    "deep msgpack": b"\x91" * 1_000_000,
    "head of many": b"\x00nbq\x01\x92\xc4\x00\xdd\xff\xff\xff\xff",
    "deep head": b"\x00nbq\x01" + b"\x91" * 1_000_000,
    "head of a later version": b"\x00nbq\x02\x92\xc4\x00\x90",
    "frame of 4 GB": b"\xff\xff\xff\xffcode",
    "pickle": b"\x80\x05cthis\nisnt\n.",
}


@pytest.fixture(autouse=True)
def _nothing_is_imported() -> Iterator[None]:
    before = set(sys.modules)
    yield
    new = {name for name in set(sys.modules) - before if not name.startswith(("hypothesis", "_pytest", "encodings"))}
    assert not new


def opened(decode: Callable[[bytes], object], data: bytes) -> bool:
    """Tell whether it was understood; nothing but `BadMessage` may come out."""
    try:
        decode(data)
    except BadMessage:
        return False
    return True


@pytest.mark.parametrize("name", DECODERS)
def test_genuine_bytes_are_understood(name: str) -> None:
    genuine, decode, _ = DECODERS[name]
    assert opened(decode, genuine)


@pytest.mark.parametrize("name", DECODERS)
def test_bytes_cut_anywhere_or_with_any_bit_turned_are_refused_or_understood(name: str) -> None:
    genuine, decode, signed = DECODERS[name]
    understood = 0
    for at in range(len(genuine)):
        understood += opened(decode, genuine[:at])
        for bit in range(8):
            turned = bytearray(genuine)
            turned[at] ^= 1 << bit
            understood += opened(decode, bytes(turned))
    if signed:
        assert understood == 0


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_refused_in_little_memory(name: str, what: str) -> None:
    _, decode, signed = DECODERS[name]
    data = HOSTILE[what]
    tracemalloc.start()
    try:
        understood = opened(decode, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(data) + 300_000
    assert not (signed and understood)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"worker"}))
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_text_that_is_signed_is_refused_or_understood(kind: str, what: str) -> None:
    text = HOSTILE[what][:10_000]
    if text.isascii():
        open_signed(kind, text)


def open_signed(kind: str, text: bytes) -> None:
    """Open a text as what it was signed for."""
    stored = json.dumps({"nbq": SIGNER.sign(kind, text), "body": ""}).encode()
    header = SIGNER.sign(kind, text).encode()
    decode: dict[str, Callable[[bytes], object]] = {
        "task": lambda _: Message.open(header, b"", SIGNER),
        "call": lambda _: Message.open(header, b"", SIGNER),
        "control": lambda _: open_control(header, SIGNER),
        "step": lambda _: Message.open(header, b"", SIGNER),
        "group": lambda text: open_group(text, SIGNER),
        "graph": lambda text: open_graph(text, "i", SIGNER),
        "code": lambda text: open_code(text, "d", SIGNER),
        "record": lambda text: open_fact(text, SIGNER, kind="record"),
        "event": lambda text: open_fact(text, SIGNER, kind="event"),
    }
    opened(decode[kind], stored)


numbers = st.one_of(st.integers(), st.integers(-(10**40), 10**40), st.floats(allow_nan=False, allow_infinity=False))
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda part: st.one_of(st.lists(part, max_size=4), st.dictionaries(st.text(max_size=5), part, max_size=4)),
    max_leaves=8,
)
fields = st.sampled_from([*Steering.__struct_fields__, *Facts.__struct_fields__, *Control.__struct_fields__, "nbq"])
objects = st.one_of(st.dictionaries(fields, values, max_size=8), values)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(set(KINDS) - {"worker"})), objects)
def test_any_json_that_is_signed_is_refused_or_understood(kind: str, value: object) -> None:
    open_signed(kind, json.dumps(value).encode())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=400))
def test_any_bytes_are_refused_or_understood(name: str, data: bytes) -> None:
    _, decode, signed = DECODERS[name]
    assert not (opened(decode, data) and signed)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(DECODERS)), objects)
def test_any_json_and_msgpack_are_refused_or_understood(name: str, value: object) -> None:
    _, decode, signed = DECODERS[name]
    assert not (opened(decode, json.dumps(value).encode()) and signed)
    try:
        packed = msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return
    opened(decode, packed)
    opened(decode, b"\x00nbq\x01" + packed)
