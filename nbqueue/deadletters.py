"""Dead letters: messages of tasks that were given up or rejected, kept to be looked at, sent again or dropped.

A worker keeps one in the step that writes the record of the task's end, and only such a record is believed here.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from nbqueue.app import pending_facts
from nbqueue.broker import StreamsBroker
from nbqueue.deliveries import Outgoing
from nbqueue.exceptions import BadMessage, ImproperlyConfigured
from nbqueue.messages import Call, Message, open_fact, sign_record
from nbqueue.times import expiry_time

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
        if not isinstance(broker, StreamsBroker):
            raise ImproperlyConfigured(f"{broker.url} keeps no dead letters; use a Redis broker")
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
        said = {}
        for id_ in ids:  # one by one: bodies are large
            letter = self.broker.dead_letter(id_)
            if letter is None:
                said[id_] = "unknown"
                continue
            try:
                said[id_] = self.broker.requeue_dead(*self._again(id_, *letter))
            except BadMessage as exc:
                said[id_] = f"refused ({exc})"
        return said

    def _opened(self, id_: str, record: bytes) -> DeadLetter:
        try:
            facts = open_fact(record, self.app.signer, kind="record").facts
        except BadMessage as exc:
            return DeadLetter(id_, error=f"its record can't be believed: {exc}")
        if facts.id != id_:
            return DeadLetter(id_, error="its record is another task's")
        return DeadLetter(id_, facts.name or facts.task, facts.queue, facts.error, facts.at)

    def _again(self, id_: str, queue: str, header: bytes, body: bytes, priority: int) -> tuple[Outgoing, str]:
        """Return the message that is sent in place of a dead letter, and the id of its map."""
        signer = self.app.signer
        message = Message.open(header, body, signer)
        if message.id != id_:
            raise BadMessage("place", f"task {message.id} under the id {id_}")
        steering = message.steering
        if isinstance(steering, Call):
            again = Message.sign_call(steering.group, steering.index, body, signer)
            return Outgoing(queue, id_, again.header, body, priority=priority), steering.group
        now = time.time()
        steering = msgspec.structs.replace(
            steering, nonce=uuid.uuid4().hex, sent_at=now, eta=0.0, retries=0, expires=expiry_time(now, None, 0.0)
        )
        again = Message.sign(steering, body, signer)
        record = sign_record(pending_facts(steering), b"", signer)
        return Outgoing(steering.queue, id_, again.header, body, record=record, priority=steering.priority), ""
