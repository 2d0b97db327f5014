"""How much one server carries: `python -m tests.benchmarks.capacity [--workers N ...] [--short]`.

Starts one private server and, in a few processes, very many supervisors. They are real in all they say to the server:
claims, leases, sweeps, adverts, orders, settlements. Only their children are not there: a task ends as soon as it is
handed out, or never. What counts is the processor time that the *server* uses, which a slow machine or a slow client
doesn't change; a supervisor that comes too late to its turns is counted by what it did. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import redis

from nbqueue import App, pool, states
from nbqueue.deliveries import Outgoing, Settlement
from nbqueue.messages import ChildEvent, Outcome, Output
from nbqueue.pool import Finished, Job, Told
from nbqueue.serialization import dumps_value
from nbqueue.signing import create_key_file
from nbqueue.watcher import live_offers
from nbqueue.wire import BlockingRead, connect
from nbqueue.worker import Worker
from tests.benchmarks.run import ROOT, Server, describe
from tests.helpers import RedisServer, wait_until
from tests.rabbit import RabbitServer

CHILDREN: Final = 16
A_PROCESS: Final = 250  # supervisors
WINDOW_S: Final = 9.0  # three renewals
START_S: Final = 180.0
HOLD: Final = "hold"  # a task of this name never ends
TALK: Final = "talk"  # one of this name says something first
PIECES: Final = 10  # of output
Point = dict[str, float]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.capacity")
    parser.add_argument("--workers", type=int, nargs="*", default=[100, 300, 1_000])
    parser.add_argument("--tasks", type=int, default=20_000, help="in each measurement of tasks")
    parser.add_argument("--embedded", action="store_true", help="the server that nbqueue embeds")
    parser.add_argument("--rabbitmq", action="store_true", help="a RabbitMQ node, with a Redis server as its backend")
    parser.add_argument("--short", action="store_true", help="very few of everything, to see that it works")
    parser.add_argument("--supervise", nargs=3, metavar=("FIRST", "NUMBER", "SLOW"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.supervise:
        first, number, slow = options.supervise
        Crowd(int(first), int(number), float(slow)).run()
        return 0
    workers, tasks = ([4], 200) if options.short else (options.workers, options.tasks)
    found: dict[str, Any] = {"about": describe(), "embedded": options.embedded}
    server = RedisServer if options.embedded else Server
    if options.rabbitmq:
        with RabbitServer() as rabbit:
            found["tasks"] = [report("tasks", task_costs(server, number, tasks, rabbit)) for number in (1, *workers)]
            found["workers"] = [report("workers", worker_costs(server, number, rabbit)) for number in workers]
        print(json.dumps(found, indent=1))
        return 0
    found["memory"] = report("memory", memory(server, tasks))
    found["waking"] = [report("waking", waking(server, number, tasks // 20)) for number in (1, *workers)]
    found["tasks"] = [report("tasks", task_costs(server, number, tasks)) for number in (1, *workers)]
    found["workers"] = [report("workers", worker_costs(server, number)) for number in workers]
    print(json.dumps(found, indent=1))
    return 0


def report(what: str, point: Point) -> Point:
    print(what, json.dumps({name: round(value, 2) for name, value in point.items()}), file=sys.stderr, flush=True)
    return point


# ---- supervisors without children


@dataclass
class NoChild:
    """Stands for a child: it has no process."""

    number: int
    pid: int
    ready: bool = True
    jobs: dict[int, Job] = field(default_factory=dict)


class NoChildren(pool.Pool):
    """Stands for the children of a supervisor: what they are sent has ended, and took as long as is said."""

    slow_s = 0.0

    def start(self) -> None:
        self.children = {n: NoChild(n, os.getpid()) for n in range(1, self.size + 1)}  # type: ignore[misc]
        self.ended: deque[tuple[int, Job]] = deque()

    def send(self, child: int, job: Job) -> bool:
        self.children[child].jobs[job.seq] = job
        if job.task.task != HOLD:
            self.ended.append((child, job))
        return True

    def recall(self, child: int) -> list[int]:
        return []  # what was sent has ended

    def happenings(self) -> Iterator[Finished | Told]:
        """Yield what those that were sent have said, and how they have ended."""
        while self.ended:
            child, job = self.ended.popleft()
            del self.children[child].jobs[job.seq]
            now = time.time()
            if job.task.task == TALK:
                yield from [Told(child, ChildEvent(job.seq, "output", SAID, now))] * PIECES
            yield Finished(child, Outcome(job.seq, states.SUCCESS, VALUE, now - self.slow_s, now, "", "None"))

    def stop(self, timeout_s: float) -> None:
        """Do nothing: nothing was started."""


class Supervisor(Worker):
    """A real supervisor, whose loop is driven from outside."""

    def begin(self) -> None:
        """Do what comes before the first turn."""
        self.pool.start()
        self._offline_since = time.monotonic()
        self._online(self._reconnect)

    def turn(self) -> float:
        """Do what there is to do; return the seconds until the next turn if nothing happens."""
        self._turn()
        for happening in self.pool.happenings():  # type: ignore[attr-defined]
            self._happened(happening)
        return self.work.gather.left_s(time.monotonic()) or super()._timeout()

    def _timeout(self) -> float:
        return 0.0

    def _gather(self) -> None:
        """Let the others of this process go on."""

    def end(self) -> None:
        """Leave, as one does that is stopped."""
        self._online(self._leave)
        self._close_reads()


VALUE: Final = dumps_value(None)
SAID: Final = msgspec.json.encode(Output("stream", "stdout", "a line of eighty characters".ljust(79, ".") + "\n"))


class Crowd:
    """Supervisors that share a process, and one loop."""

    def __init__(self, first: int, number: int, slow_s: float) -> None:
        pool.Pool = NoChildren  # type: ignore[misc]
        NoChildren.slow_s = slow_s
        app = App(set_as_current=False)
        names = [f"s{n}@crowd" for n in range(first, first + number)]
        self.supervisors = [Supervisor(app, name=name, concurrency=CHILDREN) for name in names]

    def run(self) -> None:
        """Work until standard input is closed."""
        outer = selectors.DefaultSelector()
        for one in self.supervisors:
            one.begin()
            outer.register(one._selector.fileno(), selectors.EVENT_READ, one)
        outer.register(sys.stdin, selectors.EVENT_READ)
        due = dict.fromkeys(self.supervisors, 0.0)
        while True:
            now = time.monotonic()
            for key, _ in outer.select(max(0.0, min(due.values()) - now)):
                if key.data is None:
                    for one in self.supervisors:
                        one.end()
                    return
                due[key.data] = 0.0
            now = time.monotonic()
            for one in [one for one, at in due.items() if at <= now]:
                due[one] = time.monotonic() + one.turn()


# ---- measuring


class Site:
    """A server and crowds on it, and a RabbitMQ node beside it if that is what is looked at."""

    def __init__(self, server: RedisServer, directory: Path, rabbit: RabbitServer | None = None) -> None:
        self.rabbit = rabbit
        key_file = directory / "key"
        create_key_file(key_file)
        self.client = server.client(decode_responses=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NBQUEUE_")},
            "NBQUEUE_HOME": str(directory / "h"),
            "NBQUEUE_BROKER_URL": server.url,
            "NBQUEUE_KEY_FILE": str(key_file),
            "PYTHONPATH": str(ROOT),
        }
        self.app = App("capacity", broker=server.url, key_file=key_file, set_as_current=False)
        if rabbit is not None:
            broker = rabbit.new_host()
            self.environment |= {"NBQUEUE_BROKER_URL": broker, "NBQUEUE_RESULT_BACKEND": server.url}
            self.app = App("capacity", broker=broker, backend=server.url, key_file=key_file, set_as_current=False)
        self.crowds: list[subprocess.Popen[bytes]] = []

    def gather(self, number: int, slow_s: float = 0.0) -> None:
        """Start so many supervisors, and wait until all have shown themselves."""
        for first in range(0, number, A_PROCESS):
            some = (str(first), str(min(A_PROCESS, number - first)), str(slow_s))
            command = [sys.executable, "-m", "tests.benchmarks.capacity", "--supervise", *some]
            self.crowds.append(subprocess.Popen(command, env=self.environment, stdin=subprocess.PIPE))
        wait_until(self._all_there(number), START_S, "supervisors to show themselves", interval_s=0.5)

    def _all_there(self, number: int) -> Any:
        def there() -> bool:
            if any(crowd.poll() is not None for crowd in self.crowds):
                raise RuntimeError("a crowd has ended")
            return int(self.client.hlen("nbq:workers")) == number

        return there

    def window(self, seconds: float) -> Point:
        """Return what the server did in so many seconds: processor time, and calls and time by command."""
        before, start = self.used(), time.perf_counter()
        time.sleep(seconds)
        return self.since(before, start)

    def since(self, before: Point, start: float) -> Point:
        used = {name: value - before.get(name, 0.0) for name, value in self.used().items()}
        return {**used, "seconds": time.perf_counter() - start}

    def used(self) -> Point:
        """Return the server's processor time so far, in µs, and its calls by command."""
        times, stats = self.client.info("cpu"), self.client.info("commandstats")
        used: Point = {"cpu_us": 1e6 * (float(times["used_cpu_user"]) + float(times["used_cpu_sys"]))}
        for name, stat in stats.items():
            word = name.removeprefix("cmdstat_")
            used[f"{word} calls"], used[f"{word} us"] = float(stat["calls"]), float(stat["usec"])
        if self.rabbit is not None:
            used["node_us"] = 1e6 * self.rabbit.processor_s()
        return used

    def memory(self) -> int:
        """Return how many bytes the server uses; a RabbitMQ node, if there is one."""
        if self.rabbit is not None:
            return self.rabbit.memory_bytes()
        return int(self.client.info("memory")["used_memory"])

    def close(self) -> None:
        """End all."""
        for crowd in self.crowds:
            assert crowd.stdin is not None
            crowd.stdin.close()
        for crowd in self.crowds:
            try:
                crowd.wait(30)
            except subprocess.TimeoutExpired:
                crowd.kill()
                crowd.wait()
        self.app.close()
        self.client.close()


