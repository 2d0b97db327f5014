"""What a worker needs of its queues, and how it has it of Redis Streams."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import redis
from redis.exceptions import NoScriptError

from nbqueue.deliveries import WORKERS, Delivery, Settlement
from nbqueue.rates import Gates
from nbqueue.streams import CLAIM_MOST, FEW, Streams
from nbqueue.wire import BlockingRead, connect

__all__ = ["CLAIM_MOST", "Batch", "Claims", "Consumer", "Renewable", "StreamsConsumer", "waits"]

# So many workers wait at a queue for its next message. To a server a message costs some microseconds for each that
# waits; very many that ask now and then, each at its own time, see a message as soon.
READERS: Final = 32
CLAIM_S: Final = 0.25  # so often the queues are looked through, also where a worker is told of each message

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What a claim has brought. `drained`: it left nothing behind. `next_due_s`: until a delayed message is due."""

    deliveries: list[Delivery]
    next_due_s: float | None
    drained: bool


def waits(listeners: int, drawn: float) -> bool:
    """Tell whether a worker waits at a queue for its next message, or asks now and then.

    Args:
        listeners: workers that have room for what comes on that queue.
        drawn: a random number from 0 to 1.
    """
    return drawn * listeners < READERS


class Claims(Protocol):
    """How claims end."""

    def settle(self, items: Sequence[Settlement]) -> list[int]:
        """Record, send the outbox, acknowledge; `LOST` for each whose lease was lost: nothing is done about it."""

    def begin_settle(self, items: Sequence[Settlement]) -> bool:
        """Begin to settle, and go on before it is done; False: it can only be done at once, by `settle`."""

    def end_settle(self) -> list[int]:
        """Return what `settle` would have returned, once its answer has come."""

    def unlock(self, locks: Sequence[str]) -> None:
        """Let those go on that wait for these locks, whose holders have ended."""

    def give_back(self, deliveries: Sequence[Delivery], charge: str = "none") -> int:
        """Return claimed messages to the head of their queues; `charge` is `none`, `task`, `child` or `worker`."""


class Renewable(Protocol):
    """How claims go on, and what becomes of those of workers that went away."""

    def renew(
        self, consumer: str, deliveries: Sequence[Delivery], worker: str = "", advert: str = ""
    ) -> tuple[list[bool], dict[str, bytes]]:
        """Renew leases and show that the worker lives; return which still hold, and the marks of revoked ids."""

    def sweeps(self, queues: Sequence[str], consumer: str, hold_ms: int) -> list[str]:
        """Return those of these queues whose claims it falls to this consumer to look through."""

    def lapsed(self, queues: Iterable[str], idle_ms: int) -> list[tuple[str, str, str]]:
        """Return the places of claims not renewed for `idle_ms`; none where the server returns them by itself."""

    def reap(self, items: Sequence[tuple[str, str, str]], idle_ms: int) -> int:
        """Return lapsed claims to their queues, charged as a lost worker; return how many were lapsed still."""


