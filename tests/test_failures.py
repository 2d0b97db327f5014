from __future__ import annotations

import linecache
import sys
import textwrap
from types import SimpleNamespace
from typing import ClassVar

import pytest

from nbqueue.notebook.failures import folded, frames_of, own_frames

TRACE = """\
Traceback (most recent call last):
  File "<cell clean>", line 6, in <module>
    df[col] = df[col].astype(float)
              ^^^^^^^^^^^^^^^^^^^^^
  File "/venv/lib/python3.11/site-packages/pandas/core/generic.py", line 6643, in astype
    new_data = self._mgr.astype(dtype=dtype)
               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/venv/lib/python3.11/site-packages/pandas/core/managers.py", line 430, in astype
    return self.apply(
           ^^^^^^^^^^^
  File "/usr/lib/python3.11/json/decoder.py", line 353, in raw_decode
    obj, end = self.scan_once(s, idx)
ValueError: could not convert string to float: 'n/a'
"""


def test_frames_are_read_with_their_source_and_the_columns_that_are_marked() -> None:
    first, *_, last = frames_of(TRACE)
    assert (first.file, first.line, first.name) == ("<cell clean>", 6, "<module>")
    assert first.code == ((6, "df[col] = df[col].astype(float)"),)
    assert first.marks is not None
    assert first.code[0][1][slice(*first.marks)] == "df[col].astype(float)"
    assert last.marks is None


def test_libraries_are_counted_and_the_rest_is_the_readers_own() -> None:
    frames = frames_of(TRACE)
    assert [frame.title for frame in own_frames(frames)] == ["Cell clean"]
    assert folded(frames, own_frames(frames)) == "2 frames in pandas, 1 in Python itself"


def test_frames_are_those_of_the_error_that_was_raised_last() -> None:
    later = TRACE.replace("<cell clean>", "<cell other>")
    text = f"{TRACE}\nDuring handling of the above exception, another exception occurred:\n\n{later}"
    assert {frame.file for frame in frames_of(text) if frame.file.startswith("<")} == {"<cell other>"}


@pytest.mark.parametrize(
    "text", ["", "no traceback at all", "Traceback (most recent call last):\nValueError: x", "\n" * 9]
)
def test_text_without_frames_has_none_and_is_shown_whole(text: str) -> None:
    assert frames_of(text) == []
    assert folded([], []) == "Whole traceback"


def test_only_the_innermost_own_frames_are_shown_and_the_others_counted() -> None:
    text = "Traceback (most recent call last):\n"
    text += "".join(f'  File "<cell x>", line {n}, in f\n    f({n})\n' for n in range(1, 31))
    frames = frames_of(text)
    assert [frame.line for frame in own_frames(frames)] == [29, 30]
    assert folded(frames, own_frames(frames)) == "28 frames more of your own"


@pytest.mark.parametrize(
    ("file", "package"),
    [
        ("/venv/lib/python3.12/site-packages/numpy/core/x.py", "numpy"),
        (r"C:\venv\Lib\site-packages\six.py", "six"),
        ("/usr/lib/python3.11/json/decoder.py", "Python itself"),
        ("<frozen importlib._bootstrap>", "Python itself"),
        ("/home/me/lib/own.py", ""),
        ("/tmp/ipykernel_12/345.py", ""),
        ("<cell [7]>", ""),
    ],
)
def test_file_tells_whose_code_it_is(file: str, package: str) -> None:
    (frame,) = frames_of(f'  File "{file}", line 1, in f\n    f()\n')
    assert frame.package == package


def source_of(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    lines = textwrap.dedent(source).splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "<cell near>", (len(source), None, lines, "<cell near>"))


NEAR = '  File "<cell near>", line 3, in f\n    value = int(word)\n            ^^^^^^^^^\n'


def test_lines_around_are_shown_where_the_source_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(monkeypatch, "def f(word):\n    # a comment\n    value = int(word)\n    return value\n    more")
    (frame,) = own_frames(frames_of(NEAR))
    assert [number for number, _ in frame.code] == [1, 2, 3, 4]
    assert frame.marks is not None
    assert dict(frame.code)[3][slice(*frame.marks)] == "int(word)"


def test_lines_around_are_left_out_where_the_source_is_another_now(monkeypatch: pytest.MonkeyPatch) -> None:
    source_of(monkeypatch, "def f(word):\n    # a comment\n    value = float(word)\n")
    (frame,) = own_frames(frames_of(NEAR))
    assert frame.code == ((3, "value = int(word)"),)


def test_lines_around_are_those_of_the_cell_that_was_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class History:
        input_hist_raw: ClassVar = ["", "%%task near\n# mine\nvalue = int(word)\nprint(value)", "%%task near\n\nother"]

    shell = SimpleNamespace(history_manager=History())
    monkeypatch.setitem(sys.modules, "IPython.core.getipython", SimpleNamespace(get_ipython=lambda: shell))
    (frame,) = own_frames(frames_of(NEAR))
    assert [line for _, line in frame.code] == ["%%task near", "# mine", "value = int(word)", "print(value)"]


def test_comprehension_is_no_frame_of_its_own() -> None:
    text = (
        '  File "<cell x>", line 4, in f\n    return [int(x) for x in y]\n           ^^^^^^^^^^^^^^^^^^^\n'
        '  File "<cell x>", line 4, in <listcomp>\n    return [int(x) for x in y]\n            ^^^^^^\n'
    )
    frames = frames_of(text)
    (frame,) = own_frames(frames)
    assert (frame.name, frame.marks) == ("f", (8, 14))
    assert folded(frames, [frame]) == "Whole traceback"
