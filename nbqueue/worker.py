"""`Worker`: the supervisor. One loop does all I/O; children run what users wrote.

The loop turns in this order: read what the children said, store it (record, tell, acknowledge), claim what free
children can take, hand it out, wait. Nothing in it blocks for long, and it never opens a pickle.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import redis

from nbqueue import states
from nbqueue.app import pending_facts
from nbqueue.backends.base import Told
from nbqueue.broker import StreamsBroker
from nbqueue.deliveries import CONTROL, Delivery, Settlement
from nbqueue.exceptions import BackendUnavailable, BadMessage, ImproperlyConfigured
from nbqueue.intake import Accepted, Ended, Intake, NotMine, Refused, Repeat, failure_of
from nbqueue.messages import (
    ChildEvent,
    ChildTask,
    Facts,
    Outcome,
    open_control,
    python_version,
    sign_event,
    sign_record,
)
from nbqueue.pool import Died, Finished, Job, Pool, Ready, Told as ChildTold
from nbqueue.streams import BlockingRead, connect
from nbqueue.watcher import Offer

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.messages import Steering

BATCH_S: Final = 0.010  # work handed to a child ahead of its need
FAST_S: Final = 0.005  # a task known to be quicker than this may wait in a child behind others
OVERRUN_S: Final = 0.030  # a child that takes this long over one task gives back what it has not started
STARTED_S: Final = 0.1  # a task that runs longer than this is shown as started
FLUSH_S: Final = 0.05  # between two tellings of output
BLOCK_MS: Final = 2_000
FRESH_S: Final = 60.0  # an order older than this is not followed
STEPS_S: Final = 3.0  # from SIGINT to SIGTERM to SIGKILL
PUT_OFF_MS: Final = 5_000
MAX_TOLD: Final = 50_000

logger = logging.getLogger(__name__)
_OUTAGE = (redis.ConnectionError, redis.TimeoutError, BackendUnavailable)


@dataclass(slots=True)
class Held:
    """One task that this worker has claimed."""

    seq: int
    delivery: Delivery
    steering: Steering
    job: Job
    child: int = 0  # 0: not handed out
    marked: bool = False  # shown as started
    stop_at: float = 0.0  # when the next, harder signal is due; 0.0: not being stopped
    stops: list[int] = field(default_factory=list)
    revoked: bool = False
    lost: bool = False  # its lease: whatever comes of it is dropped


class Worker:
    """Claims from the app's broker and runs in a pool of processes.

    Args:
        app: whose broker, backend and key it uses.
        queues: which it listens to; the app's default queue if empty.
        all_queues: listen to every queue that anything was sent to.
        concurrency: children; as many as cores if 0.
        name: unique among workers; `@host` is added if it has none.
        preload: modules of `-A` and `include`, imported before children are forked.
        grace_s: how long a warm stop waits for running tasks; None: as long as they take.
    """

    def __init__(
        self,
        app: App,
        *,
        queues: Sequence[str] = (),
        all_queues: bool = False,
        concurrency: int = 0,
        name: str = "",
        preload: Sequence[str] = (),
        grace_s: float | None = None,
    ) -> None:
        self.app = app
        self.conf = app.conf
        self.signer = app.signer
        self.concurrency = concurrency or self.conf.worker_concurrency or os.cpu_count() or 1
        host = socket.gethostname()
        name = name or f"worker-{os.getpid()}"
        self.name = name if "@" in name else f"{name}@{host}"
        self.all_queues = all_queues
        self.queues = list(dict.fromkeys(queues or (self.conf.task_default_queue,)))
        self.preload = tuple(preload)
        self.grace_s = grace_s
        self.started_at = time.time()

        client_name = f"nbq-worker-{self.name}".replace(" ", "_")
        broker = app.open_broker(client_name)
        if not isinstance(broker, StreamsBroker):
            raise ImproperlyConfigured(f"a worker needs a Redis broker, not {app.link.broker_url.partition(':')[0]}")
        self.broker = broker
        self.streams = broker.streams
        self.consumer = f"{self.name}:{uuid.uuid4().hex[:8]}"
        self.backend = app.open_backend(client_name)
        self.intake = Intake(self.signer, self.backend, self.name, self.conf.worker_max_losses)
        self._client_name = client_name

        self._selector = selectors.DefaultSelector()
        self.pool = Pool(self.concurrency, self._selector, preload=self.preload)
        self._held: dict[int, Held] = {}
        self._by_id: dict[str, Held] = {}
        self._ready: deque[Held] = deque()
        self._load: dict[int, float] = {}
        self._busy_since: dict[int, float] = {}
        self._seconds: dict[str, float] = {}  # running mean by task
        self._mean: float | None = None
        self._settlements: list[tuple[Held | None, Settlement]] = []
        self._told: deque[Told] = deque()
        self._next_seq = 0
        self._next_due: float | None = None
        self._drained = False  # the last claim left nothing behind
        self._reads: dict[str, BlockingRead] = {}
        self._order_cursor = ""
        self._orders_seen: dict[str, float] = {}
        self._timers: dict[str, float] = {}
        self._lapsed: dict[tuple[str, str, str], float] = {}
        self._last_turn = time.monotonic()
        self._stops = 0
        self._stopping_since: float | None = None
        self._offline_since: float | None = None
        self._pause_s = 0.1

    # ---- life

    def run(self) -> int:
        """Work until stopped; return the exit code."""
        wake_in, wake_out = socket.socketpair()
        for sock in (wake_in, wake_out):
            sock.setblocking(False)
        restore = self._handle_signals(wake_out)
        self._selector.register(wake_in, selectors.EVENT_READ, "signal")
        try:
            self.pool.start()
            self._connect_patiently()
            logger.info("%s is ready: %d children, queues %s", self.name, self.concurrency, ", ".join(self.queues))
            while not self._finished():
                self._turn()
            self._leave()
        finally:
            restore()
            self._close_reads()
            self.pool.stop(1.0)
            self._selector.close()
            wake_in.close()
            wake_out.close()
            self.broker.close()
            self.backend.close()
        return 0

    def stop(self) -> None:
        """Ask for a warm stop, and at the second call for a cold one. Safe in signal handlers."""
        self._stops += 1

    def _handle_signals(self, wake: socket.socket) -> Callable[[], None]:
        def handle(number: int, _: object) -> None:
            self._stops += 2 if number == signal.SIGQUIT else 1

        old_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        old = [signal.signal(number, handle) for number in numbers]

        def restore() -> None:
            signal.set_wakeup_fd(old_fd)
            for number, before in zip(numbers, old, strict=True):
                signal.signal(number, before)

        return restore

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._timeout()):
            if key.data == "signal":
                with contextlib.suppress(BlockingIOError):
                    key.fileobj.recv(64)  # type: ignore[union-attr] - it is our socket
            elif key.data in ("claim", "orders"):
                self._online(lambda name=key.data: self._read(name))  # type: ignore[misc]
            else:
                for happening in self.pool.events(key):
                    self._happened(happening)
        if self._stops:
            self._wind_down()
        self._run_timers()
        if self._offline_since is not None and not self._due("reconnect", self._pause_s, first=False):
            return
        self._online(self._work)

    def _work(self) -> None:
        if self._offline_since is not None:
            self._reconnect()
        self._flush()
        if self._stopping_since is None:
            self._claim()
            self._hand_out()
            self._wait_for_news()

    def _finished(self) -> bool:
        if self._stopping_since is None:
            return False
        return not self._held and not self._settlements

    def _leave(self) -> None:
        def farewell() -> None:
            self._flush(force=True)
            self.streams.client.hdel("nbq:workers", self.name)
            self.streams.forget_consumer(self.consumer, self.queues)

        self._online(farewell)
        logger.info("%s has stopped", self.name)

    def _wind_down(self) -> None:
        """Stop claiming, give back what has not started; at the second request also what runs."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            logger.info("stopping: %d tasks are running", sum(1 for held in self._held.values() if held.child))
            self._online(self._cancel_claim)
            self._recall_all()
            self._give_back([held for held in self._held.values() if not held.child])
            self._ready.clear()
        overdue = self.grace_s is not None and time.monotonic() - self._stopping_since > self.grace_s
        if (self._stops > 1 or overdue) and self._held:
            for child in list(self.pool.children):
                self.pool.kill(child)
            self._give_back(list(self._held.values()))

    def _give_back(self, tasks: list[Held]) -> None:
        if tasks:
            self._online(lambda: self.streams.give_back([held.delivery for held in tasks]))
            for held in tasks:
                self._drop(held)

    # ---- the server

    def _online(self, action: Callable[[], object]) -> None:
        """Do what needs the server; if it can't be reached, keep everything and go on without it."""
        try:
            action()
        except _OUTAGE as exc:
            if self._offline_since is None:
                self._offline_since = time.monotonic()
                self._pause_s = 0.1
                logger.warning("no answer from the server, running tasks go on: %s", exc)
            self._close_reads()
            self._timers["reconnect"] = time.monotonic()
            self._pause_s = min(10.0, self._pause_s * 2) * random.uniform(0.7, 1.0)  # noqa: S311

    def _connect_patiently(self) -> None:
        self._offline_since = time.monotonic()
        self._online(self._reconnect)

    def _reconnect(self) -> None:
        """Renew before anything else: what was taken meanwhile must not be settled, and its children stop."""
        self.streams.client.ping()
        self._follow_queues()
        self.streams.ensure_groups(self.queues)
        self._renew()
        self._lapsed.clear()
        if not self._order_cursor:
            self._order_cursor = self.backend.last_order() or "0"
        away = time.monotonic() - (self._offline_since or 0)
        self._offline_since = None
        self._drained = False
        self._open_reads()
        if away > 1.0:
            logger.info("the server answers again after %.1f s", away)

    def _open_reads(self) -> None:
        for name in ("claim", "orders"):
            read = BlockingRead(connect(self.broker.url, name=self._client_name, timeout_s=None))
            self._reads[name] = read
            self._selector.register(read, selectors.EVENT_READ, name)
        self._follow_orders()

    def _close_reads(self) -> None:
        for read in self._reads.values():
            with contextlib.suppress(KeyError, ValueError, OSError, AttributeError):
                self._selector.unregister(read)
            with contextlib.suppress(Exception):
                read.close()
        self._reads.clear()

    def _follow_queues(self) -> None:
        if self.all_queues:
            self.queues = sorted(self.streams.queues() | {self.conf.task_default_queue})

    # ---- claiming

    def _room(self) -> int:
        """Return how many more tasks the children could take now."""
        ready = [child for child in self.pool.children.values() if child.ready]
        if self._mean is not None and self._mean < FAST_S:
            batch = max(1, min(256, int(BATCH_S / max(self._mean, 2e-5))))
            room = sum(max(0, batch - len(child.jobs)) for child in ready if len(child.jobs) <= batch // 2)
        else:
            room = sum(not child.jobs for child in ready)
        return room - len(self._ready)

    def _claim(self) -> None:
        read = self._reads.get("claim")
        room = self._room()
        if room <= 0 or read is None or read.pending or self._drained:
            return
        deliveries, self._next_due = self.streams.claim(self.consumer, room, self.queues)
        self._drained = len(deliveries) < room
        self._take(deliveries)

    def _wait_for_news(self) -> None:
        """Let the server tell an idle worker of the next message."""
        read = self._reads.get("claim")
        if read is None or read.pending or not self._drained:
            return
        if self._next_due is not None and self._next_due <= 0:
            self._drained = False
            return
        room = self._room()
        if room <= 0:
            return
        block_ms = BLOCK_MS if self._next_due is None else max(1, min(BLOCK_MS, int(self._next_due * 1000) + 1))
        read.start(self.streams.read_command(self.consumer, room, self.queues, block_ms))

    def _read(self, name: str) -> None:
        read = self._reads.get(name)
        if read is None:
            return
        try:
            reply = read.finish()
        except redis.ResponseError as exc:
            if "NOGROUP" in str(exc) or "no longer exists" in str(exc):
                self.streams.ensure_groups(self.queues)
                reply = None
            else:
                raise
        if name == "orders":
            self._obey(reply)
            self._follow_orders()
            return
        # Whatever it brought, delayed messages may be due and more may have come: the next turn asks.
        self._drained = False
        self._take(self.streams.admit(self.streams.parse_read(reply)) if reply else [])

    def _cancel_claim(self) -> None:
        read = self._reads.get("claim")
        if read is not None and read.pending:
            reply = read.cancel(self.streams.client)
            if reply:
                self.streams.give_back(self.streams.parse_read(reply))

    def _take(self, deliveries: list[Delivery]) -> None:
        """Judge what was claimed."""
        now = time.time()
        put_off: list[Delivery] = []
        refused: list[tuple[Delivery, str]] = []
        for delivery in deliveries:
            verdict = self.intake.judge(delivery, now)
            match verdict:
                case Accepted():
                    self._hold(verdict)
                case Ended():
                    self._end(None, verdict.delivery, verdict.steering, verdict.state, verdict.body, verdict.error)
                case Repeat():
                    self._settlements.append((None, Settlement(delivery, b"")))
                case NotMine(reason=reason):
                    logger.warning("a message was left to other workers: %s", reason)
                    put_off.append(delivery)
                case Refused(reason=reason):
                    logger.warning("a message was refused: %s", reason)
                    refused.append((delivery, reason))
        if put_off:
            self.streams.put_off(put_off, PUT_OFF_MS)
        if refused:
            self.streams.quarantine(refused)
        self._hand_out()
        self._flush()

    def _hold(self, task: Accepted) -> None:
        self._next_seq += 1
        steering = task.steering
        child_task = ChildTask(
            self._next_seq,
            task.delivery.attempt,
            steering.id,
            steering.task,
            steering.code,
            steering.index,
            task.steering_text,
            task.args,
        )
        held = Held(self._next_seq, task.delivery, steering, Job(self._next_seq, child_task, task.code))
        self._held[held.seq] = held
        self._by_id[steering.id] = held
        self._ready.append(held)

    # ---- handing out

    def _hand_out(self) -> None:
        if self._stopping_since is not None:
            return
        full: set[int] = set()
        while self._ready:
            held = self._ready[0]
            seconds = self._seconds.get(_kind(held.steering))
            child = self._child_for(seconds, full)
            if child is None:
                break
            if not self.pool.send(child, held.job):
                full.add(child)
                continue
            self._ready.popleft()
            held.child = child
            if len(self.pool.children[child].jobs) == 1:
                self._busy_since[child] = time.monotonic()
                self._load[child] = 0.0
            self._load[child] = self._load.get(child, 0.0) + (BATCH_S if seconds is None else seconds)
        self._spare()

    def _child_for(self, seconds: float | None, full: set[int]) -> int | None:
        """Return the child that has the least to do: an idle one, or for quick tasks one with little ahead."""
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

    def _spare(self) -> None:
        """Give back what was claimed in the belief that it is quick and must wait for a child after all."""
        idle = sum(not child.jobs and child.ready for child in self.pool.children.values())
        surplus = [h for h in self._ready if (self._seconds.get(_kind(h.steering)) or 1.0) >= FAST_S][idle:]
        if surplus and len(surplus) > self.concurrency:
            for held in surplus:
                self._ready.remove(held)
            self._give_back(surplus)

    def _recall(self, child: int) -> list[Held]:
        back = [self._held[seq] for seq in self.pool.recall(child) if seq in self._held]
        for held in back:
            held.child = 0
        return back

    def _recall_all(self) -> None:
        for child in list(self.pool.children):
            self._recall(child)

    def _relieve(self, now: float) -> None:
        """Take unstarted tasks back from children that take longer than was thought."""
        for number, child in self.pool.children.items():
            if len(child.jobs) > 1 and now - self._busy_since.get(number, now) > OVERRUN_S:
                back = self._recall(number)
                if back:
                    self._load[number] = BATCH_S
                    # They were quick once; until that is known again they go one at a time.
                    running = next(iter(child.jobs.values()), None)
                    if running is not None and running.seq in self._held:
                        self._seconds[_kind(self._held[running.seq].steering)] = OVERRUN_S
                    self._ready.extendleft(reversed(back))
        self._hand_out()

    # ---- what children say

    def _happened(self, happening: object) -> None:
        match happening:
            case Finished(child=child, outcome=outcome):
                self._outcome(child, outcome)
            case ChildTold(event=event):
                self._event(event)
            case Died():
                self._died(happening)
            case Ready():
                self._drained = False if not self._reads.get("claim") else self._drained

    def _outcome(self, child: int, outcome: Outcome) -> None:
        now = time.monotonic()
        self._busy_since[child] = now
        held = self._held.get(outcome.seq)
        if held is None:
            return
        seconds = outcome.ended_at - outcome.started_at
        kind = _kind(held.steering)
        mean = self._seconds.get(kind)
        self._load[child] = max(0.0, self._load.get(child, 0.0) - (BATCH_S if mean is None else mean))
        self._seconds[kind] = seconds if mean is None else mean + 0.2 * (seconds - mean)
        self._mean = seconds if self._mean is None else self._mean + 0.1 * (seconds - self._mean)
        if len(self._seconds) > 10_000:
            self._seconds.clear()
        if held.lost:
            self._drop(held)
            return
        state, error, body = outcome.state, outcome.error, outcome.body
        if held.revoked and state != states.SUCCESS:
            state, error, body = states.REVOKED, "cancelled", b""
        self._end(held, held.delivery, held.steering, state, body, error, outcome)

    def _event(self, event: ChildEvent) -> None:
        held = self._held.get(event.seq)
        if held is None or held.lost or len(self._told) >= MAX_TOLD:
            return
        facts = self._facts(held, event.kind, event.at)
        text = sign_event(facts, event.data, self.signer)
        self._told.append(Told(held.steering.session, held.steering.id, text, keep=event.kind == "output"))

    def _died(self, death: Died) -> None:
        logger.warning("child %d: %s", death.child, death.cause)
        self._load.pop(death.child, None)
        self._busy_since.pop(death.child, None)
        for seq in reversed(death.unstarted):
            if (held := self._held.get(seq)) is not None:
                held.child = 0
                self._ready.appendleft(held)
        held = self._held.get(death.started) if death.started is not None else None
        if held is None:
            return
        deaths = held.delivery.child_deaths + 1
        if held.lost:
            self._drop(held)
        elif held.revoked:
            self._end(held, held.delivery, held.steering, states.REVOKED, b"", "cancelled")
        elif deaths >= self.conf.worker_max_child_deaths:
            hint = " (out of memory?)" if "signal 9" in death.cause else ""
            text = f"Given up: it ended its child {deaths} times. Last: {death.cause}{hint} on {self.name}"
            error, body = failure_of("WorkerLostError", text)
            self._end(held, held.delivery, held.steering, states.FAILURE, body, error)
        else:
            self._online(lambda: self.streams.give_back([held.delivery], "child"))
            self._drained = False
            self._drop(held)

    # ---- storing

    def _facts(self, held: Held, kind: str, at: float) -> Facts:
        steering = held.steering
        return Facts(
            kind=kind,
            id=steering.id,
            at=at,
            attempt=held.delivery.attempt,
            worker=self.name,
            child=held.child,
            session=steering.session,
            group=steering.group,
            index=steering.index,
        )

    def _end(
        self,
        held: Held | None,
        delivery: Delivery,
        steering: Steering,
        state: str,
        body: bytes,
        error: str,
        outcome: Outcome | None = None,
    ) -> None:
        """Queue the end of a task for the next flush."""
        facts = msgspec.structs.replace(
            pending_facts(steering, state, outcome.ended_at if outcome else time.time()),
            attempt=delivery.attempt,
            worker=self.name,
            child=held.child if held else 0,
            started_at=outcome.started_at if outcome else 0.0,
            error=error[:500],
            summary=outcome.summary[:200] if outcome else "",
        )
        if steering.ignore_result and state == states.SUCCESS:
            body = b""
        record = sign_record(facts, body, self.signer)
        self._settlements.append((held, Settlement(delivery, record, steering.session, steering.group, state)))

    def _flush(self, *, force: bool = False) -> None:
        """Store what happened: first what tasks said, then their ends; an end is never seen before the rest."""
        if self._told and (force or self._settlements or self._due("tell", FLUSH_S)):
            told = list(self._told)
            self.backend.tell(told)
            for _ in told:
                self._told.popleft()
        if not self._settlements:
            return
        batch = self._settlements[:500]
        held = self.streams.settle([settlement for _, settlement in batch])
        del self._settlements[: len(batch)]
        for (task, settlement), ours in zip(batch, held, strict=True):
            if not ours and settlement.ends:
                logger.info("the lease of task %s was lost; what came of it is dropped", settlement.delivery.id)
            if task is not None and settlement.ends:
                self._drop(task)

    def _drop(self, held: Held) -> None:
        self._held.pop(held.seq, None)
        if self._by_id.get(held.steering.id) is held:
            del self._by_id[held.steering.id]

    # ---- time

    def _timeout(self) -> float:
        """Return how long the loop may sleep."""
        if self._offline_since is not None:
            return min(0.1, self._pause_s)
        if self._settlements:
            return 0.0
        crowded = any(len(child.jobs) > 1 for child in self.pool.children.values())
        if self._told or crowded:
            return 0.02
        unmarked = any(held.child and not held.marked for held in self._held.values())
        return 0.05 if unmarked or self._stops else 0.5

    def _due(self, name: str, interval_s: float, *, first: bool = True) -> bool:
        now = time.monotonic()
        last = self._timers.get(name)
        if last is None and not first:
            self._timers[name] = now
            return False
        if last is None or now - last >= interval_s:
            self._timers[name] = now
            return True
        return False

    def _run_timers(self) -> None:
        now = time.monotonic()
        if now - self._last_turn > self.conf.worker_lease / 2:
            # This process itself stood still: its leases may have lapsed, and what it saw lapse proves nothing.
            self._lapsed.clear()
            self._timers.pop("renew", None)
        self._last_turn = now
        if self._due("look", 0.02):
            self._relieve(now)
            self._mark_started(now)
            self._press_stops(now)
        if self._offline_since is None and self._due("renew", self.conf.worker_renewal):
            self._online(self._renew)
            self._online(self._sweep)

    def _mark_started(self, now: float) -> None:
        for number, child in self.pool.children.items():
            first = next(iter(child.jobs.values()), None)
            if first is None or now - self._busy_since.get(number, now) < STARTED_S:
                continue
            held = self._held.get(first.seq)
            if held is None or held.marked or held.lost:
                continue
            held.marked = True
            started = time.time() - (now - self._busy_since[number])
            facts = msgspec.structs.replace(
                pending_facts(held.steering, states.STARTED, time.time()),
                attempt=held.delivery.attempt,
                worker=self.name,
                child=number,
                started_at=started,
            )
            record = sign_record(facts, b"", self.signer)
            self._settlements.append(
                (held, Settlement(held.delivery, record, held.steering.session, state=states.STARTED, ends=False))
            )

    # ---- leases

    def _renew(self) -> None:
        held = [task for task in self._held.values() if not task.lost]
        results, marks = self.streams.renew(self.consumer, [h.delivery for h in held], self.name, self._advert())
        settling = {task.seq for task, settlement in self._settlements if task is not None and settlement.ends}
        for task, ours in zip(held, results, strict=True):
            if not ours and task.seq not in settling:
                self._lose(task)
        for id_, mark in marks.items():
            self._cancel(id_, mark)

    def _lose(self, held: Held) -> None:
        logger.warning("the lease of task %s was lost; it is stopped here", held.steering.id)
        held.lost = True
        self._stop_task(held, "")

    def _advert(self) -> str:
        offer = Offer(
            self.name,
            socket.gethostname(),
            os.getpid(),
            self.signer.key_id,
            tuple(self.queues),
            self.all_queues,
            self.concurrency,
            sum(bool(child.jobs) for child in self.pool.children.values()),
            self.started_at,
            python_version(),
        )
        signed = self.signer.sign("worker", msgspec.json.encode(offer))
        return msgspec.json.encode({"nbq": signed}).decode()

    def _sweep(self) -> None:
        """Take over what lapsed: seen so twice, one renewal apart on this process's own clock."""
        if self._stopping_since is not None:
            return
        self._follow_queues()
        now = time.monotonic()
        lapsed = self.streams.lapsed(self.queues, int(self.conf.worker_lease * 1000))
        mine = {(h.delivery.queue, h.delivery.lane, h.delivery.entry) for h in self._held.values() if not h.lost}
        self._lapsed = {place: self._lapsed.get(place, now) for place in lapsed if place not in mine}
        certain = [place for place, since in self._lapsed.items() if now - since >= 0.8 * self.conf.worker_renewal]
        if certain:
            taken = self.streams.reap(certain, int(self.conf.worker_lease * 1000))
            self._drained = False
            if taken:
                logger.warning("%d tasks of workers that no longer answer were returned to their queues", taken)

    # ---- orders

    def _follow_orders(self) -> None:
        read = self._reads.get("orders")
        if read is not None and not read.pending:
            read.start(("XREAD", "BLOCK", 30_000, "STREAMS", CONTROL, self._order_cursor))

    def _obey(self, reply: Any) -> None:
        for _, entries in reply or ():
            for entry, flat in entries:
                self._order_cursor = entry.decode()
                fields = dict(zip(flat[::2], flat[1::2], strict=False))
                try:
                    order = open_control(fields.get(b"o", b""), self.signer)
                except BadMessage as exc:
                    logger.warning("an order was refused: %s", exc)
                    self.streams.client.hincrby("nbq:counters", f"refused:{exc.reason}", 1)
                    continue
                now = time.time()
                if abs(now - order.at) > FRESH_S or order.nonce in self._orders_seen:
                    logger.warning("an order was refused: it is old, or came before")
                    self.streams.client.hincrby("nbq:counters", "refused:replay", 1)
                    continue
                self._orders_seen = {nonce: at for nonce, at in self._orders_seen.items() if now - at < 2 * FRESH_S}
                self._orders_seen[order.nonce] = now
                if order.order == "shutdown" and (not order.workers or self.name in order.workers):
                    self.stop()
                for id_ in order.ids if order.order == "revoke" else ():
                    self._cancel(id_, msgspec.json.encode({"terminate": order.terminate, "signal": order.signal}))

    def _cancel(self, id_: str, mark: bytes) -> None:
        held = self._by_id.get(id_)
        if held is None or held.revoked:
            return
        try:
            order = msgspec.json.decode(mark, type=dict[str, Any])
        except msgspec.DecodeError:
            return
        if held.child and held.seq != self._running(held.child):
            self._ready.extend(self._recall(held.child))
        if not held.child:
            with contextlib.suppress(ValueError):
                self._ready.remove(held)
            held.revoked = True
            self._end(held, held.delivery, held.steering, states.REVOKED, b"", "cancelled")
        elif order.get("terminate"):
            held.revoked = True
            self._stop_task(held, str(order.get("signal") or ""))

    def _running(self, child: int) -> int | None:
        jobs = self.pool.children[child].jobs
        return next(iter(jobs), None)

    def _stop_task(self, held: Held, first: str) -> None:
        """Stop what a child runs: a signal that Python turns into KeyboardInterrupt, then harder ones."""
        if not held.child:
            with contextlib.suppress(ValueError):
                self._ready.remove(held)
            self._drop(held)
            return
        if held.seq != self._running(held.child):
            self._ready.extend(h for h in self._recall(held.child) if h is not held)
            if not held.child:
                self._drop(held)
                return
        chosen = getattr(signal, first, signal.SIGINT) if first.startswith("SIG") else signal.SIGINT
        held.stops = [int(chosen), int(signal.SIGTERM), int(signal.SIGKILL)]
        held.stop_at = time.monotonic()
        self._press_stops(held.stop_at)

    def _press_stops(self, now: float) -> None:
        for held in list(self._held.values()):
            if not held.stops or now < held.stop_at or not held.child:
                continue
            if held.seq != self._running(held.child):
                continue
            # What waits behind it must not be hit by a signal that comes late.
            back = self._recall(held.child)
            self._ready.extendleft(reversed(back))
            number = held.stops.pop(0)
            held.stop_at = now + STEPS_S
            if number == signal.SIGKILL:
                self.pool.kill(held.child)
            else:
                self.pool.interrupt(held.child, number)


def _kind(steering: Steering) -> str:
    """Return what a running mean is kept of: the same code, or the same name."""
    return steering.code or steering.name or steering.task
