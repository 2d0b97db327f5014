"""Tasks that run again: their messages were kept when they failed, or were given up, and are sent anew.

A kept message is believed only as far as its signature goes, like any other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from nbqueue import states
from nbqueue.backends.base import chunks
from nbqueue.blobs import Blobs
from nbqueue.broker import Broker, ServerBroker
from nbqueue.deliveries import Kept, Outgoing
from nbqueue.exceptions import BadMessage, ImproperlyConfigured, UnknownTask
from nbqueue.groups import Member
from nbqueue.handles import AsyncResult
from nbqueue.messages import Call, Message, Step, member_id, new_nonce, pending_facts, sign_record, split_body
from nbqueue.payloads import named
from nbqueue.signing import Signer
from nbqueue.times import expiry_time
from nbqueue.watched import WatchedMap
from nbqueue.watcher import Watcher

_OVER: Final = (states.FAILURE, states.REJECTED)
_AT_ONCE: Final = 50  # messages in one round trip: their bodies come back and go again


class Again:
    """Sends tasks again.

    Args:
        broker: where their messages are kept.
        blobs: where what they name of large data is.
        signer: of the key that they were signed with.

    Raises:
        ImproperlyConfigured: this broker keeps none.
    """

    def __init__(self, broker: Broker, blobs: Blobs, signer: Signer) -> None:
        if not isinstance(broker, ServerBroker):
            raise ImproperlyConfigured(f"{broker.url} keeps no messages of tasks that failed; use Redis or RabbitMQ")
        self.broker = broker
        self.blobs = blobs
        self.signer = signer

    def run(self, results: Sequence[AsyncResult], watcher: Watcher) -> int:
        """Run tasks again that failed or were given up, and at once those that wait for their retry.

        Args:
            results: their handles, which wait for the new end.
            watcher: follows them.

        Returns:
            How many of them run again.

        Raises:
            UnknownTask: none does: they have not failed, or their messages are kept no more.
        """
        waiting = [(result.queue, result.id) for result in results if result.state == states.RETRY]
        over = [result for result in results if result.state in _OVER]
        number = sum(self.broker.release(waiting))
        ends = Ends(over)
        ends.forget(watcher)
        said: dict[str, str] = {}
        try:
            said = self.send([result.id for result in over])
        finally:
            ends.restore({result.id for result in over if said.get(result.id) != "sent"})
        number += sum(word == "sent" for word in said.values())
        if not number:
            one = len(results) == 1
            kept = f"no message of {'it' if one else 'them'} is kept"
            why = ", ".join(sorted(set(said.values()) - {"unknown"})) or kept
            if not over:
                why = "it has not failed" if one else "none has failed"
            what = f"task {results[0].id}" if one else f"{len(results):,} tasks"
            raise UnknownTask(f"{what} can't run again: {why}")
        return number

    def send(self, ids: Sequence[str]) -> dict[str, str]:
        """Send tasks again, as new as when they were first sent; return for each id what came of it.

        That is `sent`, `unknown` (nothing was kept of it), `live` (the id was sent again since), or why the message
        can't be believed.
        """
        said: dict[str, str] = {}
        for part in chunks(ids, _AT_ONCE):
            messages = []
            for id_, kept in zip(part, self.broker.kept(part), strict=True):
                if kept is None:
                    said[id_] = "unknown"
                    continue
                try:
                    messages.append(self._anew(id_, kept))
                except BadMessage as exc:
                    said[id_] = f"refused ({exc})"
            words = self.broker.send_kept(messages)
            said |= {message.id: word for (message, _), word in zip(messages, words, strict=True)}
        return said

    def _anew(self, id_: str, kept: Kept) -> tuple[Outgoing, str]:
        """Return the message that is sent in place of the one that was kept, and the id of its map."""
        message = Message.open(kept.header, kept.body, self.signer)
        if message.id != id_ and not isinstance(message.steering, Step):
            raise BadMessage("place", f"task {message.id} under the id {id_}")
        steering = message.steering
        if isinstance(steering, Step):
            raise BadMessage("place", "it is a call of a canvas; send the canvas again")
        now = time.time()
        expires = expiry_time(now, None, 0.0)
        if isinstance(steering, Call):
            self._keep_blobs(kept.body, expires)
            changes = steering.changes
            if changes is not None and changes.expires is not None:
                changes = msgspec.structs.replace(changes, expires=expires)
            again = Message.sign_call(
                steering.group, steering.index, kept.body, self.signer, nonce=new_nonce(), changes=changes
            )
            return Outgoing(kept.queue, id_, again.header, kept.body, priority=kept.priority), steering.group
        for head in split_body(kept.body):
            self._keep_blobs(head, expires)
        # A clock that is slow must not make it look older than what it takes the place of.
        sent_at = max(now, steering.sent_at)
        steering = msgspec.structs.replace(
            steering, nonce=new_nonce(), sent_at=sent_at, eta=0.0, retries=0, expires=expires
        )
        again = Message.sign(steering, kept.body, self.signer)
        record = sign_record(pending_facts(steering), b"", self.signer)
        return Outgoing(steering.queue, id_, again.header, kept.body, record=record, priority=steering.priority), ""

    def _keep_blobs(self, head: bytes, expires: float) -> None:
        """Let what a message names stay until it has run; what is gone is the worker's to name."""
        self.blobs.keep(named(head), expires + 86_400.0)


class Ends:
    """The known ends of tasks that are about to be sent again; those of a map stand in the map."""

    def __init__(self, results: Sequence[AsyncResult]) -> None:
        self._tasks = [result.watched for result in results if not isinstance(result, Member)]
        self._maps: dict[str, tuple[WatchedMap, list[int]]] = {}
        for result in results:
            if isinstance(result, Member):
                result.look_anew()
                watched = result.group.watched
                self._maps.setdefault(watched.id, (watched, []))[1].append(result.index)

    def forget(self, watcher: Watcher) -> None:
        """Let handles wait for other ends, and follow the tasks."""
        for task in self._tasks:
            task.begin_again()
            watcher.follow_again(task)
        for group, indexes in self._maps.values():
            group.begin_again(indexes)
            watcher.follow_again(group)

    def restore(self, ids: set[str]) -> None:
        """Let the ends of tasks count that were not sent after all."""
        for task in self._tasks:
            if task.id in ids:
                task.resume_end()
        for group, indexes in self._maps.values():
            if same := [index for index in indexes if member_id(group.id, index) in ids]:
                group.resume_end(same)
