"""Graphs of handles, as text, in order and in the form of Graphviz."""

from __future__ import annotations

import io

from nbqueue.dependencies import LINES_MOST, DependencyGraph

DIAMOND = [("a", ["b", "c"]), ("b", ["d"]), ("c", ["d"])]


def test_graph_shows_what_follows_each_node() -> None:
    graph = DependencyGraph(DIAMOND)
    assert repr(graph).splitlines()[:5] == ["a(4)", "    b(1)", "        d(0)", "    c(1)", "        d(0)"]
    assert (list(graph), len(graph), "d" in graph, graph["a"]) == (["a", "b", "c", "d"], 4, True, ["b", "c"])
    assert list(graph.edges()) == ["a", "b", "c"]
    assert graph.valency_of("nobody") == 0


def test_graph_is_sorted_so_that_what_has_to_end_first_comes_first() -> None:
    order = DependencyGraph(DIAMOND).topsort()
    assert order[0] == "d"
    assert order[-1] == "a"


def test_graph_is_written_for_graphviz() -> None:
    file = io.StringIO()
    DependencyGraph([('say "a"', ["b"])], formatter=lambda _: {"color": "red"}).to_dot(file)
    assert file.getvalue().splitlines() == [
        "digraph dependencies {",
        '    graph [root="say \\"a\\""]',
        '    "say \\"a\\"" [shape="oval", color="red"]',
        '    "say \\"a\\"" -> "b"',
        '    "b" [shape="oval", color="red"]',
        "}",
    ]


def test_long_and_wide_graphs_are_drawn_all_the_same() -> None:
    chain = DependencyGraph([(n, [n + 1]) for n in range(5_000)])
    assert chain.valency_of(0) == 5_000
    assert chain.topsort()[0] == 5_000
    layers = DependencyGraph([((n, i), [(n + 1, 0), (n + 1, 1)]) for n in range(60) for i in range(2)])
    assert layers.valency_of((0, 0)) == 2**61 - 2
    lines = repr(layers).splitlines()
    assert (len(lines), lines[-1]) == (LINES_MOST + 1, "…")
