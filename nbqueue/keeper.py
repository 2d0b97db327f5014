"""The keeper: one process a user that starts a local worker when something is queued, and leaves when nothing is.

It also starts the embedded server again if that dies. It waits on a list key that clients push to when no worker has
shown itself, and looks at everything once a second besides. `nbqueue.embedded.ensure` starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from nbqueue import embedded, log, server
from nbqueue.bindings import is_own
from nbqueue.config import Environment
from nbqueue.connection import Connection
from nbqueue.deliveries import KEEPER_TROUBLE, KEEPER_WAKE, LANES, QUEUES, SCHEDULED, WORKERS, queue_key, stream_key
from nbqueue.exceptions import BadMessage, NBQueueError
from nbqueue.processes import locked, start_child, tail
from nbqueue.server import ErrorReply, Wire
from nbqueue.signing import Signer

ALIVE_S: Final = 15.0  # a worker that said nothing for so long is not there; the watcher, too heavy here, says so too
FORGET_S: Final = 60.0  # and one that said nothing for so long never was
AHEAD_S: Final = 3.0  # a worker is started so long before something delayed is due
LOOK_S: Final = 1.0
QUICK_S: Final = 2.0  # a worker that ends sooner has not worked
TRIES: Final = 3  # quick ends in a row before the next start is put off
LONGEST_PAUSE_S: Final = 60.0
GRACE_S: Final = 10.0  # for a worker with nothing to do
LAST_CALL_S: Final = 3.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look at the server showed.

    Args:
        wanted: queues with something to run now or soon.
        idle: nothing is queued, running, delayed or scheduled anywhere, and nobody is connected.
        scheduled: something is to be sent again and again, which our worker does too.
        serving: for each live worker's name, what tells whether it listens to a queue.
    """

    wanted: frozenset[str]
    idle: bool
    serving: dict[str, Callable[[str], bool]]
    scheduled: bool = False


