"""What is told of a call as it is sent, to whoever wants to hear of it: signals here, and events for monitors.

Loaded by clients that tell something.
"""

from __future__ import annotations

import logging
import os
import reprlib
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from nbqueue import signals
from nbqueue.emitter import Emitter
from nbqueue.messages import MAX_STEERING_BYTES, Steering, encode_steering, new_id
from nbqueue.times import iso

SHOWN: Final = 400  # characters of arguments, as text

logger = logging.getLogger(__name__)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = 10


def described(steering: Steering, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Steering:
    """Return steering with its arguments as short text, for monitors, where its caller gave none."""
    return msgspec.structs.replace(
        steering,
        argsrepr=steering.argsrepr or shown(args),
        kwargsrepr=steering.kwargsrepr or shown(dict(kwargs)),
    )


def shown(value: Any) -> str:
    """Return a value as short ASCII text.

    >>> shown((1, "a")), len(shown(("é" * 1000,) * 1000)) <= 400
    ("(1, 'a')", True)
    """
    try:
        text = _repr.repr(value)
    except Exception as exc:  # noqa: BLE001 - a repr of the user's may raise anything, and is no reason not to send
        text = f"<no repr: {type(exc).__name__}>"
    return text.encode("ascii", "backslashreplace").decode()[:SHOWN]


class Publication:
    """One call, told of before and after it is sent. A receiver may add headers before: the task gets them.

    Args:
        steering: of the call, everything but its id.
        call: its arguments.
        task_id: what its caller wants as its id; a new one if None.
    """

    def __init__(
        self, steering: Steering, call: tuple[tuple[Any, ...], Mapping[str, Any]], task_id: str | None
    ) -> None:
        self._heard = signals.anybody(signals.OF_CLIENT)
        self.id = task_id or (new_id() if self._heard else None)
        self.steering = steering
        self._body = (*call, {"callbacks": None, "errbacks": None, "chain": None, "chord": None})
        self._headers = headers_of(steering, self.id) if self.id else {}

    def begin(self) -> Steering:
        """Tell that the call is about to be sent; return its steering as receivers want it."""
        if not self._heard:
            return self.steering
        known = set(self._headers) - set(self.steering.headers)
        signals.before_task_publish.send(
            self.steering.task,
            body=self._body,
            exchange="",
            routing_key=self.steering.queue,
            headers=self._headers,
            properties={"correlation_id": self.id, "priority": self.steering.priority},
            declare=[],
            retry_policy=None,
        )
        own = {name: value for name, value in self._headers.items() if name not in known}
        if own != self.steering.headers:
            msgspec.json.encode(own)  # they travel as JSON
            self.steering = msgspec.structs.replace(self.steering, headers=own)
        return self.steering

    def begin_anyhow(self) -> Steering:
        """Tell likewise, for who sends what others have called: headers that can't travel are left out."""
        before = self.steering
        try:
            after = self.begin()
            if after is before or len(encode_steering(after)) <= MAX_STEERING_BYTES:
                return after
            why = "they are too long"
        except TypeError as exc:
            why = str(exc)
        logger.warning("task %s goes without the headers that a receiver has added: %s", before.id, why)
        self.steering = before
        return before

    def end(self) -> None:
        """Tell that the call was sent."""
        if not self._heard:
            return
        told = {"body": self._body, "exchange": "", "routing_key": self.steering.queue, "headers": self._headers}
        signals.after_task_publish.send(self.steering.task, **told)


class Publications:
    """Calls that beat sends, told of one by one as they are made and together once they were sent, without arguments.

    Args:
        emitter: sends an event for each that was sent; None: only signals are sent.
    """

    def __init__(self, emitter: Emitter | None) -> None:
        self._emitter = emitter
        self._told: list[Publication] = []

    def begin(self, steering: Steering) -> Steering:
        """Tell that a call is about to be sent; return its steering as receivers want it."""
        publication = Publication(steering, ((), {}), steering.id)
        self._told.append(publication)
        return publication.begin_anyhow()

    def end(self) -> None:
        """Tell that all of them were sent."""
        for publication in self._told:
            publication.end()
        if self._emitter is not None:
            tell_sent(self._emitter, [publication.steering for publication in self._told])


def headers_of(s: Steering, id_: str) -> dict[str, Any]:
    """Return the headers that a message of Celery's would have."""
    return {
        "lang": "py",
        "task": s.task,
        "id": id_,
        "shadow": s.name or None,
        "eta": iso(s.eta),
        "expires": iso(s.expires),
        "group": s.group or None,
        "group_index": s.index if s.index >= 0 else None,
        "retries": s.retries,
        "timelimit": [s.time_limit or None, s.soft_time_limit or None],
        "root_id": s.root or id_,
        "parent_id": s.parent or None,
        "argsrepr": s.argsrepr,
        "kwargsrepr": s.kwargsrepr,
        "origin": f"{os.getpid()}@{socket.gethostname()}",
        "ignore_result": s.ignore_result,
        **s.headers,
    }


def tell_sent(emitter: Emitter, calls: Iterable[Steering]) -> None:
    """Send an event for each call that was sent."""
    for s in calls:
        if s.unheard:
            continue
        emitter.emit(
            "task-sent",
            uuid=s.id,
            name=s.task,
            args=s.argsrepr,
            kwargs=s.kwargsrepr,
            retries=s.retries,
            eta=iso(s.eta),
            expires=iso(s.expires),
            queue=s.queue,
            exchange="",
            routing_key=s.queue,
            root_id=s.root or s.id,
            parent_id=s.parent or None,
        )
