"""Dead letters: messages of tasks that were given up or rejected, kept to be looked at, sent again or dropped.

A worker keeps one in the step that writes the record of the task's end, and only such a record is believed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbqueue.again import Again
from nbqueue.broker import ServerBroker
from nbqueue.exceptions import BadMessage, ImproperlyConfigured
from nbqueue.messages import open_fact

if TYPE_CHECKING:
    from nbqueue.app import App


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One task whose message was kept. `at` is when it ended, Unix seconds; `name` is empty if that can't be said."""

    id: str
    name: str = ""
    queue: str = ""
    error: str = ""
    at: float = 0.0


class DeadLetters:
    """The dead letters of an app's broker.

    Args:
        app: whose key signs what is sent again.
    """

    def __init__(self, app: App) -> None:
        broker = app.broker
        if not isinstance(broker, ServerBroker):
            raise ImproperlyConfigured(f"{broker.url} keeps no dead letters; use Redis or RabbitMQ")
        self.app = app
        self.broker = broker

    def list(self) -> list[DeadLetter]:
        """Return all of them, the newest last.

        Raises:
            BackendUnavailable: the broker can't be reached, or refuses.
        """
        return [self._opened(id_, record) for id_, record in self.broker.dead_letters()]

    def drop(self, ids: Sequence[str]) -> int:
        """Drop some; return how many there were."""
        return self.broker.drop_dead(ids)

    def requeue(self, ids: Sequence[str]) -> dict[str, str]:
        """Send tasks again, as new as when they were first sent; return for each id what came of it.

        That is `sent`, `unknown` (there is no such dead letter), `live` (the id was sent again since), or why the
        message can't be believed.
        """
        return Again(self.broker, self.app.blobs, self.app.signer).send(ids)

    def _opened(self, id_: str, record: bytes) -> DeadLetter:
        try:
            facts = open_fact(record, self.app.signer, kind="record").facts
        except BadMessage as exc:
            return DeadLetter(id_, error=f"its record can't be believed: {exc}")
        if facts.id != id_:
            return DeadLetter(id_, error="its record is another task's")
        return DeadLetter(id_, facts.name or facts.task, facts.queue, facts.error, facts.at)
