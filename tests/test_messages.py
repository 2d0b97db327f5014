from __future__ import annotations

import json
import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbqueue import states
from nbqueue.exceptions import BadMessage
from nbqueue.messages import (
    Call,
    Control,
    Facts,
    Failure,
    Ids,
    Message,
    Steering,
    encode_failure,
    new_id,
    open_control,
    open_fact,
    open_group,
    pack_body,
    sign_control,
    sign_event,
    sign_group,
    sign_record,
    split_body,
)
from nbqueue.signing import Signer

SIGNER = Signer(b"k" * 32)
STEERING = Steering(id="the-id", nonce="n1", task="demo.grüße", queue="nbqueue", sent_at=1.5, label="naïve 🙂")
FACTS = Facts(kind="record", id="the-id", at=2.5, state=states.SUCCESS, attempt=1, nonce="n1")


def test_message_comes_back_as_it_was_signed() -> None:
    message = Message.sign(STEERING, pack_body(b"code", b"args"), SIGNER)
    assert message.header.isascii(), "brokers don't carry other header text byte for byte"
    assert Message.open(message.header, message.body, SIGNER) == message
    assert split_body(message.body) == (b"code", b"args")


def test_call_of_a_map_comes_back_with_its_place() -> None:
    message = Message.sign_call("group", 7, b"args", SIGNER)
    opened = Message.open(message.header.encode(), b"args", SIGNER)
    assert (opened.id, opened.steering) == ("group-7", Call("group", 7))
    group = Steering(id="group", nonce="n", task="t", queue="q", sent_at=1.0, size=9)
    steering, code = open_group(sign_group(group, b"code", SIGNER), SIGNER)
    assert code == b"code"
    assert (steering.member(7).id, steering.member(7).group, steering.member(7).index) == ("group-7", "group", 7)


def test_message_is_refused_when_any_byte_of_it_is_altered() -> None:
    message = Message.sign(STEERING, b"\0\0\0\0args", SIGNER)
    for at in range(len(message.header)):
        altered = message.header[:at] + chr(ord(message.header[at]) ^ 1) + message.header[at + 1 :]
        with pytest.raises(BadMessage):
            Message.open(altered, message.body, SIGNER)
    for at in range(len(message.body)):
        body = bytearray(message.body)
        body[at] ^= 1
        with pytest.raises(BadMessage):
            Message.open(message.header, bytes(body), SIGNER)


def test_message_is_refused_when_it_is_cut_anywhere() -> None:
    message = Message.sign(STEERING, b"\0\0\0\0args", SIGNER)
    for at in range(len(message.header)):
        with pytest.raises(BadMessage):
            Message.open(message.header[:at], message.body, SIGNER)
    with pytest.raises(BadMessage):
        Message.open(message.header, message.body[:-1], SIGNER)


def test_message_of_another_key_says_whose_it_is() -> None:
    message = Message.sign(STEERING, b"", Signer(b"o" * 32))
    with pytest.raises(BadMessage, match=SIGNER.key_id) as caught:
        Message.open(message.header, b"", SIGNER)
    assert caught.value.reason == "key"


def test_message_of_a_later_version_is_told_from_garbage() -> None:
    header = Message.sign(STEERING, b"", SIGNER).header
    for text, reason in (("2" + header[1:], "version"), ("x" + header[1:], "format"), ("", "format")):
        with pytest.raises(BadMessage) as caught:
            Message.open(text, b"", SIGNER)
        assert caught.value.reason == reason


def test_one_kind_never_passes_for_another() -> None:
    record = json.loads(sign_record(FACTS, b"body", SIGNER))
    event = json.loads(sign_event(Facts(kind="output", id="x"), b"body", SIGNER))
    order = sign_control(Control(order="revoke", at=1.0, nonce="n"), SIGNER)
    for header in (record["nbq"], event["nbq"], order):
        with pytest.raises(BadMessage):
            Message.open(header, b"body", SIGNER)
    with pytest.raises(BadMessage):
        open_fact(json.dumps({"nbq": event["nbq"], "body": event["body"], "task_id": "x"}), SIGNER)
    with pytest.raises(BadMessage):
        open_control(record["nbq"], SIGNER)


def test_record_is_what_celerys_clients_read() -> None:
    failure = encode_failure(Failure("ValueError", "no", "Traceback ..."))
    facts = Facts(kind="record", id="the-id", at=0.0, state=states.FAILURE)
    stored = json.loads(sign_record(facts, failure, SIGNER))
    assert (stored["task_id"], stored["status"], stored["traceback"]) == ("the-id", "FAILURE", "Traceback ...")
    assert stored["result"] == {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}
    assert stored["children"] == []
    assert stored["date_done"] == "1970-01-01T00:00:00+00:00"


def test_record_is_believed_for_what_is_signed_and_nothing_else() -> None:
    stored = json.loads(sign_record(FACTS, b"value", SIGNER))
    stored |= {"status": "FAILURE", "result": "forged"}
    fact = open_fact(json.dumps(stored), SIGNER, kind="record")
    assert (fact.facts.state, fact.body, fact.ready) == (states.SUCCESS, b"value", True)
    stored["body"] = "Zm9yZ2Vk"
    with pytest.raises(BadMessage):
        open_fact(json.dumps(stored), SIGNER)


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_decoders_raise_nothing_but_bad_message(text: bytes, body: bytes) -> None:
    for decode in (
        lambda: Message.open(text, body, SIGNER),
        lambda: open_fact(text, SIGNER),
        lambda: open_control(text, SIGNER),
        lambda: open_group(text, SIGNER),
        lambda: split_body(text[:3]),
    ):
        with pytest.raises(BadMessage):
            decode()


@given(st.text(max_size=80))
def test_any_text_that_is_not_signed_is_refused(text: str) -> None:
    with pytest.raises(BadMessage):
        Message.open(f"1.{SIGNER.key_id}.{text}", b"", SIGNER)


def test_ids_are_drawn_anew_after_a_fork() -> None:
    ids = Ids()
    drawn = {ids.draw() for _ in range(1_000)}
    assert len(drawn) == 1_000
    assert all(uuid.UUID(id_).version == 4 and len(nonce) == 20 for id_, nonce in drawn)
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, ids.draw()[0].encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.read() != ids.draw()[0]


def test_new_ids_are_random_uuids() -> None:
    ids = {new_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(str(uuid.UUID(id_)) == id_ and uuid.UUID(id_).version == 4 for id_ in ids)
    assert {uuid.UUID(id_).variant for id_ in ids} == {uuid.RFC_4122}
