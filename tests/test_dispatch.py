"""Which child runs what, on a real pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbqueue.deliveries import Delivery
from nbqueue.dispatch import FAST_S, Dispatcher, Held
from nbqueue.messages import Steering
from tests.pools import RunningPool, job


@pytest.fixture
def running() -> Iterator[RunningPool]:
    with RunningPool(2) as pool:
        yield pool


def held(run: Any, *args: Any, name: str = "f") -> Held:
    made = job(run, *args)
    steering = Steering(id=f"id-{made.seq}", nonce="n", task=name, queue="q", sent_at=1.0)
    return Held(made.seq, Delivery("q", "n", f"{made.seq}-0", steering.id, b"", b""), steering, made)


def sleep_until(folder: str, name: str) -> str:
    while not (Path(folder) / name).exists():
        time.sleep(0.01)
    return name


def quick(n: int) -> int:
    return n


def test_new_tasks_go_to_idle_children_one_each(running: RunningPool, tmp_path: Path) -> None:
    work = Dispatcher(running.pool)
    tasks = [held(sleep_until, str(tmp_path), "go") for _ in range(3)]
    for task in tasks:
        work.add(task)
    work.hand_out()
    assert sorted(task.child for task in tasks) == [0, 1, 2]
    assert work.room() == -1
    (tmp_path / "go").touch()
    for task in tasks[:2]:
        running.outcome(task.seq)
        work.finished(task, 1.0)
        work.drop(task)
    work.hand_out()
    assert tasks[2].child
    running.outcome(tasks[2].seq)


def test_quick_tasks_queue_in_a_child_and_slow_ones_do_not(running: RunningPool) -> None:
    work = Dispatcher(running.pool)
    for _ in range(3):
        first = held(quick, 1)
        work.add(first)
        work.hand_out()
        running.outcome(first.seq)
        work.finished(first, FAST_S / 50)
        work.drop(first)
    assert work.room() > 20
    tasks = [held(quick, n) for n in range(20)]
    for task in tasks:
        work.add(task)
    work.hand_out()
    assert {task.child for task in tasks} <= {1, 2}
    assert work.crowded()
    for task in tasks:
        running.outcome(task.seq)


def test_tasks_of_some_milliseconds_are_claimed_ahead_and_go_back_when_they_wait(
    running: RunningPool, tmp_path: Path
) -> None:
    work = Dispatcher(running.pool)
    first = held(quick, 1)
    work.add(first)
    work.hand_out()
    running.outcome(first.seq)
    assert work.room() == 2
    work.finished(first, 0.02)
    work.drop(first)
    assert work.room() == 6, "one for each child, and two ahead of each"
    tasks = [held(sleep_until, str(tmp_path), "go") for _ in range(6)]
    for task in tasks:
        work.add(task)
    work.hand_out()
    assert work.room() == 0
    assert work.surplus() == []
    now = time.monotonic()
    assert work.overdue(now) == []
    assert work.overdue(now + 1.0) == tasks[2:]
    assert work.room() == 0, "nothing more is claimed ahead of tasks that take so long"
    (tmp_path / "go").touch()
    for task in tasks[:2]:
        running.outcome(task.seq)


def test_child_that_overruns_gives_back_what_it_has_not_started(running: RunningPool, tmp_path: Path) -> None:
    work = Dispatcher(running.pool)
    work._means["f"] = FAST_S / 50
    work._mean = FAST_S / 50
    tasks = [held(sleep_until, str(tmp_path), str(n)) for n in range(8)]
    for task in tasks:
        work.add(task)
    work.hand_out()
    assert all(task.child for task in tasks)
    running.turn()
    work.relieve(time.monotonic() + 1)
    assert sum(bool(task.child) for task in tasks) == 2
    assert {task.seq for task in work.ready} == {task.seq for task in tasks if not task.child}
    for n in range(8):
        (tmp_path / str(n)).touch()


def test_nothing_begins_during_a_pause_and_what_had_not_begun_is_first_after_it(
    running: RunningPool, tmp_path: Path
) -> None:
    work = Dispatcher(running.pool)
    work._means["f"] = FAST_S / 50
    work._mean = FAST_S / 50
    tasks = [held(sleep_until, str(tmp_path), "go") for _ in range(6)]
    for task in tasks:
        work.add(task)
    work.hand_out()
    running.turn()
    work.pause()
    assert sum(bool(task.child) for task in tasks) == 2, "what runs goes on"
    waits = [task for task in tasks if not task.child]
    (tmp_path / "go").touch()
    for task in tasks:
        if task.child:
            running.outcome(task.seq)
            work.finished(task, FAST_S / 50)
            work.drop(task)
    work.hand_out()
    assert not any(task.child for task in waits)
    assert work.overdue(time.monotonic() + 60.0) == [], "nor are they given back: that would have to be stored"
    work.go_on()
    work.hand_out()
    assert all(task.child for task in waits)
    for task in waits:
        running.outcome(task.seq)


def test_task_that_waits_for_its_data_is_not_handed_out_before(running: RunningPool) -> None:
    work = Dispatcher(running.pool)
    task = held(quick, 1)
    work.add(task, waits=True)
    work.hand_out()
    assert (task.child, work.room()) == (0, 1)
    work.resume(task)
    work.resume(task)
    work.hand_out()
    assert task.child
    running.outcome(task.seq)


def test_task_is_taken_out_unless_it_runs(running: RunningPool, tmp_path: Path) -> None:
    work = Dispatcher(running.pool)
    tasks = [held(sleep_until, str(tmp_path), "go") for _ in range(3)]
    for task in tasks:
        work.add(task)
    waiting = held(quick, 1)
    work.add(waiting, waits=True)
    work.hand_out()
    assert [work.take_out(task) for task in tasks] == [False, False, True]
    assert work.take_out(waiting)
    assert not work.ready
    assert not work.waiting
    (tmp_path / "go").touch()


def test_what_a_dead_child_had_not_started_is_first_in_line(running: RunningPool) -> None:
    work = Dispatcher(running.pool)
    tasks = [held(quick, n) for n in range(3)]
    for task in tasks:
        work.add(task)
        task.child = 1
    work.ready.clear()
    later = held(quick, 9)
    work.add(later)
    work.child_ended(1, [task.seq for task in tasks])
    assert [task.seq for task in work.ready] == [*(task.seq for task in tasks), later.seq]
    assert all(not task.child for task in tasks)


def test_started_tasks_are_told_once(running: RunningPool, tmp_path: Path) -> None:
    work = Dispatcher(running.pool)
    task = held(sleep_until, str(tmp_path), "go")
    work.add(task)
    work.hand_out()
    later = time.monotonic() + 1
    assert [one for one, _ in work.started(later, 0.1)] == [task]
    assert work.started(later, 0.1) == []
    (tmp_path / "go").touch()


def test_task_that_is_to_run_alone_waits_for_the_others_and_nothing_runs_beside_it(
    running: RunningPool, tmp_path: Path
) -> None:
    work = Dispatcher(running.pool)
    before, suspect, another, behind = (held(sleep_until, str(tmp_path), name) for name in ("a", "b", "c", "d"))
    suspect.alone = another.alone = True
    work.add(before)
    work.hand_out()
    for task in (suspect, another, behind):
        work.add(task)
    assert work.room() == 0
    work.hand_out()
    assert work.surplus() == [another, behind], "who would be charged with its end goes back"
    for task in (another, behind):
        work.drop(task)
    assert (before.child, suspect.child) == (1, 0)
    (tmp_path / "a").touch()
    running.outcome(before.seq)
    work.finished(before, 1.0)
    work.drop(before)
    work.hand_out()
    assert suspect.child
    assert work.room() == 0
    (tmp_path / "b").touch()
    running.outcome(suspect.seq)
    work.finished(suspect, 1.0)
    work.drop(suspect)
    assert work.room() == 2
