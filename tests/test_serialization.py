"""What travels as pickles: code, arguments, values and exceptions."""

from __future__ import annotations

import linecache
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue import exceptions, serialization
from nbqueue.exceptions import ImproperlyConfigured, NotPicklable, RemoteError, TaskRevokedError
from nbqueue.messages import Failure

OTHERS = {
    *("BadMessage", "SecurityError", "InvalidTaskError", "RemoteError"),
    *("WorkerShutdown", "WorkerTerminate", "SystemTerminate"),
}
ROOT = Path(__file__).resolve().parent.parent


def cell(source: str, name: str = "/tmp/ipykernel_1/cell.py", **namespace: Any) -> dict[str, Any]:
    """Run source as a notebook does: its lines are in linecache alone, its names in __main__."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace["__name__"] = "__main__"
    exec(compile(source, name, "exec"), namespace)
    return namespace


def run_elsewhere(code: bytes, call: str) -> str:
    """Load code in a fresh interpreter that can't import the tests; return what it prints."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from nbqueue import serialization\n"
        f"run = serialization.loads_code({code!r})\n"
        f"{call}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False, cwd="/"
    )
    return done.stdout + done.stderr


class NoRoundTrip(Exception):
    """Its pickle can't be loaded: it wants two arguments and remembers one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)
        self.two = two


class NoText(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class Connection:
    def __init__(self) -> None:
        self.host = "h"
        self.lock = threading.Lock()


def doubled(number: int) -> int:
    return number + len(HELP) - 3 + number


HELP = [1, 2, 3]


# ---- code


def test_code_runs_elsewhere_when_its_module_exists_here_only() -> None:
    assert run_elsewhere(serialization.dumps_code(doubled), "print(run(21))") == "42\n"


def test_code_takes_functions_and_values_along_when_it_uses_them() -> None:
    names = cell("import math\nfactor = 3\ndef times(x): return x * factor\ndef run(x): return math.floor(times(x))\n")
    assert run_elsewhere(serialization.dumps_code(names["run"]), "print(run(14.2))") == "42\n"


def test_traceback_shows_source_lines_of_all_cells_when_code_fails_elsewhere() -> None:
    inner = cell("def inner(x):\n    return 1 / x  # the inner line\n", "/tmp/ipykernel_1/inner.py")["inner"]
    outer = cell("def outer(x):\n    return inner(x)  # the outer line\n", "/tmp/ipykernel_1/outer.py", inner=inner)
    call = "import traceback\ntry: run(0)\nexcept ZeroDivisionError: traceback.print_exc()"
    text = run_elsewhere(serialization.dumps_code(outer["outer"]), call)
    assert "the outer line" in text
    assert "the inner line" in text
    assert "ZeroDivisionError" in text


def test_digest_is_the_same_when_code_is_packed_twice() -> None:
    first, second = serialization.dumps_code(doubled), serialization.dumps_code(doubled)
    assert serialization.digest(first) == serialization.digest(second)
    assert len(serialization.digest(first)) == 32


def test_code_is_refused_by_name_when_it_holds_what_can_not_travel() -> None:
    lock = threading.Lock()
    with pytest.raises(NotPicklable, match=r"closes_over.*lock"):
        serialization.dumps_code(closing_over(lock))


def closing_over(lock: Any) -> Callable[[], Any]:
    def closes_over() -> Any:
        return lock

    return closes_over


# ---- arguments and values


@pytest.mark.parametrize("serializer", serialization.SERIALIZERS)
def test_arguments_come_back_when_they_are_plain(serializer: str) -> None:
    args, kwargs = (1, "two", [3.5, None, True], {"four": 5}), {"key": "word"}
    packed = serialization.dumps_args(args, kwargs, serializer)
    assert serialization.loads_args(packed, serializer) == (args, kwargs)


def test_arguments_come_back_when_they_are_functions_of_a_notebook() -> None:
    packed = serialization.dumps_args((lambda x: x + 1,), {})
    (function,), _ = serialization.loads_args(packed)
    assert function(1) == 2


def test_argument_is_named_when_it_can_not_travel() -> None:
    with pytest.raises(NotPicklable, match=r"argument 2.*\.lock"):
        serialization.dumps_args((1, Connection()), {})
    with pytest.raises(NotPicklable, match=r"conn\.lock \(of conn\)"):
        serialization.dumps_args((1,), {"conn": Connection()})


def test_arguments_are_refused_when_they_are_no_json() -> None:
    with pytest.raises(NotPicklable, match="JSON"):
        serialization.dumps_args((object(),), {}, "json")


def test_serializer_is_refused_when_there_is_none_of_that_name() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'xml'.*cloudpickle"):
        serialization.check_serializer("xml")


@pytest.mark.parametrize(
    ("value", "explained"),
    [
        (Connection(), "it.lock (of it)"),
        ({"deep": [Connection()]}, "it['deep'][0].lock (of it)"),
        (threading.Lock(), "it"),
        ([1, 2, 3], ""),
    ],
    ids=["attribute", "nested", "itself", "nothing"],
)
def test_explanation_names_the_path_when_a_part_can_not_be_pickled(value: Any, explained: str) -> None:
    assert serialization.explain_unpicklable("it", value) == explained


def test_explanation_ends_when_a_value_holds_itself() -> None:
    value: list[Any] = [threading.Lock()]
    value.insert(0, value)
    assert serialization.explain_unpicklable("it", value) == "it[1] (of it)"


@pytest.mark.parametrize("value", [None, 1, "x", [1, [2, [3, [4, [5]]]]], {"a": (1, b"b")}, {1, 2}, range(3)])
def test_value_comes_back_when_it_is_packed(value: Any) -> None:
    assert serialization.loads(serialization.dumps_value(value)) == value


# ---- exceptions


def failure_of(exc: BaseException) -> Failure:
    return serialization.dumps_exception(exc, "the remote traceback")


def test_exception_comes_back_as_itself_when_its_class_is_known() -> None:
    loaded = serialization.load_exception(failure_of(KeyError("key")))
    assert type(loaded) is KeyError
    assert loaded.args == ("key",)
    shown = "".join(traceback.format_exception(loaded))
    assert "the remote traceback" in shown


@pytest.mark.parametrize("made", [NoRoundTrip("a", "b"), RuntimeError(threading.Lock())], ids=["loads", "dumps"])
def test_exception_comes_back_as_text_when_it_does_not_survive_pickling(made: Exception) -> None:
    failure = failure_of(made)
    assert failure.pickled == b""
    loaded = serialization.load_exception(failure)
    assert isinstance(loaded, RemoteError)
    assert loaded.type_name == type(made).__qualname__
    assert str(loaded).startswith(f"{type(made).__qualname__}: ")


def test_exception_comes_back_as_text_when_its_class_is_missing_here() -> None:
    failure = Failure("Strange", "why", "trace", b"cno_such_module\nStrange\n.")
    loaded = serialization.load_exception(failure)
    assert (type(loaded), str(loaded)) == (RemoteError, "Strange: why")


def test_exception_is_packed_when_its_text_can_not_be_had() -> None:
    assert "can't be had" in failure_of(NoText()).message


@pytest.mark.parametrize("name", sorted(set(exceptions.__all__) - OTHERS))
def test_own_exception_comes_back_by_name_when_a_supervisor_wrote_it(name: str) -> None:
    loaded = serialization.load_exception(Failure(name, "what happened", ""))
    assert type(loaded) is getattr(exceptions, name)
    assert "what happened" in str(loaded)


def test_exception_of_a_task_can_be_pickled_again_when_it_has_come_back() -> None:
    loaded = serialization.load_exception(Failure("TaskRevokedError", "cancelled", "text"))
    assert type(pickle.loads(pickle.dumps(loaded))) is TaskRevokedError


def test_traceback_leaves_the_machinery_out_when_it_is_formatted() -> None:
    def raiser() -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x") as caught:
        raiser()
    text = serialization.format_traceback(caught.value, ("no/such.py",))
    assert "raiser" in text
    assert "raiser" not in serialization.format_traceback(caught.value, ("tests/test_serialization.py",))


def test_arguments_are_peeked_at_in_json_and_never_in_a_pickle() -> None:
    plain = ((1, 2.5, "a", None, True), {"b": [{"c": [1]}]})
    assert serialization.peek_args(serialization.dumps_args(*plain, "json"), "json") == plain
    for serializer in ("cloudpickle", "pickle"):
        packed = serialization.dumps_args(*plain, serializer)
        assert serialization.peek_args(packed, serializer) is None
        assert serialization.peek_args(packed, "json") is None
    for data in (b"", b"garbage", b"1", b"[[], 1]", serialization.dumps_args(("x" * 20_000,), {}, "json")):
        assert serialization.peek_args(data, "json") is None
