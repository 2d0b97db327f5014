"""A notebook's cell in this process, as a child runs it."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from nbqueue import serialization
from nbqueue.cellrun import CellResult, CellRun
from nbqueue.execute import Executor
from nbqueue.messages import CELL_TASK, Failure, Outcome, Output
from tests.pools import RunningPool, child_task


class Runs:
    """Runs cells, after a trip as a pickle, and keeps what they said."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.executor = Executor(self._said)

    def _said(self, seq: int, kind: str, data: bytes) -> None:
        if kind == "output":
            self.outputs.append(msgspec.json.decode(data, type=Output))

    def outcome(self, source: str, **options: Any) -> Outcome:
        return self.executor.execute(child_task(CELL_TASK, CellRun(source, "<cell test>", **options))[0])

    def result(self, source: str, **options: Any) -> CellResult:
        outcome = self.outcome(source, **options)
        assert outcome.state == "SUCCESS", outcome.error
        result = serialization.loads(outcome.body)
        assert isinstance(result, CellResult)
        return result

    def failure(self, source: str, **options: Any) -> Failure:
        outcome = self.outcome(source, **options)
        assert outcome.state == "FAILURE"
        return msgspec.msgpack.decode(outcome.body, type=Failure)


@pytest.fixture
def runs() -> Runs:
    return Runs()


def notebook(source: str) -> dict[str, Any]:
    """Run source as a notebook does and return its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "/tmp/ipykernel_1/1.py", "exec"), names)
    return names


def test_names_come_back_when_they_are_asked_for(runs: Runs) -> None:
    result = runs.result("y = x + 1\nz = y", variables={"x": 41}, outputs=("y", "z"))
    assert (result.value, result.variables) == (None, {"y": 42, "z": 42})


def test_last_expression_is_the_value_and_is_shown_when_there_is_one(runs: Runs) -> None:
    assert runs.result("x = 20\nx * 2 + 2").value == 42
    assert [(o.type, o.data) for o in runs.outputs] == [("execute_result", {"text/plain": "42"})]


def test_nothing_is_shown_when_the_cell_ends_in_a_semicolon(runs: Runs) -> None:
    assert runs.result("42;").value is None
    assert runs.outputs == []


def test_html_is_shown_beside_the_text_when_a_value_has_it(runs: Runs) -> None:
    source = "class T:\n    def _repr_html_(self): return '<b>t</b>'\n    def __repr__(self): return 't'\nT()"
    runs.result(source)
    assert runs.outputs[0].data == {"text/plain": "t", "text/html": "<b>t</b>"}


def test_cell_succeeds_when_the_repr_of_its_value_raises(runs: Runs) -> None:
    runs.result("class T:\n    def __repr__(self): raise ValueError\nT()")
    assert "ValueError" in runs.outputs[0].data["text/plain"]


def test_cell_awaits_when_it_says_so(runs: Runs) -> None:
    assert runs.result("import asyncio\nawait asyncio.sleep(0)\nx = 1\nawait asyncio.sleep(0, 42)").value == 42


def test_display_shows_where_it_is_called_when_the_cell_goes_on(runs: Runs) -> None:
    runs.result("display('one', 2)\n3")
    assert [(o.type, o.data["text/plain"]) for o in runs.outputs] == [
        ("display_data", "'one'"),
        ("display_data", "2"),
        ("execute_result", "3"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "get_ipython().run_line_magic('matplotlib', 'inline')",
        "get_ipython().run_line_magic('config', \"InlineBackend.figure_format = 'retina'\")",
    ],
)
def test_lines_that_set_up_figures_are_passed_over_without_a_shell(runs: Runs, line: str) -> None:
    assert runs.result(f"{line}\n'get_' + 'ipython' in globals()").value is False
    assert runs.result(f"x = 1\n{line}").value is None


def test_captured_functions_see_what_the_cell_binds_when_they_share_its_globals(runs: Runs) -> None:
    names = notebook("factor = 2\ndef times(x): return x * factor\ndef anchor(): pass\n")
    result = runs.result(
        "factor = 21\ntimes(2)", variables={"times": names["times"], "factor": 2}, anchor=names["anchor"]
    )
    assert result.value == 42


def test_failure_shows_the_cells_own_line_when_it_raises(runs: Runs) -> None:
    failure = runs.failure("x = 0\n1 / x", shown="%%task\nnot this\n")
    assert failure.type == "ZeroDivisionError"
    assert "<cell test>" in failure.traceback
    failure = runs.failure("x = 0\n1 / x  # here")
    assert "1 / x  # here" in failure.traceback
    assert "cellrun.py" not in failure.traceback


def test_failure_is_a_syntax_error_when_the_cell_is_none(runs: Runs) -> None:
    assert runs.failure("x = = 1").type == "SyntaxError"


def test_failure_names_the_variable_when_the_cell_does_not_bind_it(runs: Runs) -> None:
    failure = runs.failure("x = 1", outputs=("x", "missing"))
    assert (failure.type, "missing" in failure.message) == ("NameError", True)


def test_failure_names_the_variable_when_it_can_not_come_back(runs: Runs) -> None:
    failure = runs.failure("import threading\nlock = threading.Lock()", outputs=("lock",))
    assert failure.type == "TypeError"
    assert "lock" in failure.message


def test_last_value_stays_behind_and_that_is_said_when_it_can_not_be_pickled(runs: Runs) -> None:
    assert runs.result("import threading\nthreading.Lock()").value is None
    assert "stays with the worker" in runs.outputs[-1].text


def test_summary_names_what_comes_back_when_names_are_asked_for(runs: Runs) -> None:
    assert runs.outcome("x = list(range(40)); y = 2", outputs=("x", "y")).summary == "x: list of 40, y: 2"
    assert runs.outcome("6 * 7").summary == "42"


def test_prints_come_before_the_shown_value_when_a_child_runs_the_cell() -> None:
    with RunningPool(1) as running:
        seq = running.send(CELL_TASK, CellRun("for n in range(3): print(n)\n'end'", "<cell child>"))
        assert running.value(seq).value == "end"
        assert [o.text or o.data["text/plain"] for o in running.outputs(seq)] == ["0\n1\n2\n", "'end'"]


def test_shell_and_magics_work_when_the_source_asks_for_them() -> None:
    source = "lines = get_ipython().getoutput('echo one; echo two')\nlist(lines)"
    with RunningPool(1) as running:
        assert running.call(CELL_TASK, CellRun(source, "<cell shell>")).value == ["one", "two"]


def test_cell_of_a_notebook_has_no_lock_of_ours_when_it_is_packed() -> None:
    run = CellRun("x", "<cell pack>", variables={"lock": threading.Lock()})
    assert serialization.explain_unpicklable("cell", run).endswith("(of cell)")
