"""One system measured once, in a process of its own: `python -m tests.benchmarks.session SYSTEM URL SECONDS`.

Prints its figures as one line of JSON.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from tests.benchmarks.peers import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.peers import Peer

Figures = dict[str, float]

PROBE: Final = 200
MOST: Final = 50_000
LIMIT_S: Final = 150.0
clock = time.perf_counter


def measure(name: str, url: str, seconds: float) -> Figures:
    """Return every figure of one system.

    Args:
        name: which of `SYSTEMS`.
        url: its server.
        seconds: about how long each kind of work goes on.
    """
    figures: Figures = {}
    before = spin_ms()
    peer = SYSTEMS[name](url)
    try:
        start = clock()
        peer.start()
        check([peer.call(0)])
        figures["cold_s"] = clock() - start
        time.sleep(min(1.0, seconds))
        figures["pss_mb"], figures["processes"] = tree_pss_mb()

        figures["map_rate"], figures["map_n"] = rated(peer.map, seconds)
        figures |= sending(peer, seconds)
        figures |= round_trips(peer, seconds)
    finally:
        peer.stop()
    figures["spin_ms"] = statistics.mean([before, spin_ms()])
    return figures


def rated(work: Callable[[int], list[int]], seconds: float) -> tuple[float, int]:
    """Return tasks a second, of as many as take about so long, and how many."""
    check(work(PROBE))
    start = clock()
    check(work(PROBE))
    took, n = clock() - start, PROBE
    # a small map says little of a large one, so once more if it was much faster than expected
    for attempt in range(2):
        if attempt == 0 or (took < seconds / 2 and n < MOST):
            n = within(took / n, seconds)
            start = clock()
            values = work(n)
            took = clock() - start
            check(values)
    return n / took, n


def sending(peer: Peer, seconds: float) -> Figures:
    """Return the rates of a loop that sends, until all is sent and until all results are back."""
    start = clock()
    check(peer.gather(peer.send(PROBE)))
    n = within((clock() - start) / PROBE, seconds)
    start = clock()
    handles = peer.send(n)
    sent = clock() - start
    values = peer.gather(handles)
    took = clock() - start
    check(values)
    return {"send_rate": n / sent, "send_all_rate": n / took, "send_n": n}


def round_trips(peer: Peer, seconds: float) -> Figures:
    """Return how long one call after the other takes."""
    for x in range(10):
        peer.call(x)
    times: list[float] = []
    end = clock() + 2 * seconds
    while len(times) < 1_000 and (clock() < end or len(times) < 20):
        start = clock()
        peer.call(len(times))
        times.append((clock() - start) * 1e3)
    times.sort()
    return {"p50_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99)], "trips_n": len(times)}


def within(task_s: float, seconds: float) -> int:
    """Return how many tasks of this length fill so many seconds."""
    return max(PROBE, min(MOST, int(seconds / task_s)))


def check(values: list[int]) -> None:
    if values != list(range(len(values))):
        raise RuntimeError("wrong results")


def spin_ms() -> float:
    """Return how long a fixed piece of Python takes: it tells how busy the machine is."""
    start = clock()
    sum(i * i for i in range(1_000_000))
    return (clock() - start) * 1e3


def tree_pss_mb() -> tuple[float, int]:
    """Return the memory of every process that this one has started, shared pages in proportion, and their number."""
    total = count = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(OSError, StopIteration):
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
            count += 1
    return total / 1024, count


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    print(json.dumps(measure(sys.argv[1], sys.argv[2], float(sys.argv[3]))), flush=True)
