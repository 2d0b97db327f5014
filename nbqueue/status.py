"""What a view shows of a task or a map, folded from the facts told of it. No clock, no thread, no server.

One thread folds, others may look: what they read is replaced as a whole, or copied before it is walked through.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from nbqueue import states
from nbqueue.messages import Fact, Failure, Output, Progress

LOG_CHUNKS: Final = 4_000
LOG_HEAD: Final = 1_000  # of them the first, which stay
OUTPUTS_KEPT: Final = 200
BARS_KEPT: Final = 200
BINS: Final = 60  # parts of a map that a kind of error may be in
KINDS_KEPT: Final = 1_000  # errors told apart by their message; later ones count by their type alone
# One byte a member of a map: its place in this order. Ink grows as work gets done.
ORDER: Final = ("queued", "running", "done", "failed", "retrying", "cancelled", "lost")
QUEUED, RUNNING, DONE, FAILED, RETRYING, CANCELLED, LOST = range(len(ORDER))
# What a mark that stands for several members shows: the first of these that is among them.
WORST_FIRST: Final = (FAILED, LOST, RETRYING, RUNNING, QUEUED, CANCELLED, DONE)
_RANKS: Final = bytes(WORST_FIRST.index(mark) for mark in range(len(ORDER))).ljust(256, b"\0")
_BYTES: Final = {
    states.PENDING: QUEUED,
    states.RECEIVED: QUEUED,
    states.STARTED: RUNNING,
    states.SUCCESS: DONE,
    states.FAILURE: FAILED,
    states.RETRY: RETRYING,
    states.REVOKED: CANCELLED,
    states.REJECTED: CANCELLED,
    states.IGNORED: CANCELLED,
}


@dataclass
class Bar:
    """One progress bar. Times are Unix seconds."""

    number: int
    label: str
    done: float
    total: float | None
    started_at: float
    updated_at: float
    closed: bool = False
    parent: int = -1
    unit: str = ""
    note: str = ""
    rate: float | None = None  # units a second, where the task says so


@dataclass
class Log:
    """The first and the newest text of a task's streams, and how much there was in all."""

    # (at, "stdout" or "stderr", text); of no stream: what came before was cleared
    chunks: list[tuple[float, str, str]] = field(default_factory=list)
    lines: int = 0
    total: int = 0  # chunks ever added; not all of them are kept
    # a reader that falls between text and its count would show a chunk twice, or never
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    _gap: int = -1  # where in `chunks` a line says that some were left out

    def add(self, at: float, stream: str, text: str) -> None:
        """Add text."""
        with self._lock:
            self.chunks.append((at, stream, text))
            self.total += 1
            self.lines += text.count("\n")
            if len(self.chunks) > LOG_CHUNKS:
                self._leave_out(LOG_HEAD)
                del self.chunks[self._gap + 1 : self._gap + 1 + LOG_CHUNKS // 10]

    def clear(self, at: float) -> None:
        """Take all text away."""
        with self._lock:
            self.chunks = [(at, "", "")]
            self.total += 1
            self.lines, self._gap = 0, -1

    def leave_out(self) -> None:
        """Say that what comes next doesn't follow what came last: the server hasn't kept what was between."""
        with self._lock:
            self._leave_out(len(self.chunks))

    def since(self, number: int) -> tuple[list[tuple[float, str, str]], int]:
        """Return the chunks kept of those added after the first `number`, and how many were ever added."""
        with self._lock:
            if number == 0:
                return list(self.chunks), self.total
            new = self.total - number
            return self.chunks[max(self._gap + 1, len(self.chunks) - new) :] if new > 0 else [], self.total

    def _leave_out(self, place: int) -> None:
        if self._gap < 0:
            self._gap = place
            at = self.chunks[place - 1][0] if place else 0.0
            self.chunks.insert(place, (at, "stderr", "\n[\u2026 lines left out \u2026]\n"))


@dataclass
class TaskStatus:
    """One task as a view shows it. Times are Unix seconds."""

    id: str
    name: str = ""
    state: str = states.PENDING
    worker: str = ""
    child: int = 0
    queue: str = ""
    attempt: int = 1
    retries: int = 0
    sent_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    bars: dict[int, Bar] = field(default_factory=dict)
    log: Log = field(default_factory=Log)
    outputs: list[Output] = field(default_factory=list)
    failure: Failure | None = None
    error: str = ""
    summary: str = ""
    note: str = ""
    cancelling: bool = False
    lost: bool = False
    told_at: float = 0.0  # when its newest record was written
    due: float = 0.0  # when it may start, or run again; 0.0: at once
    max_retries: int = -1  # how often it may run again; -1: as often as it likes
    _clears: bool = False  # the next thing displayed takes the place of all others

    @property
    def ready(self) -> bool:
        """Tell whether the task has ended."""
        return self.state in states.READY_STATES

    def begin_again(self, now: float) -> None:
        """Show that it was sent again; its log goes on.

        Args:
            now: Unix seconds.
        """
        self.state, self.worker, self.child = states.PENDING, "", 0
        self.attempt, self.retries = 1, 0
        self.sent_at, self.started_at, self.ended_at, self.due = now, None, None, 0.0
        self.bars, self.outputs, self.failure = {}, [], None
        self.error = self.summary = self.note = ""
        self.cancelling = self.lost = False

    def apply(self, fact: Fact) -> bool:
        """Fold in one verified fact; tell whether anything changed."""
        facts = fact.facts
        if self.ready or self._is_late(fact):
            return False
        before = self._told()
        if facts.attempt > self.attempt:
            self.attempt = facts.attempt
            self.bars = {}
        if facts.kind == "record":
            self._record(fact)
        elif facts.kind == "output":
            self._output(facts.at, msgspec.json.decode(fact.body, type=Output))
        elif facts.kind == "progress":
            self._progress(facts.at, msgspec.json.decode(fact.body, type=Progress))
        else:
            return False
        if facts.worker:
            self.worker, self.child = facts.worker, facts.child or self.child
        return facts.kind != "record" or self._told() != before

    def _is_late(self, fact: Fact) -> bool:
        """Tell whether a fact is of an attempt that another one followed. An end counts whenever it comes."""
        if fact.facts.attempt >= self.attempt or fact.ready:
            return False
        # what a client writes of a task knows no attempt
        return fact.facts.kind != "record" or fact.facts.attempt > 0

    def _told(self) -> tuple[object, ...]:
        """Return what records say."""
        texts = (self.state, self.name, self.queue, self.worker, self.error, self.summary, self.note)
        return (*texts, self.child, self.attempt, self.sent_at, self.started_at, self.ended_at, self.lost, self.due)

    def _record(self, fact: Fact) -> None:
        facts = fact.facts
        self.state = facts.state
        self.name = facts.name or facts.task or self.name
        self.queue = facts.queue or self.queue
        self.sent_at = facts.sent_at or self.sent_at or facts.sent
        self.started_at = facts.started_at or self.started_at
        self.error, self.summary = facts.error, facts.summary
        self.lost = False
        self.told_at, self.due = facts.at, facts.eta
        if facts.state == states.RETRY:
            self.retries, self.max_retries = facts.retries, facts.max_retries
            self.failure = fact.failure if fact.body else None
        if self.ready:
            self.ended_at = facts.at
            self.cancelling = False
            self.note = ""
            for bar in self.bars.values():
                bar.closed = True
        if facts.state == states.FAILURE:
            self.failure = fact.failure

    def _output(self, at: float, output: Output) -> None:
        if output.type == "stream":
            if self._clears:
                self._displayed(at, Output("clear_output"))
            self.log.add(at, output.name, output.text)
        else:
            self._displayed(at, output)

    def _displayed(self, at: float, output: Output) -> None:
        """Keep what is to be seen now, without what was updated or cleared. The list is replaced as a whole."""
        clears = self._clears or (output.type == "clear_output" and not output.wait)
        self._clears = output.type == "clear_output" and output.wait
        if clears:
            self.outputs = []
            self.log.clear(at)
        if output.type == "clear_output":
            return
        shown = list(self.outputs)
        if output.type == "update_display_data":
            shown = [output if one.id == output.id else one for one in shown]
        else:
            shown.append(output)
        self.outputs = shown[-OUTPUTS_KEPT:]

    def _progress(self, at: float, progress: Progress) -> None:
        bar = self.bars.get(progress.bar)
        if bar is None:
            bar = Bar(progress.bar, progress.message, progress.done, progress.total, at, at, parent=progress.parent)
            self.bars[progress.bar] = bar
            if len(self.bars) > BARS_KEPT:
                del self.bars[next((number for number, old in self.bars.items() if old.closed), min(self.bars))]
        bar.done, bar.total, bar.updated_at = progress.done, progress.total, at
        bar.label = progress.message or bar.label
        bar.closed = progress.closed
        bar.unit, bar.note, bar.rate = progress.unit, progress.note, progress.rate
        if bar.closed and not progress.leave:
            del self.bars[bar.number]


@dataclass
class Kind:
    """One kind of error among the members of a map."""

    text: str
    count: int
    first: int
    bins: int = 0  # one bit for each part of the map that has one


@dataclass
class MapStatus:
    """All members of a map as a view shows them: one byte a member."""

    id: str
    name: str
    total: int
    queue: str = ""
    sent_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    members: bytearray = field(default_factory=bytearray)
    counts: list[int] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=dict)
    note: str = ""
    cancelling: bool = False

    def __post_init__(self) -> None:
        self.members = bytearray(self.total)
        self.counts = [self.total] + [0] * (len(ORDER) - 1)

    @property
    def ended(self) -> int:
        """Return how many members have ended."""
        return self.counts[DONE] + self.counts[FAILED] + self.counts[CANCELLED]

    @property
    def ready(self) -> bool:
        """Tell whether every member has ended."""
        return self.ended >= self.total

    def begin_again(self, indexes: Iterable[int], errors: Iterable[tuple[int, str]]) -> None:
        """Show that members were sent again.

        Args:
            indexes: theirs.
            errors: index and error of all others that failed.
        """
        for index in indexes:
            self.counts[self.members[index]] -= 1
            self.counts[QUEUED] += 1
            self.members[index] = QUEUED
        self.ended_at, self.note, self.cancelling, self.kinds = None, "", False, {}
        for index, error in errors:
            self._count_kind(error, index)

    def apply(self, fact: Fact) -> bool:
        """Fold in one verified record of a member; tell whether anything changed."""
        facts = fact.facts
        index = facts.index
        if facts.kind != "record" or not 0 <= index < self.total:
            return False
        old, new = self.members[index], _BYTES.get(facts.state, RUNNING)
        if old == new or old in (DONE, FAILED, CANCELLED):
            return False
        self.members[index] = new
        self.counts[old] -= 1
        self.counts[new] += 1
        begun = facts.started_at or facts.at
        self.started_at = begun if self.started_at is None else min(self.started_at, begun)
        if new == FAILED:
            self._count_kind(facts.error, index)
        if self.ready:
            self.ended_at = facts.at if self.ended_at is None else max(self.ended_at, facts.at)
        return True

    def marks(self, step: int) -> bytes:
        """Return a mark for each `step` members in order: the one of them that needs most to be seen."""
        return marks_of(bytes(self.members), step)

    def _count_kind(self, error: str, index: int) -> None:
        if error not in self.kinds and len(self.kinds) >= KINDS_KEPT:
            error = f"{error.partition(':')[0][:80]}: other messages"
        kind = self.kinds.setdefault(error, Kind(error, 0, index))
        kind.count += 1
        kind.first = min(kind.first, index)
        kind.bins |= 1 << (index * BINS // self.total)


def marks_of(members: bytes, step: int) -> bytes:
    """Return a mark for each `step` of these members: the one of them that needs most to be seen."""
    if step <= 1:
        return members
    ranks = members.translate(_RANKS)
    return bytes(WORST_FIRST[min(ranks[start : start + step])] for start in range(0, len(members), step))
