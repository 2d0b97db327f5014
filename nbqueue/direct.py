"""A worker of an executor's own: its calls come from its owner and go back there, past broker and backend.

It is as durable as its owner, which sends again whatever a worker took along when it ended. For all else (what it says
of itself, orders, large data, calls that its tasks make) it is a worker as others are.
"""

from __future__ import annotations

import heapq
import itertools
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from nbqueue import states
from nbqueue.backends.base import Backend, Told
from nbqueue.consumer import Batch
from nbqueue.deliveries import SETTLED, WORKERS, Delivery, Outgoing, Settlement
from nbqueue.dispatch import Held
from nbqueue.duplex import Cancel, Cancelled, Duplex, Ended, Refused, Said, SentCalls, keep_code
from nbqueue.exceptions import WorkerTerminate
from nbqueue.intake import Shared
from nbqueue.messages import Outcome, decode_steering, member_id
from nbqueue.payloads import named
from nbqueue.rates import Gates
from nbqueue.reports import Reporter
from nbqueue.streams import Streams

if TYPE_CHECKING:
    from nbqueue.wire import BlockingRead

PATIENCE_S: Final = 0.25  # for an owner that doesn't read what it is told
LEAVE_S: Final = 10.0  # likewise, when nothing else is to be done
ALONE_S: Final = 0.01  # between two looks, as the socket of an owner that is gone can always be read
LANE: Final = "direct"


class DirectReporter(Reporter):
    """Writes no record of a call that has ended well: its value says it all."""

    def _member_succeeded(self, held: Held, body: bytes, outcome: Outcome) -> bytes:
        return body


