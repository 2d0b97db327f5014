"""Where the time of a task goes: `python -m tests.benchmarks.costs [--repeats N]`.

Prints a table of the processor time that each process spends on a task, in microseconds, for the ways of sending one.
Client, server, supervisor and two children share the machine's cores, so the sum over these is what bounds the rate.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from tests.benchmarks.growth import WAIT_S, Place, place
from tests.benchmarks.run import describe

WHO: Final = ("client", "server", "supervisor", "children")
clock = time.perf_counter
Row = dict[str, float]


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.costs")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of which the cheapest is shown")
    parser.add_argument("--tasks", type=int, default=4_000, metavar="N", help="in each; five times as many in a map")
    options = parser.parse_args(words)
    print(describe(f"the cheapest of {options.repeats} "))
    print(f"\n| µs a task | {' | '.join(WHO)} | all | wall clock |")
    print("| --- " + "| ---: " * (len(WHO) + 2) + "|")
    with place() as at:
        at.start(1, 2)
        for name, (number, work) in ways(at, options.tasks).items():
            rows = [measured(at, number, work) for _ in range(options.repeats)]
            best = min(rows, key=lambda row: row["all"])
            wall = min(row["wall"] for row in rows)
            print(f"| {name} | {' | '.join(f'{best[who]:,.0f}' for who in (*WHO, 'all'))} | {wall:,.0f} |", flush=True)
    return 0


def ways(at: Place, number: int) -> dict[str, tuple[int, Callable[[int], list[int]]]]:
    """Return the ways of sending no-ops: how many, and what sends that many and returns their values."""
    noop = at.tasks["noop"]

    def pipeline(count: int) -> list[int]:
        with at.app.pipeline():
            sent = [noop.delay(n) for n in range(count)]
        return [result.get(timeout=WAIT_S) for result in sent]

    def loop(count: int) -> list[int]:
        return [result.get(timeout=WAIT_S) for result in [noop.delay(n) for n in range(count)]]

    return {
        "a map": (5 * number, lambda count: list(noop.map(range(count)).get(timeout=WAIT_S))),
        "a loop of `delay()` in a pipeline, all results back": (number, pipeline),
        "a loop of `delay()`, all results back": (number, loop),
        "one round trip after the other": (
            number // 4,
            lambda count: [noop.delay(n).get(timeout=WAIT_S) for n in range(count)],
        ),
    }


def measured(at: Place, number: int, work: Callable[[int], list[int]]) -> Row:
    """Return what a task has cost, and how long it took, in microseconds."""
    before, start = at.processor_s(), clock()
    if work(number) != list(range(number)):
        raise RuntimeError("wrong results")
    took, now = clock() - start, at.processor_s()
    row = {who: (now[who] - before[who]) / number * 1e6 for who in WHO}
    return {**row, "all": sum(row.values()), "wall": took / number * 1e6}


if __name__ == "__main__":
    sys.exit(main())
