"""Finding tasks again by label, id or cell, and cancelling them: for tasks that a client has not just sent."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from nbqueue import result as results
from nbqueue import states
from nbqueue.backends.base import chunks
from nbqueue.deliveries import Revocation
from nbqueue.exceptions import AmbiguousLabel, BadMessage, UnknownTask
from nbqueue.messages import (
    Control,
    Facts,
    Steering,
    new_nonce,
    open_fact,
    open_group,
    revoked_facts,
    sign_control,
    sign_record,
)

if TYPE_CHECKING:
    from nbqueue.app import App

_AT_ONCE = 200  # ids in one order
_LOOKED_UP = 1_000  # records in one question


def attach(app: App, label_or_id: str) -> results.AsyncResult | results.MapResult:
    """Return a handle; see `App.attach`."""
    ids = app.backend.labelled(label_or_id)
    if not ids:
        if app.backend.load_group(label_or_id) is not None:
            return results.MapResult(label_or_id, app=app)
        if app.backend.load([label_or_id])[0] is not None or member_steering(app, label_or_id) is not None:
            return results.AsyncResult(label_or_id, app)
        raise UnknownTask(f"no task has the label or id {label_or_id!r}, or nothing is kept of it any more")
    handles = [results.AsyncResult(id_, app) for id_ in ids[:20]]
    live = [handle for handle in handles if handle.state in states.UNREADY_STATES]
    if len(live) > 1:
        named = ", ".join(handle.id for handle in live)
        raise AmbiguousLabel(f"{len(live)} live tasks have the label {label_or_id!r}: {named}; attach by id")
    return (live or handles)[0]


def revoke(app: App, handles: Sequence[results.AsyncResult], *, terminate: bool, signal: str) -> None:
    """Cancel tasks; see `App.revoke`."""
    now = time.time()
    order = Control(order="revoke", at=now, nonce=new_nonce(), terminate=terminate, signal=signal)
    items = []
    for handle, queue in zip(handles, _queues(app, [handle.id for handle in handles]), strict=True):
        steering = steering_of(app, handle)
        if steering is not None and queue:
            steering = msgspec.structs.replace(steering, queue=queue)
        facts = revoked_facts(steering, "cancelled", now) if steering else Facts(kind="record", id=handle.id)
        record = sign_record(facts, b"", app.signer).decode() if steering else ""
        mark = sign_control(msgspec.structs.replace(order, ids=(handle.id,)), app.signer)
        items.append(Revocation(facts.queue, handle.id, record, facts.session, facts.group, mark))
    said = app.broker.revoke(items)
    held = tuple(handle.id for handle, word in zip(handles, said, strict=True) if word in ("held", "unknown"))
    for start in range(0, len(held), _AT_ONCE):
        part = msgspec.structs.replace(order, nonce=new_nonce(), ids=held[start : start + _AT_ONCE])
        app.backend.order(sign_control(part, app.signer))
    app.watcher.check_soon()


def _queues(app: App, ids: Sequence[str]) -> Iterator[str]:
    """Yield the queues of tasks as their records say, as a retry may have gone elsewhere; empty where they don't."""
    for part in chunks(ids, _LOOKED_UP):
        for text in app.backend.load(part):
            queue = ""
            if text is not None:
                with suppress(BadMessage):
                    queue = open_fact(text, app.signer, kind="record").facts.queue
            yield queue


def steering_of(app: App, handle: results.AsyncResult) -> Steering | None:
    """Return what a task was sent with, as far as its record says; None if nothing is known of it."""
    watched = handle.watched
    if watched.steering is not None:
        return watched.steering
    if watched.latest is None:
        return member_steering(app, handle.id)
    f = watched.latest.facts
    return Steering(
        id=f.id, nonce=f.nonce, task=f.task, name=f.name, queue=f.queue, sent_at=f.sent, session=f.session,
        group=f.group, index=f.index, label=f.label, identity=f.identity, digest=f.digest,
    )  # fmt: skip


def member_steering(app: App, id_: str) -> Steering | None:
    """Return what a member of a map was sent with; None for any other id."""
    group, _, index = id_.rpartition("-")
    text = app.backend.load_group(group) if group and index.isdecimal() else None
    if text is None:
        return None
    steering = open_group(text, app.signer)[0]
    return steering.member(int(index)) if int(index) < steering.size else None
