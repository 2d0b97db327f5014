"""Celery's events: reading them, keeping what they tell, and sending one's own. `app.events` is an `Events`.

    state = app.events.State()

    def failed(event):
        state.event(event)
        task = state.tasks[event["uuid"]]
        print(f"{task.name}[{task.uuid}] {task.info()}")

    with app.connection() as connection:
        app.events.Receiver(connection, handlers={"task-failed": failed, "*": state.event}).capture()

Workers send events with `-E` or `worker_send_task_events`, clients with `task_send_sent_event`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nbqueue.emitter import Emitter
from nbqueue.event_state import State, Task, Worker

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.receiver import EventDispatcher, EventReceiver

_OF_KOMBU = frozenset({"EventDispatcher", "EventReceiver", "get_exchange"})

__all__ = ["Event", "Events", "State", "Task", "Worker", "group_from"]


def Event(type: str, _fields: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:  # noqa: N802 - Celery's
    """Return an event: a dict with its type, and when it happened if that isn't given."""
    return {"timestamp": time.time(), **(_fields or {}), **fields, "type": type}


def group_from(type: str) -> str:
    """Return the group of a type of events.

    >>> group_from("task-sent"), group_from("mine-of-my-own")
    ('task', 'mine')
    """
    return type.partition("-")[0]


def __getattr__(name: str) -> Any:
    if name not in _OF_KOMBU:
        raise AttributeError(f"module 'nbqueue.events' has no attribute {name!r}")
    from nbqueue import receiver  # noqa: PLC0415 - loads kombu, which sending doesn't need

    return getattr(receiver, name)


class Events:
    """The events of one app.

    Args:
        app: which.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    def Receiver(self, channel: Any, handlers: Any = None, **options: Any) -> EventReceiver:  # noqa: N802 - Celery's name
        """Return what calls handlers with events; see `nbqueue.receiver.EventReceiver`."""
        from nbqueue.receiver import EventReceiver  # noqa: PLC0415 - loads kombu, which sending doesn't need

        return EventReceiver(channel, handlers, **{"app": self.app, **options})

    def Dispatcher(self, connection: Any = None, **options: Any) -> EventDispatcher:  # noqa: N802 - Celery's name
        """Return what sends events over a connection of one's own."""
        from nbqueue.receiver import EventDispatcher  # noqa: PLC0415 - as above

        return EventDispatcher(connection, **{"app": self.app, **options})

    def State(self, **options: Any) -> State:  # noqa: N802 - Celery's name
        """Return what keeps what events tell; see `nbqueue.event_state.State`."""
        return State(**options)

    @contextmanager
    def default_dispatcher(self, hostname: str | None = None) -> Iterator[AppDispatcher]:
        """Yield what sends events over this app's own connection: `.send("task-mine", uuid=id, ...)`."""
        yield AppDispatcher(self.app.emitter, hostname)


class AppDispatcher:
    """Sends events of one's own over the connection of an app.

    Args:
        emitter: of the app.
        hostname: whom they are from, if not from its client.
    """

    def __init__(self, emitter: Emitter, hostname: str | None = None) -> None:
        self._emitter = emitter
        self._from = {"hostname": hostname} if hostname else {}

    def send(self, type: str, **fields: Any) -> None:
        """Send an event: its type, with the group before the dash, and fields that are JSON."""
        self._emitter.emit(type, **{**self._from, **fields})
