"""Encodings and compressions: what comes back, what is refused, and in how much memory."""

from __future__ import annotations

import pickle
import struct
import sys
import tracemalloc
import uuid
import zlib
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbqueue import App, contents, formats, serialization
from nbqueue.config import Settings
from nbqueue.exceptions import BadMessage, ContentDisallowed, ImproperlyConfigured, NotPicklable, PayloadTooLarge
from nbqueue.payloads import Packer, parts

VALUE = {"a": [1, 2.5, None, True, "ü\u2028"], "b": {"c": []}}
SQUEEZED = contents.COMPRESSIONS[1:]


@pytest.mark.parametrize("compression", contents.COMPRESSIONS)
@pytest.mark.parametrize("serializer", contents.SERIALIZERS)
def test_arguments_and_values_come_back_in_every_form(serializer: str, compression: str) -> None:
    data = serialization.dumps_args((1, VALUE), {"k": "v"}, serializer, Packer(), compression=compression)
    assert serialization.loads_args(data, serializer) == ((1, VALUE), {"k": "v"})
    data = serialization.dumps_value(VALUE, Packer(), serializer, compression)
    assert serialization.loads(data) == VALUE


@pytest.mark.parametrize("compression", SQUEEZED)
def test_compressed_arguments_are_smaller_and_large_ones_still_travel_beside(compression: str) -> None:
    text = "all work and no play " * 50_000
    packer = Packer()
    data = serialization.dumps_args((text,), {}, "cloudpickle", packer, compression=compression)
    assert len(data) + packer.size < len(text) / 10
    noise = bytes(range(256)) * 10 + uuid.uuid4().bytes * 20_000
    packer = Packer()
    data = serialization.dumps_value([noise], packer, "pickle", compression)
    main, _ = parts(data, lambda ref: packer.blobs[ref])
    assert formats.named(main) == ("cloudpickle", compression)
    assert serialization.loads(data, lambda ref: packer.blobs[ref]) == [noise]


def test_json_has_words_for_what_celerys_json_has_them_for() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    value = {"at": now, "on": date(2026, 1, 2), "t": time(3, 4), "d": Decimal("1.10"), "u": uuid.UUID(int=5), "b": b"x"}
    data = serialization.dumps_value(value, None, "json")
    assert serialization.loads(data) == value
    assert b'{"__type__": "datetime", "__value__": "2026-01-02T03:04:05+00:00"}' in formats.as_json(data)


def test_what_can_not_be_said_is_named_with_its_serializer() -> None:
    for serializer in ("json", "msgpack", "yaml"):
        with pytest.raises(NotPicklable, match=f"the arguments can't be said in {serializer}"):
            serialization.dumps_args((object(),), {}, serializer)


def test_content_that_is_not_accepted_is_never_unpickled(capsys: pytest.CaptureFixture[str]) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return print, ("it went off",)

    json_alone = contents.accepts(["json"])
    for data in (pickle.dumps(Bomb()), formats.wrap("pickle", "gzip", pickle.dumps(Bomb()))):
        with pytest.raises(ContentDisallowed, match=r"content in .*pickle is refused; accept_content is json"):
            serialization.loads(data, accept=json_alone)
        with pytest.raises(ContentDisallowed):
            serialization.loads_args(data, "json", accept=json_alone) if data[:1] == formats.MARK else (
                serialization.loads_args(data, "pickle", accept=json_alone)
            )
    failure = serialization.dumps_exception(ValueError("no"), "trace")
    failure.pickled = pickle.dumps(Bomb())
    assert repr(serialization.load_exception(failure, json_alone)) == "ValueError('no')"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("compression", SQUEEZED)
