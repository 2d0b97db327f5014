"""`app.amqp.queues`: queues that are added while a program runs, under Celery's names.

Source: Celery's user guide, "Signals", `celeryd_after_setup`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nbqueue.bindings import bound_queues
from nbqueue.config import Settings


class Queues:
    """The queues of an app: those of `task_queues`, or else its default queue.

    Args:
        conf: of the app.
    """

    def __init__(self, conf: Settings) -> None:
        self._conf = conf
        self.added: list[str] = []  # what workers of this process listen to, whatever they were told

    def __iter__(self) -> Iterator[str]:
        yield from map(str, self._conf.task_queues or (self._conf.task_default_queue,))

    def __contains__(self, queue: object) -> bool:
        return queue in tuple(self)

    def __len__(self) -> int:
        return len(tuple(self))

    def add(self, queue: Any, **options: Any) -> str:
        """Add a queue to `task_queues`; return its name.

        Args:
            queue: a name, or a queue as kombu's.
            options: `exchange`, `exchange_type` and `routing_key` of one that is named.

        Raises:
            ImproperlyConfigured: there can't be such a queue.
        """
        known = self._conf.task_queues or bound_queues({self._conf.task_default_queue: {}})
        (found,) = bound_queues({queue: options} if isinstance(queue, str) else [queue])
        self._conf.task_queues = (*(one for one in known if one != found), found)
        return str(found)

    def select_add(self, queue: Any, **options: Any) -> str:
        """Add a queue that workers of this process listen to, whatever `-Q` says; for `celeryd_after_setup`."""
        name = self.add(queue, **options)
        if name not in self.added:
            self.added.append(name)
        return name


@dataclass(frozen=True)
class Amqp:
    """What there is of Celery's `app.amqp`.

    Args:
        queues: of the app.
    """

    queues: Queues
