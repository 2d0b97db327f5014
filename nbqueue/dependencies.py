"""`DependencyGraph`: what follows what among handles, to be looked at, sorted and drawn by Graphviz.

Source: names and meanings are those of `celery.utils.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Final, TextIO

LINES_MOST: Final = 1_000  # of a graph as text: what many lead to is told under each of them


class DependencyGraph:
    """A directed graph: each node with those that it leads to.

    Args:
        pairs: nodes, each with what it leads to.
        root: of the graph; its name in the form of Graphviz.
        formatter: returns more attributes of a node in that form, as a dict.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Any, Iterable[Any]]] = (),
        *,
        root: Any = None,
        formatter: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> None:
        self.root = root
        self.formatter = formatter
        self.adjacent: dict[Hashable, list[Any]] = {}
        for node, followers in pairs:
            for follower in followers:
                self.add_edge(node, follower)
            self.add_arc(node)

    def add_arc(self, node: Any) -> None:
        """Add a node, if it isn't there yet."""
        self.adjacent.setdefault(node, [])

    def add_edge(self, before: Any, after: Any) -> None:
        """Let a node lead to another, and add what isn't there yet."""
        self.add_arc(before)
        self.add_arc(after)
        self.adjacent[before].append(after)

    def items(self) -> Iterable[tuple[Any, list[Any]]]:
        """Return each node with those that it leads to."""
        return self.adjacent.items()

    def edges(self) -> Iterator[Any]:
        """Yield the nodes that lead to another."""
        return (node for node, followers in self.items() if followers)

    def valency_of(self, node: Any) -> int:
        """Return how many edges are behind a node, counted along each way to them; 0 if it isn't there."""
        known: dict[Any, int] = {}
        for one in reversed(self._sorted([node] if node in self else [])):
            known[one] = sum(1 + known[follower] for follower in self[one])
        return known.get(node, 0)

    def topsort(self) -> list[Any]:
        """Return the nodes, each before those that lead to it, as they must end."""
        return self._sorted(self.adjacent)[::-1]

    def _sorted(self, roots: Iterable[Any]) -> list[Any]:
        """Return what can be reached, each node before those that it leads to. Without recursion: chains are long."""
        found: list[Any] = []
        entered: set[Any] = set()
        for root in roots:
            waiting = [(root, False)]
            while waiting:
                node, left = waiting.pop()
                if left:
                    found.append(node)
                elif node not in entered:
                    entered.add(node)
                    waiting.append((node, True))
                    waiting.extend((follower, False) for follower in self[node])
        return found[::-1]

    def to_dot(self, fh: TextIO) -> None:
        """Write the graph to an open file in the form of Graphviz: `dot -Tpng graph.dot -o graph.png`."""
        print("digraph dependencies {", file=fh)
        print(f"    graph [{_attributes(root=self.root or next(iter(self), ''))}]", file=fh)
        for node, followers in self.items():
            more = self.formatter(node) if self.formatter else {}
            print(f"    {_quoted(node)} [{_attributes(shape='oval', **more)}]", file=fh)
            for follower in followers:
                print(f"    {_quoted(node)} -> {_quoted(follower)}", file=fh)
        print("}", file=fh)

    def __iter__(self) -> Iterator[Any]:
        """Yield the nodes, in the order in which they were added."""
        return iter(self.adjacent)

    def __getitem__(self, node: Any) -> list[Any]:
        return self.adjacent[node]

    def __len__(self) -> int:
        return len(self.adjacent)

    def __contains__(self, node: object) -> bool:
        return node in self.adjacent

    def __repr__(self) -> str:
        lines: list[str] = []
        waiting = [(node, 0) for node in reversed(list(self))]
        while waiting:
            node, level = waiting.pop()
            if len(lines) == LINES_MOST:
                return "\n".join([*lines, "…"])
            lines.append(f"{'    ' * level}{node}({self.valency_of(node)})")
            waiting.extend((follower, level + 1) for follower in reversed(self[node]))
        return "\n".join(lines)


def _attributes(**attributes: Any) -> str:
    return ", ".join(f"{name}={_quoted(value)}" for name, value in attributes.items())


def _quoted(value: Any) -> str:
    r"""Return a text as Graphviz reads it.

    >>> print(_quoted('say "no"'))
    "say \"no\""
    """
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
