from __future__ import annotations

import contextlib
from types import FunctionType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from IPython.core.getipython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import display

from nbqueue.notebook.cells import CellNames, capture, read_cell
from nbqueue.serialization import dumps_value, loads
from tests.programs import NAMES, programs


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("y = f(x)", {"f", "x"}),
        ("x = 1\ny = x", set()),
        ("x += 1", {"x"}),
        ("x = x + 1", {"x"}),
        ("del x", {"x"}),
        ("x = 1\ndel x\nx", {"x"}),
        ("[i * k for i in rows if i > low]", {"k", "rows", "low"}),
        ("{k: v for k, v in pairs}", {"pairs"}),
        ("[y for x in a for y in x]", {"a"}),
        ("lambda u, v=w: u + v + z", {"w", "z"}),
        ("def g(a, b=d): return a + c", {"d", "c"}),
        ("def g(): return h()\ndef h(): return 1\ng()", set()),
        ("def g(n): return g(n - 1)", set()),
        ("def g():\n    global n\n    n += 1", {"n"}),
        ("def g():\n    x = 1\n    def h():\n        nonlocal x\n        x = y\n    return h", {"y"}),
        ("class A(B):\n    z = q\n    def m(self): return r", {"B", "q", "r"}),
        ("@decorate\ndef g(): pass", {"decorate"}),
        ("for i in rows:\n    t = i\nt", {"rows", "t"}),
        ("while go():\n    t = 1\nt", {"go", "t"}),
        ("if c:\n    a = 1\nelse:\n    a = 2\na", {"c"}),
        ("if c:\n    a = 1\na", {"c", "a"}),
        ("with open_it(p) as h:\n    d = h.read()\nd", {"open_it", "p"}),
        ("try:\n    import m\nexcept E:\n    m = None\nm", {"E"}),
        ("try:\n    v = g()\nexcept E:\n    pass\nv", {"g", "E", "v"}),
        ("try:\n    v = g()\nfinally:\n    v", {"g", "v"}),
        ("for i in s:\n    try:\n        v = g(i)\n    except E:\n        continue\n    v", {"s", "g", "E"}),
        ("if c:\n    a = 1\nelse:\n    raise E\na", {"c", "E"}),
        ("with suppress(E):\n    v = g()\nv", {"suppress", "E", "g", "v"}),
        ("a < (b := 1) < (c := 2)\nb, c", {"a", "c"}),
        ("class A:\n    x = x", {"x"}),
        ("class A:\n    x += 1", {"x"}),
        ("class A:\n    x = 1\n    y = x", set()),
        ("class A:\n    x = 1\n    def m(self): return x", {"x"}),
        ("class A:\n    x = 1\n    y = [x for _ in s]", {"x", "s"}),
        ("class A:\n    y = A.z\n    def m(self): return A", {"A"}),
        ("def g():\n    class A:\n        x = x", {"x"}),
        ("def g(): return h()\ng()\ndef h(): return 1", {"h"}),
        ("def g(): return h()\nclass A:\n    x = g()\ndef h(): return 1", {"h"}),
        ("def g(): return i\n[g() for i in s]", {"i", "s"}),
        ("exec('z = x')\neval('z + y')", {"exec", "eval", "x", "y"}),
        ("globals()['x']", {"globals", "x"}),
        ("def g(df, low): return df.query('a > @low and b < @high')", {"low", "high"}),
        ("try:\n    v = g()\nexcept E as e:\n    raise\nv", {"g", "E"}),
        ("f'{a} {b!r:>{c}}'", {"a", "b", "c"}),
        ("if (n := g()) > 1: n", {"g"}),
        ("any((hit := x) for x in rows)\nhit", {"any", "rows", "hit"}),
        ("match s:\n    case {'k': v, **rest}: v, rest\n    case [a, *b]: a, b", {"s"}),
        ("import os.path as p, sys\nfrom a import b as c\np, sys, c", set()),
        ("from a import *\nwhatever", {"whatever"}),
        ("x: int = 3\nx", {"int"}),
        ("x: int\nx", {"int", "x"}),
        ("a, (b, *c) = v\na, b, c", {"v"}),
        ("obj.attr = v\nitems[k] = v", {"obj", "v", "items", "k"}),
        ("await g(x)", {"g", "x"}),
        ("async def g():\n    async for i in s: yield i", {"s"}),
        ("assert x, y", {"x", "y"}),
        ("a or b", {"a", "b"}),
    ],
)
def test_read_cell_finds_what_is_read_before_it_is_bound(source: str, reads: set[str]) -> None:
    assert read_cell(source).reads == reads


