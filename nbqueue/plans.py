"""Packs the plan of a canvas into the graph that is sent, and makes the handle of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nbqueue import serialization
from nbqueue.canvas import Signature
from nbqueue.expand import Plan, Shape, expand_as_one
from nbqueue.graph import Graph, Join, Node, kinds_of
from nbqueue.groups import GroupResult
from nbqueue.handles import AsyncResult
from nbqueue.messages import Graft, Steering, new_id
from nbqueue.payloads import Packer
from nbqueue.request import current_request
from nbqueue.times import due_time

if TYPE_CHECKING:
    from nbqueue.app import App

# Of one call: they are no part of what it shares with others.
_OWN: Final = ("task_id", "countdown", "expires")
# Options that say how a call is sent by its client; those of a canvas are sent as `conf` says.
_OF_CLIENT: Final = frozenset({"retry", "retry_policy", "add_to_parent", "producer", "connection", "publisher"})


def pack(plan: Plan, app: App, packer: Packer) -> Graph:
    """Return the graph of a plan; code and options that calls share stand in it once.

    Raises:
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
        shared = {name: value for name, value in found.options.items() if name not in _OWN and name not in _OF_CLIENT}
        expires = found.options.get("expires")
        key = id(task), repr((sorted(shared.items(), key=lambda item: item[0]), expires))
        if key not in known:
            known[key] = len(kinds)
            steering, code = _kind(found, shared, packer)
            if code:
                codes[steering.code] = code
            kinds.append(steering)
        kind = kinds[known[key]]
        args = serialization.dumps_args(
            found.args,
            found.kwargs,
            kind.serializer,
            packer,
            by_value=bool(kind.code) or task.by_value,
            compression=task.compression_of(found.options.get("compression")),
        )
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
            )
        )
    joins = tuple(Join(tuple(join.members), tuple(join.follow)) for join in plan.joins)
    request = current_request()
    return Graph(
        new_id(),
        uuid.uuid4().hex,
        app.session,
        time.time(),
        codes,
        kinds_of(kinds),
        tuple(nodes),
        joins,
        parent=request.id if request is not None else "",
        root=request.root_id if request is not None else "",
    )


def _kind(found: Signature, shared: Mapping[str, Any], packer: Packer) -> tuple[Steering, bytes]:
    """Return what calls share, and their code. Its expiry is an instant, or negative: seconds from a call's turn."""
    options = dict(shared)
    ignore = options.pop("ignore_result", None)
    task = found.type
    steering, code = task.steering_of(packer, (found.args, found.kwargs), options)
    task.app.require_one_queue(steering.queue, "a canvas")
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
