"""When a guard looks, and at what."""

from __future__ import annotations

import os
import selectors
from pathlib import Path

import pytest

from nbqueue.deliveries import Delivery
from nbqueue.dispatch import Dispatcher, Held
from nbqueue.guard import SAMPLE_S, Guard
from nbqueue.limits import Limits
from nbqueue.messages import ChildTask, Steering
from nbqueue.pool import Job, Pool
from tests.pools import RunningPool, job

NOW = 1_000.0


def held_with(limits: Limits, made: Job | None = None) -> Held:
    """Return a task that is held, with these limits."""
    s = Steering(id="id", nonce="n", task="demo", queue="q", sent_at=0.0)
    made = made or Job(1, ChildTask(1, 1, "id", "demo", "", -1, b"", b""), b"")
    return Held(made.seq, Delivery("q", "n", "1-1", "id", b"", b""), s, made, limits=limits)


@pytest.fixture
def guard() -> Guard:
    return Guard(Dispatcher(Pool(1, selectors.DefaultSelector(), environment=os.environ)))


@pytest.mark.parametrize(
    ("limits", "wait_s"),
    [
        (Limits(time_limit=5.0), 3.0),
        (Limits(time_limit=5.0, soft_time_limit=4.0), 2.0),
        (Limits(time_limit=5.0, memory_limit=1), 0.0),
        (Limits(memory_limit=1), 0.0),
    ],
)
def test_guard_waits_until_the_next_limit_or_look(guard: Guard, limits: Limits, wait_s: float) -> None:
    assert guard.wait_s(NOW) is None
    guard.began(held_with(limits), NOW - 2.0)
    assert guard.wait_s(NOW) == wait_s


def test_guard_looks_at_memory_four_times_a_second(guard: Guard) -> None:
    guard.began(held_with(Limits(memory_limit=1)), NOW)
    assert guard.wait_s(NOW) == SAMPLE_S == 0.25


def test_guard_has_nothing_to_wait_for_when_a_task_is_being_ended(guard: Guard) -> None:
    held = held_with(Limits(time_limit=5.0))
    guard.began(held, NOW)
    held.fault = ("TimeLimitExceeded", "")
    assert guard.wait_s(NOW) is None


def test_guard_forgets_what_no_child_is_at(guard: Guard) -> None:
    held = held_with(Limits(time_limit=5.0))
    guard.began(held, NOW)
    guard.look(NOW + 60.0)
    assert held.fault is None
    assert guard.wait_s(NOW) is None


def test_guard_takes_back_what_waits_behind_a_task_that_it_ends(tmp_path: Path) -> None:
    def linger(begun: str) -> None:
        import time
        from pathlib import Path

        Path(begun).touch()
        time.sleep(600)

    with RunningPool(1) as running:
        work = Dispatcher(running.pool)
        guard = Guard(work)
        first, second = (held_with(Limits(time_limit=5.0), job(linger, str(tmp_path / name))) for name in "ab")
        for held in (first, second):
            work.add(held)
            assert running.pool.send(1, held.job)
            held.child = 1
        work.ready.clear()
        running.until((tmp_path / "a").exists, "the first to begin")
        guard.began(first, NOW)
        guard.look(NOW + 4.9)
        faults = [first.fault]
        guard.look(NOW + 5.0)
        faults += [first.fault, second.fault]
        assert faults == [None, ("TimeLimitExceeded", "ran past its limit of 5 s"), None]
        assert list(work.ready) == [second]
        running.until(lambda: running.died, "the child to be ended")
        assert (running.died[0].started, running.died[0].unstarted) == (first.seq, ())
        assert not (tmp_path / "b").exists()