@contextlib.contextmanager
def site(server: type[RedisServer], rabbit: RabbitServer | None = None) -> Iterator[Site]:
    """Yield a server of its own."""
    with tempfile.TemporaryDirectory(prefix="nbq-") as directory, server() as running:
        made = Site(running, Path(directory), rabbit)
        try:
            yield made
        finally:
            made.close()


def memory(server: type[RedisServer], number: int) -> Point:
    """Measure what the server keeps of a task, in bytes."""
    found: Point = {}
    with site(server) as at:
        task = at.app.task(noop, name="noop", by_value=False)
        task.delay(0)  # whatever comes with the first

        def each(name: str, send: Any) -> None:
            before = at.memory()
            send()
            found[name] = (at.memory() - before) / number

        each("queued alone, with its record", lambda: [task.delay(x) for x in range(number)])
        each("queued in a map", lambda: task.map(range(number)))
        each("delayed alone, with its record", lambda: [task.apply_async((x,), countdown=9e4) for x in range(number)])
    with site(server) as at:
        task = at.app.task(noop, name="noop", by_value=False)
        task.map(range(100))
        at.gather(1)
        # the session's stream is capped: full before this begins
        task.map(range(2 * number)).get(timeout=START_S)
        each("finished, of a map", lambda: task.map(range(number)).get(timeout=START_S))
        before = at.memory()
        for handle in [task.delay(x) for x in range(number)]:
            handle.get(timeout=START_S)
        found["finished, sent alone"] = (at.memory() - before) / number
    return found


