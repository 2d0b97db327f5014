"""The report of the comparison, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tests.benchmarks.peers import SYSTEMS

Figures = dict[str, float]
Runs = dict[str, list[Figures]]  # by system, a round each

BY_NAME: Final = "nbqueue, by name"
OURS: Final = ("nbqueue", "nbqueue, file", BY_NAME, "nbqueue, RabbitMQ", "nbqueue, embedded")
LIMIT: Final = "ProcessPoolExecutor"


class Row(NamedTuple):
    """One kind of figure.

    Args:
        title: what was measured, and its unit after the last comma.
        figure: its name.
        digits: shown after the point.
        higher_is_better: whether it is a rate.
        ours: which of ours stands for it.
        goal: in words.
    """

    title: str
    figure: str
    digits: int
    higher_is_better: bool = False
    ours: str = "nbqueue"
    goal: str = ""


ROWS: Final = (
    Row("map of no-ops, all results back, tasks/s", "map_rate", 0, True, goal="10 x the best peer, 2 x the pool"),
    Row("loop of `delay()`, each confirmed, sent/s", "send_rate", 0, True, goal="2 x huey, 10 x Celery"),
    Row("loop of `delay()`, tasks by name, sent/s", "send_rate", 0, True, BY_NAME, "2 x huey, 10 x Celery"),
    Row("loop until all results are back, tasks/s", "send_all_rate", 0, True, goal="2 x huey, 10 x Celery"),
    Row("loop in `app.pipeline()`, all results back, tasks/s", "pipeline_rate", 0, True, goal="2 x the pool"),
    Row("loop of `Executor.submit`, all results back, tasks/s", "submit_rate", 0, True, goal="2 x the pool"),
    Row("chord over 1,000 no-ops, ms", "chord_ms", 0, goal="0.5 x SAQ"),
    Row("round trip p50, ms", "p50_ms", 2, goal="0.5 x Ray"),
    Row("round trip p50, tasks by name, ms", "p50_ms", 2, ours=BY_NAME, goal="0.5 x Ray"),
    Row("round trip p99, ms", "p99_ms", 2),
    Row("send in bulk, no worker, messages/s", "bulk_rate", 0, True, goal="2 x RQ"),
    Row("send one by one, no worker, messages/s", "one_rate", 0, True),
    Row("server's memory for one of a bulk, bytes", "bulk_bytes", 0, goal="0.5 x Celery"),
    Row("server's memory for one sent alone, bytes", "one_bytes", 0, goal="1 x Celery"),
    Row("the same, tasks by name, bytes", "one_bytes", 0, ours=BY_NAME, goal="1 x Celery"),
    Row("a backlog worked off, tasks/s", "drain_rate", 0, True, goal="3 x huey"),
    Row("memory of the workers at that (RSS), MB", "drain_rss_mb", 0),
    Row("200 tasks of 20 ms of CPU, time to ideal", "makespan", 2, goal="1.08"),
    Row("100 MB array in and its sum out, s", "large_s", 2, ours="nbqueue, embedded", goal="1 x Ray"),
    Row("200 tasks that share a 20 MB array, s", "shared_s", 2, ours="nbqueue, embedded", goal="1 x Ray"),
    Row("worker's start to the first result, s", "cold_s", 2, goal="1.2 x dramatiq"),
    Row("idle memory of supervisor and children (PSS), MB", "pss_mb", 0, goal="75"),
    Row("idle memory of supervisor and children (RSS), MB", "rss_mb", 0),
    Row("import to the first result, nothing running, s", "first_s", 2, ours="nbqueue, embedded", goal="0.7 x Dask"),
    Row("a map of 10,000 drawn, CPU time of the drawing, %", "draw_percent", 2, goal="5"),
    Row("messages of it to the page, 1/s", "draw_messages", 1, goal="10"),
)
COUNTS: Final = {
    "map_n": "tasks in a map {:,.0f}",
    "send_n": "in a loop {:,.0f}",
    "drain_n": "worked off {:,.0f}",
    "left": "left when time was over {:,.0f}",
    "twice": "run twice {:,.0f}",
}
VIEW_NOTES: Final = ("draw_kernel_percent", "draw_iopub_percent", "draw_bytes", "draw_s")
ABOUT: Final = """# Speed, beside others

