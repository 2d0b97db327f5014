"""Which names a cell reads and binds, found in its source alone. Pure: no IPython, no namespace.

A name counts as read when the cell may read it before it has bound it. In doubt it does: to take along a value that
is not needed costs little, to miss one costs the run.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from nbqueue.notebook.spelled import spelled_in

# What Python and IPython keep in a notebook for themselves.
NOT_CAPTURED: Final = frozenset(
    {"In", "Out", "_", "__", "___", "_i", "_ii", "_iii", "_ih", "_oh", "_dh", "_exit_code"}
    | {"__name__", "__builtins__", "__builtin__", "__doc__", "__loader__", "__spec__", "__package__"}
)
# What IPython puts there for users, who may have put something of their own in its place.
_IPYTHONS: Final = frozenset({"get_ipython", "exit", "quit", "open", "display"})


@dataclass(frozen=True)
class CellNames:
    """The names of a cell: `reads` may be needed from outside, `writes` are bound at its top level."""

    reads: frozenset[str]
    writes: frozenset[str]
    uses_ipython: bool


def read_cell(source: str, filename: str = "<cell>") -> CellNames:
    r"""Return the names that plain Python reads and binds.

    Raises:
        SyntaxError: it is no Python.

    >>> names = read_cell("y = f(x)\nz = y + 1")
    >>> sorted(names.reads), sorted(names.writes)
    (['f', 'x'], ['y', 'z'])
    """
    # Compiled too, as a cell is: `return` outside of a function parses.
    compile(source, filename, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    flow = _Flow()
    flow.cell(ast.parse(source).body)
    return CellNames(frozenset(flow.reads), frozenset(flow.writes), "get_ipython" in flow.reads)


def capture(names: CellNames, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a cell needs of a notebook's namespace; what isn't there is left to the worker."""
    wanted = (name for name in sorted(names.reads - NOT_CAPTURED) if name in namespace)
    return {name: namespace[name] for name in wanted if name not in _IPYTHONS or not _is_ipythons(namespace[name])}


def _is_ipythons(value: Any) -> bool:
    # A function may say that it is of the module of another that it wraps, as IPython's `open` does.
    names = getattr(value, "__globals__", {})
    module = names.get("__name__") or getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0] in ("IPython", "ipykernel")