def task_costs(server: type[RedisServer], workers: int, number: int, rabbit: RabbitServer | None = None) -> Point:
    """Measure the server's processor time a task, beside so many idle supervisors."""
    found: Point = {"workers": workers}
    with site(server, rabbit) as at:
        task = at.app.task(noop, name="noop", by_value=False)
        at.gather(workers)
        idle = at.window(WINDOW_S / 3)
        idle_us, idle_commands = (idle[name] / idle["seconds"] for name in ("cpu_us", "evalsha calls"))
        few = number // 10

        def each(name: str, count: int, run: Any) -> None:
            before, start = at.used(), time.perf_counter()
            run()
            did = at.since(before, start)
            found[f"{name}: us"] = (did["cpu_us"] - idle_us * did["seconds"]) / count
            if rabbit is not None:
                idle_node = idle["node_us"] / idle["seconds"]
                found[f"{name}: node us"] = (did["node_us"] - idle_node * did["seconds"]) / count
            found[f"{name}: scripts"] = (did["evalsha calls"] - idle_commands * did["seconds"]) / count
            found[f"{name}: tasks/s seen"] = count / did["seconds"]

        each("map", number, lambda: task.map(range(number)).get(timeout=START_S))
        talk = at.app.task(noop, name=TALK, by_value=False)
        each("map of tasks that print", few, lambda: talk.map(range(few)).get(timeout=START_S))
        printed = found["map of tasks that print: us"] - found["map: us"]
        found["a line of output: us"] = printed / PIECES
        each("one after the other", few, lambda: [task.delay(x).get(timeout=START_S) for x in range(few)])
        each("loop", few, lambda: [h.get(timeout=START_S) for h in [task.delay(x) for x in range(few)]])
    return found


