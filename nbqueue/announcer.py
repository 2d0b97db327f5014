"""What a worker sends, told as a client tells of its calls: what follows calls of a canvas, and retries.

A worker in which nobody listens, and that is to send no such events, has none. What is told is what the supervisor
knows: no arguments, as a client tells of the calls of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from nbqueue.deliveries import KEPT, LAST, LOST, Outgoing, Published, Settlement
from nbqueue.emitter import Emitter
from nbqueue.graph import Drawn
from nbqueue.messages import Call, Message, Steering, Step
from nbqueue.publishing import Publication, tell_sent
from nbqueue.signing import Signer

_NO_ARGUMENTS: Final[tuple[tuple[Any, ...], dict[str, Any]]] = ((), {})


class Announcer:
    """Tells for one worker.

    Args:
        signer: of its key, for messages to which a receiver adds headers.
        emitter: sends an event for each call that was sent; None: only signals are sent.
    """

    def __init__(self, signer: Signer, emitter: Emitter | None) -> None:
        self.signer = signer
        self.emitter = emitter

    def begin(self, settlement: Settlement, of: Drawn | Steering) -> Settlement:
        """Tell that what follows a task is about to be sent; return it with the headers that receivers have added.

        What follows a join is told once it was sent, as only the server knows which member is the last.

        Args:
            settlement: how the task ends.
            of: the canvas that all of it is of, or what a retry says of itself.
        """
        outbox, published = self.begin_each(settlement.outbox, of)
        if settlement.arrival is not None:
            bodies = (_Follows(self, self._steering_of(body, of), joined=True) for body in settlement.arrival.outbox)
            published = (*published, *bodies)
        return msgspec.structs.replace(settlement, outbox=outbox, published=(*settlement.published, *published))

    def begin_each(
        self, messages: Sequence[Outgoing], of: Drawn | Steering
    ) -> tuple[tuple[Outgoing, ...], tuple[Published, ...]]:
        """Tell that messages are about to be sent; return them, and what wants to know whether they were."""
        told: list[Outgoing] = []
        published: list[Published] = []
        for message in messages:
            before = self._steering_of(message, of)
            follows = _Follows(self, before)
            after = follows.begin()
            told.append(message if after is before else self._with_headers(message, after))
            published.append(follows)
        return tuple(told), tuple(published)

    def _steering_of(self, message: Outgoing, of: Drawn | Steering) -> Steering:
        """Return what a message says, with what stands in its canvas."""
        if isinstance(of, Steering):
            return of
        step = Message.open(message.header, message.body, self.signer).steering
        assert isinstance(step, Step), "calls of canvases travel as steps"
        return next(drawn for drawn in _with_onward(of) if drawn.graph.id == step.graph).steering(step)

    def _with_headers(self, message: Outgoing, steering: Steering) -> Outgoing:
        """Return a message with the headers that its call has now; a member of a map has those of its map."""
        said = Message.open(message.header, message.body, self.signer).steering
        if isinstance(said, Call):
            return message
        said = msgspec.structs.replace(said, headers=steering.headers)
        if isinstance(said, Step):
            signed = Message.sign_step(said, message.id, message.body, self.signer)
        else:
            signed = Message.sign(said, message.body, self.signer)
        return msgspec.structs.replace(message, header=signed.header)


class _Follows:
    """One message that follows a task. `joined`: only if the task is the last of its join."""

    def __init__(self, announcer: Announcer, steering: Steering, *, joined: bool = False) -> None:
        self._announcer = announcer
        self._joined = joined
        self._publication = Publication(steering, _NO_ARGUMENTS, steering.id)

    def begin(self) -> Steering:
        """Tell that it is about to be sent; return what it says, with the headers of receivers."""
        return self._publication.begin_anyhow()

    def settled(self, said: int) -> None:
        """Tell that it was sent, if it was."""
        if said in (LOST, KEPT) or (self._joined and said != LAST):
            return
        if self._joined:
            self.begin()
        self._publication.end()
        if self._announcer.emitter is not None:
            tell_sent(self._announcer.emitter, [self._publication.steering])


def _with_onward(drawn: Drawn | None) -> Iterator[Drawn]:
    """Yield a canvas, and those whose calls it stands for."""
    while drawn is not None:
        yield drawn
        drawn = drawn.onward
