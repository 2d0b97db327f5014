"""States of a task's own, and events of its own, on their way from a child to its supervisor.

Source: Celery 5.7, `Task.update_state` and "Custom states" of its user guide.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from nbqueue import serialization, states
from nbqueue.capture import Interrupts
from nbqueue.exceptions import RemoteError, TaskError
from nbqueue.messages import Stated, encode_stated

PACE_S: Final = 0.1  # between two states that are told of one task
MAX_BYTES: Final = 256_000  # of what goes with a state, and of the fields of an event
_FORM: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,63}")
_ENDS: Final = frozenset({states.SUCCESS, states.FAILURE})


class Pace:
    """Tells the states of one call: the first at once, the newest of what follows ten times a second at most.

    Args:
        seq: of the call.
        send: takes (seq, kind, data), from any thread.
        interrupts: wait until a state is told.
        form: serializer and compression of what goes with a state, if not as ever.
    """

    def __init__(
        self, seq: int, send: Callable[[int, str, bytes], None], interrupts: Interrupts, form: tuple[str, ...] = ()
    ) -> None:
        self._seq = seq
        self._form = form
        self._send = send
        self._interrupts = interrupts
        self._lock = threading.Lock()
        self._waits: bytes | None = None
        self._due_at = 0.0
        self._closed = False

    def update(self, state: str, meta: Any) -> bool:
        """Take a state; tell whether somebody has to flush it later.

        Raises:
            ValueError: what goes with it is too large.
        """
        data = encode_stated(Stated(state, serialization.dumps_value(meta, None, *self._form), _shown(meta)))
        if len(data) > MAX_BYTES:
            raise ValueError(f"what goes with state {state} has {len(data):,} bytes, {MAX_BYTES:,} is the most")
        with self._interrupts, self._lock:
            self._waits = data
        return self.flush()

    def flush(self) -> bool:
        """Tell the newest state if it is time to; tell whether it goes on waiting."""
        with self._interrupts, self._lock:
            if self._waits is None or self._closed:
                return False
            now = time.monotonic()
            if now < self._due_at:
                return True
            self._send(self._seq, "state", self._waits)
            self._waits, self._due_at = None, now + PACE_S
            return False

    def close(self) -> None:
        """Tell nothing more."""
        with self._interrupts, self._lock:
            self._closed = True


def is_end(state: str) -> bool:
    """Tell whether a task may name this state as that of its end."""
    return state in _ENDS


def error_of(meta: Any) -> BaseException:
    """Return the error that a task gives as its end: an exception, or Celery's dict of one."""
    if isinstance(meta, BaseException):
        return meta
    if isinstance(meta, Mapping) and "exc_type" in meta:
        said = meta.get("exc_message", "")
        text = " ".join(map(str, said)) if isinstance(said, list | tuple) else str(said)
        kind = getattr(builtins, str(meta["exc_type"]), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(Exception):  # some take more than a text
                return kind(text)
        return RemoteError(str(meta["exc_type"]), text, "")
    return TaskError(f"the task has said that it failed: {meta!r}")


def check(state: str) -> None:
    """Refuse a state that a task can't have while it runs.

    Raises:
        ValueError: it can't.
    """
    if not _FORM.fullmatch(state):
        raise ValueError(f"a state is a word in capitals, such as 'PROGRESS', not {state!r}")
    if state in states.ALL_STATES and state != states.STARTED:
        raise ValueError(f"state {state} is the worker's to write; take a word of your own, such as 'PROGRESS'")


def event(type_: str, fields: Mapping[str, Any]) -> bytes:
    """Return an event as it is told.

    Raises:
        ValueError: its fields aren't JSON, or are too large.
    """
    try:
        data = json.dumps({"type": type_, **fields}).encode()
    except (TypeError, ValueError) as exc:
        raise ValueError(f"the fields of event {type_} are no JSON: {exc}") from exc
    if len(data) > MAX_BYTES:
        raise ValueError(f"event {type_} has {len(data):,} bytes, {MAX_BYTES:,} is the most")
    return data


def _shown(meta: Any) -> bytes:
    """Return what goes with a state as JSON, for clients of Celery; empty if it is none."""
    try:
        return json.dumps(meta, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return b""