def waking(server: type[RedisServer], readers: int, number: int) -> Point:
    """Measure the server's processor time for a message that so many supervisors wait for, and one gets."""
    with site(server) as at, contextlib.ExitStack() as ends:
        streams = at.app.broker.streams  # type: ignore[attr-defined]
        streams.ensure_groups(["q"])
        selector = selectors.DefaultSelector()
        for reader in range(readers):
            read = BlockingRead(connect(at.app.broker.url, name="reader"))
            ends.callback(read.close)
            command = streams.read_command(f"c{reader}", 1, ["q"], 600_000)
            read.start(command)
            selector.register(read, selectors.EVENT_READ, command)
        message = Outgoing("q", "id", "header", b"body" * 50)

        def all_of_them() -> None:
            for _ in range(number):
                streams.publish([message])
                ((key, _),) = selector.select(10.0)
                (delivery,) = streams.parse_read(key.fileobj.finish())  # type: ignore[union-attr]
                streams.settle([Settlement(delivery, b"")])
                key.fileobj.start(key.data)  # type: ignore[union-attr]

        all_of_them()
        before, start = at.used(), time.perf_counter()
        all_of_them()
        did = at.since(before, start)
    return {"readers": readers, "us": did["cpu_us"] / number}


def worker_costs(server: type[RedisServer], number: int, rabbit: RabbitServer | None = None) -> Point:
    """Measure what supervisors cost the server that do nothing, and such that hold a long task in each child."""
    found: Point = {"workers": number}
    with site(server, rabbit) as at:
        before = at.memory()
        at.gather(number)
        time.sleep(WINDOW_S / 2)  # past the sweep's first wait
        found["bytes"] = (at.memory() - before) / number
        found |= named("idle", per_worker(at.window(WINDOW_S), number))
        start = time.perf_counter()
        live = live_offers(at.app.backend, at.app.signer, time.time())
        found["asking who lives: client ms"] = 1e3 * (time.perf_counter() - start)
        found["asking who lives: MB"] = sum(map(len, at.app.backend.adverts().values())) / 1e6
        found["alive"] = len(live)
        hold = at.app.task(noop, name=HOLD, by_value=False)
        hold.map(range(CHILDREN * number))
        held = lambda: int(at.client.hlen("nbq:{nbqueue}:claims")) >= CHILDREN * number  # noqa: E731
        wait_until(held, START_S, "all to be held", interval_s=0.5)
        time.sleep(WINDOW_S)
        found |= named("holding", per_worker(at.window(WINDOW_S), number))
    return found


def per_worker(window: Point, number: int) -> Point:
    """Return what one supervisor cost in a second, with the renewals that were made in it.

    What crowds were too busy to do is not counted as idle: the time is divided by the renewals due and made.
    """
    seconds = window["seconds"]
    renewals = window.get("hset calls", 0.0)
    share = renewals / (number * seconds / 3.0)
    found = {"us": window["cpu_us"] / number / seconds, "renewals made": share}
    if "node_us" in window:
        found["node us"] = window["node_us"] / number / seconds
    for word in ("evalsha", "xreadgroup", "xpending", "xclaim", "hset", "xread"):
        found[f"{word} us"] = window.get(f"{word} us", 0.0) / number / seconds
        found[f"{word} calls"] = window.get(f"{word} calls", 0.0) / number / seconds
    return found


def named(name: str, point: Point) -> Point:
    return {f"{name}: {key}": value for key, value in point.items()}


def noop(x: int) -> int:
    return x


if __name__ == "__main__":
    with contextlib.suppress(redis.ConnectionError):
        sys.exit(main())
