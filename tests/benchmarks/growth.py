"""How times grow with work, children and data: `python -m tests.benchmarks.growth [--whole]`.

Writes `report/growth.json`, and draws it as `report/growth.svg`. Takes some minutes; the whole range a lot more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from nbqueue import App
from nbqueue.signing import create_key_file
from nbqueue.tasks import Task
from tests.benchmarks.run import REPORT, ROOT, Server, describe
from tests.benchmarks.systems.own import as_in_cells
from tests.helpers import wait_until

NAP_MS: Final = 5.0
NAPS: Final = 400
NOOPS: Final = 4_000
SHORT: Final = 30_000  # tasks
WAIT_S: Final = 900.0
Point = dict[str, float]
clock = time.perf_counter


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth")
    parser.add_argument("--whole", action="store_true", help="up to 1,000,000 tasks and 1 GB")
    parser.add_argument("--short", action="store_true", help="the smallest of each, to see that it works")
    parser.add_argument("--parts", default="tasks,children,sizes", help="what to measure; the rest stays as it was")
    parser.add_argument("--only-draw", action="store_true", help="draw what was measured before")
    parser.add_argument("--to", type=Path, default=REPORT, help="where to write")
    options = parser.parse_args(words)
    found = options.to / "growth.json"
    options.to.mkdir(parents=True, exist_ok=True)
    if not options.only_draw:
        end = 1 if options.short else None
        tasks = [1_000, 3_000, 10_000, 30_000, 100_000, *([300_000, 1_000_000] if options.whole else [])][:end]
        sizes = [1_000, 10_000, 100_000, 10**6, 10**7, 10**8, *([10**9] if options.whole else [])][:end]
        children = [1, 2, 4, 8, 16][:end]
        curves = json.loads(found.read_text()) if found.exists() else {}
        curves["about"] = describe()
        for part in options.parts.split(","):
            curves[part] = {
                "tasks": lambda: growing_tasks(tasks),
                "children": lambda: growing_children(children),
                "sizes": lambda: growing_sizes(sizes),
            }[part]()
        found.write_text(json.dumps(curves, indent=1) + "\n")
    draw(json.loads(found.read_text()), options.to / "growth.svg")
    return 0


# ---- measuring


class Place:
    """A server, a key and workers of one measurement."""

    def __init__(self, directory: Path, url: str) -> None:
        self.key_file = directory / "key"
        create_key_file(self.key_file)
        self.url = url
        self.workers: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NBQUEUE_")},
            "NBQUEUE_HOME": str(directory / "h"),
            "NBQUEUE_BROKER_URL": url,
            "NBQUEUE_KEY_FILE": str(self.key_file),
            "PYTHONPATH": str(ROOT),
        }
        os.environ["NBQUEUE_HOME"] = self.environment["NBQUEUE_HOME"]  # the client shares its files with the workers
        self.app = App("growth", broker=url, key_file=self.key_file, set_as_current=False)
        self.tasks: dict[str, Task] = {name: self.app.task(fn) for name, fn in as_in_cells().items()}

    def start(self, workers: int, children: int) -> None:
        """Start workers, and wait until all have shown themselves."""
        for number in range(workers):
            words = ("worker", "-c", str(children), "-n", f"w{number}")
            command = [sys.executable, "-m", "nbqueue", *words]
            self.workers.append(subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL))
        wait_until(lambda: len(self.app.backend.adverts()) == workers, 60, "the workers to show themselves")
        self.tasks["noop"].map(range(200)).get(timeout=WAIT_S)  # loaded, and known to be quick
        self.tasks["nap"].map([0.1] * 50).get(timeout=WAIT_S)

    def supervisor_mb(self) -> float:
        """Return the memory of the first supervisor."""
        return float(psutil.Process(self.workers[0].pid).memory_info().rss) / 1e6

    def processor_s(self) -> dict[str, float]:
        """Return the processor time so far of all that has a part in a task."""
        worker = psutil.Process(self.workers[0].pid)
        below = [process.cpu_times() for process in worker.children(recursive=True)]
        server = self.app.broker.streams.client.info("cpu")  # type: ignore[attr-defined]
        return {
            "client": time.process_time(),
            "supervisor": sum(worker.cpu_times()[:2]),
            "children": sum(times.user + times.system for times in below),
            "server": float(server["used_cpu_user"]) + float(server["used_cpu_sys"]),
        }

    def server_mb(self) -> float:
        """Return the memory that the server uses."""
        return float(self.app.broker.streams.client.info("memory")["used_memory"]) / 1e6  # type: ignore[attr-defined]

    def stop(self) -> None:
        """End all."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait()
        self.app.close()


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Yield a server of its own."""
    with tempfile.TemporaryDirectory(prefix="nbq-") as directory, Server() as server:
        made = Place(Path(directory), server.url)
        try:
            yield made
        finally:
            made.stop()


def growing_tasks(numbers: Sequence[int]) -> list[Point]:
    """Measure maps of no-ops, all results back, each beside the same workers; of short ones the best of three."""
    points = []
    for number in numbers:
        found = [one_map(number) for _ in range(3 if number <= SHORT else 1)]
        points.append(min(found, key=lambda point: point["us"]))
        print("tasks", points[-1], file=sys.stderr, flush=True)
    return points


def one_map(number: int) -> Point:
    with place() as at:
        at.start(1, 2)
        before, used = at.server_mb(), at.processor_s()
        start = clock()
        results = at.tasks["noop"].map(range(number))
        sent = clock() - start
        values = results.get(timeout=WAIT_S)
        took = clock() - start
        if values != list(range(number)):
            raise RuntimeError("wrong results")
        by = {f"{who}_us": (now - used[who]) / number * 1e6 for who, now in at.processor_s().items()}
        return {
            "n": number,
            **by,
            "us": took / number * 1e6,
            "sent_us": sent / number * 1e6,
            "supervisor_mb": at.supervisor_mb(),
            "client_mb": float(psutil.Process().memory_info().rss) / 1e6,
            "server_bytes": (at.server_mb() - before) / number * 1e6,
        }


def growing_children(numbers: Sequence[int]) -> list[Point]:
    """Measure workers of one child that share a queue, and one worker of as many children."""
    points = []
    for number in numbers:
        point: Point = {"n": number}
        for how, workers, children in (("workers", number, 1), ("children", 1, number)):
            with place() as at:
                at.start(workers, children)
                point[f"{how}_nap"] = makespan(at.tasks["nap"], [NAP_MS] * NAPS) / (NAPS * NAP_MS / 1e3 / number)
                point[f"{how}_noop"] = makespan(at.tasks["noop"], range(NOOPS)) / NOOPS * 1e6
        points.append(point)
        print("children", point, file=sys.stderr, flush=True)
    return points


def makespan(task: Task, arguments: Any) -> float:
    """Return how long a map takes; the better of two."""
    times = []
    for _ in range(2):
        start = clock()
        task.map(arguments).get(timeout=WAIT_S)
        times.append(clock() - start)
    return min(times)


def growing_sizes(sizes: Sequence[int]) -> list[Point]:
    """Measure one call with an argument of so many bytes, never seen before: the best of three."""
    points = []
    with place() as at:
        at.start(1, 2)
        for size in sizes:
            times = [timed(at, size) for _ in range(3 if size < 10**9 else 1)]
            points.append({"n": size, "s": min(times)})
            print("sizes", points[-1], file=sys.stderr, flush=True)
    return points


def timed(at: Place, size: int) -> float:
    data = os.urandom(min(size, 10**7)) * max(1, size // 10**7)
    start = clock()
    if at.tasks["size"].delay(data).get(timeout=WAIT_S) != len(data):
        raise RuntimeError("wrong result")
    return clock() - start


# ---- drawing


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the curves as one picture."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "nbqueue"  # the same picture for the same figures
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    (time_a_task, processor, memory), (naps, noops, calls) = axes
    tasks, children, sizes = found["tasks"], found["children"], found["sizes"]
    curve(time_a_task, tasks, {"us": "all results back", "sent_us": "sent"})
    label(time_a_task, "A map of no-ops: time", "tasks", "µs a task")
    curve(processor, tasks, {f"{who}_us": who for who in ("client", "supervisor", "children", "server")})
    label(processor, "A map of no-ops: processor time", "tasks", "µs a task")
    curve(memory, tasks, {"supervisor_mb": "supervisor", "client_mb": "client, with all results"})
    label(memory, "Memory after a map", "tasks", "MB (RSS)")
    how = {"workers": "workers of one child", "children": "one worker"}
    curve(naps, children, {f"{key}_nap": said for key, said in how.items()})
    naps.axhline(1.0, color="0.7", linewidth=0.8)
    label(naps, f"{NAPS} tasks that sleep {NAP_MS:g} ms", "children in all", "makespan to ideal")
    curve(noops, children, {f"{key}_noop": said for key, said in how.items()})
    label(noops, f"{NOOPS:,} no-ops", "children in all", "µs a task")
    for axes_of_children in (naps, noops):
        axes_of_children.set_xticks([point["n"] for point in children], [f"{point['n']:g}" for point in children])
        axes_of_children.minorticks_off()
    curve(calls, sizes, {"s": "argument there, its length back"})
    label(calls, "One call", "bytes of its argument", "seconds", log=True)
    figure.suptitle("How nbqueue grows", fontsize=12)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def curve(axes: Any, points: Sequence[Point], names: dict[str, str]) -> None:
    for key, said in names.items():
        axes.plot([point["n"] for point in points], [point[key] for point in points], "o-", label=said)


def label(axes: Any, title: str, across: str, up: str, *, log: bool = False) -> None:
    axes.set(title=title, xlabel=across, ylabel=up, xscale="log", yscale="log" if log else "linear")
    if not log:
        axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(visible=True, color="0.93")


if __name__ == "__main__":
    sys.exit(main())
