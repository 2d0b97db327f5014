"""Packs the plan of a canvas into the graph that is sent, and makes the handle of it."""

from __future__ import annotations

import operator
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nbqueue.canvas import Signature
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.expand import Plan, Shape, expand_as_one
from nbqueue.graph import Graph, Join, Node, kinds_of
from nbqueue.groups import GroupResult
from nbqueue.handles import AsyncResult
from nbqueue.messages import Graft, Steering, new_id
from nbqueue.payloads import Packer
from nbqueue.request import current_request
from nbqueue.spread import Parts
from nbqueue.times import due_time

if TYPE_CHECKING:
    from nbqueue.app import App

# No part of what a call shares with others: options of one call, and those that say how a call is sent by its client,
# where calls of a canvas are sent as `conf` says.
_OF_EACH: Final = frozenset(
    {"task_id", "countdown", "retry", "retry_policy", "add_to_parent", "producer", "connection", "publisher"}
)


def pack(plan: Plan, app: App, packer: Packer, *, sent_now: bool = True) -> Graph:
    """Return the graph of a plan; code and options that calls share stand in it once.

    A call that goes to several queues gets copies, which nothing follows; those of first calls are added to its heads.

    Args:
        plan: what is sent.
        app: that sends it.
        packer: takes large data.
        sent_now: its first calls are, so it is known who listens to broadcasts.

    Raises:
        ImproperlyConfigured: a broadcast among calls that are sent later.
        TypeError: arguments don't fit, or an option doesn't exist.
        NotPicklable: code or arguments can't travel.
    """
    kinds: list[Steering] = []
    codes: dict[str, bytes] = {}
    known: dict[tuple[int, str], int] = {}
    nodes = []
    for call in plan.calls:
        found = call.signature
        task = found.type
        options = {name: value for name, value in found.options.items() if name not in _OF_EACH}
        key = id(task), repr(sorted(options.items(), key=operator.itemgetter(0))) if options else ""
        if key not in known:
            known[key] = len(kinds)
            options.pop("expires", None)
            steering, code = _kind(found, options, packer)
            if code:
                codes[steering.code] = code
            kinds.append(steering)
        kind = kinds[known[key]]
        args = task.dumps_args(found.args, found.kwargs, kind.serializer, packer, found.options.get("compression"))
        nodes.append(
            Node(
                known[key],
                args,
                tuple(call.follow),
                tuple(call.errors),
                call.join,
                call.place,
                found.immutable,
                due_time(0.0, found.options.get("countdown"), None),
                found.options.get("task_id") or "",
                call.parent,
                call.scope,
            )
        )
    joins = [Join(tuple(join.members), tuple(join.follow)) for join in plan.joins]
    parts = {kind: some for kind, one in enumerate(kinds) if (some := app.spread.parts(app.conf, one.queue))}
    if parts:
        _copy(plan, app, kinds, nodes, joins, parts, set(plan.heads) if sent_now else set())
    request = current_request()
    return Graph(
        new_id(),
        uuid.uuid4().hex,
        app.session,
        time.time(),
        codes,
        kinds_of(kinds),
        tuple(nodes),
        tuple(joins),
        parent=request.id if request is not None else "",
        root=request.root_id if request is not None else "",
    )


