"""In which forms arguments and values travel: names of serializers and of ways to compress, and which are accepted.

Source: kombu 5.7, `kombu.serialization` and `kombu.compression`, for the names and what is the same under two of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nbqueue.exceptions import ContentDisallowed, ImproperlyConfigured

DEFAULT: Final = "cloudpickle"
SERIALIZERS: Final = (DEFAULT, "pickle", "json", "msgpack", "yaml")
PICKLES: Final = frozenset({DEFAULT, "pickle"})  # who accepts one accepts what the other writes, which is the same
_ALIASES: Final = {
    "application/json": "json",
    "application/x-python-serialize": "pickle",
    "application/x-msgpack": "msgpack",
    "application/x-yaml": "yaml",
}
# By the number that stands for them on the wire.
COMPRESSIONS: Final = ("", "gzip", "bzip2", "lzma", "zstd", "lz4")
_COMPRESSION_ALIASES: Final = {
    "zlib": "gzip",
    "application/x-gzip": "gzip",
    "bzip": "bzip2",
    "application/x-bz2": "bzip2",
    "xz": "lzma",
    "application/x-lzma": "lzma",
    "zstandard": "zstd",
    "application/zstd": "zstd",
}


def serializer(name: object) -> str:
    """Return the name of a serializer.

    >>> serializer("json"), serializer("application/x-msgpack")
    ('json', 'msgpack')

    Raises:
        ImproperlyConfigured: there is none; names those there are.
    """
    found = _ALIASES.get(name, name) if isinstance(name, str) else name
    if found not in SERIALIZERS:
        raise ImproperlyConfigured(f"there is no serializer {name!r}; it is one of {', '.join(SERIALIZERS)}")
    return str(found)


def compression(name: object) -> str:
    """Return the name of a way to compress; empty for none.

    >>> compression("zlib"), compression(None)
    ('gzip', '')

    Raises:
        ImproperlyConfigured: there is none; names those there are.
    """
    if not name:
        return ""
    found = _COMPRESSION_ALIASES.get(name, name) if isinstance(name, str) else name
    if found not in COMPRESSIONS:
        raise ImproperlyConfigured(f"there is no compression {name!r}; it is one of {', '.join(COMPRESSIONS[1:])}")
    return str(found)


def accepted(value: object) -> tuple[str, ...]:
    """Return the names of accepted serializers, in their order.

    >>> accepted(["json", "pickle"])
    ('json', 'pickle')

    Raises:
        ImproperlyConfigured: one of them doesn't exist, or there are none.
    """
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else []
    if not names:
        raise ImproperlyConfigured(f"accept_content must be a list of serializers, not {value!r}")
    return tuple(dict.fromkeys(serializer(name) for name in names))


def accepts(names: Iterable[str]) -> frozenset[str]:
    """Return all that is accepted where these are."""
    found = frozenset(names)
    return found | PICKLES if found & PICKLES else found


def check(name: str, accept: frozenset[str] | None, who: str = "") -> None:
    """Refuse content in a form that isn't accepted.

    Args:
        name: of its serializer.
        accept: what is accepted; all if None.
        who: refuses it.

    Raises:
        ContentDisallowed: it isn't accepted.
    """
    if accept is not None and name not in accept:
        raise ContentDisallowed(refusal(name, accept, who))


def refusal(name: str, accept: Iterable[str], who: str = "") -> str:
    """Return the text that says why content is refused."""
    known = ", ".join(one for one in SERIALIZERS if one in set(accept))
    return f"{who or 'here'}, content in {name} is refused; accept_content is {known}"