class Consumer(Claims, Renewable, Protocol):
    """What a worker needs of its queues; used from its own thread only.

    Whatever asks a server may raise `redis.RedisError` or `BackendUnavailable`; then `hang_up` and `open` again.
    """

    @property
    def waiting(self) -> bool:
        """Tell whether the server has been asked for news: until they are read, nothing else can be claimed."""

    @property
    def arrived(self) -> bool:
        """Tell whether messages are here that `claim` has yet to return."""

    def open(self, queues: Sequence[str]) -> None:
        """Connect, and make queues that are missing."""

    def follow(self, queues: Sequence[str]) -> None:
        """Learn that these queues are listened to from now on, and make those that are missing."""

    def listen(self) -> None:
        """Be ready to wait for news."""

    def fileno(self) -> int:
        """Return the socket that is readable when there are news."""

    @property
    def settling(self) -> BlockingRead | None:
        """Return what is readable when a settlement that was begun has been answered; None where none can be begun."""

    def claim(self, limit: int, queues: Sequence[str]) -> Batch | None:
        """Claim up to `limit` messages that wait now; None: the answer will be news."""

    def wait(self, limit: int, queues: Sequence[str], longest_ms: int) -> bool:
        """Ask the server to tell of the next message, within `longest_ms`; False: others wait, ask again by then."""

    def news(self, room: int, queues: Sequence[str]) -> Batch:
        """Read what has made the socket readable; return what was claimed with it, and more up to `room`."""

    def stop_waiting(self) -> None:
        """Claim nothing any more, and give back what has come unasked."""

    def tend(self) -> None:
        """Do what is due by the clock; called some times a second, also while a server can't be used."""

    def pass_gates(self, items: Sequence[tuple[Delivery, Gates]]) -> list[bool]:
        """Let claimed tasks through, or have them wait at the server, claimed no more: tell which may run."""

    def put_off(self, deliveries: Sequence[Delivery], delay_ms: int) -> None:
        """Return messages that this worker can't judge (another key, a newer version) so that others see them."""

    def abandon(self, deliveries: Sequence[Delivery]) -> None:
        """Give up claims during an outage, on messages of which nothing was decided yet; they come back later."""

    def quarantine(self, deliveries: Sequence[tuple[Delivery, str]]) -> None:
        """Take messages that nobody should run off their queues: counted by reason, their first bytes kept."""

    def count(self, what: str, number: int = 1) -> None:
        """Count something that was refused or dropped."""

    def leave(self, worker: str, queues: Sequence[str]) -> None:
        """Say that this worker has gone."""

    def hang_up(self) -> None:
        """Give up what an outage has broken."""

    def close(self) -> None:
        """Give up connections."""


