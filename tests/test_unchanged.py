"""`nbqueue.unchanged`: functions are pickled again when, and only when, they may have changed."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest

from nbqueue import modules, serialization
from nbqueue.unchanged import Changeable, Snapshot

CELL = """
import math
factor, names = 3, ("a", 1.5)
def helper(x): return x * factor
def outer():
    hidden = 10
    def inner(x): return x + hidden
    def change(): nonlocal hidden; hidden += 1
    return inner, change
inner, change = outer()
def work(x, power=2, *, other=None) -> float: return helper(x) ** power + math.pi + len(names) + missing(inner(x))
"""


class Wrapper:
    """Stands for a function, as a task does."""

    def __init__(self, run: Any) -> None:
        self.function = run
        self.given: dict[str, Any] = {}


def cell(text: str = CELL) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(text, names)
    return names


def of(names: dict[str, Any], name: str = "work") -> Snapshot:
    return Snapshot(names[name], Wrapper)


@pytest.fixture(autouse=True)
def _known_modules() -> None:
    modules.sources({"math"})


def keyword_only(names: dict[str, Any]) -> None:
    names["work"].__kwdefaults__ = {"other": 5}


@pytest.mark.parametrize(
    "change",
    [
        lambda names: names.update(factor=4),
        lambda names: names.update(factor=3.0),
        lambda names: names.update(missing=abs),
        lambda names: names.update(len=max),
        lambda names: names.update(helper=abs),
        lambda names: names.update(math=sys),
        lambda names: names["change"](),
        lambda names: names["helper"].__setattr__("__code__", (lambda x: x).__code__),
        lambda names: names["work"].__setattr__("__defaults__", (3,)),
        lambda names: names["work"].__setattr__("note", "new"),
        lambda names: names["work"].__annotations__.update(x=int),
        lambda names: names.pop("factor"),
    ],
)
def test_what_a_function_refers_to_has_changed(change: Any) -> None:
    text = CELL.replace(", *, other=None", "")
    names = cell(text)
    snapshot = of(names)
    assert snapshot.holds()
    change(names)
    assert not snapshot.holds()


def test_what_holds_has_the_same_pickle() -> None:
    names = cell(CELL.replace(", *, other=None", "").replace("missing(", "abs("))
    snapshot = of(names)
    before = serialization.dumps_code(names["work"])
    names.update(unrelated=5)
    assert snapshot.holds()
    assert serialization.dumps_code(names["work"]) == before
    names.update(factor=4)
    assert not snapshot.holds()
    assert serialization.dumps_code(names["work"]) != before


@pytest.mark.parametrize(
    "text",
    [
        "data = [1]\ndef work(): return data",
        "data = {}\ndef work(): return data",
        "class Point: pass\ndef work(): return Point",
        "class Point: pass\npoint = Point()\ndef work(): return point",
        "data = ([],)\ndef work(): return data",
        "def work(x=[]): return x",
        "def work(*, x=1): return x",
        "def make():\n    kept = []\n    def work(): return kept\n    return work\nwork = make()",
        "import functools\ndef raw(): pass\n@functools.wraps(raw)\ndef work(): return raw()",
        "def work():\n    import surely_not_there",
        "data = []\ndef helper(): return data\ndef work(): return helper()",
        "work = len",
    ],
)
def test_what_can_change_unseen_is_refused(text: str) -> None:
    with pytest.raises(Changeable):
        of(cell(text))


def test_function_of_a_users_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", module)
    monkeypatch.setattr(modules, "owned", lambda found: found is module)
    names = cell("def work(): return own")
    names["own"] = module
    with pytest.raises(Changeable):
        of(names)


def test_a_package_may_bring_modules_that_were_loaded_since(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = of(cell("import math\ndef work(): return math.pi"))
    assert snapshot.holds()
    monkeypatch.setitem(sys.modules, "surely.not.there", math)
    assert not snapshot.holds()


def test_function_that_calls_itself_and_its_task() -> None:
    names = cell("def work(n): return n and work(n - 1)")
    names["work"] = Wrapper(names["work"])
    snapshot = Snapshot(names["work"].function, Wrapper)
    assert snapshot.holds()
    names["work"].function = abs
    assert not snapshot.holds()
