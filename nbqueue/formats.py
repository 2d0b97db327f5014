"""Encodings: values as JSON, MessagePack, YAML or a pickle, compressed or not, with a head that says which.

A pickle that isn't compressed goes without a head; it begins with another byte. What is written here may be read by
whoever has the key, so a decompressor is given no more room than the head says, and that is bounded.

Source: kombu 5.7, `kombu.utils.json`, for what JSON says of instants, decimals and the like.
"""

from __future__ import annotations

import base64
import bz2
import importlib
import json
import lzma
import pickle
import struct
import uuid
import zlib
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from types import ModuleType
from typing import Any, Final

import msgspec

from nbqueue.contents import COMPRESSIONS, PICKLES, SERIALIZERS
from nbqueue.exceptions import BadMessage, ImproperlyConfigured, PayloadTooLarge

MARK: Final = b"\x01"  # neither a pickle nor JSON begins so
MAX_PLAIN_BYTES: Final = 1 << 30  # of what is compressed; larger data travels as blobs, which aren't
_HEAD: Final = struct.Struct(">cBBBQ")  # mark, version, serializer, compression, size before it was compressed
_VERSION: Final = 1


def wrap(serializer: str, compression: str, data: bytes) -> bytes:
    """Return data with a head, compressed if that is asked for.

    Raises:
        PayloadTooLarge: it is too large to be compressed.
        ImproperlyConfigured: the compression needs a package that isn't here.
    """
    size = len(data)
    if compression:
        if size > MAX_PLAIN_BYTES:
            raise PayloadTooLarge(
                f"{size / 1e6:,.0f} MB are too much to compress, {MAX_PLAIN_BYTES / 1e6:,.0f} is the most; "
                "send it without compression: large data goes beside the queue, once"
            )
        data = _compress(compression, data)
    return _HEAD.pack(MARK, _VERSION, SERIALIZERS.index(serializer), COMPRESSIONS.index(compression), size) + data


def is_wrapped(data: bytes | memoryview) -> bool:
    """Tell whether data has a head."""
    return data[:1] == MARK


def named(data: bytes | memoryview) -> tuple[str, str]:
    """Return the serializer and compression that a head names.

    Raises:
        BadMessage: it is none.
    """
    try:
        _, version, serializer, compression, _ = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise BadMessage("version", "content in a form of another nbqueue")
        return SERIALIZERS[serializer], COMPRESSIONS[compression]
    except (struct.error, IndexError) as exc:
        raise BadMessage("fields", f"content without a proper head: {exc}") from None


def unwrap(data: bytes | memoryview) -> bytes:
    """Return what follows a head, as it was before it was compressed.

    Raises:
        BadMessage: it isn't what the head says.
        ImproperlyConfigured: the compression needs a package that isn't here.
    """
    _, compression = named(data)
    size = int(_HEAD.unpack_from(data)[4])
    rest = bytes(data[_HEAD.size :])
    if compression:
        if size > MAX_PLAIN_BYTES:
            raise BadMessage("fields", f"content that has {size:,} bytes once it is decompressed")
        rest = _decompress(compression, rest, size)
    if len(rest) != size:
        raise BadMessage("fields", "content of another size than its head says")
    return rest


def encode(serializer: str, value: Any) -> bytes:
    """Return a value as text or bytes; for all but pickles, which `serialization` writes.

    Raises:
        TypeError: it can't be said so.
        ImproperlyConfigured: the serializer needs a package that isn't here.
    """
    if serializer == "json":
        return json.dumps(value, default=_said_in_json).encode()
    if serializer == "msgpack":
        return msgspec.msgpack.encode(value)
    yaml = _package("yaml", "pyyaml", "serializer yaml")
    try:
        return str(yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))).encode()
    except yaml.YAMLError as exc:
        raise TypeError(f"this is no YAML: {exc}") from exc


def decode(serializer: str, data: bytes | memoryview) -> Any:
    """Return the value that text or bytes hold.

    Raises:
        BadMessage: they hold none.
        ImproperlyConfigured: the serializer needs a package that isn't here.
    """
    if serializer in PICKLES:
        return pickle.loads(data)
    try:
        if serializer == "json":
            return json.loads(bytes(data), object_hook=_meant_in_json)
        if serializer == "msgpack":
            return msgspec.msgpack.decode(data)
        yaml = _package("yaml", "pyyaml", "serializer yaml")
        return yaml.load(bytes(data), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except ImproperlyConfigured:
        raise
    except Exception as exc:  # parsers raise errors of their own
        raise BadMessage("fields", f"content that is no {serializer}: {exc}") from exc


def as_json(data: bytes) -> bytes:
    """Return the text of wrapped JSON, for clients of Celery; empty for anything else."""
    try:
        return data[_HEAD.size :] if is_wrapped(data) and named(data) == ("json", "") else b""
    except BadMessage:
        return b""


def _said_in_json(value: Any) -> Any:
    for kind, (name, say, _) in _KINDS.items():
        if isinstance(value, kind):
            return {"__type__": name, "__value__": say(value)}
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _meant_in_json(found: dict[str, Any]) -> Any:
    if found.keys() == {"__type__", "__value__"}:
        for name, _, mean in _KINDS.values():
            if name == found["__type__"]:
                return mean(found["__value__"])
    return found


# What JSON has no word for: kombu's name of it, how it is said, and what that means. A datetime is a date, too.
_KINDS: Final[dict[type[Any], tuple[str, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("date", date.isoformat, lambda text: datetime.fromisoformat(text).date()),
    time: ("time", time.isoformat, time.fromisoformat),
    Decimal: ("decimal", str, Decimal),
    uuid.UUID: ("uuid", lambda value: {"hex": value.hex}, lambda value: uuid.UUID(hex=value["hex"])),
    bytes: ("base64", lambda value: base64.b64encode(value).decode(), base64.b64decode),
}


def _compress(name: str, data: bytes) -> bytes:
    if name == "gzip":
        return zlib.compress(data)
    if name == "bzip2":
        return bz2.compress(data)
    if name == "lzma":
        return lzma.compress(data)
    if name == "zstd":
        return bytes(_package("zstandard", "zstandard", "compression zstd").ZstdCompressor().compress(data))
    return bytes(_package("lz4.frame", "lz4", "compression lz4").compress(data))


def _decompress(name: str, data: bytes, size: int) -> bytes:
    """Return what was compressed, and no more than one byte beyond the size that it shall have."""
    try:
        if name == "gzip":
            return zlib.decompressobj().decompress(data, size + 1)
        if name == "bzip2":
            return bz2.BZ2Decompressor().decompress(data, size + 1)
        if name == "lzma":
            return lzma.LZMADecompressor(memlimit=MAX_PLAIN_BYTES).decompress(data, size + 1)
        if name == "zstd":
            found = _package("zstandard", "zstandard", "compression zstd").ZstdDecompressor().stream_reader(data)
            return bytes(found.read(size + 1))
        return bytes(_package("lz4.frame", "lz4", "compression lz4").LZ4FrameDecompressor().decompress(data, size + 1))
    except ImproperlyConfigured:
        raise
    except Exception as exc:  # each has errors of its own
        raise BadMessage("fields", f"content that is no {name}: {exc}") from exc


def _package(module: str, package: str, what: str) -> ModuleType:
    """Return an optional package.

    Raises:
        ImproperlyConfigured: it isn't installed; names it.
    """
    try:
        return importlib.import_module(module)  # few use one of these
    except ImportError as exc:
        raise ImproperlyConfigured(f"{what} needs the package {package} here: pip install {package}") from exc
