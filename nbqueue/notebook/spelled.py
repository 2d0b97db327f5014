"""Python that a cell keeps in strings: IPython's own syntax once it is turned into calls, `eval`, queries. Pure."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# Magics whose text is Python. That of any other is left alone: `%cd data` does not read `data`.
CODE_MAGICS: Final = frozenset(
    {"time", "timeit", "prun", "lprun", "mprun", "memit", "capture", "pinfo", "pinfo2", "pdoc", "pdef", "psource"}
)
_DOLLAR: Final = re.compile(r"(?<!\$)\$([A-Za-z_]\w*)")
_AT: Final = re.compile(r"@([A-Za-z_]\w*)")
_WORD: Final = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


@dataclass(frozen=True)
class Spelled:
    """Statements that stand in a string; `binds` if what they bind is the cell's."""

    body: list[ast.stmt]
    binds: bool = False


def spelled_in(node: ast.AST) -> Iterator[Spelled]:
    """Yield the Python in the strings of one call or subscription, itself not walked."""
    match node:
        case ast.Subscript(
            value=ast.Call(func=ast.Name(id="globals" | "locals" | "vars"), args=[]),
            slice=ast.Constant(value=str() as name),
        ):
            yield from _names([name])
        case ast.Call(func=ast.Name(id="eval" | "exec" as which), args=[ast.Constant(value=str() as text), *_]):
            yield from _python(text, binds=which == "exec")
        case ast.Call(func=ast.Attribute(attr="query" | "eval"), args=[ast.Constant(value=str() as text), *_]):
            # pandas takes @name from its caller
            yield from _names(_AT.findall(text))
        case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=method)):
            texts = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            yield from _in_ipython(method, texts)


def _in_ipython(method: str, texts: list[str]) -> Iterator[Spelled]:
    if method in ("system", "getoutput") and texts:
        yield from _expanded(texts[0])
    elif method in ("run_line_magic", "run_cell_magic") and len(texts) > 1:
        magic, line, *body = texts
        yield from _expanded(line)
        if magic in CODE_MAGICS:
            text = body[0] if body else _without_options(line)
            yield from _python(text, binds=magic in ("time", "capture"), in_doubt=True)


def _expanded(text: str) -> Iterator[Spelled]:
    """Yield what IPython puts in for `{expression}` and `$name`."""
    yield from _names(_DOLLAR.findall(text))
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field]
    except ValueError:
        return  # braces of the shell's or awk's: IPython leaves such a line as it is
    for field in fields:
        yield from _python(field)


def _without_options(line: str) -> str:
    """Return the longest end of a line that is Python, where it begins with options."""
    rest = line.strip()
    while rest.startswith("-") or rest[:1].isdigit():
        if _parsed(rest) is not None and not rest.startswith("-"):
            break
        rest = rest.partition(" ")[2].strip()
    return rest


def _python(text: str, *, binds: bool = False, in_doubt: bool = False) -> Iterator[Spelled]:
    body = _parsed(text)
    if body is not None:
        yield Spelled(body, binds)
    elif in_doubt:
        # Magics in the body of a magic: no Python as yet, so every word may be a name.
        yield from _names(_WORD.findall(text))


def _parsed(text: str) -> list[ast.stmt] | None:
    try:
        return ast.parse(text.strip()).body
    except (SyntaxError, ValueError):
        return None


def _names(names: list[str]) -> Iterator[Spelled]:
    yield Spelled([ast.Expr(ast.Name(name, ast.Load())) for name in names])
