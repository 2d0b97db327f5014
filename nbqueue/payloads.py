"""Payloads: bytes that hold small data themselves, and name large data by digest.

A payload is a pickle or JSON as it is. Where a part of it reaches `BLOB_BYTES` it is a head that names *blobs*
instead: the large buffers of a pickle (arrays, frames, Arrow tables) each by itself, and the pickle too if it is
large. A blob's name is the digest of its content, so what is met twice travels and is kept once, and a signature
over the payload covers the blobs.

Source: pickle protocol 5 with out-of-band buffers, PEP 574.
"""

from __future__ import annotations

from collections.abc import Callable
from pickle import PickleBuffer
from typing import Final, Protocol

import msgspec

from nbqueue.digests import digest_of
from nbqueue.exceptions import BadMessage

BLOB_BYTES: Final = 64 * 1024
SPILL_BYTES: Final = 4 << 20  # to write less takes no longer than to begin a file for it
_MARK: Final = b"\x00nbq\x02"  # neither a pickle nor JSON begins like this; the last byte is the form's version
_HEX: Final = frozenset("0123456789abcdef")


class Ref(msgspec.Struct, array_like=True, frozen=True):
    """Names one blob: its content's digest in hexadecimal (see `digests`), and its size in bytes."""

    digest: str
    size: int


class _Head(msgspec.Struct, array_like=True, frozen=True):
    main: Ref | bytes
    buffers: tuple[Ref, ...]
    modules: Ref | None = None  # users' modules that the pickle refers to

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Return every blob it names."""
        main = (self.main,) if isinstance(self.main, Ref) else ()
        modules = (self.modules,) if self.modules is not None else ()
        return (*main, *self.buffers, *modules)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Head).decode

Read = Callable[[Ref], memoryview]


class Spilled(Protocol):
    """Is a file for a buffer whose digest is being reckoned; given up when nobody holds it."""

    def write(self, start: int, part: memoryview) -> None:
        """Write a part of the buffer; what goes wrong is said by `commit`. Any thread may call it."""

    def commit(self, ref: Ref, until: float) -> None:
        """Give the file its blob's name."""


Spill = Callable[[memoryview], Spilled | None]


class Packer:
    """Makes payloads, and gathers the blobs they name. One packer is for what is sent at once.

    What it meets again (the same object at the same place in memory) is not digested again: nobody can have changed
    it while one call packs.

    Args:
        modules: goes with every payload it makes.
        spill: begins a file for a very large buffer, or returns None.
    """

    def __init__(self, modules: Ref | None = None, spill: Spill | None = None) -> None:
        self._modules = modules
        self._spill = spill
        self.blobs: dict[Ref, memoryview] = {}
        self.spilled: dict[Ref, Spilled] = {}
        self._known: dict[tuple[int, int], Ref] = {}  # by address and size, of what `blobs` keeps alive
        self._buffers: list[memoryview] = []
        self.modules: dict[frozenset[str], bytes] = {}  # packed, by the names they were asked for

    @property
    def size(self) -> int:
        """Return how many bytes the blobs have."""
        return sum(ref.size for ref in self.blobs)

    def keep(self, buffer: PickleBuffer) -> bool:
        """Take a buffer out of the pickle that is being written, or leave it in: the answer `pickle` asks for."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < BLOB_BYTES:
            return True
        self._buffers.append(raw)
        return False

    def pack(self, main: bytes, modules: bytes = b"") -> bytes:
        """Return the payload of a finished pickle or text, and of the buffers kept while it was written.

        Args:
            main: the pickle or text.
            modules: users' modules it refers to, packed; always a blob, as they rarely change between calls.
        """
        buffers, self._buffers = self._buffers, []
        if not buffers and not modules and not self._modules and len(main) < BLOB_BYTES:
            return main
        head: Ref | bytes = self._blob(memoryview(main)) if len(main) >= BLOB_BYTES else main
        refs = tuple(self._blob(buffer) for buffer in buffers)
        return _MARK + _encode(_Head(head, refs, self._blob(memoryview(modules)) if modules else self._modules))

    def discard(self) -> None:
        """Forget the buffers of a pickle that could not be finished."""
        self._buffers = []

    def _blob(self, data: memoryview) -> Ref:
        place = (_address(data), data.nbytes)
        ref = self._known.get(place)
        if ref is None:
            spilled = self._spill(data) if self._spill is not None and data.nbytes >= SPILL_BYTES else None
            ref = Ref(digest_of(data, spilled.write if spilled is not None else None), data.nbytes)
            if ref not in self.blobs:
                self.blobs[ref] = data
                self._known[place] = ref
                if spilled is not None:
                    self.spilled[ref] = spilled
        return ref


def named(payload: bytes) -> tuple[Ref, ...]:
    """Return the blobs that a payload names.

    Raises:
        BadMessage: it begins like a head, and is none.
    """
    if payload[:1] != _MARK[:1]:
        return ()
    return _open(payload).refs


def is_whole(payload: bytes) -> bool:
    """Tell whether a payload holds all there is to it, and names no blobs."""
    return payload[:1] != _MARK[:1]


def modules_of(payload: bytes) -> Ref | None:
    """Return the blob of users' modules that a payload refers to."""
    return _open(payload).modules if payload[:1] == _MARK[:1] else None


def parts(payload: bytes, read: Read) -> tuple[bytes | memoryview, list[memoryview]]:
    """Return what a payload holds: the pickle or text, and the pickle's buffers.

    Args:
        payload: as a packer made it.
        read: returns a blob's content.
    """
    if payload[:1] != _MARK[:1]:
        return payload, []
    head = _open(payload)
    main = read(head.main) if isinstance(head.main, Ref) else head.main
    return main, [read(ref) for ref in head.buffers]


def no_blobs(ref: Ref) -> memoryview:
    """Stand for a reader where there is none: nothing large can be had."""
    raise BadMessage("blob", f"a blob of {ref.size:,} bytes where none can be read")


def _address(data: memoryview) -> int:
    """Return where a buffer begins; only the C interface tells that of one that can't be written to."""
    import ctypes  # noqa: PLC0415 - costs some milliseconds, and most programs send nothing large

    class PyBuffer(ctypes.Structure):
        # Source: Py_buffer of the stable C interface.
        _fields_ = (
            ("buf", ctypes.c_void_p),
            ("obj", ctypes.py_object),
            ("sizes", ctypes.c_ssize_t * 2),
            ("flags", ctypes.c_int * 2),
            ("pointers", ctypes.c_void_p * 5),
        )

    view = PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(data), ctypes.byref(view), 0)
    try:
        return int(view.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))


def _open(payload: bytes) -> _Head:
    if payload[: len(_MARK)] != _MARK:
        raise BadMessage("version", "a payload in a form of another nbqueue")
    try:
        head = _decode(payload[len(_MARK) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage("fields", str(exc)) from None
    for ref in head.refs:
        if len(ref.digest) != 64 or not _HEX.issuperset(ref.digest) or ref.size < 0:
            raise BadMessage("fields", "a blob without a proper name")
    return head
