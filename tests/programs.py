"""Random small programs over five names, for properties of cells."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

NAMES: Final = ("a", "b", "c", "f", "g")

Text = st.SearchStrategy[str]
name: Text = st.sampled_from(NAMES)


def _filled(template: str, *parts: Text | st.SearchStrategy[list[str]]) -> Text:
    """Return a strategy of a template's text; lists of statements are indented."""

    def fill(values: Sequence[str | list[str]]) -> str:
        texts = [v if isinstance(v, str) else textwrap.indent("\n".join(v), "    ") for v in values]
        return template.format(*texts)

    return st.tuples(*parts).map(fill)


def _expressions(part: Text) -> Text:
    return st.one_of(
        _filled("({} + {})", part, part),
        _filled("({} if {} else {})", part, part, part),
        _filled("({} or {})", part, part),
        _filled("({0} < ({1} := {2}) < {0})", part, name, part),
        _filled("({} := {})", name, part),
        _filled("sum([{} for {} in range(2) if {}])", part, name, part),
        _filled("[{} for {} in range(2) for {} in range(1)][0]", part, name, name),
        _filled("(lambda {}=1: {})()", name, part),
        _filled("{}()", name),
        _filled("getattr({}, '{}', 0)", name, name),
    )


expression: Text = st.recursive(st.one_of(name, st.integers(0, 9).map(str)), _expressions, max_leaves=4)

simple: Text = st.one_of(
    _filled("{} = {}", name, expression),
    _filled("{} += {}", name, expression),
    _filled("{0}: {1} = {0}", name, expression),
    _filled("del {}", name),
    expression,
    st.just("pass"),
)


def _compounds(statement: Text) -> Text:
    body = st.lists(statement, min_size=1, max_size=3)
    loop = st.tuples(body, st.sampled_from(["pass", "break", "continue"])).map(lambda parts: [*parts[0], parts[1]])
    return st.one_of(
        _filled("if {}:\n{}\nelse:\n{}", expression, body, body),
        _filled("for {} in range(2):\n{}\nelse:\n{}", name, loop, body),
        _filled("try:\n{}\nexcept TypeError as {}:\n{}\nfinally:\n{}", body, name, body, body),
        _filled("try:\n{}\nexcept NameError:\n{}\n    raise\nelse:\n{}", body, body, body),
        _filled("try:\n{}\nexcept Exception:\n{}", body, body),
        _filled("def {}(p={}):\n{}\n    return {}", name, expression, body, expression),
        _filled("def {0}():\n    global {1}\n    {1} = {2}\n    return {3}", name, name, expression, expression),
        _filled("class {}:\n{}", name, body),
        _filled("with suppress(Exception):\n{}", body),
        _filled("match {}:\n  case int() as {}:\n{}\n  case _:\n    pass", expression, name, body),
    )


programs: Text = st.lists(st.recursive(simple, _compounds, max_leaves=6), min_size=1, max_size=6).map("\n".join)
