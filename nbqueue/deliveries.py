"""What a broker and those who use it hand each other, and the names of keys on a Redis server.

Apart from the broker, so that a program which only declares tasks loads no client of any server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from nbqueue.intake import Shared

GROUP: Final = "nbq"
# The streams of a queue: what came back, then new entries by priority, `n` being that of 0.
LANES: Final = ("r", "9", "8", "7", "6", "5", "4", "3", "2", "1", "n")
QUEUES: Final = "nbq:queues"
WORKERS: Final = "nbq:workers"
CONTROL: Final = "nbq:control"
COUNTERS: Final = "nbq:counters"
QUARANTINE: Final = "nbq:quarantine"
DEAD: Final = "nbq:dead"
RATES: Final = "nbq:rates"
REVOKED: Final = "nbq:revoked"
SCHEDULED: Final = "nbq:beat:on"  # names of entries of the schedule that aren't paused
KEEPER_WAKE: Final = "nbq:keeper:wake"
KEEPER_TROUBLE: Final = "nbq:keeper:trouble"
RECORDS: Final = "celery-task-meta-"
LIVE_S: Final = 30 * 86_400.0  # what is known of a task that has not ended is kept so long; as `LIVE_MS` in the scripts

SENT: Final = 1
REPEAT: Final = 2
LIVE: Final = -1
CODE_GONE: Final = -2

# What `settle` says of a settlement.
LOST: Final = 0  # it did nothing, as the lease was lost
SETTLED: Final = 1
LAST: Final = 2  # and it was the last of its join, so what follows that was sent too
KEPT: Final = 3  # but what follows could not be sent yet: whoever gets the message next does that


def stream_key(queue: str, lane: str) -> str:
    """Return the key of one of a queue's streams."""
    return f"nbq:{{{queue}}}:{lane}"


def lane_of(priority: int) -> str:
    """Return the lane of new entries of a priority."""
    return str(priority) if priority else "n"


def queue_key(queue: str, what: str) -> str:
    """Return the key of a queue's `delayed`, `bodies`, `claims`, `levels`, `sweeper`, `listeners` or `gate:…`."""
    return f"nbq:{{{queue}}}:{what}"


def group_key(name: str) -> str:
    """Return the key of what the members of a map share, or of code that is kept beside such; as in `publish.lua`."""
    return f"nbq:group:{name}"


def code_name(digest: str) -> str:
    """Return the name under which code is kept, beside what the members of maps share."""
    return f"code:{digest}"


def ended_key(graph: str) -> str:
    """Return the key of the bits that say which calls of a canvas have ended."""
    return f"nbq:ended:{graph}"


def reply_key(name: str) -> str:
    """Return the key of the answers to one command."""
    return f"nbq:reply:{name}"


def failed_key(id_: str) -> str:
    """Return the key of the message that is kept of a task that failed."""
    return f"nbq:failed:{id_}"


class Outgoing(msgspec.Struct, frozen=True):
    """A message for `publish`. `due_ms` 0: now. `record` is its pending record, empty where there is none.

    Members of a map name it, and are published in its order. The counters are of a message that follows another one of
    its id. `code` is the digest of code that it names and doesn't bring; without that it isn't sent. `fresh`: its id
    was made for it, and nobody has tried to send it yet.
    """

    queue: str
    id: str
    header: str
    body: bytes
    due_ms: int = 0
    nonce: str = ""
    record: bytes = b""
    priority: int = 0
    attempt: int = 1
    child_deaths: int = 0
    worker_losses: int = 0
    group: str = ""
    index: int = -1
    code: str = ""
    fresh: bool = False


class Arrival(msgspec.Struct, frozen=True):
    """The end of one call of a canvas; of a member of a join, also what is sent once all of its members have ended.

    `place` is a text of a member that was added; `more` are the task ids of those that this one adds. One that
    `goes_on` only adds: it is replaced, and what takes its place arrives. Then `place` tells its runs apart.
    """

    graph: str
    node: int
    join: int = -1
    place: int | str = -1
    size: int = 0
    outbox: tuple[Outgoing, ...] = ()
    more: tuple[str, ...] = ()
    goes_on: bool = False


class Delivery(msgspec.Struct, eq=False):
    """A claimed entry, not yet verified. `record` and `mark` are what the backend already knows of its id.

    What a worker got from its owner, and not from a broker, has `shared`, what it has in common with others, and its
    `index` among these; its header is empty until it is retried.
    """

    queue: str
    lane: str
    entry: str
    id: str
    header: bytes
    body: bytes
    attempt: int = 1
    child_deaths: int = 0
    worker_losses: int = 0
    record: bytes = b""
    mark: bytes = b""
    shared: Shared | None = None
    index: int = -1


class Published(Protocol):
    """Wants to know whether what follows a task was sent."""

    def settled(self, said: int) -> None:
        """Learn what was said of its settlement."""


class Settlement(msgspec.Struct, frozen=True):
    """How a delivery ends, or (`ends` False) that it has started: its record, whom to tell, what to send after it.

    `dead`: its message is kept among the dead letters. `published` is told what `settle` has said.
    """

    delivery: Delivery
    record: bytes
    session: str = ""
    group: str = ""
    state: str = ""
    ends: bool = True
    outbox: tuple[Outgoing, ...] = ()
    dead: bool = False
    arrival: Arrival | None = None
    published: tuple[Published, ...] = ()


class Revocation(msgspec.Struct, frozen=True):
    """One task to revoke: the record to write if nobody holds it, and the mark to leave if somebody does."""

    queue: str
    id: str
    record: str
    session: str
    group: str
    mark: str


class Kept(msgspec.Struct, frozen=True):
    """The message of a task that failed or was given up, not yet verified."""

    queue: str
    header: bytes
    body: bytes
    priority: int


class QueueSize(msgspec.Struct, frozen=True):
    """How many messages of a queue wait, are claimed by workers, and wait for their time."""

    queued: int
    claimed: int
    delayed: int