def test_bomb_is_refused_in_little_memory(compression: str) -> None:
    bomb = formats.wrap("json", compression, b'"' + b"a" * 20_000_000 + b'"')
    lying = bomb[:4] + struct.pack(">Q", 1_000) + bomb[12:]
    tracemalloc.start()
    try:
        with pytest.raises(BadMessage, match="another size"):
            formats.unwrap(lying)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000, "of 20 MB; lzma keeps 8 MB for itself"
    finally:
        tracemalloc.stop()
    too_much = bomb[:4] + struct.pack(">Q", formats.MAX_PLAIN_BYTES + 1) + bomb[12:]
    with pytest.raises(BadMessage, match="once it is decompressed"):
        formats.unwrap(too_much)


def test_more_than_a_decompressor_would_take_is_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_PLAIN_BYTES", 1_000)
    with pytest.raises(PayloadTooLarge, match="send it without compression"):
        serialization.dumps_args((b"x" * 2_000,), {}, compression="gzip")


@given(st.binary(max_size=64), st.sampled_from(contents.COMPRESSIONS))
def test_bytes_that_are_no_content_are_refused(noise: bytes, compression: str) -> None:
    whole = formats.wrap("json", compression, b"[1]")
    for data in (formats.MARK + noise, whole[: len(noise) % len(whole)], whole + noise[:1] + b"."):
        try:
            formats.unwrap(data)
        except BadMessage:
            continue
        # what follows the end of a compressed stream is not looked at
        assert compression or data[:1] == formats.MARK


@pytest.mark.parametrize(
    ("module", "package", "use"),
    [
        ("yaml", "pyyaml", lambda: serialization.dumps_args((), {}, "yaml")),
        ("zstandard", "zstandard", lambda: serialization.dumps_args((), {}, compression="zstd")),
        ("lz4.frame", "lz4", lambda: formats.unwrap(formats.wrap("json", "", b"1")[:3] + b"\x05" + bytes(8))),
    ],
)
def test_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str, use: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImproperlyConfigured, match=f"pip install {package}"):
        use()


def test_what_is_accepted_decides_what_is_sent_unless_that_is_said() -> None:
    assert Settings().task_serializer == Settings().result_serializer == "cloudpickle"
    conf = Settings(CELERY_ACCEPT_CONTENT=["application/json", "msgpack"])
    assert (conf.accept_content, conf.task_serializer, conf.result_serializer) == (("json", "msgpack"), "json", "json")
    conf.CELERY_TASK_SERIALIZER = "msgpack"
    conf.update(result_accept_content=["yaml"])
    assert (conf.task_serializer, conf.result_serializer) == ("msgpack", "yaml")
    assert Settings(accept_content=["pickle"]).task_serializer == "cloudpickle", (
        "they are the same to whoever loads them"
    )
    assert Settings(CELERY_MESSAGE_COMPRESSION="zlib").task_compression == "gzip"
    for wrong in ({"accept_content": ["xml"]}, {"task_serializer": "xml"}, {"result_compression": "zip"}):
        with pytest.raises(ImproperlyConfigured, match="is one of"):
            Settings(**wrong)


def test_forms_are_those_of_call_task_and_settings_in_this_order() -> None:
    app = App("demo", broker="redis+socket:///nowhere", set_as_current=False, task_compression="gzip")
    app.conf.task_serializer = "json"

    def add(x: int) -> int:
        return x

    plain, own = app.task(add), app.task(add, name="own", serializer="yaml", compression="lz4")
    assert (plain._steering(Packer())[0].serializer, plain.compression_of(None)) == ("json", "gzip")
    assert (own._steering(Packer())[0].serializer, own.compression_of(None)) == ("yaml", "lz4")
    assert (own._steering(Packer(), serializer="msgpack")[0].serializer, own.compression_of("zstd")) == (
        *("msgpack", "zstd"),
    )
    assert plain.compression_of("") == ""
    with pytest.raises(ImproperlyConfigured, match="no compression 'zip'"):
        app.task(add, compression="zip")


def test_zlib_of_others_is_read() -> None:
    assert formats.unwrap(formats.wrap("json", "gzip", b"[1]")) == b"[1]"
    head = formats.wrap("json", "gzip", b"[1]")[:12]
    assert formats.unwrap(head + zlib.compress(b"[1]", 9)) == b"[1]"
