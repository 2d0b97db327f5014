from __future__ import annotations

import logging
import threading
import time

import msgspec
import pytest

from nbqueue import states
from nbqueue.exceptions import UnknownTask
from nbqueue.messages import Fact, Facts, Output, Steering
from nbqueue.watched import WatchedMap, WatchedTask
from tests.helpers import wait_until


def record(state: str, *, id_: str = "t", index: int = -1) -> Fact:
    return Fact(Facts(kind="record", id=id_, at=1.0, state=state, index=index, attempt=1), b"")


def output(text: str) -> Fact:
    return Fact(Facts(kind="output", id="t", at=1.0, attempt=1), msgspec.json.encode(Output("stream", "stdout", text)))


def group(size: int) -> WatchedMap:
    return WatchedMap(Steering(id="g", nonce="n", task="f", queue="q", sent_at=1.0, size=size))


def test_task_ends_with_its_first_terminal_record_and_takes_no_other() -> None:
    task = WatchedTask("t")
    task.add(record(states.STARTED))
    assert not task.ended
    task.add(record(states.SUCCESS))
    task.add(record(states.FAILURE))
    assert task.fact is not None
    assert task.fact.facts.state == states.SUCCESS


def test_status_is_folded_from_what_was_heard_before_anybody_looked() -> None:
    task = WatchedTask("t")
    task.add(output("one\n"))
    task.add(record(states.STARTED))
    task.add(output("two\n"))
    assert [text for *_, text in task.status.log.chunks] == ["one\n", "two\n"]
    task.add(output("three\n"))
    assert task.status.log.lines == 3


def test_wait_ends_at_once_in_every_thread_when_the_task_does() -> None:
    task = WatchedTask("t")
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(task.wait(20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: task.waiters == 8, 5, "all to wait")
    task.add(record(states.SUCCESS))
    for thread in threads:
        thread.join(5)
    assert done == [True] * 8
    assert task.waiters == 0
    assert task.wait(0)


def test_wait_that_runs_out_says_so() -> None:
    assert not WatchedTask("t").wait(0.01)


def test_end_without_a_record_ends_the_wait() -> None:
    task = WatchedTask("t")
    task.fail(UnknownTask("gone"))
    assert task.wait(0)
    assert task.fact is None


def test_callbacks_are_called_at_changes_until_they_are_ended() -> None:
    task = WatchedTask("t")
    heard: list[int] = []
    end = task.subscribe(lambda: heard.append(1))
    task.add(record(states.STARTED))
    end()
    end()
    task.add(record(states.SUCCESS))
    assert heard == [1]


def test_callback_for_the_end_is_called_once_also_when_it_comes_late() -> None:
    task = WatchedTask("t")
    heard: list[str] = []
    task.when_ended(lambda: heard.append("early"))
    task.add(record(states.STARTED))
    assert heard == []
    task.add(record(states.SUCCESS))
    task.when_ended(lambda: heard.append("late"))
    task.add(record(states.SUCCESS))
    assert heard == ["early", "late"]


def test_wait_ends_after_those_who_wanted_to_hear_of_the_end_have_heard() -> None:
    task = WatchedTask("t")
    heard: list[bool] = []

    def slow() -> None:
        heard.append(task.wait(5))  # the end is there for who is told of it
        time.sleep(0.2)
        heard.append(True)

    task.when_ended(slow)
    telling = threading.Thread(target=lambda: task.add(record(states.SUCCESS)))
    telling.start()
    wait_until(lambda: heard, 5, "the callback")
    assert task.wait(5)
    assert heard == [True, True]
    telling.join()


def test_callback_that_comes_while_others_are_told_is_called_too() -> None:
    task = WatchedTask("t")
    heard: list[str] = []
    task.when_ended(lambda: task.when_ended(lambda: heard.append("inner")))
    task.add(record(states.SUCCESS))
    assert heard == ["inner"]
    assert task.wait(0)


def test_callback_that_fails_keeps_nobody_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    task = WatchedTask("t")
    heard: list[int] = []
    task.subscribe(lambda: heard.append(1 // 0))
    task.subscribe(lambda: heard.append(1))
    with caplog.at_level(logging.ERROR):
        task.add(record(states.SUCCESS))
    assert heard == [1]
    assert "ZeroDivisionError" in caplog.text


def wanted(task: WatchedTask) -> bool:
    return task.wanted


def test_only_what_somebody_looks_at_or_waits_for_is_wanted() -> None:
    task = WatchedTask("t")
    seen = [wanted(task)]
    end = task.subscribe(lambda: None)
    seen.append(wanted(task))
    end()
    seen.append(wanted(task))
    task.when_ended(lambda: None)
    seen.append(wanted(task))
    task.add(record(states.SUCCESS))
    seen.append(wanted(task))
    assert seen == [False, True, False, True, False]


def note(task: WatchedTask) -> tuple[str, bool]:
    return task.status.note, task.status.lost


def test_note_goes_when_there_is_news() -> None:
    task = WatchedTask("t")
    assert note(task) == ("", False)
    task.tell("no worker", lost=True)
    assert note(task) == ("no worker", True)
    task.add(record(states.STARTED))
    assert note(task) == ("", False)


def test_map_ends_when_every_member_has_and_keeps_their_order() -> None:
    watched = group(3)
    watched.add_all([record(states.SUCCESS, index=2), record(states.FAILURE, index=0)])
    assert (watched.arrived, watched.failed, watched.ended) == ([2, 0], 1, False)
    assert watched.missing() == ["g-1"]
    watched.add_all([record(states.SUCCESS, index=1)])
    assert watched.ended
    assert watched.missing() == []


def test_member_counts_once_however_often_it_is_told_and_a_stranger_never() -> None:
    watched = group(2)
    for _ in range(3):
        watched.add_all(
            [record(states.FAILURE, index=0), record(states.SUCCESS, index=7), record(states.STARTED, index=1)]
        )
    assert (watched.arrived, watched.failed) == ([0], 1)
    assert watched.status.counts[1] == 0  # nobody looked when it was told
    watched.add_all([record(states.STARTED, index=1)])
    assert watched.status.counts[1] == 1


def test_map_of_nothing_has_ended() -> None:
    assert group(0).ended


def test_news_of_a_large_map_takes_time_that_grows_with_it_alone() -> None:
    watched = group(50_000)
    facts = [record(states.SUCCESS, index=index) for index in range(50_000)]
    _ = watched.status
    began = time.process_time()
    for start in range(0, 50_000, 500):
        watched.add_all(facts[start : start + 500])
    assert watched.ended
    assert time.process_time() - began < 5  # quadratic, it would take minutes


def test_member_whose_end_the_map_has_not_heard_of_is_left_as_it_is_when_it_is_not_sent_again() -> None:
    watched = group(2)
    watched.add_all([record(states.FAILURE, id_="g-0", index=0)])
    watched.begin_again([0, 1])
    assert watched.missing() == ["g-0", "g-1"]
    watched.resume_end([0, 1])
    assert (watched.missing(), watched.failures()) == (["g-1"], [0])