class StreamsConsumer:
    """Redis Streams, with a connection of its own that waits for news.

    Args:
        streams: the queues.
        name: under which it claims.
        url: of the server.
        client_name: what the server shows of the waiting connection.
    """

    def __init__(self, streams: Streams, name: str, url: str, client_name: str) -> None:
        self.streams = streams
        self.name = name
        self._url = url
        self._client_name = client_name
        self._read: BlockingRead | None = None
        self.settling: BlockingRead | None = None
        self._settled: Sequence[Settlement] = ()  # what is being settled
        self._asked: tuple[int, tuple[str, ...]] | None = None  # how many, and where from, by a claim under way
        self._wanted = 0  # how many, of the blocking read under way
        self._claimed_at = 0.0  # when the queues were last looked through
        self._due_at: float | None = None  # when the next delayed message is due, as was seen then
        self.arrived = False
        self.settle = streams.settle
        self.give_back = streams.give_back
        self.renew = streams.renew
        self.sweeps = streams.sweeps
        self.lapsed = streams.lapsed
        self.reap = streams.reap
        self.put_off = streams.put_off
        self.pass_gates = streams.pass_gates
        self.unlock = streams.unlock
        self.quarantine = streams.quarantine
        self.count = streams.count

    @property
    def waiting(self) -> bool:
        """Tell whether a blocking read is under way."""
        return self._read is not None and self._read.pending

    def open(self, queues: Sequence[str]) -> None:
        """See that the server answers, and make streams and groups that are missing."""
        self.streams.client.ping()
        self.streams.ensure_groups(queues)

    def follow(self, queues: Sequence[str]) -> None:
        """Make streams and groups that are missing."""
        self.streams.ensure_groups(queues)

    def listen(self) -> None:
        """Open the connection that waits."""
        self._asked = None
        self._read = BlockingRead(connect(self._url, name=self._client_name))
        self.settling = BlockingRead(connect(self._url, name=self._client_name))

    def fileno(self) -> int:
        """Return the socket of the connection that waits."""
        return self._opened.fileno()

    def claim(self, limit: int, queues: Sequence[str]) -> Batch | None:
        """Begin a claim."""
        self._asked = limit, tuple(queues)
        self._opened.start(self.streams.claim_command(self.name, limit, queues))
        return None

    def begin_settle(self, items: Sequence[Settlement]) -> bool:
        """Send the script's command."""
        if self.settling is None:
            return False
        self._settled = items
        self.settling.start(self.streams.settle_command(items))
        return True

    def end_settle(self) -> list[int]:
        """Read the script's answer."""
        assert self.settling is not None, "begin_settle comes first"
        try:
            return self.streams.parse_settle(self.settling.finish(), self._settled)
        except NoScriptError:
            return self.streams.settle(self._settled)

    def wait(self, limit: int, queues: Sequence[str], longest_ms: int) -> bool:
        """Begin a blocking read of those queues at which not enough others wait."""
        listeners = self.streams.listeners
        chosen = [queue for queue in queues if waits(listeners.get(queue, 1), random.random())]  # noqa: S311 - spreads workers
        if chosen:
            self._wanted = limit
            self._opened.start(self.streams.read_command(self.name, limit, chosen, longest_ms))
        return bool(chosen)

    def news(self, room: int, queues: Sequence[str]) -> Batch:
        """End the claim, or the blocking read, whose reply has come."""
        asked, self._asked = self._asked, None
        try:
            reply = self._opened.finish()
        except NoScriptError:
            return self._claim_now(room, queues)
        except redis.ResponseError as exc:
            if "NOGROUP" not in str(exc):
                raise
            # The streams are gone, with the server's memory or by somebody's hand.
            logger.warning("%s; made anew", exc)
            self.streams.ensure_groups(queues)
            reply = None
        if asked is not None and reply is not None:
            limit, asked_of = asked
            return self._claimed(*self.streams.parse_claim(reply, asked_of), limit)
        if not reply:
            return Batch([], None, drained=False)  # delayed messages may be due: the next turn asks
        read = self.streams.parse_read(reply)
        # A few that found this worker idle: there was nothing else, and what is delayed has been looked at just now.
        idle = len(read) <= FEW and len(read) < self._wanted and time.monotonic() - self._claimed_at < CLAIM_S
        if idle and self.streams.admit(read):
            due_s = None if self._due_at is None else max(0.0, self._due_at - time.monotonic())
            return Batch(read, due_s, drained=True)
        return self._claim_now(room, queues, read)

    def stop_waiting(self) -> None:
        """Cancel the claim or the blocking read; what it has claimed just before goes back."""
        if self._read is None or not (reply := self._read.cancel(self.streams.client)):
            return
        if self._asked is None:
            self.streams.give_back(self.streams.parse_read(reply))
        else:
            self.streams.give_back(self.streams.parse_claim(reply, self._asked[1])[0])

    def _claim_now(self, room: int, queues: Sequence[str], read: Sequence[Delivery] = ()) -> Batch:
        """Claim what there is room for, besides what a blocking read has brought."""
        limit = max(0, min(room - len(read), CLAIM_MOST))
        return self._claimed(*self.streams.claim(self.name, limit, queues, read), limit)

    def _claimed(self, deliveries: list[Delivery], next_due_s: float | None, limit: int) -> Batch:
        self._claimed_at = time.monotonic()
        self._due_at = None if next_due_s is None else self._claimed_at + next_due_s
        return Batch(deliveries, next_due_s, len(deliveries) < limit)

    def abandon(self, deliveries: Sequence[Delivery]) -> None:
        """Do nothing: a claim that nobody renews lapses."""

    def tend(self) -> None:
        """Do nothing: the server keeps claims without being asked."""

    def leave(self, worker: str, queues: Sequence[str]) -> None:
        """Remove the worker's advert and its consumer."""
        self.streams.client.hdel(WORKERS, worker)
        self.streams.forget_consumer(self.name, queues)

    def hang_up(self) -> None:
        """Give up the connections that wait."""
        for read in (self._read, self.settling):
            if read is not None:
                with contextlib.suppress(redis.RedisError, OSError):
                    read.close()
        self._read = self.settling = None

    def close(self) -> None:
        """Give up the connections that wait; the others are the broker's."""
        self.hang_up()

    @property
    def _opened(self) -> BlockingRead:
        assert self._read is not None, "listen comes first"
        return self._read
