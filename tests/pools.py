"""What tests of children share: a pool with its loop, and jobs for it."""

from __future__ import annotations

import itertools
import os
import selectors
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from nbqueue import serialization
from nbqueue.config import child_environment
from nbqueue.forkserver import ChildSettings
from nbqueue.messages import ChildTask, Failure, Output, Progress, Steering, encode_steering
from nbqueue.pool import Died, Finished, Happening, Job, Pool, Ready, Told
from tests.helpers import wait_until

START_S: Final = 20.0
_numbers = itertools.count(1)


def child_task(run: Callable[..., Any] | str, *args: Any, seq: int = 0, **options: Any) -> tuple[ChildTask, bytes]:
    """Return a call as a child gets it, and the code it names."""
    code = b"" if isinstance(run, str) else serialization.dumps_code(run)
    name = run if isinstance(run, str) else f"tests.{run.__name__}"
    digest = serialization.digest(code) if code else ""
    bind = options.pop("bind", False)
    seq = seq or next(_numbers)
    steering = Steering(
        id=f"id-{seq}", nonce="n", task=name, queue="nbqueue", sent_at=time.time(), code=digest, bind=bind
    )
    task = ChildTask(
        seq=seq,
        attempt=options.pop("attempt", 1),
        id=steering.id,
        task=name,
        code=digest,
        index=-1,
        steering=encode_steering(steering),
        args=serialization.dumps_args(args, options.pop("kwargs", {})),
        **options,
    )
    return task, code


def job(run: Callable[..., Any] | str, *args: Any, **options: Any) -> Job:
    """Return a call as a job of a pool."""
    task, code = child_task(run, *args, **options)
    return Job(task.seq, task, code)


class RunningPool:
    """A pool with the loop that a supervisor has, and all that it has said so far."""

    def __init__(self, size: int = 1, **options: Any) -> None:
        self.selector = selectors.DefaultSelector()
        variables = options.pop("variables", dict(os.environ))
        environment = child_environment(variables, size)
        started = options.pop("started", None)
        settings = ChildSettings(**options)
        self.pool = Pool(size, self.selector, environment=environment, settings=settings, started=started)
        self.ready: list[int] = []
        self.told: list[Told] = []
        self.died: list[Died] = []
        self.finished: dict[int, Finished] = {}

    def __enter__(self) -> Self:
        self.pool.start()
        self.until(lambda: self.all_ready, "all children to be ready", START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.stop(2.0)
        self.selector.close()

    @property
    def all_ready(self) -> bool:
        # a child says that it is ready on one socket, and the server that it has forked it on another
        children = self.pool.children.values()
        return len(children) == self.pool.size and all(child.ready and child.pid for child in children)

    def turn(self, timeout_s: float = 0.02) -> None:
        """Read what there is."""
        for key, _ in self.selector.select(timeout_s):
            for happening in self.pool.events(key):
                self._take(happening)

    def until(self, predicate: Callable[[], Any], what: str, timeout_s: float = 10.0) -> None:
        """Turn until `predicate` holds."""

        def look() -> bool:
            if not predicate():
                self.turn()
            return bool(predicate())

        wait_until(look, timeout_s, what, interval_s=0.0)

    def send(self, run: Callable[..., Any] | str, *args: Any, child: int = 1, **options: Any) -> int:
        """Send a call; return its number."""
        made = job(run, *args, **options)
        assert self.pool.send(child, made)
        return made.seq

    def outcome(self, seq: int) -> Finished:
        """Wait for a task's end."""
        self.until(lambda: seq in self.finished, f"task {seq} to end")
        return self.finished[seq]

    def value(self, seq: int) -> Any:
        """Wait for a task's value."""
        outcome = self.outcome(seq).outcome
        assert outcome.state == "SUCCESS", outcome.error
        return serialization.loads(outcome.body)

    def failure(self, seq: int) -> Failure:
        """Wait for a task's failure."""
        outcome = self.outcome(seq).outcome
        assert outcome.state == "FAILURE", outcome.state
        return msgspec.msgpack.decode(outcome.body, type=Failure)

    def call(self, run: Callable[..., Any] | str, *args: Any, **options: Any) -> Any:
        """Send a call and wait for its value."""
        return self.value(self.send(run, *args, **options))

    def outputs(self, seq: int) -> list[Output]:
        """Return what a task has put out so far."""
        events = [told.event for told in self.told if told.event.seq == seq and told.event.kind == "output"]
        return [msgspec.json.decode(event.data, type=Output) for event in events]

    def progress(self, seq: int) -> list[Progress]:
        """Return the progress a task has told so far."""
        events = [told.event for told in self.told if told.event.seq == seq and told.event.kind == "progress"]
        return [msgspec.json.decode(event.data, type=Progress) for event in events]

    def _take(self, happening: Happening) -> None:
        match happening:
            case Ready(child):
                self.ready.append(child)
            case Finished():
                assert happening.outcome.seq not in self.finished
                self.finished[happening.outcome.seq] = happening
            case Told():
                self.told.append(happening)
            case Died():
                self.died.append(happening)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that waits to be reaped doesn't."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
