"""`Worker`: the supervisor. One loop does all I/O; children run what users wrote.

A turn of the loop: wait; read what children said; store it (tell, then record and acknowledge); claim what free
children can take and hand it out. Nothing in it blocks for long, and it never opens a pickle.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import select
import selectors
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import redis

from nbqueue import pool as pools
from nbqueue import signals as sent
from nbqueue import states
from nbqueue.adverts import Adverts
from nbqueue.autoscale import Autoscaler
from nbqueue.bindings import broadcasts, own_queue
from nbqueue.blobs import BlobStore
from nbqueue.broker import ServerBroker
from nbqueue.config import Environment, child_environment, mask
from nbqueue.consumer import CLAIM_MOST, Batch, Consumer
from nbqueue.contents import accepts
from nbqueue.deliveries import CONTROL
from nbqueue.dispatch import Dispatcher, Held
from nbqueue.exceptions import (
    BackendUnavailable,
    BadMessage,
    ImproperlyConfigured,
    WorkerShutdown,
    WorkerTerminate,
)
from nbqueue.forkserver import ChildSettings, ForkServer
from nbqueue.gatekeeper import Gatekeeper
from nbqueue.guard import Guard, warn_of_threads
from nbqueue.intake import Intake
from nbqueue.leases import Leases
from nbqueue.ledger import Hears, Ledger
from nbqueue.limits import limits_of_call
from nbqueue.link import told
from nbqueue.listening import Listening
from nbqueue.memory import OutOfMemory
from nbqueue.messages import (
    Control,
    open_mark,
)
from nbqueue.orders import Orders
from nbqueue.outcomes import Outcomes
from nbqueue.poolkinds import SOLO, THREADS, pool_kind, processes
from nbqueue.rates import per_second
from nbqueue.reception import OUTAGE, Reception
from nbqueue.reports import Reporter
from nbqueue.stopping import Reload, signals
from nbqueue.terms import Terms
from nbqueue.transfers import Transfers
from nbqueue.wire import BlockingRead, connect

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.direct import DirectConsumer
    from nbqueue.emitter import Emitter
    from nbqueue.herald import Herald
    from nbqueue.panel import Panel
    from nbqueue.pidbox import Pidbox

STARTED_S: Final = 0.1  # a task that runs longer than this is shown as started
TELL_S: Final = 0.05  # between two tellings of output
LOOK_S: Final = 0.02  # between two looks at overruns and stops
BLOCK_MS: Final = 500  # a delayed task that was sent meanwhile may start this late
PAUSE_AFTER: Final = 2 / 3  # of a lease without renewal: what has not begun by then may be taken over
CLEAN_S: Final = 3_600.0  # between two looks at large data that nobody needs any more
MARK_S: Final = 86_400.0  # between two records of a task that runs on and on
SCALE_S: Final = 1.0  # between two looks at whether there are too few children, or too many
MAX_CHILDREN: Final = 1_000
REVOKED_KEPT: Final = 10_000
HEARTBEAT_S: Final = 2.0  # between two events that say that it lives

logger = logging.getLogger(__name__)


class Worker:
    """Claims from the app's broker and runs in a pool of processes.

    Args:
        app: whose broker, backend and key it uses.
        queues: which it listens to; `conf.task_queues`, or else the app's default queue, if empty.
        all_queues: listen to every queue that anything was sent to.
        exclude: queues that it doesn't listen to.
        concurrency: children; as many as cores if 0.
        pool: `prefork`, `threads` or `solo`; as `conf.worker_pool` says if None.
        autoscale: the most and the fewest children instead, as many as there is work for.
        name: unique among workers; `@host` is added if it has none.
        preload: modules of `-A` and `include`, imported before children are forked.
        grace_s: how long a warm stop waits for running tasks; None: as long as they take.
        time_limit: seconds a task may run that says nothing itself; None: as `conf.task_time_limit` says.
        soft_time_limit: seconds after which such a task is warned; None: as `conf.task_soft_time_limit` says.
        memory_limit: bytes, or a text such as "2 GB", that such a task may use; None: as `conf.task_memory_limit` says.
        max_tasks_per_child: a child is replaced after so many; None: as `conf.worker_max_tasks_per_child` says.
        max_memory_per_child: KiB above which a child is replaced after a task; None: as the setting of that name says.
        started: a fork server that has been started already.
        owner: a socket to the process that all of its calls come from, and that hears of their ends; else the broker
            has them.
    """

    def __init__(  # noqa: PLR0915 - one line for each part
        self,
        app: App,
        *,
        queues: Sequence[str] = (),
        all_queues: bool = False,
        exclude: Sequence[str] = (),
        concurrency: int = 0,
        pool: str | None = None,
        autoscale: tuple[int, int] | None = None,
        name: str = "",
        preload: Sequence[str] = (),
        grace_s: float | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        memory_limit: int | str | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        started: ForkServer | None = None,
        owner: socket.socket | None = None,
    ) -> None:
        self.app = app
        self.conf = app.conf
        name = name or f"worker-{os.getpid()}"
        self.name = name if "@" in name else f"{name}@{socket.gethostname()}"
        given = {"queues": queues, "exclude_queues": exclude, "concurrency": concurrency, "hostname": self.name}
        sent.celeryd_init.send(self.name, instance=self, conf=self.conf, options=given)
        self.signer = app.signer
        read = Environment.read()
        self.kind = pool_kind(pool or self.conf.worker_pool)
        if self.kind == SOLO:
            concurrency, autoscale = 1, None
        self.autoscaler = None if autoscale is None else Autoscaler(*autoscale, read.autoscale_keep_s)
        # The cores are shared out among as many as there may be.
        most = autoscale[0] if autoscale else concurrency or self.conf.worker_concurrency or os.cpu_count() or 1
        self.concurrency = most if self.autoscaler is None else self.autoscaler.fewest
        self._left: set[str] = set()  # queues that were listened to, and are no more
        self.grace_s = grace_s
        self._client_name = f"nbq-worker-{self.name}".replace(" ", "_")
        broker = app.open_broker(self._client_name)
        if not isinstance(broker, ServerBroker):
            scheme = app.link.broker_url.partition(":")[0]
            raise ImproperlyConfigured(f"a worker needs a Redis or RabbitMQ broker, not {scheme}")
        self.broker = broker
        self.listening = Listening(self.name, self.conf, broker, queues, every=all_queues, exclude=exclude)
        consumer = f"{self.name}:{uuid.uuid4().hex[:8]}"
        self.backend = app.open_backend(self._client_name)
        self._direct: DirectConsumer | None = None  # to the owner, if it has one: then what it does needs no server
        self.consumer: Consumer
        hears: Hears = self.backend
        if owner is None:
            self.consumer = broker.open_consumer(consumer, self.conf.worker_lease)
            self.reports = Reporter(self.name, self.signer)
        else:
            from nbqueue.direct import DirectConsumer, DirectReporter  # noqa: PLC0415 - few workers have one

            self.consumer = hears = self._direct = DirectConsumer(owner, broker.streams, self.backend, self._take_back)
            self.reports = DirectReporter(self.name, self.signer)
        self.leases = Leases(self.consumer, consumer, self.conf.worker_lease, self.conf.worker_renewal)
        self.orders = Orders(self.signer)
        self.revoked: deque[str] = deque(maxlen=REVOKED_KEPT)  # ids of what this worker was told to cancel
        self._panel: Panel | None = None
        self.herald: Herald | None = None
        self._emitter: Emitter | None = None
        self._pidbox: Pidbox | None = None
        self._soon: deque[Callable[[], object]] = deque()  # what other threads have left for the loop
        self._wake: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._remap = read.remap_sigterm
        environment = child_environment(read.variables, processes(self.kind, most))
        self.pool = pools.Pool(
            self.concurrency,
            self._selector,
            environment=environment,
            settings=ChildSettings.of(
                self.conf,
                app.link.blobs,
                preload,
                max_tasks_per_child,
                max_memory_per_child,
                told(app.link, self.conf),
                threads=self.kind == THREADS,
            ),
            started=started,
        )
        self.pool.worker = self.name
        self.work = Dispatcher(self.pool)
        self.new_code = Reload(self.pool, self._selector)
        store = BlobStore(app.link.blobs)
        travel = app.link.blobs_travel and owner is None  # an owner sees the same files
        self.transfers = Transfers(store, self.backend if travel else None, self.conf.result_expires)
        self.guard = Guard(self.work)
        own_limits = limits_of_call(time_limit, soft_time_limit, memory_limit)
        self.terms = Terms(
            app.tasks,
            app.defaults.limits.with_those_of(own_limits),
            app.defaults.acks,
            app.defaults.rate,
            rates=not self.conf.worker_disable_rate_limits,
        )
        warn_of_threads(self.pool.settings, self.terms.limits)
        accept = accepts(self.conf.accept_content)
        self.intake = Intake(
            self.signer, self.backend, self.name, self.conf.worker_max_losses, self.terms.acks_of, accept
        )
        self.gates = Gatekeeper(self.consumer, self.terms, self.broker.streams)
        self.out_of_memory = OutOfMemory()
        self.ledger = Ledger(self.consumer, hears, self.work)
        self.outcomes = Outcomes(
            self.work, self.reports, self.ledger, self.transfers, self.conf.worker_max_child_deaths
        )
        self.outcomes.own_event = self._own_event
        self.reception = Reception(self.intake, self.consumer, self.gates, self.terms, self.work, self.outcomes)
        self.adverts = Adverts(self.name, self.signer, self.work, self.ledger)
        self._next_due: float | None = None
        self._drained = False  # the last claim left nothing behind: wait for news instead of asking again
        self._ask_at = 0.0  # when to ask for messages instead of waiting for them; 0.0: it waits
        self._orders_read: BlockingRead | None = None
        self._order_cursor = ""
        self._timers: dict[str, float] = {}
        self._stops = 0
        self._stopping_since: float | None = None
        self._pressed_at: float | None = None  # when it was first asked not to wait
        self._offline_since: float | None = None
        self._pause_s = 0.1
        self._tries = 0  # to reach the server, since it was there
        self._was_online = False
        self._renewed_at = 0.0
        self._warned = owner is not None  # a server that has none of its calls can lose none
        sent.celeryd_after_setup.send(self.name, instance=self, conf=self.conf)
        if sent.celeryd_after_setup.receivers:
            for queue in app.amqp.queues.added:
                self.listening.names = self.listening.with_one(queue)

    # ---- life

    def run(self) -> int:
        """Work until stopped; return the exit code. `new_code.due` then says whether it is to begin anew."""
        wake_in, wake_out = socket.socketpair()
        wake_in.setblocking(False)
        wake_out.setblocking(False)
        handled = signals(self, wake_out, remap=self._remap)
        handled.__enter__()
        self._selector.register(wake_in, selectors.EVENT_READ, "signal")
        self._signals, self._wake = wake_in, wake_out
        try:
            sent.worker_init.send(self)
            sent.worker_before_create_process.send(self)
            self.pool.start()
            if self._direct is not None:
                self._selector.register(self.consumer, selectors.EVENT_READ, "claim")
            self._offline_since = time.monotonic()
            if self.conf.broker_connection_retry_on_startup:
                self._online(self._reconnect)
            else:
                self._reconnect_or_fail()
            logger.info("%s: %d children, queues %s", self.name, self.concurrency, ", ".join(self.queues))
            self._answer_celery()
            self.tell_of_tasks()
            sent.worker_ready.send(self)
            while not self._finished():
                try:
                    self._turn()
                except (WorkerShutdown, WorkerTerminate) as exc:  # a receiver of a signal wants it so
                    self.stop(at_once=isinstance(exc, WorkerTerminate))
            self._online(self._leave)
            logger.info("%s has stopped", self.name)
        finally:
            handled.__exit__(None, None, None)
            self.new_code.close()
            if self._pidbox is not None:
                self._pidbox.stop()
            if self.herald is not None:
                self.herald.worker("offline", self._busy())
            if self._emitter is not None:
                self._emitter.close()
            sent.worker_shutdown.send(self)
            self._close_reads()
            self.transfers.close()
            self.pool.stop(1.0)
            self._selector.close()
            wake_in.close()
            wake_out.close()
            self.consumer.close()
            self.broker.close()
            self.backend.close()
        return 0

    def stop(self, *, at_once: bool = False) -> None:
        """Ask for a warm stop, and at the second call for a cold one. Safe in signal handlers."""
        self._stops = max(2, self._stops + 1) if at_once else self._stops + 1

    def reload(self) -> None:
        """Ask for a warm stop after which it begins anew, if the code on disk can be used. Safe in signal handlers."""
        self.new_code.asked = True

    def pids(self) -> list[int]:
        """Return the process ids of the children."""
        return sorted({child.pid for child in self.pool.children.values() if child.pid})

    def call_soon(self, run: Callable[[], object]) -> None:
        """Have something done in the loop, from any thread."""
        self._soon.append(run)
        if self._wake is not None:
            with contextlib.suppress(OSError):  # one that is full wakes the loop as well; one that is closed has ended
                self._wake.send(b"\0")

    @property
    def hostname(self) -> str:
        """Return its name, as Celery's receivers of `celeryd_init` ask for it."""
        return self.name

    @property
    def queues(self) -> list[str]:
        """Return the queues it listens to."""
        return self.listening.names

    @property
    def panel(self) -> Panel:
        """Return what follows commands, made when the first one comes."""
        if self._panel is None:
            from nbqueue.panel import Panel  # noqa: PLC0415 - a worker that is never asked starts 5 ms sooner

            self._panel = Panel(self)
        return self._panel

    @property
    def emitter(self) -> Emitter:
        """Return what sends events, made when the first one is sent."""
        if self._emitter is None:
            from nbqueue.emitter import Emitter  # noqa: PLC0415 - few workers send any

            self._emitter = Emitter(self.app.link.broker_url, self.name, self._client_name, self.conf.event_exchange)
        return self._emitter

    def tell_of_tasks(self, *, events: bool | None = None) -> None:
        """Tell of tasks, and of what is sent after them, from now on, if anybody wants to hear of it.

        Args:
            events: send Celery's; None: as the settings say.
        """
        if self.reports.announcer is None and (self.conf.task_send_sent_event or sent.anybody(sent.OF_CLIENT)):
            from nbqueue.announcer import Announcer  # noqa: PLC0415 - as above

            told = self.emitter if self.conf.task_send_sent_event else None
            self.reports.announcer = Announcer(self.signer, told)
        sends = self.conf.worker_send_task_events if events is None else events
        if self.herald is not None:
            self.herald.emitter = self.emitter if sends else self.herald.emitter
            self.herald.tasks = sends
            return
        if not sends and not sent.anybody(sent.OF_SUPERVISOR):
            return
        from nbqueue.herald import Herald  # noqa: PLC0415 - as above

        self.herald = self.outcomes.herald = Herald(
            self.name, self.emitter if sends else None, tasks=sends, registered=self.app.tasks
        )
        self.herald.worker("online", self._busy())

    def _busy(self) -> int:
        return sum(bool(child.jobs) for child in self.pool.children.values())

    def beat(self) -> None:
        """Send an event that shows that this worker lives."""
        from nbqueue.herald import Herald  # noqa: PLC0415 - as above

        told = self.herald if self.herald is not None and self.herald.emitter is not None else None
        (told or Herald(self.name, self.emitter)).worker("heartbeat", self._busy())
        sent.heartbeat_sent.send(self)

    def _own_event(self, held: Held, data: bytes) -> None:
        """Send an event of a task's own, which are sent whatever the settings say."""
        with contextlib.suppress(ValueError, TypeError):  # its child alone can have garbled it
            fields = json.loads(data)
            self.emitter.emit(fields.pop("type"), **{"uuid": held.steering.id, **fields})

    @property
    def clock(self) -> int:
        """Return the logical clock of events."""
        return 0 if self._emitter is None else self._emitter.clock

    def _answer_celery(self) -> None:
        """Answer Celery's programs too, where they can be on the broker's server."""
        from nbqueue.pidbox import Pidbox  # noqa: PLC0415 - loaded once this worker is there

        link = self.app.link
        if link.embedded or not self.conf.worker_enable_remote_control:
            return
        if self.conf.worker_serve_celery:
            logger.warning("whoever can write to %s may give this worker Celery's commands", mask(link.broker_url))
        self._pidbox = Pidbox(
            link.broker_url,
            self.name,
            self._client_name,
            self.conf.control_exchange,
            lambda *command: self.call_soon(lambda: self.panel.serve(*command)),
        )
        self._pidbox.start()

    # ---- what may be changed while it works; called from its own loop

    def listen_to(self, queue: str) -> None:
        """Listen to one more queue.

        Raises:
            ImproperlyConfigured: there is none of this name, and none may be made.
        """
        self._listen_to(self.listening.with_one(queue))

    def listen_no_more(self, queue: str) -> None:
        """Listen to a queue no more; what was claimed of it runs."""
        self._left.add(self.listening.own(queue))
        self._listen_to(self.listening.without(queue))

    def _listen_to(self, queues: list[str]) -> None:
        self.consumer.follow(queues)
        self.listening.names = queues
        self._drained = False
        self._show_soon()

    def resize(self, size: int) -> bool:
        """Have so many children; False if that can't be."""
        if not 0 < size <= MAX_CHILDREN:
            return False
        if self.autoscaler is not None:
            self.autoscaler.hold(size)
        self._have(size)
        return True

    def autoscale(self, most: int | None = None, fewest: int | None = None) -> None:
        """Have as many children as there is work for, within these bounds from now on; None leaves one as it is.

        Raises:
            ImproperlyConfigured: they are no bounds.
        """
        if self.autoscaler is None:
            self.autoscaler = Autoscaler(most or self.concurrency, fewest or 1, Environment.read().autoscale_keep_s)
        else:
            self.autoscaler.set(most, fewest)
        self._scale()

    def _scale(self) -> None:
        """Have as many children as there is work for."""
        assert self.autoscaler is not None, "it was asked for"
        size = self.pool.size
        busy = sum(bool(child.jobs) for number, child in self.pool.children.items() if number <= size)
        waiting = len(self.work.ready)
        if busy >= size:  # else they take what comes
            waiting += self._queued()
        wanted = self.autoscaler.size(time.monotonic(), size, busy, waiting)
        if wanted != size:
            self._have(wanted)
            self._drained = False

    def _queued(self) -> int:
        """Return how many messages wait for a worker."""
        if self._direct is not None:
            return self._direct.number
        return sum(self.broker.size(queue).queued for queue in self.queues)

    def _have(self, size: int) -> None:
        logger.info("%d children instead of %d", size, self.pool.size)
        self.work.resize(size)
        self.concurrency = size
        self._show_soon()

    def set_rate_limit(self, name: str, limit: float | str | None) -> None:
        """Let so many tasks of a name begin a second, in all workers; 0: any number, None: as they say themselves.

        Raises:
            ImproperlyConfigured: it is no rate.
        """
        self.broker.set_rate(name, None if limit is None else per_second(limit))
        self.gates.look()
        self._drained = False

    def restart(self) -> None:
        """Replace the children, each after the task it is at."""
        logger.info("the children are replaced")
        self.work.restart()
        self._show_soon()

    def _show_soon(self) -> None:
        self._timers.pop("renew", None)  # those who look on see it at once

    def _turn(self) -> None:
        self._gather()
        for key, _ in self._selector.select(self._timeout()):
            self._read(key)
        if self.work.ready and self._stopping_since is None:
            self.work.hand_out()  # what was claimed ahead, or taken back, to children that have become free
        if self._stops:
            self._wind_down()
        if self.new_code.asked and not self._stops:
            self.new_code.begin()
        self._look()
        if self._works:
            self._online(self._work)
        if self._offline_since is not None and self._due("reconnect", self._pause_s):
            self._try_again()

    def _read(self, key: selectors.SelectorKey) -> None:
        if key.data == "signal":
            self._woken()
        elif isinstance(key.data, str):
            # All become readable when the server goes away, and the first closes them.
            if self._takes if key.data == "claim" else self._listening:
                read = {"claim": self._read_claim, "orders": self._read_orders, "settled": self._read_settled}
                self._online(read[key.data])
        elif key.data is self.new_code:
            if self.new_code.decide():
                self.stop()
        else:
            for happening in self.pool.events(key):
                self._happened(happening)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._signals.recv(64)
        while self._soon:
            self._online(self._soon.popleft())

    def _gather(self) -> None:
        """Sleep through a pause: to be woken for each word of a child costs more than to read them all after it."""
        pause_s = self.work.gather.left_s(time.monotonic())
        if pause_s and not self._stops:
            select.select([self._signals], [], [], pause_s)

    def _work(self) -> None:
        if self.ledger.flush(talk=self.ledger.telling and self._due("talk", TELL_S)):
            self._drained = False
        self.transfers.step()
        if self._stopping_since is None:
            if self.autoscaler is not None and self._due("scale", SCALE_S):
                self._scale()
            self._claim()
            self._wait_for_news()
        if self._offline_since is None:
            self._show()

    def _show(self) -> None:
        """Do what is due by the clock: clean, mark, show that this worker lives, look after the claims of others."""
        if self._due("clean", CLEAN_S):
            # A thread of its own: there may be very many files.
            threading.Thread(target=self._clean, name="nbqueue clean", daemon=True).start()
        if self._due("mark", MARK_S):
            for held in self.work.held.values():
                held.marked = False  # its record is written anew, or would expire while it runs
        if self.herald is not None and self.herald.emitter is not None and self._due("heartbeat", HEARTBEAT_S):
            self.beat()
        if self._due("renew", self.conf.worker_renewal):
            self._renew()
            self.gates.look()
            self._sweep()

    def _clean(self) -> None:
        removed = self.transfers.store.clean(time.time(), int(self.conf.blobs_max_bytes))
        if self.transfers.backend is not None:
            with contextlib.suppress(BackendUnavailable):
                removed += self.backend.clean_blobs(int(self.conf.blobs_max_bytes))
        if removed:
            logger.info("%.1f MB of large data were removed, which nobody needs any more", removed / 1e6)

    def _timeout(self) -> float:
        """Return how long the loop may sleep."""
        if not self._works:
            return min(0.1, self._pause_s)
        if self.transfers.busy or self._may_claim():
            return 0.0
        if self.ledger.due:
            return 0.0
        if self.ledger.telling or self.work.crowded() or self._offline_since is not None:
            return LOOK_S
        unmarked = any(held.child and not (held.marked and not held.stops) for held in self.work.held.values())
        longest = TELL_S if unmarked or self._stops else 0.5
        if self._ask_at and self._stopping_since is None:
            longest = min(longest, max(0.0, self._ask_at - time.monotonic()))
        limit = self.guard.wait_s(time.monotonic())
        return longest if limit is None else min(longest, max(limit, LOOK_S))

    def _finished(self) -> bool:
        if self._stopping_since is None:
            return False
        if not self._works and (self._cold() or self.ledger.only_returns):
            # What could not be stored is lost here; it runs again elsewhere once its lease has lapsed.
            return True
        return not self.work.held and not self.ledger.pending

    def _cold(self) -> bool:
        """Tell whether what runs is not to be waited for any more."""
        since = self._stopping_since
        overdue = since is not None and self.grace_s is not None and time.monotonic() - since > self.grace_s
        if self._stops < 2:
            return overdue
        if not self.conf.worker_soft_shutdown_timeout or self._stops > 2:
            return True
        if self._pressed_at is None:
            self._pressed_at = time.monotonic()
            logger.info("running tasks have %g s left", self.conf.worker_soft_shutdown_timeout)
        return overdue or time.monotonic() - self._pressed_at >= self.conf.worker_soft_shutdown_timeout

    def _leave(self) -> None:
        self.ledger.flush()
        queues = [*self.queues, *self._left.difference(self.queues)]
        self.consumer.leave(self.name, queues)
        for queue in broadcasts(self.conf.task_queues):
            if (own := own_queue(self.name, queue)) in queues:
                self.broker.forget_queue(own)  # what is said to everybody is not said to who comes later

    def _wind_down(self) -> None:
        """Stop claiming and give back what has not started; at the second request also what runs."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            cold = self._stops > 1
            how, named = ("Cold", "SIGQUIT") if cold else ("Warm", "SIGTERM")
            sent.worker_shutting_down.send(self.name, sig=named, how=how, exitcode=0)
            self._online(self.consumer.stop_waiting)
            for child in self.pool.children:
                self.work.recall(child)
            unstarted = [held for held in self.work.held.values() if not held.child]
            self.ledger.give_back(unstarted)
            self.work.ready.clear()
            logger.info("stopping once %d running tasks have ended", len(self.work.held) - len(unstarted))
        if self._cold() and self.work.held:
            for held in [held for held in self.work.held.values() if self.ledger.is_open(held) and not held.fault]:
                if self.work.take_out(held):
                    self.ledger.give_back([held])
                else:
                    self.outcomes.stopped(held)

    def _due(self, name: str, interval_s: float) -> bool:
        now = time.monotonic()
        if now - self._timers.get(name, 0.0) < interval_s:
            return False
        self._timers[name] = now
        return True

    def _look(self) -> None:
        if not self._due("look", LOOK_S):
            return
        now = time.monotonic()
        if not self.leases.awake(now):
            self._timers.pop("renew", None)
        self._online(self.consumer.tend)
        self.work.relieve(now)
        self.work.press(now)
        self.guard.look(now)
        for held, ran_s in self.work.started(now, STARTED_S):
            if self.herald is not None:
                self.herald.started(held, time.time() - ran_s)
            self.ledger.settle(self.reports.started(held, ran_s, self.pool.children[held.child].pid), held)
        if self._direct is not None or now - self._renewed_at < PAUSE_AFTER * self.conf.worker_lease:
            self.work.go_on()
        else:
            self.work.pause()
        if self._stopping_since is None:
            self.work.hand_out()
            self.ledger.give_back(self.work.overdue(now))

    # ---- the server

    def _online(self, action: Callable[[], object]) -> None:
        """Do what needs the server; while it can't be reached, keep everything and go on without it."""
        try:
            action()
        except OUTAGE as exc:
            if self._offline_since is None:
                self._offline_since = time.monotonic()
                self._pause_s = 0.1
                logger.warning("the server can't be used, running tasks go on: %s", exc)
            self._close_reads()
            self._timers["reconnect"] = time.monotonic()
            # Never longer than half a lease: others wait a whole one before they take over what seems abandoned.
            longest = min(10.0, self.conf.worker_lease / 2)
            self._pause_s = min(longest, 2 * self._pause_s * random.uniform(0.7, 1.0))  # noqa: S311 - spreads workers

    def _try_again(self) -> None:
        """Connect, unless settings say that it has been tried often enough.

        Raises:
            BackendUnavailable: it has.
        """
        most = self.conf.broker_connection_max_retries or math.inf
        if self._was_online and not self.conf.broker_connection_retry:
            raise BackendUnavailable("The server has gone away. It isn't waited for: broker_connection_retry is off.")
        if self._tries >= most:
            raise BackendUnavailable(
                f"The server can't be reached; it was tried {self._tries} times, broker_connection_max_retries."
            )
        self._tries += 1
        self._online(self._reconnect)

    def _reconnect_or_fail(self) -> None:
        """Connect.

        Raises:
            BackendUnavailable: the server can't be reached.
        """
        try:
            self._reconnect()
        except OUTAGE as exc:
            raise BackendUnavailable(f"{exc} It isn't waited for: broker_connection_retry_on_startup is off.") from exc

    def _reconnect(self) -> None:
        """Renew before anything else: what was taken over meanwhile stops here, and its outcome is dropped."""
        # Orders count from before this worker shows itself: whoever sees it can give it some.
        self._order_cursor = self._order_cursor or self.backend.last_order() or "0"
        self.listening.follow()
        self._renew()
        self.gates.look()
        self.consumer.open(self.queues)
        self.leases.forget(time.monotonic())
        self._open_reads()
        self._warn_of_risks()
        away = time.monotonic() - (self._offline_since or 0.0)
        self._offline_since = None
        self._tries = 0
        self._was_online = True
        self._drained = False
        if away > 1.0:
            logger.info("the server answers again after %.1f s", away)

    def _warn_of_risks(self) -> None:
        """Say once what may cost tasks; a server that tells nothing of itself is taken as it is."""
        if self._warned:
            return
        self._warned = True
        with contextlib.suppress(redis.ResponseError):
            for risk in self.broker.streams.risks():
                logger.warning("The server at %s: %s", mask(self.broker.redis_url), risk)

    @property
    def _listening(self) -> bool:
        """Tell whether news of queues and orders are listened to."""
        return self._orders_read is not None

    @property
    def _takes(self) -> bool:
        """Tell whether messages can be taken."""
        return self._direct is not None or self._listening

    @property
    def _works(self) -> bool:
        """Tell whether tasks can be taken and ended: always with an owner, else while the server is there."""
        return self._direct is not None or self._offline_since is None

    def _open_reads(self) -> None:
        self._close_reads()
        self.consumer.listen()
        url = self.app.link.backend_url or self.app.link.broker_url
        orders = BlockingRead(connect(url, name=self._client_name))
        if self._direct is None:
            self._selector.register(self.consumer, selectors.EVENT_READ, "claim")
        self._selector.register(orders, selectors.EVENT_READ, "orders")
        if (settling := self.consumer.settling) is not None:
            self._selector.register(settling, selectors.EVENT_READ, "settled")
        self._orders_read = orders
        self._follow_orders()

    def _close_reads(self) -> None:
        orders, self._orders_read = self._orders_read, None
        if orders is not None:
            if self._direct is None:
                self._selector.unregister(self.consumer)
            self._selector.unregister(orders)
            if (settling := self.consumer.settling) is not None:
                self._selector.unregister(settling)
            with contextlib.suppress(*OUTAGE, OSError):
                orders.close()
        self.consumer.hang_up()
        self.ledger.interrupted()

    # ---- claiming

    def _claim(self) -> None:
        if not self._may_claim():
            return
        # The answer may be news: meanwhile children are listened to.
        batch = self.consumer.claim(min(self.work.room(), CLAIM_MOST), self.queues)
        if batch is not None:
            self._claimed(batch)

    def _claimed(self, batch: Batch) -> None:
        self._next_due, self._drained = batch.next_due_s, batch.drained
        self.work.arrived(len(batch.deliveries), time.monotonic(), drained=batch.drained)
        if self.reception.take(batch.deliveries):
            self._drained = False

    def _may_claim(self) -> bool:
        """Tell whether there is room, and the last claim may have left something behind, or something has gathered."""
        if self._stopping_since is not None or not self._takes or self.consumer.waiting or self.ledger.doubtful:
            return False
        if not self.queues:
            return False
        if self.work.gather.until:
            return not self.work.gather.left_s(time.monotonic()) and self.work.room() > 0
        return not (self._drained and not self.consumer.arrived) and self.work.room() > 0

    def _wait_for_news(self) -> None:
        """Let the server tell an idle worker of the next message, unless others enough are told."""
        room = self.work.room()
        ready = self._drained and room > 0 and self.queues and not self.work.gather.until and not self.ledger.doubtful
        if not self._takes or self.consumer.waiting or not ready:
            self._ask_at = 0.0
            return
        if self._ask_at:
            if time.monotonic() >= self._ask_at:
                self._ask_at, self._drained = 0.0, False
            return
        due_ms = BLOCK_MS if self._next_due is None else int(self._next_due * 1000) + 1
        block_ms = max(1, min(BLOCK_MS, due_ms))
        if not self.consumer.wait(min(room, CLAIM_MOST), self.queues, block_ms):
            self._ask_at = time.monotonic() + block_ms / 1000

    def _read_claim(self) -> None:
        self._claimed(self.consumer.news(self.work.room(), self.queues))

    def _read_settled(self) -> None:
        if self.ledger.answered():
            self._drained = False

    # ---- what children say

    def _happened(self, happening: pools.Happening) -> None:
        match happening:
            case pools.Finished(outcome=outcome):
                self.outcomes.finished(outcome)
            case pools.Told(event=event):
                self.outcomes.said(event)
            case pools.Began(seq=seq, at=at):
                if (held := self.work.held.get(seq)) is not None:
                    self.guard.began(held, at)
            case pools.Died():
                now = time.monotonic()
                self.outcomes.died(happening, out_of_memory=self.out_of_memory.happened(now))
            case pools.Ready():
                if self._stopping_since is None:
                    self.work.hand_out()

    # ---- leases

    def _renew(self) -> None:
        held = [task for task in self.work.held.values() if not task.lost and self.ledger.is_open(task)]
        asked_at = time.monotonic()
        results, marks = self.leases.renew([task.delivery for task in held], self.name, self._advert())
        self._renewed_at = asked_at
        for task, ours in zip(held, results, strict=True):
            if not ours:
                logger.warning("the lease of task %s was lost; it is stopped here", task.steering.id)
                task.lost = True
                if self.work.take_out(task):
                    self.work.drop(task)
                else:
                    self.work.stop(task)
        for id_, mark in marks.items():
            with contextlib.suppress(BadMessage):
                order = open_mark(mark, id_, self.signer)
                self.cancel(id_, order.terminate, order.signal)

    def _sweep(self) -> None:
        self.out_of_memory.happened(time.monotonic())
        if self._stopping_since is not None:
            return
        self.listening.follow()
        mine = [held.delivery for held in self.work.held.values() if not held.lost]
        if taken := self.leases.sweep(self.queues, mine, time.monotonic()):
            self._drained = False
            logger.warning("%d tasks of workers that no longer answer were returned to their queues", taken)

    def _advert(self) -> str:
        return self.adverts.text(self.listening, self.concurrency, stopping=self._stopping_since is not None)

    # ---- orders

    def _follow_orders(self) -> None:
        assert self._orders_read is not None
        self._orders_read.start(("XREAD", "BLOCK", 30_000, "STREAMS", CONTROL, self._order_cursor))

    def _read_orders(self) -> None:
        assert self._orders_read is not None
        for _, entries in self._orders_read.finish() or ():
            for entry, flat in entries:
                self._order_cursor = entry.decode()
                text = dict(zip(flat[::2], flat[1::2], strict=False)).get(b"o", b"")
                try:
                    order = self.orders.open(text, time.time())
                except BadMessage as exc:
                    logger.warning("an order was refused: %s", exc)
                    self.consumer.count(f"refused:{exc.reason}")
                    continue
                self._obey(order)
        self._follow_orders()

    def _obey(self, order: Control) -> None:
        if order.order == "revoke":
            for id_ in order.ids:
                self.cancel(id_, order.terminate, order.signal)
            return
        if order.order == "command":
            self.panel.obey(order)
            return
        if self.name not in order.workers:
            return
        if order.order == "shutdown":
            self._stops += 2 if order.terminate else 1
        elif order.order == "resize":
            self.resize(order.size)
        elif order.order == "restart":
            self.restart()
        self._show_soon()

    def cancel(self, id_: str, terminate: bool = False, signal: str = "") -> None:
        """End a task that this worker holds; if it runs, with `terminate` only."""
        held = self.work.by_id.get(id_)
        if held is None or held.revoked:
            return
        self.revoked.append(id_)
        if self._take_back(id_):
            return
        if terminate:
            held.revoked = True
            self.work.stop(held, signal)
        else:
            held.unwanted = True

    def _take_back(self, id_: str) -> bool:
        """End a task that this worker holds and has not begun; False if there is none of this id."""
        held = self.work.by_id.get(id_)
        if held is None or held.revoked or not self.ledger.is_open(held) or not self.work.take_out(held):
            return False
        held.revoked = True
        self.outcomes.end(held, states.REVOKED, b"", "cancelled")
        return True
