from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue.notebook.fingerprint import fingerprint

ROOT = Path(__file__).parent.parent
# What a notebook defines, each in a form that another kernel pickles differently.
DEFINED = """
import abc, collections, dataclasses, enum, functools, typing
LIMIT = 3

class Base(abc.ABC):
    size = 2
    def __init__(self): self.seen = {"a", "b", "c", "d"}
    @property
    def first(self): return self.seen
    @abc.abstractmethod
    def go(self): ...

class Derived(Base):
    def go(self): return super().go() in {"x", "y", "z"}

@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int = 1
    others: list = dataclasses.field(default_factory=list)

class Colour(enum.Enum):
    red = 1
    blue = "b"

Pair = collections.namedtuple("Pair", "left right")
Item = typing.TypeVar("Item")

class Bag(typing.Generic[Item]):
    pass

def logged(function):
    @functools.wraps(function)
    def inner(*args): return function(*args)
    return inner

@logged
def factorial(n): return 1 if n < LIMIT else n * factorial(n - 1)

@functools.lru_cache
def cached(n): return n

values = {
    "instance": Derived(), "point": Point(), "member": Colour.blue, "pair": Pair(1, {"q", "r"}), "bag": Bag(),
    "function": factorial, "cached": cached, "method": Derived().go, "classes": [Base, Point, Colour],
    "mixed set": {"a", 1, (2, "x")}, "frozen set": frozenset(["u", "v", "w"]), "dict of sets": {"k": {"z", "y"}},
    "lambda": lambda x: x in ("a", LIMIT),
}
"""


def digests_in_another_kernel(source: str) -> dict[str, str]:
    program = f"""
import json
exec(compile({source!r}, "<ipython-input-1>", "exec"), globals())
from nbqueue.notebook.fingerprint import fingerprint
print(json.dumps({{name: fingerprint("cell", {{name: value}}) for name, value in values.items()}}))
"""
    run = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "random"}
    ran = subprocess.run(run, env=environment, check=True, capture_output=True, timeout=60)
    found: dict[str, str] = json.loads(ran.stdout)
    return found


def test_fingerprint_is_the_same_in_every_kernel() -> None:
    one, other = digests_in_another_kernel(DEFINED), digests_in_another_kernel(DEFINED)
    assert one == other
    assert len(set(one.values())) == len(one)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("return super().go() in", "return super().go() not in", {"instance", "method"}),
        ("size = 2", "size = 3", {"instance", "method", "classes"}),
        ("x: int = 1", "x: int = 2", {"point", "classes"}),
        ("red = 1", "red = 7", {"member", "classes"}),
        ("LIMIT = 3", "LIMIT = 4", {"function", "lambda"}),
        ("else n * factorial", "else n + factorial", {"function"}),
        ("def inner(*args): return", "def inner(*args): return -", {"function"}),
        ("import abc", "# a remark\nimport abc", set()),
    ],
)
def test_fingerprint_changes_with_the_code_that_is_used_and_no_other(old: str, new: str, changed: set[str]) -> None:
    assert old in DEFINED
    before, after = digests_in_another_kernel(DEFINED), digests_in_another_kernel(DEFINED.replace(old, new))
    assert {name for name in before if before[name] != after[name]} == changed


def test_fingerprint_tells_cells_inputs_and_outputs_apart() -> None:
    one = fingerprint("f(x)", {"x": 1, "y": 2}, ["a"])
    assert one == fingerprint("f(x)", {"y": 2, "x": 1}, ["a"])
    others = [
        fingerprint("f(x) ", {"x": 1, "y": 2}, ["a"]),
        fingerprint("f(x)", {"x": 2, "y": 2}, ["a"]),
        fingerprint("f(x)", {"x": 1, "z": 2}, ["a"]),
        fingerprint("f(x)", {"x": 1, "y": 2}, ["a", "b"]),
        fingerprint("f(x)", {"x": 1, "y": 2}),
    ]
    assert one not in others
    assert len(set(others)) == len(others)


def test_object_with_a_member_called_run_counts_as_a_whole() -> None:
    class Job:
        def __init__(self, run: Callable[..., Any], size: int) -> None:
            self.run, self.size = run, size

    assert fingerprint("", {"job": Job(len, 1)}) != fingerprint("", {"job": Job(len, 2)})


def test_large_arrays_count_by_their_content() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1_000_000)
    one = fingerprint("", {"array": array})
    assert one == fingerprint("", {"array": array.copy()})
    array[999_999] = 0
    assert one != fingerprint("", {"array": array})
