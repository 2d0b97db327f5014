"""A canvas on its way: a flat graph of calls, and who follows whom. Pure; says nothing of servers.

The graph is stored once, signed, when its canvas is sent. A message on its way to a call, a `Step`, names the graph
and the place of the call in it, and its body, a `Given`, carries only what the graph can't know: what came before. A
failure travels along the graph as a value does, so that each call has its end.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from nbqueue import states
from nbqueue.deliveries import Arrival, Outgoing
from nbqueue.exceptions import BadMessage
from nbqueue.messages import (
    FactText,
    Message,
    Steering,
    Step,
    decode_fact_text,
    decode_steering,
    decoded,
    encode_steering,
)
from nbqueue.signing import Signer
from nbqueue.times import LATEST, expiry_time

COPIES_BYTES: Final = 1_000_000  # values that more than this would go into are read from the record instead


class Node(msgspec.Struct, array_like=True, frozen=True):
    """One call.

    Args:
        kind: index of what it shares with other calls.
        args: packed; what came before goes in front of them.
        follow: calls that take its value.
        errors: calls that are told of its failure.
        join: the join it is a member of; -1 for none.
        place: its place in that.
        immutable: takes nothing of what came before.
        countdown: seconds it waits once it is its turn.
        id: of the task, if it isn't derived from the graph's.
        parent: the call before it; -1 for none.
        scope: of an errback that a whole chain or group has, a number of that; such are told once. -1 for none.
    """

    kind: int
    args: bytes
    follow: tuple[int, ...] = ()
    errors: tuple[int, ...] = ()
    join: int = -1
    place: int = -1
    immutable: bool = False
    countdown: float = 0.0
    id: str = ""
    parent: int = -1
    scope: int = -1


class Join(msgspec.Struct, array_like=True, frozen=True):
    """Where the calls of a chord's header come together: its body begins once all of them have ended."""

    members: tuple[int, ...]
    follow: tuple[int, ...] = ()


class Graph(msgspec.Struct, array_like=True, frozen=True):
    """All calls of one canvas. `kinds` are the JSON of what calls share: steering without id; `codes` by digest.

    One that takes the place of a task has a `tail`, the call that has the task's id and ends for it; what followed that
    follows this, the call `onward_node` of the canvas `onward`. `replaced` counts how often that has happened so far.
    One that was added to a header joins it as `joins_as`. One that a task has sent names it as its `parent`, and the
    call that it all began with as its `root`.
    """

    id: str
    nonce: str
    session: str
    sent_at: float
    codes: dict[str, bytes]
    kinds: tuple[bytes, ...]
    nodes: tuple[Node, ...]
    joins: tuple[Join, ...] = ()
    tail: int = -1
    onward: str = ""
    onward_node: int = -1
    joins_as: str = ""
    parent: str = ""
    root: str = ""
    replaced: int = 0

    @property
    def packed(self) -> Iterator[bytes]:
        """Yield what of it names large data: codes, and arguments."""
        yield from self.codes.values()
        for node in self.nodes:
            yield node.args

    def id_of(self, node: int) -> str:
        """Return the task id of a call."""
        return self.nodes[node].id or f"{self.id}-{node}"


class Given(msgspec.Struct, array_like=True, frozen=True):
    """The body of a step: what came before the call.

    Args:
        how: `nothing`; `value`, which is the body; `record`: the value is in the record of `id`; `gather`: the values
            of the members of a join; `failed`: what came before has ended without a value, and so does this; `error`:
            this call is told of a failure, which is the body; `args`: a retry has other arguments, all in the body.
        id: the task that came before.
        body: of that, as its record has it.
        state: in which it ended.
        error: one line of it.
        join: whose members are gathered.
    """

    how: str
    id: str = ""
    body: bytes = b""
    state: str = ""
    error: str = ""
    join: int = -1