def _copy(
    plan: Plan,
    app: App,
    kinds: list[Steering],
    nodes: list[Node],
    joins: list[Join],
    parts: Mapping[int, Parts],
    known: set[int],
) -> None:
    """Let calls that go to several queues go to the first, and copies of them to the others.

    Args:
        plan: whose heads get those that are sent at once.
        app: that sends them.
        kinds: of calls.
        nodes: the calls.
        joins: what follows some of them.
        parts: of the queues of kinds that stand for several.
        known: calls of which it is known who listens.
    """
    by_kind: dict[int, list[int]] = {}
    copies: dict[int, list[int]] = {}
    for number, node in enumerate(list(nodes)):
        if (found := parts.get(node.kind)) is None:
            continue
        kind = kinds[node.kind]
        if number not in known and any(broadcast for _, broadcast in found):
            raise ImproperlyConfigured(
                f"{kind.shown_name} goes to the broadcast {kind.queue!r}, which only the first calls of a canvas that "
                "is sent now can: who listens later isn't known yet; send it from within a task that takes this place"
            )
        if node.kind not in by_kind:
            first, *others = app.sender.queues_of(kind.queue)
            by_kind[node.kind] = list(range(len(kinds), len(kinds) + len(others)))
            kinds[node.kind] = msgspec.structs.replace(kind, queue=first)
            kinds += [msgspec.structs.replace(kind, queue=queue) for queue in others]
        copies[number] = list(range(len(nodes), len(nodes) + len(by_kind[node.kind])))
        copy = msgspec.structs.replace(node, follow=(), errors=(), join=-1, place=-1, id="")
        nodes += [msgspec.structs.replace(copy, kind=number_of_kind) for number_of_kind in by_kind[node.kind]]

    def with_copies(numbers: Iterable[int]) -> tuple[int, ...]:
        return tuple(one for number in numbers for one in (number, *copies.get(number, ())))

    plan.heads[:] = with_copies(plan.heads)
    nodes[:] = [
        msgspec.structs.replace(node, follow=with_copies(node.follow), errors=with_copies(node.errors))
        for node in nodes
    ]
    joins[:] = [msgspec.structs.replace(join, follow=with_copies(join.follow)) for join in joins]


def _kind(found: Signature, shared: Mapping[str, Any], packer: Packer) -> tuple[Steering, bytes]:
    """Return what calls share, and their code. Its expiry is an instant, or negative: seconds from a call's turn."""
    options = dict(shared)
    ignore = options.pop("ignore_result", None)
    task = found.type
    steering, code = task.steering_of(packer, (found.args, found.kwargs), options)
    expires = found.options.get("expires", task.expires)
    if expires is None:
        until = 0.0
    elif isinstance(expires, int | float):
        until = -float(expires)
    else:
        until = expires.timestamp()
    ignore = task.ignore_result if ignore is None else ignore
    return msgspec.structs.replace(
        steering,
        sent_at=0.0,
        session="",
        expires=until,
        ignore_result=bool(task.app.conf.task_ignore_result if ignore is None else ignore),
    ), code


def graft(found: Signature, app: App, packer: Packer) -> tuple[Graft, AsyncResult]:
    """Return a canvas that a running task hands to its supervisor, and the handle of its end.

    Raises:
        ImproperlyConfigured: it is empty.
    """
    plan = expand_as_one(found)
    packed = pack(plan, app, packer)
    result = AsyncResult(packed.id_of(plan.shape.call), app)
    return Graft(msgspec.msgpack.encode(packed), tuple(plan.heads), plan.shape.call), result


def handle(shape: Shape, graph: Graph, app: App, made: dict[int, AsyncResult]) -> AsyncResult | GroupResult:
    """Return the handle of a canvas, with those before it as its parents.

    Args:
        shape: of its plan.
        graph: that was packed.
        app: of the handles.
        made: handles by call, added to.
    """
    before = []  # not by recursion: chains are long
    one: Shape | None = shape
    while one is not None:
        before.append(one)
        one = one.parent
    found: AsyncResult | GroupResult | None = None
    for one in reversed(before):
        found = _handle(one, graph, app, made, found)
    assert found is not None, "the last is that of the shape itself"
    return found


def _handle(
    shape: Shape, graph: Graph, app: App, made: dict[int, AsyncResult], parent: AsyncResult | GroupResult | None
) -> AsyncResult | GroupResult:
    """Return the handle of one part, whose parent is made already."""
    if shape.call < 0:
        members = [handle(member, graph, app, made) for member in shape.members]
        group: GroupResult = GroupResult(shape.id or new_id(), members, parent, app=app)
        return group
    result = AsyncResult(graph.id_of(shape.call), app, parent=parent)
    made[shape.call] = result
    return result
