"""`Ledger`: what a worker has yet to store at the server, kept in order while that can't be reached."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from nbqueue.backends.base import Told
from nbqueue.consumer import Claims
from nbqueue.deliveries import LIVE_S, LOST, Settlement
from nbqueue.dispatch import Dispatcher, Held
from nbqueue.messages import MAX_MESSAGE_BYTES
from nbqueue.states import RETRY

SETTLE_AT_ONCE: Final = 500
MAX_TOLD: Final = 50_000  # facts that wait, as during an outage
MAX_TOLD_BYTES: Final = 64_000_000

logger = logging.getLogger(__name__)
_Item = tuple[Held | None, Settlement]


class Hears(Protocol):
    """Takes what tasks say."""

    def tell(self, facts: Sequence[Told]) -> None:
        """Take facts."""

    def store_graph(self, graph: str, text: bytes, ttl_s: float) -> None:
        """Keep a canvas."""


class Ledger:
    """Takes what happens to tasks and stores it in batches. A task is held until its end, or its return, is stored.

    Args:
        streams: the queues.
        hears: where what tasks say goes.
        work: who holds the tasks.
    """

    def __init__(self, streams: Claims, hears: Hears, work: Dispatcher) -> None:
        self.streams = streams
        self.hears = hears
        self.work = work
        self._graphs: list[tuple[str, bytes]] = []  # canvases that the settlements send calls of
        self._settlements: list[_Item] = []
        self._doubtful = False
        self._begun: list[_Item] = []  # of which the server has been told, and has not answered yet
        self._returns: list[tuple[Held, str]] = []
        self._told: list[Told] = []
        self._told_bytes = 0
        self._closing: set[int] = set()
        self.ended: Counter[str] = Counter()  # tasks that children have run, by state

    @property
    def pending(self) -> bool:
        """Tell whether anything but talk is to be stored, or is being stored."""
        return bool(self._settlements or self._begun or self._returns)

    @property
    def due(self) -> bool:
        """Tell whether anything but talk can be stored now."""
        return bool(self._returns or (self._settlements and not self._begun))

    @property
    def doubtful(self) -> bool:
        """Tell whether it isn't known yet that the server, which failed before, takes what is to be stored."""
        return self._doubtful and bool(self._begun)

    @property
    def telling(self) -> bool:
        """Tell whether there is talk to pass on."""
        return bool(self._told)

    @property
    def only_returns(self) -> bool:
        """Tell whether every task that is held goes back to its queue, and nothing has ended."""
        return (
            not self._settlements
            and not self._begun
            and not any(self.is_open(held) for held in self.work.held.values())
        )

    def is_open(self, held: Held) -> bool:
        """Tell whether it is not decided yet what becomes of a task."""
        return held.seq not in self._closing

    def settle(self, settlement: Settlement, held: Held | None = None) -> None:
        """Take a settlement, of a task that is held or of one that isn't. The first that ends a task counts."""
        if held is not None and settlement.ends:
            if not self.is_open(held):
                return
            self._closing.add(held.seq)
        self._settlements.append((held, settlement))

    def keep(self, graph: str, text: bytes) -> None:
        """Take a canvas, to be stored before what is settled from now on."""
        self._graphs.append((graph, text))

    def give_back(self, tasks: Iterable[Held], charge: str = "none") -> None:
        """Return tasks to their queues, but for those that have ended; `charge` as `Streams.give_back` takes it."""
        for held in tasks:
            if self.is_open(held):
                self._closing.add(held.seq)
                self._returns.append((held, charge))

    def tell(self, told: Told) -> None:
        """Take what a task said; the latest is lost when there is very much of it."""
        if len(self._told) < MAX_TOLD and self._told_bytes + len(told.text) <= MAX_TOLD_BYTES:
            self._told.append(told)
            self._told_bytes += len(told.text)

    def flush(self, *, talk: bool = True) -> bool:
        """Store everything, or begin to; return whether a task went back to its queue.

        First what tasks said, then their ends, so that an end is never seen too early.

        Args:
            talk: also what tasks said, where no task has ended.
        """
        if self._told and (talk or self.pending):
            self.hears.tell(self._told)
            self._told, self._told_bytes = [], 0
        came_back = False
        while self._graphs:
            self.hears.store_graph(*self._graphs[0], LIVE_S)
            del self._graphs[0]
        while self._settlements and not self._begun:
            batch = self._settlements[: self._at_once()]
            if self.streams.begin_settle([settlement for _, settlement in batch]):
                self._begun = batch
                del self._settlements[: len(batch)]
            else:
                said = self.streams.settle([settlement for _, settlement in batch])
                del self._settlements[: len(batch)]
                came_back |= self._settled(batch, said)
        while self._returns:
            charge = self._returns[0][1]
            back = [held for held, its_charge in self._returns if its_charge == charge]
            self.streams.give_back([held.delivery for held in back], charge)
            self._returns = [item for item in self._returns if item[1] != charge]
            self._close(back)
            if locks := {held.lock for held in back if held.lock}:
                self.streams.unlock(sorted(locks))
            came_back = True
        return came_back

    def answered(self) -> bool:
        """Take the server's answer to what was being stored; return whether a task went back to its queue."""
        said = self.streams.end_settle()
        batch, self._begun, self._doubtful = self._begun, [], False
        return self._settled(batch, said)

    def interrupted(self) -> None:
        """Learn that no answer will come: what was being stored is to be stored again."""
        self._settlements[:0], self._begun, self._doubtful = self._begun, [], True

    def _settled(self, batch: list[_Item], said: list[int]) -> bool:
        for (_, settlement), word in zip(batch, said, strict=True):
            if settlement.ends and word == LOST:
                logger.info("the lease of task %s was lost; its outcome is dropped", settlement.delivery.id)
            for one in settlement.published:
                one.settled(word)
        self.ended.update(settlement.state for held, settlement in batch if held is not None and settlement.ends)
        self._close(held for held, settlement in batch if held is not None and settlement.ends)
        if locks := {held.lock for held, settlement in batch if held is not None and held.lock and settlement.ends}:
            self.streams.unlock(sorted(locks))
        return any(settlement.state == RETRY for _, settlement in batch)

    def _close(self, tasks: Iterable[Held]) -> None:
        for held in tasks:
            self._closing.discard(held.seq)
            self.work.drop(held)

    def _at_once(self) -> int:
        """Return how many of the waiting settlements fit in one command: after an outage there may be many."""
        size = 0
        for number, (_, settlement) in enumerate(self._settlements[:SETTLE_AT_ONCE]):
            size += len(settlement.record)
            after = settlement.arrival.outbox if settlement.arrival is not None else ()
            for message in (*settlement.outbox, *after):
                size += len(message.body)
            if size > MAX_MESSAGE_BYTES:
                return max(1, number)
        return SETTLE_AT_ONCE
