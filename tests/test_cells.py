from __future__ import annotations

import pytest

from nbqueue.notebook.cells import capture, read_cell


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
        ("try:\n    import m\nexcept E:\n    m = None\nm", {"E", "m"}),
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


def test_read_cell_raises_on_what_is_no_python() -> None:
    with pytest.raises(SyntaxError):
        read_cell("for")


def test_capture_takes_what_the_notebook_has_and_nothing_else() -> None:
    namespace = {"x": 1, "y": 2, "list": "shadowed", "In": [], "get_ipython": object(), "display": object()}
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