class DirectConsumer:
    """Takes the calls of an owner, in the order in which they come.

    Args:
        sock: to the owner.
        streams: where it shows that it lives.
        backend: has what tasks share that isn't a call of the owner's.
        take_back: cancels a call that is held and has not begun, by its id; tells whether there is one.
    """

    waiting = False
    settling: BlockingRead | None = None

    def __init__(
        self, sock: socket.socket, streams: Streams, backend: Backend, take_back: Callable[[str], bool]
    ) -> None:
        sock.setblocking(False)
        self.streams = streams
        self.backend = backend
        self._take_back = take_back
        self.count = streams.count
        self._owner = Duplex(sock, owner=False)
        self._alone = False  # the owner is gone
        self._stopping = False  # what comes is left to the next worker
        self._calls: OrderedDict[str, Delivery] = OrderedDict()  # that wait, by their ids
        self._delayed: list[tuple[float, int, Delivery]] = []
        self._codes: dict[str, bytes] = {}
        self._numbers = itertools.count()

    # ---- connection

    @property
    def arrived(self) -> bool:
        """Tell whether calls are here that `claim` has yet to return."""
        return bool(self._calls)

    @property
    def number(self) -> int:
        """Return how many calls wait."""
        return len(self._calls)

    def open(self, queues: Sequence[str]) -> None:
        """See that the server answers; it has no queue of these."""
        del queues
        self.streams.client.ping()

    def follow(self, queues: Sequence[str]) -> None:
        """Do nothing: calls come from the owner only."""

    def listen(self) -> None:
        """Do nothing: the owner is always listened to."""

    def fileno(self) -> int:
        """Return the socket."""
        return self._owner.sock.fileno()

    def leave(self, worker: str, queues: Sequence[str]) -> None:
        """Say that this worker has gone."""
        del queues
        self._owner.flush(LEAVE_S)  # what it isn't told runs again
        self.streams.client.hdel(WORKERS, worker)

    def hang_up(self) -> None:
        """Do nothing: the owner is there, whatever became of the server."""

    def close(self) -> None:
        """Give up the connection; the owner sees it."""
        self._owner.close()

    def tend(self) -> None:
        """Tell the owner what it had no room for."""
        self._owner.flush()

    # ---- claiming

    def claim(self, limit: int, queues: Sequence[str]) -> Batch:
        """Return up to `limit` calls."""
        del queues
        now = time.time()
        while self._delayed and self._delayed[0][0] <= now:
            due = heapq.heappop(self._delayed)[2]
            self._calls[due.id] = due
        taken = [self._calls.popitem(last=False)[1] for _ in range(min(limit, len(self._calls)))]
        due_s = self._delayed[0][0] - now if self._delayed else None
        return Batch(taken, due_s, drained=not self._calls)

    def wait(self, limit: int, queues: Sequence[str], longest_ms: int) -> bool:
        """Wait for the owner, which says of itself when there is more; unless something is delayed."""
        del limit, queues, longest_ms
        return not self._delayed

    def news(self, room: int, queues: Sequence[str]) -> Batch:
        """Read what the owner has said.

        Raises:
            WorkerTerminate: it is gone; raised once.
        """
        for message in self._owner.receive():
            match message:
                case SentCalls():
                    self._take(message)
                case Cancel(number=number, ids=ids):
                    self._owner.put(Cancelled(number, self._cancel(ids)), PATIENCE_S)
        if self._owner.closed:
            if not self._alone:
                self._alone = True
                raise WorkerTerminate
            time.sleep(ALONE_S)
        return self.claim(0 if self._stopping else max(0, room), queues)

    def _take(self, calls: SentCalls) -> None:
        steering = decode_steering(calls.steering)
        if steering.code:
            keep_code(self._codes, steering.code, calls.code)
        code = self._codes[steering.code] if steering.code else b""
        shared = Shared(steering, calls.steering, code, named(code))
        for index, row in enumerate(calls.rows):
            id_ = member_id(steering.id, index)
            self._calls[id_] = Delivery(
                steering.queue,
                LANE,
                str(next(self._numbers)),
                id_,
                b"",
                row,
                1 + calls.losses,
                0,
                calls.losses,
                shared=shared,
                index=index,
            )

    def _cancel(self, ids: Iterable[str]) -> list[str]:
        """Drop calls that have not begun; return which these are."""
        wanted = dict.fromkeys(ids)
        delayed = {delivery.id for _, _, delivery in self._delayed if delivery.id in wanted}
        if delayed:
            self._delayed = [item for item in self._delayed if item[2].id not in delayed]
            heapq.heapify(self._delayed)
        return [
            id_ for id_ in wanted if self._calls.pop(id_, None) is not None or id_ in delayed or self._take_back(id_)
        ]

    def stop_waiting(self) -> None:
        """Claim no more; what comes is the owner's until it has ended."""
        self._stopping = True

    # ---- how calls end, or go on

    def settle(self, items: Sequence[Settlement]) -> list[int]:
        """Tell the owner."""
        ended: dict[str, Ended] = {}
        facts: list[bytes] = []
        for item in items:
            delivery = item.delivery
            if item.ends and item.state == states.SUCCESS:
                known = ended.get(item.group) or ended.setdefault(item.group, Ended(item.group, [], []))
                known.indexes.append(delivery.index)
                known.values.append(item.record)
            elif item.record:
                facts.append(item.record)
            for message in item.outbox:
                self._put(_next_run(message, delivery, str(next(self._numbers))), message.due_ms / 1000)
        for one in ended.values():
            self._owner.put(one, PATIENCE_S)
        if facts:
            self._owner.put(Said(facts), PATIENCE_S)
        return [SETTLED] * len(items)

    def begin_settle(self, items: Sequence[Settlement]) -> bool:
        """Return False: it is done at once."""
        del items
        return False

    def end_settle(self) -> list[int]:
        """Be called never, as nothing is begun."""
        return []

    def _put(self, delivery: Delivery, due: float) -> None:
        heapq.heappush(self._delayed, (due, next(self._numbers), delivery))

    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Have calls run again, before all others."""
        for delivery in reversed(deliveries):
            self._calls[delivery.id] = _charged(delivery, charge)
            self._calls.move_to_end(delivery.id, last=False)
        return len(deliveries)

    def abandon(self, deliveries: Sequence[Delivery]) -> None:
        """Have calls of which nothing was decided yet taken again."""
        self.give_back(deliveries)

    def put_off(self, deliveries: Sequence[Delivery], delay_ms: int) -> None:
        """Have calls taken again a moment later."""
        for delivery in deliveries:
            self._put(delivery, time.time() + delay_ms / 1000)

    def quarantine(self, deliveries: Sequence[tuple[Delivery, str]]) -> None:
        """Tell the owner what can't be run."""
        for delivery, why in deliveries:
            self._owner.put(Refused(delivery.id, why), PATIENCE_S)

    def pass_gates(self, items: Sequence[tuple[Delivery, Gates]]) -> list[bool]:
        """Let all through: rates and locks are for what others send, too."""
        return [True] * len(items)

    def unlock(self, locks: Sequence[str]) -> None:
        """Do nothing: no call has a lock."""

    # ---- what tasks say

    def tell(self, facts: Sequence[Told]) -> None:
        """Tell the owner what calls say."""
        self._owner.put(Said([fact.text for fact in facts]), PATIENCE_S)

    def store_graph(self, graph: str, text: bytes, ttl_s: float) -> None:
        """Keep a canvas where the workers find it that run it."""
        self.backend.store_graph(graph, text, ttl_s)

    # ---- leases

    def renew(
        self, consumer: str, deliveries: Sequence[Delivery], worker: str = "", advert: str = ""
    ) -> tuple[list[bool], dict[str, bytes]]:
        """Show that the worker lives. What it holds is its own."""
        self.streams.renew(consumer, [], worker, advert)
        return [True] * len(deliveries), {}

    def sweeps(self, queues: Sequence[str], consumer: str, hold_ms: int) -> list[str]:
        """Return none: nobody else has calls of the owner's."""
        del queues, consumer, hold_ms
        return []

    def lapsed(self, queues: Iterable[str], idle_ms: int) -> list[tuple[str, str, str]]:
        """Return none, likewise."""
        del queues, idle_ms
        return []

    def reap(self, items: Sequence[tuple[str, str, str]], idle_ms: int) -> int:
        """Return none, likewise."""
        del items, idle_ms
        return 0


def _next_run(message: Outgoing, before: Delivery, entry: str) -> Delivery:
    """Return a retry of a call: it stays here, whatever queue it names."""
    return Delivery(
        message.queue,
        LANE,
        entry,
        message.id,
        message.header.encode(),
        message.body,
        message.attempt,
        message.child_deaths,
        message.worker_losses,
        shared=before.shared,
        index=before.index,
    )


def _charged(delivery: Delivery, charge: str) -> Delivery:
    """Return a delivery for one more run."""
    return msgspec.structs.replace(
        delivery,
        attempt=delivery.attempt + (charge != "none"),
        child_deaths=delivery.child_deaths + (charge == "child"),
        worker_losses=delivery.worker_losses + (charge == "worker"),
    )
