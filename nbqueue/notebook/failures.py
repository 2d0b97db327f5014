"""What a reader looks for in a remote traceback: the line of their own code that it came from.

A traceback comes as text. Frames of libraries are counted by package; those of the reader's own code are shown, with
the lines around them where this process knows the source and it still is the one that ran.
"""

from __future__ import annotations

import itertools
import linecache
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

BEFORE, AFTER = 2, 1  # lines shown around the one that raised
OWN_SHOWN: Final = 2
CELLS_LOOKED_AT: Final = 200
MAX_TEXT: Final = 20_000  # characters of a traceback that are looked at: its end
MAX_SOURCE: Final = 300
_FRAME: Final = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+)(?:, in (?P<name>.*))?')
_MARKS: Final = re.compile(r"\s*[~^]+[~^\s]*")
_PACKAGE: Final = re.compile(r".*[/\\](?:site|dist)-packages[/\\]([^/\\]+)")
_STANDARD: Final = re.compile(r".*[/\\]lib[/\\]python3[^/\\]*[/\\]|<frozen ")
_CELL: Final = re.compile(r"<cell (.*)>|.*[/\\]ipykernel_\d+[/\\]\d+\.py|<ipython-input-(\d+).*>")


@dataclass(frozen=True)
class Frame:
    """One frame: where it is, and the source around its line. `marks` are columns, the second not included."""

    file: str
    line: int
    name: str
    code: tuple[tuple[int, str], ...] = ()
    marks: tuple[int, int] | None = None

    @property
    def package(self) -> str:
        """Return the library that it belongs to; empty if it is the reader's own."""
        if found := _PACKAGE.match(self.file):
            return found[1].removesuffix(".py")
        return "Python itself" if _STANDARD.match(self.file) else ""

    @property
    def title(self) -> str:
        """Return what a person calls the place: a cell, or a file without its folders."""
        if cell := _CELL.fullmatch(self.file):
            return f"Cell {cell[1]}" if cell[1] else "Cell"
        return re.split(r"[/\\]", self.file)[-1]


def frames_of(traceback: str) -> list[Frame]:
    """Return the frames of the error that was raised last, the innermost last; none if the text is not Python's."""
    frames: list[Frame] = []
    lines = traceback[-MAX_TEXT:].splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent call last):")]
    lines = lines[starts[-1] + 1 :] if starts else lines
    heads = [n for n, line in enumerate(lines) if _FRAME.fullmatch(line)]
    for head, after in itertools.pairwise([*heads, len(lines)]):
        found = _FRAME.fullmatch(lines[head])
        assert found is not None
        body = [line[4:] for line in lines[head + 1 : after] if line.startswith("    ")]
        frames.append(_frame(found["file"], int(found["line"]), found["name"] or "", body))
    return frames


def own_frames(frames: list[Frame]) -> list[Frame]:
    """Return the innermost frames of the reader's own code, each with the lines around it if they are known."""
    own: list[Frame] = []
    for frame in frames:
        if frame.package or not frame.code:
            continue
        if own and (own[-1].file, own[-1].line) == (frame.file, frame.line):
            # a comprehension is a frame of its own, on the same line
            frame = replace(own.pop(), marks=frame.marks)  # noqa: PLW2901 - both are one
        own.append(frame)
    return [_with_context(frame) for frame in own[-OWN_SHOWN:]]


def folded(frames: list[Frame], shown: list[Frame]) -> str:
    """Return the rest in words, as `6 frames in pandas, 2 in numpy`.

    Args:
        frames: all of them.
        shown: those of the reader's own that are shown.
    """
    places = {(frame.file, frame.line) for frame in shown}
    counts = Counter(frame.package for frame in frames if (frame.file, frame.line) not in places)
    own = counts.pop("", 0)
    parts = [f"{count} in {package}" for package, count in counts.most_common(4)]
    if (others := sum(counts.values()) - sum(count for _, count in counts.most_common(4))) > 0:
        parts.append(f"{others} in other packages")
    if own > 0:
        parts.insert(0, f"{own} more of your own")
    if not parts:
        return "Whole traceback"
    first, *rest = parts
    number, _, what = first.partition(" ")
    return ", ".join([f"{number} frame{'s' * (number != '1')} {what}", *rest])


def _frame(file: str, number: int, name: str, body: list[str]) -> Frame:
    """Return a frame of the lines that stand below its head: its source, and marks below it."""
    if not body:
        return Frame(file, number, name)
    source = body[0][:MAX_SOURCE]
    marks = None
    if len(body) > 1 and _MARKS.fullmatch(body[1]):
        start = len(body[1]) - len(body[1].lstrip())
        marks = (start, len(body[1].rstrip()))
    return Frame(file, number, name, ((number, source),), marks)


def _with_context(frame: Frame) -> Frame:
    number, source = frame.code[0]
    lines = next((lines for lines in _sources(frame.file) if _is_line(lines, number, source)), None)
    if lines is None:
        return frame
    known = lines[number - 1]
    first, last = max(1, number - BEFORE), min(len(lines), number + AFTER)
    code = tuple((n, lines[n - 1].rstrip().expandtabs(4)[:MAX_SOURCE]) for n in range(first, last + 1))
    # what stands in the traceback was stripped
    indent = len(known.expandtabs(4)) - len(known.expandtabs(4).lstrip()) - (len(source) - len(source.lstrip()))
    marks = (frame.marks[0] + indent, frame.marks[1] + indent) if frame.marks else None
    return Frame(frame.file, number, frame.name, code, marks)


def _is_line(lines: list[str], number: int, source: str) -> bool:
    return 0 < number <= len(lines) and bool(source.strip()) and lines[number - 1].strip() == source.strip()


def _sources(file: str) -> Iterator[list[str]]:
    """Yield what may be the lines of a file: Python's own record of it, or cells that were run here, newest first."""
    yield linecache.getlines(file)
    # where there are cells, IPython is loaded
    loaded = sys.modules.get("IPython.core.getipython")
    shell = loaded.get_ipython() if loaded is not None and file.startswith("<cell ") else None
    history = shell.history_manager if shell is not None else None
    if history is not None:
        for cell in reversed(history.input_hist_raw[-CELLS_LOOKED_AT:]):
            yield cell.splitlines()
