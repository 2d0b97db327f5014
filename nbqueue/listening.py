"""Which queues a worker listens to: those that it was told, those of its own, or whatever is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nbqueue.bindings import broadcasts, is_own, own_queue
from nbqueue.broker import ServerBroker
from nbqueue.config import Settings
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.routing import check_queue


class Listening:
    """The queues of one worker, in the order in which they are asked.

    Args:
        worker: its name.
        conf: of its app.
        broker: has the queues.
        queues: it was told; `conf.task_queues`, or else the app's default queue, if empty.
        every: listen to every queue that anything was sent to.
        exclude: queues that it doesn't listen to.

    Raises:
        ImproperlyConfigured: none is left, or one isn't known and `task_create_missing_queues` is off.
    """

    def __init__(
        self,
        worker: str,
        conf: Settings,
        broker: ServerBroker,
        queues: Sequence[str] = (),
        *,
        every: bool = False,
        exclude: Iterable[str] = (),
    ) -> None:
        self.worker = worker
        self.conf = conf
        self.broker = broker
        self.every = every
        self.exclude = frozenset(exclude)
        self.names = self._chosen(queues or conf.task_queues or (conf.task_default_queue,))

    def follow(self) -> None:
        """Take in queues that were first used since, where it listens to all."""
        if self.every:
            found = {queue for queue in self.broker.queues() if not is_own(queue)} | {self.conf.task_default_queue}
            self.names = self._with_own(sorted(found - self.exclude))

    def with_one(self, queue: str) -> list[str]:
        """Return what it listens to with one more.

        Raises:
            ImproperlyConfigured: there is none of this name, and none may be made.
        """
        self._check([queue])
        queue = self.own(queue)
        self.broker.check_queue(queue)
        self.exclude -= {queue}
        return [*(one for one in self.names if one != queue), queue]

    def without(self, queue: str) -> list[str]:
        """Return what it listens to but for one queue, which it follows no more."""
        queue = self.own(queue)
        if self.every:
            self.exclude |= {queue}
        return [one for one in self.names if one != queue]

    def own(self, queue: str) -> str:
        """Return a queue, or this worker's own in place of a broadcast."""
        return own_queue(self.worker, queue) if queue in broadcasts(self.conf.task_queues) else str(queue)

    def _chosen(self, queues: Sequence[str]) -> list[str]:
        chosen = [queue for queue in dict.fromkeys(queues) if queue not in self.exclude]
        if not chosen and not self.every:
            raise ImproperlyConfigured(f"no queue is left to listen to: {', '.join(queues)} are excluded")
        self._check(chosen)
        return self._with_own(chosen)

    def _check(self, queues: Iterable[str]) -> None:
        if not self.conf.task_create_missing_queues:
            for queue in queues:
                check_queue(queue, self.conf.task_queues or (self.conf.task_default_queue,))

    def _with_own(self, queues: Iterable[str]) -> list[str]:
        """Return these queues, with those of this worker's own in place of broadcasts, and the one for it alone."""
        found = [self.own(queue) for queue in queues]
        return [*found, own_queue(self.worker)] if self.conf.worker_direct else found