def test_read_cell_finds_what_is_bound_at_the_top_level() -> None:
    names = read_cell("import os\nx = [i for i in y]\ndef f(a): b = a\nclass C: pass\nfor k in x: pass")
    assert names.writes == {"os", "x", "f", "C", "k"}


def test_read_cell_knows_ipythons_own_syntax_by_what_it_becomes() -> None:
    assert read_cell("files = get_ipython().getoutput('ls')").uses_ipython
    assert not read_cell("files = []").uses_ipython


@pytest.mark.parametrize(
    ("cell", "reads"),
    [
        ("%time y = f(x)\ny", {"f", "x"}),
        ("y = %time f(x)", {"f", "x"}),
        ("%timeit -n 2 -r1 f(x)", {"f", "x"}),
        ("%%time\ny = f(x)\n!ls {y} {z}", {"y", "f", "x", "z", "ls"}),
        ("!cp {source} $target", {"source", "target"}),
        ("files = !ls {folder}", {"folder"}),
        ("!awk '{print $1}' $$HOME", set()),
        ("%cd data", set()),
        ("df?", {"df"}),
        ("def g(p):\n    !ls {p} {q}", {"p", "q"}),
    ],
)
def test_read_cell_finds_names_in_ipythons_own_syntax(cell: str, reads: set[str]) -> None:
    source = str(TransformerManager().transform_cell(cell))  # type: ignore[no-untyped-call]
    assert read_cell(source).reads - {"get_ipython"} == reads


@pytest.mark.parametrize("source", ["for", "return 1", "break", "def g():\n    nonlocal x"])
def test_read_cell_raises_on_what_is_no_python(source: str) -> None:
    with pytest.raises(SyntaxError):
        read_cell(source)


def test_capture_takes_what_the_notebook_has_and_nothing_else() -> None:
    namespace = {"x": 1, "y": 2, "list": "shadowed", "In": [], "get_ipython": get_ipython, "display": display}
    names = read_cell("x, list, missing, In, get_ipython, display, print")
    assert capture(names, namespace) == {"x": 1, "list": "shadowed"}


@pytest.mark.parametrize(
    "source",
    [
        "total = sum(values) + offset",
        "offset += 1\nresult = [v * offset for v in values]",
        "def scale(v):\n    return v * offset\nresult = [scale(v) for v in values]",
        "for v in values:\n    if v > 1:\n        big = v\nresult = big",
        "class Box:\n    start = offset\n    def get(self): return self.start + values[0]\nresult = Box().get()",
        "with_default = lambda v, o=offset: v + o\nresult = with_default(values[1])",
    ],
)
def test_cell_does_the_same_with_only_what_is_captured(source: str) -> None:
    namespace = {"values": [1, 2, 3], "offset": 10, "unused": object()}
    captured = capture(read_cell(source), namespace)
    assert "unused" not in captured
    whole, part = dict(namespace), dict(captured)
    exec(source, whole)
    exec(source, part)
    bound = read_cell(source).writes - {"Box", "scale", "with_default"}
    assert {name: part[name] for name in bound} == {name: whole[name] for name in bound}


NOTEBOOK = """
a, b = 1, 2
c = lambda: b
def f(p=0): return a
def g(): return f() + 7
"""


def outcome(source: str, names: CellNames | None) -> tuple[str, dict[str, object]]:
    """Run a cell in a notebook, or with what it takes along, as a worker does; return its error and numbers."""
    namespace: dict[str, Any] = {"suppress": contextlib.suppress, "__name__": "__main__"}
    exec(NOTEBOOK, namespace)
    if names is not None:
        anchor = FunctionType(anchored.__code__, namespace)
        anchor, captured = loads(dumps_value((anchor, capture(names, namespace))))
        namespace = anchor.__globals__
        namespace.update(captured)
    error = ""
    try:
        exec(source, namespace)
    except Exception as exc:  # noqa: BLE001 - whatever it raises, both raise
        error = type(exc).__name__
    return error, {name: namespace[name] for name in NAMES if isinstance(namespace.get(name), int)}


def anchored() -> None:
    """Lend its code to a function whose globals are a notebook's."""


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(source=programs)
def test_any_cell_does_the_same_with_only_what_is_captured(source: str) -> None:
    try:
        names = read_cell(source)
    except SyntaxError:
        return
    before = outcome("", None)[1]
    (error, whole), (same_error, part) = outcome(source, None), outcome(source, names)
    assert same_error == error
    for name in names.writes & (whole.keys() | part.keys()):
        untouched = name not in part and whole[name] == before.get(name)
        assert untouched or part.get(name) == whole.get(name), (name, whole, part)
