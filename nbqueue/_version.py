"""The version, in its one place: the build reads it from here."""

from typing import NamedTuple

__version__ = "0.1.0.dev0"


class VersionInfo(NamedTuple):
    """A version by its parts."""

    major: int
    minor: int
    micro: int
    releaselevel: str
    serial: str


def parts_of(version: str) -> VersionInfo:
    """Return the parts of a version.

    >>> tuple(parts_of("0.1.0.dev0")), tuple(parts_of("2.10.3")), tuple(parts_of("1.0.0rc2"))
    ((0, 1, 0, 'dev', '0'), (2, 10, 3, '', ''), (1, 0, 0, 'rc', '2'))
    """
    major, minor, rest = version.split(".", 2)
    micro = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    stage = rest.removeprefix(micro).lstrip(".")
    name = stage.rstrip("0123456789")
    return VersionInfo(int(major), int(minor), int(micro), name, stage.removeprefix(name))


version_info = VERSION = parts_of(__version__)
