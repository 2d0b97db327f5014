"""Bytes from outside: whatever they are, each decoder says `BadMessage` or understands them, and does nothing else."""

from __future__ import annotations

import base64
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
from nbqueue.entries import (
    Call,
    Entry,
    Run,
    Stand,
    digest_of,
    encode_call,
    open_call,
    open_entry,
    open_stand,
    sign_entry,
    sign_stand,
)
from nbqueue.exceptions import BadMessage
from nbqueue.graph import Given, Graph, Join, Node, decode_given, encode_given, kinds_of, open_graph, sign_graph
from nbqueue.groups import GroupResult, open_saved, sign_saved
from nbqueue.handles import AsyncResult
from nbqueue.messages import (
    Again,
    Control,
    Fact,
    Facts,
    Failure,
    Graft,
    Message,
    Reply,
    Steering,
    Step,
    decode_again,
    decode_failure,
    decode_graft,
    encode_again,
    encode_failure,
    encode_graft,
    open_code,
    open_control,
    open_fact,
    open_facts,
    open_group,
    open_mark,
    open_reply,
    open_stored,
    pack_body,
    sign_code,
    sign_control,
    sign_event,
    sign_group,
    sign_record,
    sign_reply,
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
CALL: Final = encode_call(Call(b"{}", BODY))
ENTRY: Final = Entry(name="e", rule="every 60 s", call=digest_of(CALL), made="m")
STAND: Final = Stand(name="e", made="m", last_due=1.5, count=1, runs=(Run(1.5, "i"),))
GROUP: Final = GroupResult("i", [AsyncResult("a")], AsyncResult("b"))
FAILURE: Final = encode_failure(Failure("OSError", "m", "t", b"cos\nsystem\n(S'true'\ntR."))


def open_session(text: bytes) -> list[Fact]:
    return [open_stored(stored, SIGNER) for stored in open_facts(text)]


def payload() -> bytes:
    return Packer().pack(b"x" * BLOB_BYTES, b"modules")


# How much of some bytes a signature covers: each of them; what is made of them (Celery's fields and JSON's blanks are
# covered by nothing, and steer nothing); or nothing, as they come within something that is signed.
EACH, MEANING, NOTHING = "each", "meaning", "nothing"

# name -> genuine bytes, what opens them, what of them is signed
DECODERS: Final[dict[str, tuple[bytes, Callable[[bytes], object], str]]] = {
    "task": (
        Message.sign(STEERING, BODY, SIGNER).header.encode(),
        lambda text: Message.open(text, BODY, SIGNER),
        EACH,
    ),
    "call": (
        Message.sign_call("g", 7, BODY, SIGNER).header.encode(),
        lambda text: Message.open(text, BODY, SIGNER),
        EACH,
    ),
    "body": (
        BODY,
        lambda body: Message.open(Message.sign(STEERING, BODY, SIGNER).header, body, SIGNER),
        EACH,
    ),
    "order": (
        sign_control(Control(order="revoke", at=1.0, nonce="n", ids=("i",)), SIGNER).encode(),
        lambda text: open_control(text, SIGNER),
        EACH,
    ),
    "command": (
        sign_control(
            Control(order="command", at=1.0, nonce="n", command="revoke", arguments={"task_id": ["i"]}, reply="r"),
            SIGNER,
        ).encode(),
        lambda text: open_control(text, SIGNER),
        EACH,
    ),
    "answer": (
        sign_reply(Reply(to="n", worker="w", at=1.0), b'{"ok":"pong"}', SIGNER),
        lambda text: open_reply(text, "n", SIGNER),
        MEANING,
    ),
    "record": (sign_record(FACTS, FAILURE, SIGNER), lambda text: open_fact(text, SIGNER), MEANING),
    "event": (
        sign_event(Facts(kind="output", id="i"), b"data", SIGNER),
        lambda text: open_fact(text, SIGNER),
        MEANING,
    ),
    "session": (b"[" + sign_record(FACTS, FAILURE, SIGNER) + b"]", open_session, MEANING),
    "map": (sign_group(STEERING, b"code", SIGNER), lambda text: open_group(text, SIGNER), MEANING),
    "code": (sign_code("d", b"code", SIGNER), lambda text: open_code(text, "d", SIGNER), MEANING),
    "canvas": (sign_graph(GRAPH, SIGNER), lambda text: open_graph(text, "i", SIGNER), MEANING),
    "step": (
        Message.sign_step(STEP, "i-1", BODY, SIGNER).header.encode(),
        lambda text: Message.open(text, BODY, SIGNER),
        EACH,
    ),
    "saved": (sign_saved(GROUP, SIGNER), lambda text: open_saved(text, "i", SIGNER), MEANING),
    "entry": (sign_entry(ENTRY, SIGNER), lambda text: open_entry(text, "e", SIGNER), MEANING),
    "stand": (sign_stand(STAND, SIGNER), lambda text: open_stand(text, ENTRY, SIGNER), MEANING),
    "call of an entry": (CALL, lambda data: open_call(data, ENTRY), NOTHING),
    "graft": (encode_graft(Graft(b"graph", (0,), 1)), decode_graft, NOTHING),
    "given": (encode_given(Given("failed", "i", FAILURE, "FAILURE", "m")), decode_given, NOTHING),
    "mark": (
        sign_control(Control(order="revoke", at=1.0, nonce="n", ids=("i",)), SIGNER).encode(),
        lambda text: open_mark(text, "i", SIGNER),
        EACH,
    ),
    "frames": (BODY, split_body, NOTHING),
    "head": (payload(), lambda data: (named(data), modules_of(data)), NOTHING),
    "failure": (FAILURE, decode_failure, NOTHING),
    "again": (encode_again(Again(FAILURE, 2.5, 3, b"args")), decode_again, NOTHING),
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


REFUSED: Final = object()


def opened(decode: Callable[[bytes], object], data: bytes) -> object:
    """Return what is made of it, or `REFUSED`; nothing but `BadMessage` may come out."""
    try:
        return decode(data)
    except BadMessage:
        return REFUSED


def check(name: str, data: bytes) -> None:
    """See that bytes which nobody has signed are refused, or mean nothing but what was signed."""
    genuine, decode, signed = DECODERS[name]
    made = opened(decode, data)
    if signed == EACH:
        assert made is REFUSED
    elif signed == MEANING:
        # An array of no facts is signed by nobody, and says nothing.
        assert made is REFUSED or made == decode(genuine) or (name == "session" and made == [])


@pytest.mark.parametrize("name", DECODERS)
def test_genuine_bytes_are_understood(name: str) -> None:
    genuine, decode, _ = DECODERS[name]
    assert opened(decode, genuine) is not REFUSED


@pytest.mark.parametrize("name", DECODERS)
def test_bytes_cut_anywhere_or_with_any_bit_turned_are_refused_or_mean_the_same(name: str) -> None:
    genuine, _, _ = DECODERS[name]
    for at in range(len(genuine)):
        check(name, genuine[:at])
        for bit in range(8):
            turned = bytearray(genuine)
            turned[at] ^= 1 << bit
            check(name, bytes(turned))


_SIGNED: Final = [name for name, (_, _, signed) in DECODERS.items() if signed != NOTHING and name != "body"]
# Tasks, members of maps and steps come through one door, records and events through another, orders through a third.
_ALIKE: Final = (
    *({"task", "call"}, {"task", "step"}, {"call", "step"}, {"record", "event"}, {"order", "mark"}),
    *({"command", "order"}, {"command", "mark"}),
)


def test_command_is_no_mark_that_revokes_a_task() -> None:
    with pytest.raises(BadMessage, match="an order to command other tasks"):
        open_mark(DECODERS["command"][0], "i", SIGNER)


@pytest.mark.parametrize("name", _SIGNED)
def test_bytes_that_another_key_has_signed_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, decode, _ = DECODERS[name]
    monkeypatch.setitem(globals(), "SIGNER", Signer(b"o" * 32))
    with pytest.raises(BadMessage) as refused:
        decode(genuine)
    assert refused.value.reason == "key"


@pytest.mark.parametrize("name", _SIGNED)
@pytest.mark.parametrize("other", _SIGNED)
def test_bytes_of_one_kind_do_not_pass_for_another(name: str, other: str) -> None:
    if name != other and {name, other} not in _ALIKE:
        assert opened(DECODERS[other][1], DECODERS[name][0]) is REFUSED


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_refused_in_little_memory(name: str, what: str) -> None:
    _, decode, signed = DECODERS[name]
    data = HOSTILE[what]
    tracemalloc.start()
    try:
        made = opened(decode, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(data) + 300_000
    assert made is REFUSED or signed == NOTHING


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
        "saved": lambda text: open_saved(text, "i", SIGNER),
        "reply": lambda text: open_reply(text, "n", SIGNER),
        "entry": lambda text: open_entry(text, "e", SIGNER),
        "stand": lambda text: open_stand(text, ENTRY, SIGNER),
    }
    if kind in ("entry", "stand"):
        stored = json.dumps({"nbq": SIGNER.sign(kind, b"", text), "body": base64.b64encode(text).decode()}).encode()
    if kind == "saved":
        stored = b'{"result":%b,"nbq":"%b"}' % (text, SIGNER.sign(kind, b"1", text).encode())
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
    check(name, data)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(DECODERS)), objects)
def test_any_json_and_msgpack_are_refused_or_understood(name: str, value: object) -> None:
    _, decode, _ = DECODERS[name]
    check(name, json.dumps(value).encode())
    try:
        packed = msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return
    opened(decode, packed)
    opened(decode, b"\x00nbq\x01" + packed)
