"""The rarer options of a call: what it says of itself beside where, when and how long it runs.

Source: Celery 5.7, `Task.apply_async`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from nbqueue.messages import Steering
from nbqueue.rates import lock_name

EXTRAS: Final = frozenset(
    {"headers", "reply_to", "argsrepr", "kwargsrepr", "root_id", "parent_id", "compression", "add_to_parent", "lock"}
)
# Accepted, and without meaning: calls go by the app's own connections, and canvases are graphs.
IDLE: Final = frozenset(
    {
        *("connection", "publisher", "producer", "router", "result_cls", "route_name", "task_type", "origin"),
        *("group_id", "group_index", "retries", "chord", "chain", "replaced_task_nesting", "add_to_chord"),
        *("delivery_mode", "mandatory", "immediate", "declare", "content_type", "content_encoding", "correlation_id"),
    }
)


@dataclass(frozen=True, slots=True)
class Extras:
    """What few calls say.

    Args:
        headers: of the caller's own, for `request.headers`; JSON.
        reply_to: for `request.reply_to`.
        argsrepr: positional arguments as text, for whoever lists tasks.
        kwargsrepr: keyword arguments as text.
        root_id: the call that it all began with; that of the task which sends it if None.
        parent_id: the call that made it; the task which sends it if None.
        compression: of the arguments.
        add_to_parent: note it as a child of the task which sends it.
        lock: another than its task's.
    """

    headers: Mapping[str, Any] = field(default_factory=dict)
    reply_to: str = ""
    argsrepr: str = ""
    kwargsrepr: str = ""
    root_id: str = ""
    parent_id: str = ""
    compression: str | None = None
    add_to_parent: bool = True
    lock: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Extras:
        """Return these options, checked.

        Raises:
            TypeError: one of them doesn't exist, or is of the wrong kind.
        """
        if wrong := sorted(given.keys() - EXTRAS - IDLE):
            raise TypeError(f"apply_async has no option {', '.join(wrong)}")
        known = {name: value for name, value in given.items() if name in EXTRAS and value is not None}
        for name, value in known.items():
            if name not in ("headers", "add_to_parent") and not isinstance(value, str):
                raise TypeError(f"{name} must be a string, not {value!r}")
        if "lock" in known:
            lock_name(known["lock"])
        if "headers" in known:
            known["headers"] = json_headers(known["headers"])
        return cls(**known)

    def on(self, steering: Steering) -> Steering:
        """Return steering that says this too."""
        return msgspec.structs.replace(
            steering,
            headers=dict(self.headers),
            reply_to=self.reply_to,
            argsrepr=self.argsrepr,
            kwargsrepr=self.kwargsrepr,
            root=self.root_id,
            parent=self.parent_id,
            lock=self.lock or steering.lock,
        )


NO_EXTRAS: Final = Extras()


def json_headers(value: Any) -> dict[str, Any]:
    """Return headers as they travel.

    Raises:
        TypeError: they are no dict that JSON can say.
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(value))
    except (TypeError, ValueError) as exc:
        raise TypeError(f"headers must be JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise TypeError(f"headers must be a dict, not {value!r}")
    return found