class Keeper:
    """Watches one embedded server. `run` returns when it is told to stop or when there is nothing left to do.

    Args:
        places: where server and worker are.
        lock: the descriptor that holds the keeper's pid file.
        idle_s: how long there must be nothing to do before everything leaves.
        worker_command: starts a worker; nbqueue's own if empty.
        work_follows: start one at once, also while the server still starts.
    """

    def __init__(
        self,
        places: embedded.Places,
        lock: int,
        idle_s: float,
        worker_command: Sequence[str] = (),
        *,
        work_follows: bool = False,
    ) -> None:
        self.places = places
        self.idle_s = idle_s
        self.worker_name = f"local@{socket.gethostname()}"
        self._worker_command = list(worker_command) or self._own_worker()
        self._work_follows = work_follows
        self._lock = lock
        self._found: Connection | None = None
        self._signer: Signer | None = None
        self._wire: Wire | None = None
        self._waiting: Wire | None = None
        self._asked = False  # the second connection owes an answer
        self._worker: subprocess.Popen[bytes] | None = None
        self._worker_began = 0.0
        self._worker_shown = False
        self._quick_ends = 0
        self._not_before = 0.0
        self._idle_since: float | None = None
        self._pause_s = 0.0
        self._terms = 0

    def run(self) -> int:
        """Keep until stopped or idle; return the exit code."""
        with self._signals() as woken:
            if self._work_follows and not self._worker_lives():
                self._start_worker("what follows")
            while not self._terms:
                if not self._has_data():
                    logger.warning("%s is gone; so nothing is kept any more", self.places.data)
                    self._abandon()
                    return 0
                try:
                    self._connect()
                    if self._turn():
                        return 0
                    self._wait(woken)
                except (OSError, ErrorReply, NBQueueError) as exc:
                    self._recover(exc, woken)
            logger.info("told to stop")
            self._stop_worker()
        return 0

    # ---- the server

    def _connect(self) -> None:
        """Connect; start the server if it is gone."""
        if self._wire is not None:
            return
        if server.state(self.places.socket) == "gone":
            with locked(self.places.lock, 0.0) as mine:
                # not ours: somebody starts the server just now
                if mine:
                    logger.info("the server is gone and is started again")
                    embedded.start_server(self.places, Environment.read().variables)
        self._found = self._found or embedded.known(self.places)
        if self._found is None:
            raise FileNotFoundError(f"{self.places.connection_file} is missing or of no use")
        self._signer = Signer(self._found.key)
        self._wire = Wire(self.places.socket, "nbq-keeper")
        self._waiting = Wire(self.places.socket, "nbq-keeper")
        self._pause_s = 0.0

    def _disconnect(self) -> None:
        for wire in (self._wire, self._waiting):
            if wire is not None:
                wire.close()
        self._wire = self._waiting = None
        self._asked = False

    def _recover(self, exc: Exception, woken: socket.socket) -> None:
        # A connection that broke is tried again at once; what fails then is tried less and less often.
        level = logging.INFO if self._pause_s == 0 else logging.WARNING
        logger.log(level, "%s: %s", type(exc).__name__, exc)
        self._disconnect()
        select.select([woken], [], [], self._pause_s)
        _drain(woken)
        self._reap()
        self._pause_s = min(10.0, max(0.05, 2 * self._pause_s))

    def _wait(self, woken: socket.socket) -> None:
        """Wait for a client's hint, a signal, the server's end, or until it is time to look again."""
        assert self._waiting is not None
        wait_s = min(LOOK_S, self.idle_s / 4)
        if not self._asked:
            self._waiting.send("BLPOP", KEEPER_WAKE, f"{wait_s:.3f}")
            self._asked = True
        deadline = time.monotonic() + wait_s + server.PROBE_S
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self._waiting.fileno(), woken.fileno()], [], [], left)
            if woken.fileno() in readable:
                _drain(woken)
                return
            if self._waiting.fileno() in readable:
                self._asked = False
                self._waiting.read()
                return
        raise TimeoutError("the server does not answer")

    # ---- what there is to do

    def _turn(self) -> bool:
        """Look, and do what is to be done; return whether everything has left."""
        self._reap()
        sight = self._look()
        unserved = {q for q in sight.wanted if not any(listens(q) for listens in sight.serving.values())}
        if self._worker_lives():
            self._shown(sight)
        elif (unserved or sight.scheduled) and time.monotonic() >= self._not_before:
            self._start_worker(", ".join(sorted(unserved)) or "what is scheduled")
        if not sight.idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since >= self.idle_s:
            return self._leave()
        return False

    def _look(self) -> Sight:
        assert self._wire is not None
        names, adverts, now, clients, entries = self._wire.ask(
            [("SMEMBERS", QUEUES), ("HGETALL", WORKERS), ("TIME",), ("CLIENT", "LIST"), ("SCARD", SCHEDULED)]
        )
        if now is None:
            raise ErrorReply("the server loads its data")
        now_s = float(now[0])
        serving = self._live(adverts or [], now_s)
        queues = [name.decode() for name in names or ()]
        wanted = set()
        busy = False
        for queue, (*lanes, claimed, delayed, first) in zip(queues, self._sizes(queues), strict=True):
            if is_own(queue):  # no other worker takes what is there
                busy = busy or bool(claimed)
                continue
            busy = busy or any(lanes) or bool(claimed or delayed)
            # entries stay until they are acknowledged: also what a worker held that is no more
            if any(lanes) or (first and float(first[1]) / 1000 <= now_s + AHEAD_S):
                wanted.add(queue)
        idle = not busy and not entries and not self._connected(clients or b"")
        return Sight(frozenset(wanted), idle, serving, bool(entries))

    def _sizes(self, queues: Sequence[str]) -> Iterator[list[Any]]:
        """Yield for each queue: entries of each lane, claims, delayed ones, the first of these and its time."""
        assert self._wire is not None
        commands: list[tuple[str | int, ...]] = []
        for queue in queues:
            delayed = queue_key(queue, "delayed")
            commands += [("XLEN", stream_key(queue, lane)) for lane in LANES]
            commands += [("HLEN", queue_key(queue, "claims")), ("ZCARD", delayed)]
            commands += [("ZRANGE", delayed, 0, 0, "WITHSCORES")]
        replies = self._wire.ask(commands)
        each = len(LANES) + 3
        for start in range(0, len(replies), each):
            yield replies[start : start + each]

    def _live(self, adverts: Sequence[bytes], now_s: float) -> dict[str, Callable[[str], bool]]:
        """Return who works and for which queues, by signed adverts that are young enough."""
        assert self._signer is not None
        assert self._wire is not None
        live: dict[str, Callable[[str], bool]] = {}
        for name, text in zip(adverts[::2], adverts[1::2], strict=True):
            worker = name.decode(errors="replace")
            with contextlib.suppress(BadMessage, ValueError, TypeError, KeyError, RecursionError):
                advert = json.loads(text)
                dead = worker == self.worker_name and not self._worker_lives()
                if dead or now_s - advert["at"] > FORGET_S:
                    # clients give a hint only while no worker is known
                    self._wire.call("HDEL", WORKERS, worker)
                elif now_s - advert["at"] <= ALIVE_S:
                    offer = json.loads(self._signer.verify("worker", advert["nbq"]))
                    queues = frozenset(offer.get("queues", ()))
                    live[worker] = (lambda _: True) if offer.get("all_queues") else queues.__contains__
        return live

    def _connected(self, clients: bytes) -> bool:
        """Tell whether a client, or a worker that isn't ours, is connected."""
        mine = f"nbq-worker-{self.worker_name}".replace(" ", "_")
        for line in clients.decode(errors="replace").splitlines():
            name = next((word[5:] for word in line.split(" ") if word.startswith("name=")), "")
            if name.startswith("nbq-client") or (name.startswith("nbq-worker") and name != mine):
                return True
        return False

    # ---- the worker

    def _own_worker(self) -> list[str]:
        cores = str(server.host_cores())
        options = ("-n", self.worker_name, "-c", cores, "-l", "info", "--all-queues", "--keeper", "-B")
        return embedded.daemon_command("nbqueue.cli", "worker", "--connect", self.places.connection_file, *options)

    @property
    def _log(self) -> Path:
        return self.places.logs / "worker.log"

    def _worker_lives(self) -> bool:
        # One that an earlier keeper has started is as good as ours.
        return self._worker is not None or self.places.worker.held()

    def _start_worker(self, reason: str) -> None:
        logger.info("a worker is started for %s", reason)
        self._worker_began = time.monotonic()
        self._worker_shown = False
        self._worker = start_child(self._worker_command, self.places.worker, log=self._log)

    def _shown(self, sight: Sight) -> None:
        if not self._worker_shown and self.worker_name in sight.serving:
            assert self._wire is not None
            self._worker_shown = True
            self._wire.call("DEL", KEEPER_TROUBLE)

    def _reap(self) -> None:
        """Note that our worker has ended, and put off the next start if it keeps ending without having worked."""
        if self._worker is None or (code := self._worker.poll()) is None:
            return
        self._worker = None
        lived_s = time.monotonic() - self._worker_began
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        logger.info("the worker ended after %.1f s: %s", lived_s, how)
        self._quick_ends = 0 if self._worker_shown and lived_s >= QUICK_S else self._quick_ends + 1
        if self._quick_ends >= TRIES:
            pause_s = min(LONGEST_PAUSE_S, 2.0 ** (self._quick_ends - TRIES))
            self._not_before = time.monotonic() + pause_s
            self._tell_trouble(how, pause_s)

    def _tell_trouble(self, how: str, pause_s: float) -> None:
        last = tail(self._log)
        logger.warning("no worker stays: %s; the next is started in %.0f s", how, pause_s)
        if self._wire is not None:
            text = f"The local worker ended {self._quick_ends} times at its start ({how}). {self._log} ends:\n{last}"
            self._wire.call("SET", KEEPER_TROUBLE, json.dumps({"at": time.time(), "text": text}), "EX", 3600)

    def _stop_worker(self, grace_s: float = math.inf) -> None:
        """Stop the worker once its tasks have ended; at once after `grace_s` or if we are told to stop again."""
        pid_file = self.places.worker
        deadline = time.monotonic() + grace_s
        pid_file.tell(signal.SIGTERM)
        while self._terms < 2 and pid_file.held() and time.monotonic() < deadline:
            time.sleep(0.01)
        pid_file.end((signal.SIGQUIT, LAST_CALL_S), (signal.SIGKILL, LAST_CALL_S))
        if self._worker is not None:
            self._worker.wait()
            self._worker = None

    # ---- the end

    def _leave(self) -> bool:
        """Stop the worker, then the server; False if there is something to do again."""
        # whoever wants the server now waits for the lock, and starts everything anew
        with locked(self.places.lock, 0.0) as mine:
            if not mine:
                return False
            logger.info("nothing to do for %.0f s: everything leaves", self.idle_s)
            self._stop_worker(GRACE_S)
            if not self._look().idle:
                self._idle_since = None
                return False
            self._disconnect()
            server.stop(self.places.server, self.places.socket)
            # before the other lock: who gets that one must not take us for a keeper
            os.close(self._lock)
            return True

    def _abandon(self) -> None:
        """Stop worker and server after their directory was removed, pid files and all."""
        if self._worker is not None:
            self._worker.terminate()
            try:
                self._worker.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()
        if self._wire is not None:
            with contextlib.suppress(OSError, ErrorReply):
                self._wire.call("SHUTDOWN", "NOSAVE")
        self._disconnect()

    def _has_data(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock), self.places.keeper.path.stat())
        except OSError:
            return False

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Count TERM and INT, and make select return at these and at a child's end."""
        woken, wake = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # the shell that started us ignores it, and a worker would inherit that
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        with woken, wake:
            yield woken
            signal.set_wakeup_fd(-1)

    def _told_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._terms += 1


def _drain(woken: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while woken.recv(4096):
            pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the keeper; return the exit code."""
    parser = argparse.ArgumentParser(prog="nbqueue.keeper", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the data directory")
    parser.add_argument("--runtime", type=Path, required=True, help="the directory of the server's socket")
    parser.add_argument("--lock", type=int, help="the descriptor that holds the keeper's pid file already")
    parser.add_argument("--idle-s", type=float, default=600.0, help="leave after so many seconds with nothing to do")
    parser.add_argument("--worker-command", type=json.loads, default=[], help="a JSON list that starts a worker")
    parser.add_argument("--work-follows", action="store_true", help="start a worker at once")
    options = parser.parse_args(argv)
    log.setup("info")
    places = embedded.Places(options.data, options.runtime)
    lock = options.lock
    if lock is None:
        places.make()
        if (lock := places.keeper.take()) is None:
            logger.info("a keeper runs already")
            return 0
        places.keeper.write(lock, os.getpid())
    try:
        command, follows = options.worker_command, options.work_follows
        return Keeper(places, lock, options.idle_s, command, work_follows=follows).run()
    except Exception:
        logger.exception("the keeper gives up")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
