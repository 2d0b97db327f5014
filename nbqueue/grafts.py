"""Canvases that grow while they run: one that takes a task's place, or that joins the header a task is in.

A child says so with the packed graph. Its supervisor makes that one whose last call ends for the task: it has the
task's id, map and label, and what followed the task follows it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nbqueue.deliveries import Arrival, Outgoing
from nbqueue.dispatch import Held
from nbqueue.exceptions import BadMessage
from nbqueue.graph import Drawn, Given, decode_graph, draw, kinds_of, sign_graph
from nbqueue.messages import Steering, decode_graft, decode_steering
from nbqueue.payloads import Ref, named
from nbqueue.signing import Signer


class Grafted(NamedTuple):
    """A canvas that is to be stored, and then sent."""

    id: str
    text: bytes
    outbox: tuple[Outgoing, ...]
    tail: str  # task id of its last call
    drawn: Drawn


def in_place_of(held: Held, body: bytes, now: float, signer: Signer) -> Grafted:
    """Return the canvas that takes the place of a task.

    Args:
        held: the task, which has ended so.
        body: what its child says.
        now: Unix seconds.
        signer: signs it.

    Raises:
        BadMessage: it can't be understood.
    """
    s = held.steering
    base = s.retries + 1  # what is left of the task's own message is a repeat from now on
    own = {
        "group": s.group,
        "index": s.index,
        "label": s.label,
        "identity": s.identity,
        "digest": s.digest,
        "base": base,
        "ignore_result": s.ignore_result,
        "name": s.name,
    }
    graph, node = s.graph, s.node
    joins_as = ""
    if held.drawn is not None and _only_passes_on(held.drawn, node):
        # A task that is replaced again and again leaves no chain of canvases behind.
        before = held.drawn.graph
        graph, node, joins_as = before.onward, before.onward_node, before.joins_as
    replaced = 1 + (held.drawn.graph.replaced if held.drawn is not None else 0)
    return _grafted(held, body, now, signer, own, {"id": s.id}, (graph, node, joins_as), replaced)


def beside(held: Held, body: bytes, number: int, now: float, signer: Signer) -> Grafted:
    """Return the canvas that joins the header a task is in, as the task's addition of this number.

    Raises:
        BadMessage: it can't be understood, or the task is in no header.
    """
    if held.drawn is None:
        raise BadMessage("place", "a call that is in no canvas has no header to add to")
    drawn, node = _standing_for(held.drawn, held.steering.node)
    if drawn.graph.nodes[node].join < 0:
        raise BadMessage("place", "a call that is in no header can't add to it")
    onward = (drawn.graph.id, node, f"{_run_of(held)}.{number}")
    return _grafted(held, body, now, signer, {}, {}, onward)


def going_on(held: Held) -> Arrival | None:
    """Return what tells the join of a task that is replaced of what it adds; None if it is in no header."""
    if held.drawn is None:
        return None
    drawn, node = _standing_for(held.drawn, held.steering.node)
    join = drawn.graph.nodes[node].join
    return Arrival(drawn.graph.id, node, join, _run_of(held), goes_on=True) if join >= 0 else None


def in_header(drawn: Drawn | None, node: int) -> bool:
    """Tell whether a call is in the header of a chord, or stands for one that is."""
    if drawn is None:
        return False
    drawn, node = _standing_for(drawn, node)
    return drawn.graph.nodes[node].join >= 0


def blobs_of(body: bytes) -> tuple[Ref, ...]:
    """Return the large data that a canvas names.

    Raises:
        BadMessage: it can't be understood.
    """
    graph = decode_graph(decode_graft(body).graph)
    return tuple(ref for data in graph.packed for ref in named(data))


def _standing_for(drawn: Drawn, node: int) -> tuple[Drawn, int]:
    """Return the call of a canvas that another one stands for, or that it was added beside; else itself."""
    while node == drawn.graph.tail and drawn.onward is not None and drawn.graph.nodes[node].join < 0:
        drawn, node = drawn.onward, drawn.graph.onward_node
    return drawn, node


def _run_of(held: Held) -> str:
    """Return what tells a run of a task from others of its id, as of what took its place before."""
    return f"{held.steering.id}+{held.steering.retries}"


def _only_passes_on(drawn: Drawn, node: int) -> bool:
    call = drawn.graph.nodes[node]
    return node == drawn.graph.tail and not (call.follow or call.errors) and call.join < 0


def _grafted(
    held: Held,
    body: bytes,
    now: float,
    signer: Signer,
    own: dict[str, object],
    place: dict[str, str],
    onward: tuple[str, int, str],
    replaced: int = 0,
) -> Grafted:
    graft = decode_graft(body)
    graph = decode_graph(graft.graph)
    tail = graft.tail
    if not graft.heads or not all(0 <= number < len(graph.nodes) for number in (*graft.heads, tail)):
        raise BadMessage("place", "a canvas that begins or ends with a call it doesn't have")
    s = held.steering
    node = graph.nodes[tail]
    if not 0 <= node.kind < len(graph.kinds):
        raise BadMessage("fields", "a graph with a call that can't be")
    kind: Steering = msgspec.structs.replace(decode_steering(graph.kinds[node.kind]), **own)
    nodes = list(graph.nodes)
    nodes[tail] = msgspec.structs.replace(node, kind=len(graph.kinds), **place)
    whole = msgspec.structs.replace(
        graph,
        nonce=s.nonce,
        session=s.session,
        sent_at=now,
        kinds=(*graph.kinds, *kinds_of([kind])),
        nodes=tuple(nodes),
        tail=tail,
        onward=onward[0],
        onward_node=onward[1],
        joins_as=onward[2],
        replaced=replaced,
    )
    drawn = draw(whole)
    outbox = tuple(drawn.step(head, Given("nothing"), now, signer) for head in graft.heads)
    return Grafted(whole.id, sign_graph(whole, signer), outbox, whole.id_of(tail), drawn)
