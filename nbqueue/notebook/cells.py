"""Which names a cell reads and binds, found in its source alone. Pure: no IPython, no namespace.

A name counts as read when the cell may read it before it has bound it. In doubt it does: to take along a value that
is not needed costs little, to miss one costs the run.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

# What IPython puts into a notebook, and what the worker provides itself.
NOT_CAPTURED: Final = frozenset(
    {"In", "Out", "get_ipython", "exit", "quit", "open", "display", "_", "__", "___", "_i", "_ii", "_iii", "_ih", "_oh"}
    | {
        "_dh",
        "_exit_code",
        "__name__",
        "__builtins__",
        "__builtin__",
        "__doc__",
        "__loader__",
        "__spec__",
        "__package__",
    }
)


@dataclass(frozen=True)
class CellNames:
    """The names of a cell: `reads` may be needed from outside, `writes` are bound at its top level."""

    reads: frozenset[str]
    writes: frozenset[str]
    uses_ipython: bool


def read_cell(source: str) -> CellNames:
    r"""Return the names that plain Python reads and binds.

    Raises:
        SyntaxError: it is no Python.

    >>> names = read_cell("y = f(x)\nz = y + 1")
    >>> sorted(names.reads), sorted(names.writes)
    (['f', 'x'], ['y', 'z'])
    """
    flow = _Flow()
    flow.statements(ast.parse(source).body)
    return CellNames(frozenset(flow.reads), frozenset(flow.writes), "get_ipython" in flow.reads)


def capture(names: CellNames, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a cell needs of a notebook's namespace; what isn't there is left to the worker."""
    return {name: namespace[name] for name in sorted(names.reads - NOT_CAPTURED) if name in namespace}


class _Flow(ast.NodeVisitor):
    """Walks the top level of a cell in order of execution, keeping what is bound for sure."""

    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.bound: set[str] = set()
        self.defined: set[str] = set()

    def statements(self, body: list[ast.stmt]) -> None:
        # A function may call one that is defined further down: by then it is there.
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.defined.add(node.name)
        for node in body:
            self.visit(node)

    def _read(self, name: str) -> None:
        if name not in self.bound:
            self.reads.add(name)

    def _bind(self, name: str) -> None:
        self.bound.add(name)
        self.writes.add(name)

    def _branches(self, *bodies: Iterable[ast.AST]) -> None:
        """Walk alternatives: what all of them bind is bound after."""
        before = set(self.bound)
        after: set[str] | None = None
        for body in bodies:
            self.bound = set(before)
            for node in body:
                self.visit(node)
            after = set(self.bound) if after is None else after & self.bound
        self.bound = before | (after or set())

    # ---- names

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(node.id)
        elif isinstance(node.ctx, ast.Store):
            self._bind(node.id)
        else:
            self._read(node.id)  # `del` needs it to be there
            self.bound.discard(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._read(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.visit(node.target)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._bind(alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        # What a star brings isn't known here; names it may bind are captured if the notebook has them.
        for alias in node.names:
            if alias.name != "*":
                self._bind(alias.asname or alias.name)

    # ---- alternatives and loops

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._branches(node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._branches([node.body], [node.orelse])

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.visit(node.values[0])
        self._branches(node.values[1:], [])

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._branches(node.body, [])
        self._branches(node.orelse, [])

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._branches([node.target, *node.body], [])
        self._branches(node.orelse, [])

    visit_AsyncFor = visit_For  # noqa: N815 - ast's name

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        before = set(self.bound)
        for child in node.body:
            self.visit(child)
        whole = set(self.bound)
        self.bound = set(before)
        for handler in node.handlers:
            self._branches([handler], [])
        self.bound = set(whole)
        for child in node.orelse:
            self.visit(child)
        # After a handler, what the body bound may be missing; unless there is none, or it ends the cell.
        if not all(isinstance(handler.body[-1], ast.Raise) for handler in node.handlers):
            self.bound = before
        for child in node.finalbody:
            self.visit(child)

    visit_TryStar = visit_Try  # noqa: N815 - ast's name

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self.visit(node.type)
        if node.name:
            self._bind(node.name)
        for child in node.body:
            self.visit(child)
        if node.name:
            self.bound.discard(node.name)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self.visit(item.optional_vars)
        for child in node.body:
            self.visit(child)

    visit_AsyncWith = visit_With  # noqa: N815 - ast's name

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        self._branches(*[[case] for case in node.cases], [])

    def visit_match_case(self, node: ast.match_case) -> None:
        self.visit(node.pattern)
        if node.guard is not None:
            self.visit(node.guard)
        for child in node.body:
            self.visit(child)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.pattern is not None:
            self.visit(node.pattern)
        if node.name:
            self._bind(node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self._bind(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self._bind(node.rest)

    # ---- scopes of their own

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._outside(node)
        self._inside(node, node.name)
        self._bind(node.name)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - ast's name

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._inside(node, "")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases, *[keyword.value for keyword in node.keywords]):
            self.visit(part)
        self._inside(node, node.name)
        self._bind(node.name)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        # Its targets are its own; a walrus in it binds out here, but perhaps never runs.
        before, writes = set(self.bound), set(self.writes)
        for generator in node.generators:
            self.visit(generator.iter)
            self.visit(generator.target)
            for condition in generator.ifs:
                self.visit(condition)
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(part)
        self.bound = before
        walrus = {
            n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr) and isinstance(n.target, ast.Name)
        }
        self.writes = writes | walrus

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension  # noqa: N815 - ast's names

    def _outside(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Visit what is evaluated where a function is defined."""
        arguments = node.args
        every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
        annotations = [argument.annotation for argument in every if argument is not None]
        for part in (
            *node.decorator_list,
            *arguments.defaults,
            *arguments.kw_defaults,
            *annotations,
            node.returns,
        ):
            if part is not None:
                self.visit(part)

    def _inside(self, node: ast.AST, own_name: str) -> None:
        """Read what the body of a function or class takes from the cell's top level."""
        table = symtable.symtable(ast.unparse(node), "<cell>", "exec")
        for name in _globals_of(table):
            if name != own_name and name not in self.defined:
                self._read(name)


def _globals_of(table: symtable.SymbolTable) -> set[str]:
    """Return the names that scopes inside a table take from the top level."""
    found: set[str] = set()
    for scope in table.get_children():
        for symbol in scope.get_symbols():
            # An augmented assignment to a global counts as assigned only, so a declaration is taken for a read.
            if symbol.is_declared_global() or (symbol.is_global() and symbol.is_referenced()):
                found.add(symbol.get_name())
        found |= _globals_of(scope)
    return found