class Drawn(msgspec.Struct, frozen=True):
    """A graph as a worker keeps it, its kinds decoded."""

    graph: Graph
    kinds: tuple[Steering, ...]
    onward: Drawn | None = None  # of `Graph.onward`
    roots: tuple[int, ...] = ()  # for each call the first of those before it

    def steering(self, step: Step) -> Steering:
        """Return the steering of a call.

        Raises:
            BadMessage: the graph has no such call.
        """
        if not 0 <= step.node < len(self.graph.nodes):
            raise BadMessage("place", f"call {step.node} of a graph of {len(self.graph.nodes)}")
        call = self.graph.nodes[step.node]
        kind, first = self.kinds[call.kind], self.roots[step.node]
        steering = msgspec.structs.replace(
            kind,
            id=self.graph.id_of(step.node),
            parent=self.graph.id_of(call.parent) if call.parent >= 0 else self.graph.parent,
            root=self.graph.root or ("" if first == step.node else self.graph.id_of(first)),
            nonce=self.graph.nonce,
            session=self.graph.session,
            graph=self.graph.id,
            node=step.node,
            sent_at=step.sent_at,
            eta=step.eta,
            expires=_expires(kind, step.sent_at, step.eta),
            retries=step.retries,
            headers=kind.headers if step.headers is None else step.headers,
        )
        return steering if step.changes is None else step.changes.on(steering)

    def members_of(self, join: int) -> list[str]:
        """Return the task ids of the members of a join.

        Raises:
            BadMessage: the graph has no such join.
        """
        if not 0 <= join < len(self.graph.joins):
            raise BadMessage("place", f"join {join} of a graph of {len(self.graph.joins)}")
        return [self.graph.id_of(member) for member in self.graph.joins[join].members]

    def path_to(self, join: int, place: int) -> list[int]:
        """Return a member of a join and all calls before it, the nearest first; of one that was added, nothing."""
        members, nodes = self.graph.joins[join].members, self.graph.nodes
        path = [members[place]] if place < len(members) else []
        while path and nodes[path[-1]].parent >= 0 and len(path) < len(nodes):  # some might go round in a circle
            path.append(nodes[path[-1]].parent)
        return path

    def scopes(self, nodes: Iterable[int]) -> frozenset[int]:
        """Return the scopes of errbacks of calls."""
        found = self.graph.nodes
        return frozenset(found[n].scope for node in nodes for n in found[node].errors if found[n].scope >= 0)

    def step(
        self, node: int, given: Given, now: float, signer: Signer, headers: Mapping[str, Any] | None = None
    ) -> Outgoing:
        """Return the message of a call whose turn it is; `headers` in place of its own."""
        call = self.graph.nodes[node]
        kind = self.kinds[call.kind]
        eta = now + call.countdown if call.countdown > 0 else kind.eta
        step = Step(self.graph.id, node, kind.base, now, eta, None if headers is None else dict(headers))
        body = encode_given(given)
        message = Message.sign_step(step, self.graph.id_of(node), body, signer)
        return Outgoing(kind.queue, message.id, message.header, body, int(eta * 1000), priority=kind.priority)

    def after(
        self,
        node: int,
        state: str,
        body: bytes,
        error: str,
        signer: Signer,
        now: float,
        *,
        propagated: bool = False,
        told: Container[int] = (),
    ) -> tuple[tuple[Outgoing, ...], Arrival]:
        """Return what is to be sent once a call has ended, and what to send if it was the last of its join.

        Args:
            node: the call.
            state: in which it has ended.
            body: its value, or its failure.
            error: one line of that.
            signer: signs what is sent.
            now: Unix seconds.
            propagated: it ended because what came before it did; those who are told of failures know already.
            told: scopes whose errbacks know already.
        """
        graph, call = self.graph, self.graph.nodes[node]
        id_ = graph.id_of(node)
        outbox = [self.step(n, self._given(n, node, state, body, error), now, signer) for n in call.follow]
        if state == states.FAILURE and not propagated:
            given = Given("error", id_, body, state, error)
            outbox += [self.step(n, given, now, signer) for n in call.errors if graph.nodes[n].scope not in told]
        if node != graph.tail or self.onward is None:
            return tuple(outbox), self.arrival(node, id_, call.place, now, signer)
        if graph.joins_as:
            return tuple(outbox), self.onward.arrival(graph.onward_node, id_, graph.joins_as, now, signer)
        # Who is told of the task's failure is told of this one's, whatever it came from.
        more, arrival = self.onward.after(graph.onward_node, state, body, error, signer, now)
        return (*outbox, *more), arrival

    def arrival(self, node: int, id_: str, place: int | str, now: float, signer: Signer) -> Arrival:
        """Return the arrival of a call at its join, if it has one; `id_` and `place` may be of one that it added."""
        graph, call = self.graph, self.graph.nodes[node]
        if call.join < 0:
            return Arrival(graph.id, node)
        join = graph.joins[call.join]
        gathered = tuple(self.step(n, Given("gather", id_, join=call.join), now, signer) for n in join.follow)
        return Arrival(graph.id, node, call.join, place, len(join.members), gathered)

    def _given(self, node: int, before: int, state: str, body: bytes, error: str) -> Given:
        id_ = self.graph.id_of(before)
        if state != states.SUCCESS:
            return Given("failed", id_, body, state, error)
        if self.graph.nodes[node].immutable:
            return Given("nothing", id_)
        call = self.graph.nodes[before]
        kept = not self.kinds[call.kind].ignore_result
        if kept and len(call.follow) > 1 and len(call.follow) * len(body) > COPIES_BYTES:
            return Given("record", id_)
        return Given("value", id_, body)


