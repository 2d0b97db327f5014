"""One kind of work of one system, measured once in a process of its own: `... session KIND SYSTEM URL SECONDS BACKLOG`.

Prints its figures as one line of JSON. Every result is checked.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from tests.benchmarks.peers import BACKLOG, CALLS, COMPUTE, DATA, FIRST, HOT, SYSTEMS, Peer, Rows
from tests.benchmarks.work import MARKS

Figures = dict[str, float]

PROBE: Final = 200
MOST: Final = 50_000
HEADER: Final = 1_000  # calls of a chord
PART: Final = 10_000  # of a backlog, sent at once
BURNS: Final = 200
BURN_MS: Final = 20.0
CHILDREN: Final = 2
LIMIT_S: Final = 220.0
MARK: Final = struct.Struct("<QQ")
clock = time.perf_counter


class Work(NamedTuple):
    """How much to do.

    Args:
        seconds: about how long each kind of work goes on.
        backlog: messages that wait when the worker starts.
        large: elements of the one large array.
        shared: elements of the array that many tasks read.
        readers: those tasks.
    """

    seconds: float
    backlog: int
    large: int = 12_500_000
    shared: int = 2_500_000
    readers: int = 200

    @classmethod
    def of(cls, seconds: float, backlog: int) -> Work:
        """Return the whole work, or a tenth of it where seconds are short."""
        return cls(seconds, backlog) if seconds >= 1.0 else cls(seconds, backlog, 250_000, 25_000, 20)


def measure(kind: str, name: str, url: str, amount: Work) -> Figures:
    """Return the figures of one system in one kind of work."""
    before = spin_ms()
    figures = SESSIONS[kind](name, url, amount)
    figures[f"{kind}_spin_ms"] = statistics.mean([before, spin_ms()])
    return figures


def hot(name: str, url: str, amount: Work) -> Figures:
    """Start-up, idle memory, rates of no-ops, and round trips."""
    figures: Figures = {}
    seconds = amount.seconds
    with running(name, url) as peer:
        start = clock()
        peer.start()
        check([peer.call("noop", 0)])
        figures["cold_s"] = clock() - start
        time.sleep(min(1.0, seconds))
        figures["pss_mb"], figures["rss_mb"], figures["processes"] = tree_memory()
        figures["map_rate"], figures["map_n"] = rated(lambda n: peer.map("noop", rows(n)), seconds)
        figures |= sending(peer, seconds)
        figures |= pipelining(peer, seconds)
        figures |= round_trips(peer, seconds)
    return figures


def calls(name: str, url: str, amount: Work) -> Figures:
    """A loop that submits to an executor, and chords."""
    with running(name, url) as peer:
        peer.start()
        check([peer.call("noop", 0)])
        return submitting(peer, amount.seconds) | chords(peer, amount.seconds)


def backlog(name: str, url: str, amount: Work) -> Figures:
    """Sending while nothing takes, what a message costs the server, and the work-off."""
    with running(name, url) as peer:
        memory = server_memory(url)
        peer.send("mark", [(0,)])
        sent = 1
        figures: Figures = {}
        for row, send, part, share in (
            ("one", peer.send, 100, 0.2),
            ("bulk", peer.enqueue, PART, 1.0),
        ):
            before, first, start = memory(), sent, clock()
            # slow systems get a smaller backlog
            while sent < amount.backlog * share and clock() - start < 10 * amount.seconds:
                n = int(min(part, amount.backlog * share - sent)) or 1
                send("mark", [(x,) for x in range(sent, sent + n)])
                sent += n
            figures[f"{row}_rate"] = (sent - first) / (clock() - start)
            figures[f"{row}_bytes"] = (memory() - before) / (sent - first)
        peer.start()
        return figures | draining(sent, 10.0 + 8.0 * amount.seconds)


def draining(sent: int, limit_s: float) -> Figures:
    """Return the rate at which a backlog is worked off, and the memory of those that do it."""
    end, done, peak = clock() + limit_s, 0, 0.0
    moved = clock() + 15.0
    while done < sent and clock() < end and clock() < moved:
        time.sleep(0.1)
        now = sum(path.stat().st_size for path in marks()) // MARK.size
        if now > done:
            done, moved = now, clock() + 15.0
        peak = max(peak, tree_memory()[1])
    found = [mark for path in marks() for mark in MARK.iter_unpack(whole(path.read_bytes()))]
    times = sorted(at for _, at in found)
    if not times:
        raise RuntimeError("nothing of the backlog was run")
    return {
        "drain_rate": (len(found) - 1) / max(1e-9, (times[-1] - times[0]) / 1e9),
        "drain_n": len(found),
        "drain_rss_mb": peak,
        "twice": len(found) - len({x for x, _ in found}),
        "left": sent - len({x for x, _ in found}),
    }


def compute(name: str, url: str, amount: Work) -> Figures:
    """Tasks of 20 ms of processor time on two processes, against the ideal."""
    n = BURNS if amount.seconds >= 1.0 else BURNS // 10
    with running(name, url) as peer:
        peer.start()
        peer.map("burn", [(1.0,)] * 4)
        start = clock()
        values = peer.map("burn", [(BURN_MS,)] * n)
        took = clock() - start
    if values != [BURN_MS] * n:
        raise RuntimeError("wrong results")
    return {"makespan": took / (n * BURN_MS / 1e3 / CHILDREN)}


def data(name: str, url: str, amount: Work) -> Figures:
    """One large array there and its sum back; and many tasks that read the same one."""
    import numpy as np

    random = np.random.default_rng()
    with running(name, url) as peer:
        peer.start()
        peer.call("noop", 0)
        # a system that sends all of it with each call takes minutes: fewer calls, and its time is counted for all
        slow = name == "Celery"
        times = []
        for _ in range(1 if slow else 3):
            array = random.random(amount.large)
            start = clock()
            value = peer.call("total", array)
            times.append(clock() - start)
            close_to(value, array.sum())
        array = random.random(amount.shared)
        n = amount.readers // 20 if slow else amount.readers
        start = clock()
        shared = peer.share(array)
        for value in peer.map("total", [(shared,)] * n):
            close_to(value, array.sum())
        took = (clock() - start) * amount.readers / n
    return {"large_s": statistics.median(times), "shared_s": took}


def first(name: str, url: str, _: Work) -> Figures:
    """From the first import in a shell that runs to the first result, nothing running before."""
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance()
    start = clock()
    with running(name, url) as peer:
        peer.start()
        check([peer.call("noop", 0)])
        return {"first_s": clock() - start}


SESSIONS: Final[dict[str, Callable[[str, str, Work], Figures]]] = {
    HOT: hot,
    CALLS: calls,
    BACKLOG: backlog,
    COMPUTE: compute,
    DATA: data,
    FIRST: first,
}


@contextlib.contextmanager
def running(name: str, url: str) -> Any:
    """Yield a system, connected; its workers are started by whoever measures."""
    peer = SYSTEMS[name].open(url)
    try:
        yield peer
    finally:
        peer.stop()


def rows(n: int) -> Rows:
    return [(x,) for x in range(n)]


def rated(run: Callable[[int], list[int] | None], seconds: float) -> tuple[float, int]:
    """Return tasks a second, of as many as take about so long, and how many."""
    check(run(PROBE))
    start = clock()
    check(run(PROBE))
    took, n = clock() - start, PROBE
    # a small map says little of a large one, so once more if it was much faster than expected
    for attempt in range(2):
        if attempt == 0 or (took < seconds / 2 and n < MOST):
            n = within(took / n, seconds)
            start = clock()
            values = run(n)
            took = clock() - start
            check(values)
    return n / took, n


def sending(peer: Peer, seconds: float) -> Figures:
    """Return the rates of a loop that sends, until all is sent and until all results are back."""
    start = clock()
    check(peer.gather(peer.send("noop", rows(PROBE))))
    n = within((clock() - start) / PROBE, seconds)
    start = clock()
    handles = peer.send("noop", rows(n))
    sent = clock() - start
    values = peer.gather(handles)
    took = clock() - start
    check(values)
    return {"send_rate": n / sent, "send_all_rate": n / took, "send_n": n}


def pipelining(peer: Peer, seconds: float) -> Figures:
    """Return the rate of a loop whose calls are confirmed later, until all results are back; nothing without one."""
    if peer.pipelined("noop", rows(1)) is None:
        return {}
    rate, n = rated(lambda n: peer.pipelined("noop", rows(n)), seconds)
    return {"pipeline_rate": rate, "pipeline_n": n}


def submitting(peer: Peer, seconds: float) -> Figures:
    """Return the rate of a loop that submits to an executor, until all results are back; nothing without one."""
    if peer.submitted("noop", rows(1)) is None:
        return {}
    rate, n = rated(lambda n: peer.submitted("noop", rows(n)), seconds)
    return {"submit_rate": rate, "submit_n": n}


def chords(peer: Peer, seconds: float) -> Figures:
    """Return how long many calls take whose values go to one more."""
    n = HEADER if seconds >= 1.0 else HEADER // 10
    times = []
    for _ in range(4):  # the first warms up
        start = clock()
        if peer.chord("noop", rows(n)) != n:
            raise RuntimeError("wrong results")
        times.append((clock() - start) * 1e3)
    return {"chord_ms": statistics.median(times[1:])}


def round_trips(peer: Peer, seconds: float) -> Figures:
    """Return how long one call after the other takes."""
    for x in range(10):
        peer.call("noop", x)
    times: list[float] = []
    end = clock() + 2 * seconds
    while len(times) < 1_000 and (clock() < end or len(times) < 20):
        start = clock()
        peer.call("noop", len(times))
        times.append((clock() - start) * 1e3)
    times.sort()
    return {"p50_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99)], "trips_n": len(times)}


def within(task_s: float, seconds: float) -> int:
    """Return how many tasks of this length fill so many seconds."""
    return max(PROBE, min(MOST, int(seconds / task_s)))


def check(values: list[int] | None) -> None:
    if values is None or values != list(range(len(values))):
        raise RuntimeError("wrong results")


def close_to(value: float, right: float) -> None:
    if abs(value - right) > 1e-9 * abs(right):
        raise RuntimeError(f"{value} instead of {right}")


def spin_ms() -> float:
    """Return how long a fixed piece of Python takes: it tells how busy the machine is."""
    start = clock()
    sum(i * i for i in range(1_000_000))
    return (clock() - start) * 1e3


def server_memory(url: str) -> Callable[[], int]:
    """Return what asks a server how many bytes it uses."""
    import redis

    client = redis.Redis.from_url(url.replace("redis+socket://", "unix://"))
    return lambda: int(client.info("memory")["used_memory"])


def marks() -> list[Path]:
    return list(Path(os.environ[MARKS]).iterdir())


def whole(content: bytes) -> bytes:
    """Return the marks that are complete."""
    return content[: len(content) // MARK.size * MARK.size]


def tree_memory() -> tuple[float, float, int]:
    """Return the memory of every process that this one has started, and their number.

    In MB: with shared pages in proportion, and with those counted in each.
    """
    pss = rss = count = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(OSError, StopIteration, psutil.Error):
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            pss += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            rss += next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
            count += 1
    return pss / 1024, rss / 1024, count


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    kind, name, url, seconds, backlog_size = sys.argv[1:]
    print(json.dumps(measure(kind, name, url, Work.of(float(seconds), int(backlog_size)))), flush=True)
    # some systems leave threads that would keep this process
    os._exit(0)