class _Flow(ast.NodeVisitor):
    """Walks what a cell runs in order of execution, keeping what is bound for sure.

    The body of a function runs when its name is read, at the earliest, so what it reads is looked up there: it may call
    one that is defined further down, if nobody calls it before that.
    """

    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        # Names that are bound for sure; one of a class's body or a comprehension begins with a dot.
        self.bound: set[str] = set()
        self.scope = ""  # or "class" or "comprehension"
        self.owner = ""  # the class at the top level whose body is walked
        self.later: dict[str, set[str]] = {}  # function or class -> what its body reads once it runs

    def cell(self, body: Sequence[ast.stmt]) -> None:
        """Walk a whole cell."""
        self._walk(body)
        # What nobody called may have been registered by a decorator, and run after all.
        for names in self.later.values():
            for name in names:
                self._read(name)

    def _walk(self, nodes: Sequence[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def _read(self, name: str) -> None:
        if f".{name}" in self.bound:
            self._reach(name, {name})
        else:
            self._look_up(name, set())

    def _look_up(self, name: str, seen: set[str]) -> None:
        if name not in self.bound:
            self.reads.add(name)
        if name not in seen:
            seen.add(name)
            self._reach(name, seen)

    def _reach(self, function: str, seen: set[str]) -> None:
        for used in self.later.get(function, ()):
            self._look_up(used, seen)

    def _bind(self, name: str) -> None:
        self.bound.add(f".{name}" if self.scope else name)
        if not self.scope:
            self.writes.add(name)

    def _unbind(self, name: str) -> None:
        self.bound.discard(f".{name}" if self.scope else name)

    def _branches(self, *bodies: Sequence[ast.AST]) -> None:
        """Walk alternatives: what all of them bind is bound after, but for those that leave."""
        before = set(self.bound)
        ends = []
        for body in bodies:
            self.bound = set(before)
            self._walk(body)
            if not _leaves(body):
                ends.append(self.bound)
        self.bound = set.intersection(*ends) if ends else before

    def _perhaps(self, *bodies: Sequence[ast.AST]) -> None:
        """Walk what may not run, or not to its end: nothing of it is bound for sure."""
        for body in bodies:
            before = set(self.bound)
            self._walk(body)
            self.bound &= before

    # ---- names

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(node.id)
        elif isinstance(node.ctx, ast.Store):
            self._bind(node.id)
        else:
            self._read(node.id)  # `del` needs it to be there
            self._unbind(node.id)

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
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)
        self.visit(node.annotation)

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

    def visit_Compare(self, node: ast.Compare) -> None:
        self._walk([node.left, node.comparators[0]])
        self._perhaps(node.comparators[1:])

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._branches(node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._branches([node.body], [node.orelse])

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.visit(node.values[0])
        self._perhaps(node.values[1:])

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._perhaps(node.body, node.orelse)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._perhaps([node.target, *node.body], node.orelse)

    visit_AsyncFor = visit_For  # noqa: N815 - ast's name

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        before = set(self.bound)
        self._walk([*node.body, *node.orelse])
        ends = [self.bound]
        for handler in node.handlers:
            self.bound = set(before)
            self.visit(handler)
            if not _leaves(handler.body):
                ends.append(self.bound)
        # The last part runs wherever the others ended.
        self.bound = set(before)
        self._walk(node.finalbody)
        self.bound = set.intersection(*ends) | self.bound

    visit_TryStar = visit_Try  # noqa: N815 - ast's name

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self.visit(node.type)
        if node.name:
            self._bind(node.name)
        self._walk(node.body)
        if node.name:
            self._unbind(node.name)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self.visit(item.optional_vars)
        if any(_suppresses(item.context_expr) for item in node.items):
            self._perhaps(node.body)
        else:
            self._walk(node.body)

    visit_AsyncWith = visit_With  # noqa: N815 - ast's name

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        before = set(self.bound)
        ends = [before]
        for case in node.cases:
            self.bound = set(before)
            self.visit(case)
            if not _leaves(case.body):
                ends.append(self.bound)
        self.bound = set.intersection(*ends)

    def visit_match_case(self, node: ast.match_case) -> None:
        self.visit(node.pattern)
        if node.guard is not None:
            self.visit(node.guard)
        self._walk(node.body)

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
        names = _taken_by(node) - {node.name, self.owner}
        for name in (node.name, self.owner):
            if name:
                self.later.setdefault(name, set()).update(names)
        self._bind(node.name)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - ast's name

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._walk([default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None])
        with self._scope("comprehension"):
            for name in _taken_by(node):
                self._read(name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._walk([*node.decorator_list, *node.bases, *[keyword.value for keyword in node.keywords]])
        owner, self.owner = self.owner, self.owner or node.name
        with self._scope("class"):
            self._walk(node.body)
        self.owner = owner
        self._bind(node.name)

    @contextmanager
    def _scope(self, kind: str) -> Iterator[None]:
        """Walk what has names of its own. Those of a class aren't seen by what is nested in it."""
        before, outer = self.bound, self.scope
        self.bound = {name for name in before if outer == "comprehension" or not name.startswith(".")}
        self.scope = kind
        yield
        self.bound, self.scope = before, outer

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        with self._scope("comprehension"):
            self._walk([first.target, *first.ifs])
            for generator in others:
                self._walk([generator.iter, generator.target, *generator.ifs])
            self._walk([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        # A walrus in it binds out here, but perhaps never runs.
        self.writes |= {part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr)}

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension  # noqa: N815 - ast's names

    def _outside(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Visit what is evaluated where a function is defined."""
        arguments = node.args
        every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
        annotations = [argument.annotation for argument in every if argument is not None]
        parts = (*node.decorator_list, *arguments.defaults, *arguments.kw_defaults, *annotations, node.returns)
        self._walk([part for part in parts if part is not None])

    # ---- what stands in strings

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        self._spelled(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        self._spelled(node)

    def _spelled(self, node: ast.AST) -> None:
        for spelled in spelled_in(node):
            if spelled.binds:
                self._walk(spelled.body)
            else:
                self._perhaps(spelled.body)


def _leaves(body: Sequence[ast.AST]) -> bool:
    """Tell whether what follows these statements isn't reached through them."""
    return bool(body) and isinstance(body[-1], ast.Raise | ast.Continue | ast.Break)


def _suppresses(context: ast.expr) -> bool:
    """Tell whether a `with` may end its body early, and go on."""
    if not isinstance(context, ast.Call):
        return False
    function = context.func
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    return name in ("suppress", "raises")


def _taken_by(node: ast.AST) -> set[str]:
    """Return the names that a function's body may take from the top level."""
    names = _globals_of(symtable.symtable(ast.unparse(node), "<cell>", "exec"))
    for part in ast.walk(node):
        for spelled in spelled_in(part):
            flow = _Flow()
            flow.cell(spelled.body)
            names |= flow.reads
    return names


def _globals_of(table: symtable.SymbolTable) -> set[str]:
    """Return the names that scopes inside a table take from the top level."""
    found: set[str] = set()
    for scope in table.get_children():
        for symbol in scope.get_symbols():
            # An augmented assignment to a global counts as assigned only, so a declaration is taken for a read.
            # A class that binds a name may read the global of that name before.
            in_class = scope.get_type() == "class" and symbol.is_local()
            if symbol.is_declared_global() or ((symbol.is_global() or in_class) and symbol.is_referenced()):
                found.add(symbol.get_name())
        found |= _globals_of(scope)
    return found
