"""A project as users write it: an App in a module, named by -A. Its leases are short, so that tests see them lapse."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nbqueue import App, Task, progress, shared_task
from nbqueue.control import control_command, inspect_command
from nbqueue.exceptions import WorkerShutdown
from nbqueue.execute import BoundTask

# A machine whose clock is wrong, or is set while it runs, once there is a file that says by how much: this module is
# imported before a worker looks at the time.
_true_time = time.time
if skew := float(os.environ.get("TESTS_CLOCK_SKEW_S", "0")):
    time.time = lambda: _true_time() + skew
if clock := os.environ.get("TESTS_CLOCK_FILE"):
    clock_file = Path(clock)
    time.time = lambda: _true_time() + (float(clock_file.read_text() or 0) if clock_file.exists() else 0.0)

app = App("project", set_as_current=False)
app.conf.update(worker_lease=2.0, worker_renewal=0.5)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def note(folder: str, name: str, seconds: float = 0.0) -> str:
    """Leave a file for each run, so that a test can count them."""
    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    time.sleep(seconds)
    return name


@app.task(acks_late=False)
def once(folder: str, name: str, seconds: float = 0.0) -> str:
    """Leave a file for each run, of which there must be one at most."""
    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    time.sleep(seconds)
    return name


@app.task(lock="one at a time")
def alone(folder: str, name: str, seconds: float = 0.0) -> tuple[float, float]:
    """Leave a file for each run; return when it began and ended."""
    began = time.time()
    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    time.sleep(seconds)
    return began, time.time()


@app.task(rate_limit="1200/m")
def measured() -> float:
    """Return when it ran."""
    return time.time()


@app.task
def deadly(folder: str, name: str, times: int) -> str:
    """End its own process the first `times` times."""
    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    if len(list(Path(folder).glob(f"{name}.*"))) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return name


@app.task
def stubborn(folder: str) -> None:
    """Take no notice of being asked to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (Path(folder) / "running").touch()
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            continue


@app.task
def talk(lines: int) -> str:
    for number in range(lines):
        print(f"line {number}")
        progress(number + 1, lines, "talking")
    return "said"


@app.task(time_limit=0.5)
def linger(seconds: float) -> str:
    """Sleep, with a limit that only the worker's project knows."""
    time.sleep(seconds)
    return "stayed"


@app.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=0.01)
def moody(self: BoundTask, times: int) -> str:
    """Fail the first `times` times."""
    if self.request.retries < times:
        raise ConnectionError("not in the mood")
    return f"calm at retry {self.request.retries}"


@app.task(max_retries=2, default_retry_delay=0)
def stuck() -> None:
    """Ask for retries through the task itself, as tasks without `bind` do."""
    stuck.retry(exc=ConnectionError("no way out"))


@app.task(bind=True)
def who(self: BoundTask) -> dict[str, Any]:
    return {"id": self.request.id, "attempt": self.request.attempt, "name": self.name, "queue": self.request.queue}


@inspect_command(args=[("factor", int)])
def load(state: Any, factor: int = 1) -> dict[str, Any]:
    """Say how much there is to do."""
    return {"load": factor * len(state.active()), "worker": state.hostname}


@control_command(name="doze")
def take_long(state: Any, seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


@control_command
def stumble(state: Any) -> None:
    raise RuntimeError("over my own feet")


@control_command
def leave(state: Any) -> None:
    raise WorkerShutdown


@inspect_command
def loaded(state: Any) -> dict[str, bool]:
    """Say what this worker has loaded."""
    return {name: name in sys.modules for name in ("kombu", "redis")}


class Noting(Task):
    """A class of tasks as users write them: an option, something kept between calls, and hooks that leave notes."""

    max_retries = 1
    default_retry_delay = 0.0

    def __init__(self) -> None:
        self.calls = 0

    def before_start(self, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls += 1
        self.leave(args, "before_start")

    def on_success(self, retval: Any, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.leave(args, f"on_success {retval}")

    def on_failure(
        self, exc: BaseException, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: Any
    ) -> None:
        self.leave(args, f"on_failure {exc} {'noted' in str(einfo)}")

    def on_retry(
        self, exc: BaseException, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: Any
    ) -> None:
        self.leave(args, f"on_retry {exc}")

    def after_return(
        self, status: str, retval: Any, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: Any
    ) -> None:
        self.leave(args, f"after_return {status}")

    @staticmethod
    def leave(args: tuple[Any, ...], line: str) -> None:
        with Path(args[0]).open("a") as file:
            file.write(line + "\n")


@app.task(base=Noting, bind=True)
def noted(self: Noting, path: str, outcome: str) -> str:
    """End as `outcome` says: with a value, an error, or an error after a retry."""
    self.leave((path,), f"run {self.request.retries}")
    if outcome == "retry":
        raise self.retry(exc=ValueError("again"))
    if outcome == "fail":
        raise ValueError("no good")
    return outcome


class Adding(Task):
    """A task that is a class."""

    name = "project.adding"

    def run(self, x: int, y: int) -> dict[str, Any]:
        return {"sum": x + y, "id": self.request.id, "name": self.name}


app.register_task(Adding)


@shared_task
def shared_double(x: int) -> int:
    return 2 * x


@app.task
def odd() -> object:
    """Return what JSON has no word for."""
    return object()
