"""Run a notebook's cell in a worker, as the notebook itself would."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Final

import cloudpickle

from nbqueue.capture import Recorder, summarize
from nbqueue.display import Displayer
from nbqueue.serialization import remember_sources

# Figures are shown as `%matplotlib inline` has them shown, without loading IPython; other ways need a screen.
_FIGURES: Final = re.compile(
    r"""get_ipython\(\)\.run_line_magic\(
        (?: 'matplotlib',\ '[^']*' | 'config',\ (?P<quote>['"])InlineBackend\..*(?P=quote) )
    \)""",
    re.VERBOSE,
)


@dataclass
class CellRun:
    """A cell on its way: plain Python, and what it takes along.

    Args:
        source: the code, IPython's own syntax already turned into Python.
        filename: what tracebacks call it.
        shown: the source as the user wrote it, for tracebacks; `source` if empty.
        variables: values it reads, by name.
        outputs: names whose values are to come back.
        anchor: a function whose globals were the notebook's. All functions that travel in one pickle share one
            dict of globals, so that captured functions see what the cell binds.
        sources: text of the cells that captured functions come from, by file name.
    """

    source: str
    filename: str
    variables: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    anchor: Callable[[], None] | None = None
    sources: dict[str, str] = field(default_factory=dict)
    shown: str = ""


@dataclass
class CellResult:
    """What comes back of a cell: the value of its last expression, and the names asked for."""

    value: Any
    variables: dict[str, Any]


def run_cell(run: CellRun, recorder: Recorder, displayer: Displayer) -> tuple[CellResult, str]:
    """Run a cell; return what comes back and one line that says so.

    Raises:
        NameError: a name that is to come back was not bound.
        TypeError: a value that is to come back can't be pickled; names it.
        BaseException: what the cell raised.
    """
    namespace = run.anchor.__globals__ if run.anchor is not None else {}
    namespace.update(run.variables)
    namespace.setdefault("__builtins__", builtins)
    namespace["__name__"] = "__main__"
    if "display" not in run.variables:
        namespace["display"] = displayer.display
    source = _FIGURES.sub("None", run.source)
    if "get_ipython" in source:
        _provide_ipython(namespace)
    remember_sources({**run.sources, run.filename: run.shown or run.source})
    value = _execute(source, run.filename, namespace)
    if value is not None:
        displayer.result(value)
    displayer.figures(shown=value)
    missing = [name for name in run.outputs if name not in namespace]
    if missing:
        raise NameError(f"-o {','.join(run.outputs)}: the cell binds no {', '.join(missing)}")
    outputs = {name: namespace[name] for name in run.outputs}
    for name, output in outputs.items():
        if why := _unpicklable(output):
            raise TypeError(f"-o {name}: a {type(output).__name__} can't come back: {why}")
    if why := _unpicklable(value):
        recorder.write("stderr", f"The last value, a {type(value).__name__}, stays with the worker: {why}\n")
        value = None
    return CellResult(value, outputs), _summary(value, outputs)


def _execute(source: str, filename: str, namespace: dict[str, Any]) -> Any:
    """Run all statements; return the value of the last if it is an expression."""
    tree = ast.parse(source, filename)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    _run(_compile(tree, filename, "exec"), namespace)
    if not isinstance(last, ast.Expr):
        return None
    value = _run(_compile(ast.Expression(last.value), filename, "eval"), namespace)
    # A semicolon at the end keeps a value from being shown, in a notebook too.
    return None if source.rstrip().endswith(";") else value


def _compile(tree: ast.AST, filename: str, mode: str) -> CodeType:
    code: CodeType = compile(tree, filename, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)  # type: ignore[call-overload]
    return code


def _run(code: CodeType, namespace: dict[str, Any]) -> Any:
    value = eval(code, namespace)  # noqa: S307 - running the user's code is the point
    if code.co_flags & inspect.CO_COROUTINE:
        import asyncio  # noqa: PLC0415 - see `execute`

        return asyncio.run(value)
    return value


def _provide_ipython(namespace: dict[str, Any]) -> None:
    """Give the cell a shell for `!`, `%` and `?`; costs a second, so only where the source asks for one."""
    from IPython.core.interactiveshell import InteractiveShell  # noqa: PLC0415 - as the docstring says

    shell = InteractiveShell.instance(user_ns=namespace)
    namespace["get_ipython"] = lambda: shell


def _unpicklable(value: Any) -> str:
    try:
        cloudpickle.dumps(value, protocol=5, buffer_callback=lambda _: False)  # large buffers aren't copied for it
    except Exception as exc:  # noqa: BLE001 - users' classes may raise anything
        return str(exc) or type(exc).__name__
    return ""


def _summary(value: Any, outputs: dict[str, Any]) -> str:
    if outputs:
        return ", ".join(f"{name}: {summarize(output)}" for name, output in outputs.items())
    return summarize(value)