`python -m tests.benchmarks.run` measured this. Absolute figures are this machine's, and others worked on it meanwhile:
only ratios within a round mean something, and such below 1.5 little. Figures are medians, in brackets the lowest and
the highest."""


def text(runs: Runs, about: str) -> str:
    """Return the report."""
    parts = [ABOUT, "", about, "", "## Against the best peer, and against the goal", "", *summary(runs)]
    parts += ["", "## All figures", "", *table(runs), "", "## How each was driven", "", *details(runs)]
    return "\n".join([*parts, ""])


def summary(runs: Runs) -> Iterator[str]:
    """Yield, for each row, ours, the best peer, the limit, and how ours stands to the goal."""
    yield "| work | ours | best peer | ours : best peer | pool | ours : pool | goal | is |"
    yield "| --- | ---: | --- | ---: | ---: | ---: | --- | --- |"
    for row in ROWS:
        ours = values(runs, row.ours, row)
        if not any(value is not None for value in ours):
            yield f"| {row.title} | not measured | | | | | {row.goal} | |"
            continue
        best = best_peer(runs, row)
        peer = f"{best} {spread(values(runs, best, row), row.digits)}" if best else ""
        pool = spread(values(runs, LIMIT, row), row.digits)
        of_best, of_pool = (spread(ratios(runs, row, name), 2) for name in (best, LIMIT))
        cells = (spread(ours, row.digits), peer, of_best, pool, of_pool, row.goal, judged(runs, row))
        yield f"| {row.title} | {' | '.join(cells)} |"


def judged(runs: Runs, row: Row) -> str:
    """Return the ratio to each part of the goal, and whether it is kept."""
    said = []
    for part in filter(None, row.goal.split(", ")):
        factor, _, name = part.partition(" x ")
        name = {"the pool": LIMIT, "the best peer": best_peer(runs, row)}.get(name, name)
        found = middle(ratios(runs, row, name) if name else values(runs, row.ours, row))
        if found is None:
            said.append("?")
        else:
            kept = found >= float(factor) if row.higher_is_better else found <= float(factor)
            said.append(f"{found:,.2f} {'✓' if kept else '✗'}")
    return ", ".join(said)


def best_peer(runs: Runs, row: Row) -> str:
    """Return which of the others is best at something; empty if none was measured."""
    others = [name for name in runs if name not in (*OURS, LIMIT)]
    if row.figure == "send_rate":
        others = [name for name in others if SYSTEMS[name].server]  # the rest confirms nothing
    found = {name: middle(values(runs, name, row)) for name in others}
    ranked = sorted((value, name) for name, value in found.items() if value is not None)
    return (ranked[-1 if row.higher_is_better else 0][1]) if ranked else ""


def values(runs: Runs, name: str, row: Row) -> list[float | None]:
    """Return a system's figure in each round; None where it has none."""
    return [figures.get(row.figure) for figures in runs.get(name, ())]


def ratios(runs: Runs, row: Row, name: str) -> list[float | None]:
    """Return ours to another's within each round."""
    pairs = zip(values(runs, row.ours, row), values(runs, name, row), strict=False)
    return [a / b if a is not None and b else None for a, b in pairs]


def table(runs: Runs) -> Iterator[str]:
    """Yield the table of all systems."""
    yield f"| work | {' | '.join(SYSTEMS)} |"
    yield "| --- |" + " ---: |" * len(SYSTEMS)
    for row in ROWS:
        if row.ours == BY_NAME:  # it has a column here
            continue
        yield f"| {row.title} | {' | '.join(spread(values(runs, name, row), row.digits) for name in SYSTEMS)} |"
    for name in SYSTEMS:
        if name not in runs:
            yield f"| {name} was not measured |" + " |" * len(SYSTEMS)


def details(runs: Runs) -> Iterator[str]:
    """Yield how each system was driven, and how much it did."""
    for name, done in runs.items():
        yield f"* {name}: {SYSTEMS[name].about}."
        found = {key: middle([figures.get(key) for figures in done]) for key in COUNTS}
        if counted := [COUNTS[key].format(value) for key, value in found.items() if value is not None]:
            yield f"  {', '.join(counted).capitalize()}."
    rounds = [figures for done in runs.values() for figures in done]
    spins = [value for figures in rounds for key, value in figures.items() if key.endswith("_spin_ms")]
    if spins:
        yield f"* How busy the machine was: a fixed piece of Python took {spread(list(spins), 0)} ms."
    own = {key: middle([f.get(key) for f in runs.get("nbqueue", ())]) for key in VIEW_NOTES}
    if all(value is not None for value in own.values()):
        kernel, iopub, size, took = own.values()
        yield (
            f"* The map that was drawn took {took:.1f} s. All of the kernel used {kernel:.1f} % of that as CPU time of"
            f" one core, most of it to check and fold facts, and its thread that sends to the page {iopub:.1f} %."
            f" The page got {size:,.0f} bytes."
        )


def middle(found: Sequence[float | None]) -> float | None:
    there = [value for value in found if value is not None]
    return statistics.median(there) if there else None


def spread(found: Sequence[float | None], digits: int) -> str:
    there = [value for value in found if value is not None]
    if not there:
        return ""
    mid, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(there), min(there), max(there)))
    return mid if len(there) == 1 else f"{mid} ({low} to {high})"
