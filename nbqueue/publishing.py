"""What is told of a call as it is sent, to whoever wants to hear of it."""

from __future__ import annotations

from collections.abc import Iterable

from nbqueue.emitter import Emitter
from nbqueue.messages import Steering


def tell_sent(emitter: Emitter, calls: Iterable[Steering]) -> None:
    """Send an event for each call that was sent."""
    for s in calls:
        emitter.emit(
            "task-sent",
            uuid=s.id,
            name=s.task,
            args=s.argsrepr,
            kwargs=s.kwargsrepr,
            retries=s.retries,
            eta=s.eta or None,
            expires=s.expires or None,
            queue=s.queue,
            exchange="",
            routing_key=s.queue,
            root_id=s.root or s.id,
            parent_id=s.parent or None,
        )
