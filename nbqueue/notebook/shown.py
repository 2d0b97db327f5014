"""Text from tasks, made fit to be looked at: what could hide or reorder it is shown as a mark."""

from __future__ import annotations

import re
from typing import Final

_CODES: Final = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_COLOURS: Final = re.compile(r"(\x1b\[[0-9;:]*m)")
_BEGUN: Final = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*|\][^\x07\x1b]*\x1b?)?$")
# Control and direction characters, such as have no width or look like a space, and halves of pairs.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
MAX_CODE: Final = 200  # characters: an escape sequence that is longer is none


def visible(text: str, limit: int = 200) -> str:
    """Return text from a task in one line: without terminal codes, hidden characters shown, cut to `limit`."""
    line = " ".join(_CODES.sub("", text[: 4 * limit]).split())
    line = _marked(line)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def visible_block(text: str) -> str:
    """Return text from a task in its lines: without terminal codes, hidden characters shown."""
    return _marked(_CODES.sub("", text))


def coloured(text: str) -> str:
    """Return a line from a task with the codes of its colours; other hidden characters are shown."""
    return "".join(part if n % 2 else _marked(part) for n, part in enumerate(_COLOURS.split(text)))


def split_codes(text: str) -> tuple[str, str]:
    """Return text without terminal codes but those of colours, and an escape sequence that is not complete yet."""
    begun = _BEGUN.search(text, max(0, len(text) - MAX_CODE))
    whole, rest = (text[: begun.start()], text[begun.start() :]) if begun else (text, "")
    return _CODES.sub(lambda code: code[0] if _COLOURS.fullmatch(code[0]) else "", whole), rest


def _marked(text: str) -> str:
    return _HIDDEN.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
