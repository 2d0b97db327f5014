"""Which child runs what, and when: work handed out by the time it takes, taken back when a child overruns.

A task that is new or slow goes to an idle child alone; tasks known to be quick queue in a child for some
milliseconds ahead, so that it never waits for the supervisor's round trip.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from nbqueue.acks import DEFAULT_ACKS, Acks
from nbqueue.deliveries import Delivery
from nbqueue.gather import Gather
from nbqueue.graph import Drawn
from nbqueue.limits import NO_LIMITS, Limits
from nbqueue.messages import Changes, Steering
from nbqueue.pool import Job, Pool

BATCH_S: Final = 0.010  # work handed to a child ahead of its need
FAST_S: Final = 0.005  # a task known to be quicker than this may wait in a child behind others
MOMENT_S: Final = 0.001  # of tasks quicker than this many may gather before they are claimed
AHEAD_S: Final = 0.050  # of tasks no slower than this, some are claimed ahead, so that children needn't wait for them
OVERDUE_S: Final = 0.150  # what was claimed ahead and waits so long is for others to run
OVERRUN_S: Final = 0.030  # a child that takes this long over one task gives back what it has not started
STEPS_S: Final = 3.0  # from the first signal to SIGTERM, and from there to SIGKILL
MAX_BATCH: Final = 256
MEANS_KEPT: Final = 10_000


class Held(msgspec.Struct, eq=False):
    """One task that this worker has claimed."""

    seq: int
    delivery: Delivery
    steering: Steering
    job: Job
    child: int = 0  # 0: not handed out
    marked: bool = False  # shown as started
    announced: bool = False  # told as started, to those who watch
    revoked: bool = False  # being stopped because somebody cancelled it
    unwanted: bool = False  # cancelled, but left to run; it must not run again
    alone: bool = False  # it may have been the end of its workers: nothing else runs beside it
    lost: bool = False  # its lease: whatever comes of it is dropped
    limits: Limits = NO_LIMITS
    acks: Acks = DEFAULT_ACKS
    lock: str = ""  # that it holds until it ends
    fault: tuple[str, str] | None = None  # why its child is being ended: an error's name and text
    stops: list[int] = []  # signals still to send
    stop_at: float = 0.0  # when the next of them is due
    said: int = 0  # pieces of output
    drawn: Drawn | None = None  # the canvas it is a call of
    changes: Changes | None = None  # as in `Accepted`
    since: float = 0.0  # when it could first have been handed out, on the monotonic clock


class Dispatcher:
    """Holds what is claimed, from the claim to its end, and keeps the children busy.

    Args:
        pool: whose children run it.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.held: dict[int, Held] = {}
        self.by_id: dict[str, Held] = {}
        self.ready: deque[Held] = deque()
        self.alone: set[int] = set()
        self._paused = False
        self.gather = Gather()
        self.waiting: dict[int, Held] = {}  # for what they need to be here
        self._load: dict[int, float] = {}  # seconds of work handed to a child
        self._since: dict[int, float] = {}  # when a child began what it does
        self._means: dict[str, float] = {}  # seconds a task takes, by code or name
        self._mean: float | None = None  # of whatever ran lately

    def add(self, held: Held, *, waits: bool = False) -> None:
        """Take charge of a claimed task; if it `waits`, it runs once it is resumed."""
        self.held[held.seq] = held
        self.by_id[held.steering.id] = held
        if held.alone:
            self.alone.add(held.seq)
        if waits:
            self.waiting[held.seq] = held
        else:
            held.since = time.monotonic()
            self.ready.append(held)

    def resume(self, held: Held) -> None:
        """Let a task run that had to wait."""
        if self.waiting.pop(held.seq, None) is not None:
            held.since = time.monotonic()
            self.ready.append(held)

    def drop(self, held: Held) -> None:
        """Forget a task that has ended, or is somebody else's."""
        self.held.pop(held.seq, None)
        self.waiting.pop(held.seq, None)
        self.alone.discard(held.seq)
        if self.by_id.get(held.steering.id) is held:
            del self.by_id[held.steering.id]

    def room(self) -> int:
        """Return how many more tasks the children could take now."""
        if self.alone:
            return 0
        children = [child for child in self.pool.children.values() if child.ready]
        if self._mean is not None and self._mean < FAST_S:
            batch = max(1, min(MAX_BATCH, int(BATCH_S / max(self._mean, 2e-5))))
            room = sum(max(0, batch - len(child.jobs)) for child in children if len(child.jobs) <= batch // 2)
        else:
            idle = sum(not child.jobs for child in children)
            if not idle and len(self.ready) >= len(children):
                return 0  # so that only every second task costs a claim, where two a child are claimed ahead
            room = idle + len(children) * self._ahead()
        return room - len(self.ready) - len(self.waiting)

    def _ahead(self) -> int:
        """Return how many tasks a child are claimed before it is free for them."""
        if self._mean is None or self._mean >= AHEAD_S:
            return 0
        return 1 if 2 * self._mean >= AHEAD_S else 2

    def pause(self) -> None:
        """Let nothing begin that has not, until `go_on`: it may be somebody else's by now."""
        if not self._paused:
            self._paused = True
            for number in self.pool.children:
                self.recall(number)

    def go_on(self) -> None:
        """Let tasks begin."""
        self._paused = False

    def hand_out(self) -> None:
        """Give children what they can take."""
        full: set[int] = set()
        while self.ready and not self._paused:
            held = self.ready[0]
            if self.alone and any(other.child for other in self.held.values()):
                return
            seconds = self._means.get(_kind(held.steering))
            child = self._child_for(seconds, full)
            if child is None:
                return
            if not self.pool.send(child, held.job):
                full.add(child)
                continue
            self.ready.popleft()
            held.child = child
            if len(self.pool.children[child].jobs) == 1:
                self._since[child] = time.monotonic()
                self._load[child] = 0.0
            self._load[child] = self._load.get(child, 0.0) + (BATCH_S if seconds is None else seconds)

    def _child_for(self, seconds: float | None, full: set[int]) -> int | None:
        """Return the child with the least to do: an idle one, or for a quick task one with little ahead of it."""
        best, least = None, BATCH_S
        quick = seconds is not None and seconds < FAST_S
        for number, child in self.pool.children.items():
            if not child.ready or number in full:
                continue
            if not child.jobs:
                return number
            load = self._load.get(number, 0.0)
            if quick and load < least:
                best, least = number, load
        return best

    def surplus(self) -> list[Held]:
        """Take out what was claimed in the belief that it is quick, or before it was known who is to run alone."""
        if self.alone:
            kept = next((held for held in self.ready if held.alone), None)
            back = [held for held in self.ready if held is not kept]
            self.ready = deque([kept] if kept is not None else [])
            return back
        slow = [held for held in self.ready if not self._is_quick(held)]
        if len(slow) <= max(1, self._ahead()) * len(self.pool.children):
            return []
        for held in slow:
            self.ready.remove(held)
        return slow

    def overdue(self, now: float) -> list[Held]:
        """Take out what was claimed ahead and waits longer than was thought."""
        if self.alone or self._paused:
            return []
        late = [held for held in self.ready if now - held.since > OVERDUE_S and not self._is_quick(held)]
        for held in late:
            self.ready.remove(held)
        if late:
            self._mean = max(self._mean or 0.0, AHEAD_S)  # no more of them, until tasks have been quicker again
        return late

    def _is_quick(self, held: Held) -> bool:
        return (self._means.get(_kind(held.steering)) or 1.0) < FAST_S

    def finished(self, held: Held, seconds: float) -> None:
        """Learn from a task that has ended."""
        child = held.child
        self._since[child] = time.monotonic()
        kind = _kind(held.steering)
        mean = self._means.get(kind)
        self._load[child] = max(0.0, self._load.get(child, 0.0) - (BATCH_S if mean is None else mean))
        self._means[kind] = seconds if mean is None else mean + 0.2 * (seconds - mean)
        self._mean = seconds if self._mean is None else self._mean + 0.1 * (seconds - self._mean)
        if len(self._means) > MEANS_KEPT:
            self._means.clear()

    def child_ended(self, child: int, unstarted: Iterable[int]) -> None:
        """Put what a dead child had not started first in line."""
        self._load.pop(child, None)
        self._since.pop(child, None)
        for seq in reversed(list(unstarted)):
            if (held := self.held.get(seq)) is not None:
                held.child = 0
                self.ready.appendleft(held)

    def recall(self, child: int) -> None:
        """Take back what a child has not started; it is first in line again."""
        back = [self.held[seq] for seq in self.pool.recall(child) if seq in self.held]
        for held in back:
            held.child = 0
        self.ready.extendleft(reversed(back))

    def resize(self, size: int) -> None:
        """Have so many children; those beyond end after the task they are at."""
        for number in self.pool.children:
            if number > size:
                self.recall(number)
        self.pool.resize(size)

    def restart(self) -> None:
        """Replace every child after the task it is at."""
        for number in list(self.pool.children):
            self.recall(number)
            self.pool.retire(number)

    def relieve(self, now: float) -> None:
        """Take unstarted tasks back from children that take longer over one than was thought."""
        for number, child in self.pool.children.items():
            if len(child.jobs) > 1 and now - self._since.get(number, now) > OVERRUN_S:
                running = self.running(number)
                self.recall(number)
                self._load[number] = BATCH_S
                if running is not None:
                    # Quick once, slow now: they go one at a time until two have been quick again. More patience
                    # would cost a busy machine, where a child stands still now and then, half its speed.
                    self._means[_kind(running.steering)] = 1.5 * FAST_S

    def arrived(self, number: int, now: float, *, drained: bool) -> None:
        """Learn how many messages a claim has brought, and whether it left nothing behind."""
        self.gather.arrived(number, now, quick=self._mean is not None and self._mean < MOMENT_S, drained=drained)

    def crowded(self) -> bool:
        """Tell whether a child has tasks waiting in it."""
        return any(len(child.jobs) > 1 for child in self.pool.children.values())

    def running(self, child: int) -> Held | None:
        """Return the task that a child is at, or will be at next."""
        first = next(iter(self.pool.children[child].jobs), None)
        return None if first is None else self.held.get(first)

    def since(self, child: int) -> float:
        """Return when a child began what it is at, on the monotonic clock."""
        return self._since.get(child, time.monotonic())

    def started(self, now: float, after_s: float) -> list[tuple[Held, float]]:
        """Return tasks that run for longer than `after_s` and aren't marked so, with the seconds they run."""
        found = []
        for number in self.pool.children:
            held = self.running(number)
            seconds = now - self._since.get(number, now)
            if held is not None and not held.marked and not held.lost and seconds >= after_s:
                held.marked = True
                found.append((held, seconds))
        return found

    def take_out(self, held: Held) -> bool:
        """Take a task out of line, or back from a child that has not started it; False if it runs."""
        if held.child and self.running(held.child) is not held:
            self.recall(held.child)
        if held.child:
            return False
        self.waiting.pop(held.seq, None)
        with contextlib.suppress(ValueError):
            self.ready.remove(held)
        return True

    def stop(self, held: Held, first: str = "") -> None:
        """Begin to stop a running task: a signal that Python turns into KeyboardInterrupt, then harder ones.

        Args:
            held: a task that a child runs.
            first: the name of the first signal; SIGINT if empty or unknown.
        """
        chosen = getattr(signal, first, signal.SIGINT) if first.startswith("SIG") else signal.SIGINT
        held.stops = [int(chosen), int(signal.SIGTERM), int(signal.SIGKILL)]
        held.stop_at = time.monotonic()
        self.press(held.stop_at)

    def runs(self, held: Held) -> bool:
        """Tell whether a child is at this very task."""
        return held.child in self.pool.children and self.running(held.child) is held

    def warn(self, held: Held) -> None:
        """Have `SoftTimeLimitExceeded` raised in a task that runs."""
        self.recall(held.child)  # as in `press`
        if held.child:
            self.pool.warn(held.child)

    def end(self, held: Held, error: str, text: str) -> None:
        """End a running task by force, with all that it started; it fails with this error once its child is gone."""
        self.recall(held.child)
        if held.child:
            held.fault = (error, text)
            self.pool.kill(held.child)

    def press(self, now: float) -> None:
        """Send the signals that are due to tasks being stopped."""
        for number in list(self.pool.children):
            held = self.running(number)
            if held is None or not held.stops or now < held.stop_at:
                continue
            # What waits behind it must not be hit by a signal that comes late.
            self.recall(number)
            sign = held.stops.pop(0)
            held.stop_at = now + STEPS_S
            if sign == signal.SIGKILL:
                self.pool.kill(number)
            else:
                self.pool.interrupt(number, sign)


def _kind(steering: Steering) -> str:
    """Return what a mean is kept of: the same code, or the same name."""
    return steering.code or steering.name or steering.task