def _expires(kind: Steering, sent_at: float, eta: float) -> float:
    """Return when a call is dropped: a kind has an instant, or (negative) seconds from its turn, or neither."""
    if kind.expires > 0:
        return kind.expires
    return expiry_time(sent_at, -kind.expires if kind.expires else None, eta)


def draw(graph: Graph) -> Drawn:
    """Return a graph with its kinds decoded.

    Raises:
        BadMessage: it names what isn't there; a worker would meet that in the middle of an end.
    """
    kinds = tuple(decode_steering(kind) for kind in graph.kinds)
    calls = range(len(graph.nodes))
    for node in graph.nodes:
        whole = 0 <= node.kind < len(kinds) and -1 <= node.join < len(graph.joins) and 0 <= node.countdown < LATEST
        whole = whole and -1 <= node.parent < len(graph.nodes)
        if not whole or not all(n in calls for n in (*node.follow, *node.errors)):
            raise BadMessage("fields", "a graph with a call that can't be")
    if not all(n in calls for join in graph.joins for n in (*join.members, *join.follow)):
        raise BadMessage("fields", "a graph with a join of calls that aren't there")
    if graph.tail >= len(graph.nodes):
        raise BadMessage("fields", "a graph that ends with a call it doesn't have")
    if not all(0 <= kind.eta < LATEST for kind in kinds):
        raise BadMessage("fields", "a graph with calls at no time there is")
    return Drawn(graph, kinds, roots=_roots([node.parent for node in graph.nodes]))


def _roots(parents: Sequence[int]) -> tuple[int, ...]:
    """Return for each call the first of those before it, in a time that grows with their number."""
    roots = [-1] * len(parents)
    for number in range(len(parents)):
        path: list[int] = []
        one = number
        while roots[one] < 0 and parents[one] >= 0 and len(path) < len(parents):  # some might go round in a circle
            path.append(one)
            one = parents[one]
        root = roots[one] if roots[one] >= 0 else one
        for passed in (*path, one):
            roots[passed] = root
    return tuple(roots)


def kinds_of(steerings: Sequence[Steering]) -> tuple[bytes, ...]:
    """Return kinds as a graph holds them."""
    return tuple(encode_steering(steering) for steering in steerings)


def sign_graph(graph: Graph, signer: Signer) -> bytes:
    """Return the JSON text of a graph, as it is stored."""
    body = msgspec.msgpack.encode(graph)
    return msgspec.json.encode(FactText(signer.sign("graph", msgspec.json.encode(graph.id), body), body))


def open_graph(text: bytes, id_: str, signer: Signer) -> Drawn:
    """Return a stored graph, once its signature holds and it is the one of this id.

    Raises:
        BadMessage: it can't be trusted or understood.
    """
    stored = decode_fact_text(text)
    signer.verify("graph", stored.nbq, stored.body)
    graph = decode_graph(stored.body)
    if graph.id != id_:
        raise BadMessage("place", f"graph {graph.id} under the id {id_}")
    return draw(graph)


def decode_graph(body: bytes) -> Graph:
    """Return a graph that was packed.

    Raises:
        BadMessage: it can't be understood.
    """
    return decoded(_GRAPH, body)


def encode_given(given: Given) -> bytes:
    """Return the body of a step."""
    return msgspec.msgpack.encode(given)


def decode_given(body: bytes) -> Given:
    """Return what the body of a step holds.

    Raises:
        BadMessage: it can't be understood.
    """
    return decoded(_GIVEN, body)


_GRAPH = msgspec.msgpack.Decoder(Graph)
_GIVEN = msgspec.msgpack.Decoder(Given)
