from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from nbqueue import states
from nbqueue.messages import Fact, Facts, Failure, Output, Progress, encode_failure
from nbqueue.status import (
    DONE,
    FAILED,
    KINDS_KEPT,
    LOG_CHUNKS,
    LOG_HEAD,
    OUTPUTS_KEPT,
    QUEUED,
    RUNNING,
    Log,
    MapStatus,
    TaskStatus,
)

BODY = encode_failure(Failure("ValueError", "bad", "Traceback"))


def record(state: str, **more: Any) -> Fact:
    said = {"at": 110.0, "started_at": 100.0, **more}
    return Fact(Facts(kind="record", id="id", state=state, **said), BODY if state == states.FAILURE else b"")


def event(kind: str, data: Output | Progress, *, attempt: int = 1, at: float = 105.0) -> Fact:
    return Fact(Facts(kind=kind, id="id", attempt=attempt, at=at), msgspec.json.encode(data))


def printed(text: str, **more: Any) -> Fact:
    return event("output", Output("stream", "stdout", text), **more)


def test_task_takes_state_place_and_times_when_its_record_comes() -> None:
    status = TaskStatus("id")
    assert status.apply(
        record(states.STARTED, name="train", queue="gpu", worker="w1", child=2, sent_at=90.0, attempt=1)
    )
    assert (status.state, status.name, status.queue, status.worker, status.child) == (
        "STARTED",
        "train",
        "gpu",
        "w1",
        2,
    )
    assert (status.sent_at, status.started_at, status.ended_at, status.ready) == (90.0, 100.0, None, False)


def test_task_ends_and_closes_its_bars_when_a_terminal_record_comes() -> None:
    status = TaskStatus("id", note="No worker listens to queue gpu.", cancelling=True)
    status.apply(event("progress", Progress(bar=0, done=1, total=3)))
    assert status.apply(record(states.SUCCESS, summary="42"))
    assert (status.ready, status.ended_at, status.summary) == (True, 110.0, "42")
    assert (status.note, status.cancelling, status.bars[0].closed) == ("", False, True)


def test_task_keeps_its_failure_when_it_fails() -> None:
    status = TaskStatus("id")
    status.apply(record(states.FAILURE, error="ValueError: bad"))
    assert status.failure == Failure("ValueError", "bad", "Traceback")
    assert status.error == "ValueError: bad"


def test_record_changes_nothing_when_it_comes_again() -> None:
    status = TaskStatus("id")
    assert status.apply(record(states.STARTED, worker="w1", attempt=1))
    assert not status.apply(record(states.STARTED, worker="w1", attempt=1))


@pytest.mark.parametrize("late", [record(states.STARTED, attempt=2), record(states.FAILURE), printed("late")])
def test_terminal_record_stays_when_something_comes_after_it(late: Fact) -> None:
    status = TaskStatus("id")
    status.apply(record(states.SUCCESS, attempt=1))
    assert not status.apply(late)
    assert (status.state, status.log.lines, status.failure) == (states.SUCCESS, 0, None)


def test_event_is_passed_over_when_a_later_attempt_has_begun() -> None:
    status = TaskStatus("id")
    status.apply(event("progress", Progress(bar=0, done=9, total=10, message="first")))
    status.apply(record(states.STARTED, attempt=2))
    assert status.bars == {}
    assert not status.apply(printed("of the first attempt"))
    assert status.log.chunks == []


@pytest.mark.parametrize(("attempt", "state"), [(1, states.STARTED), (0, states.RETRY), (2, states.RETRY)])
def test_record_counts_unless_it_is_of_an_attempt_that_another_followed(attempt: int, state: str) -> None:
    status = TaskStatus("id")
    status.apply(record(states.STARTED, attempt=2))
    status.apply(record(states.RETRY, attempt=attempt))
    assert status.state == state


def test_end_counts_when_it_is_of_an_earlier_attempt() -> None:
    status = TaskStatus("id")
    status.apply(record(states.STARTED, attempt=2))
    assert status.apply(record(states.SUCCESS, attempt=1))
    assert status.ready


def test_bar_keeps_its_start_and_label_when_it_moves() -> None:
    status = TaskStatus("id")
    status.apply(event("progress", Progress(bar=3, done=1, total=9, message="epochs"), at=101.0))
    status.apply(event("progress", Progress(bar=3, done=2, total=9), at=102.0))
    bar = status.bars[3]
    assert (bar.label, bar.done, bar.total, bar.started_at, bar.updated_at) == ("epochs", 2, 9, 101.0, 102.0)


def test_outputs_are_bounded_when_a_task_displays_without_end() -> None:
    status = TaskStatus("id")
    for number in range(OUTPUTS_KEPT + 5):
        status.apply(event("output", Output("display_data", data={"text/plain": str(number)})))
    assert len(status.outputs) == OUTPUTS_KEPT
    assert status.outputs[-1].data == {"text/plain": str(OUTPUTS_KEPT + 4)}


def test_log_is_bounded_and_still_counts_all_when_a_task_prints_without_end() -> None:
    log = Log()
    for number in range(LOG_CHUNKS + 5):
        log.add(float(number), "stdout", f"{number}\n")
    assert len(log.chunks) <= LOG_CHUNKS
    assert log.total == log.lines == LOG_CHUNKS + 5
    assert log.since(log.total - 2)[0] == log.chunks[-2:]
    assert log.since(0) == (log.chunks, log.total)


def test_log_gives_every_chunk_once_when_it_is_read_while_it_grows() -> None:
    log, seen, read = Log(), [], 0

    def write() -> None:
        for number in range(3_000):
            log.add(0.0, "stdout", str(number))

    writer = threading.Thread(target=write)
    writer.start()
    while read < 3_000:
        new, read = log.since(read)
        seen += [text for *_, text in new]
    writer.join()
    assert seen == [str(n) for n in range(3_000)]


def member(index: int, state: str, **more: Any) -> Fact:
    return record(state, index=index, **more)


def test_map_counts_each_member_once_when_records_repeat() -> None:
    status = MapStatus("id", "work", 3)
    assert status.apply(member(1, states.STARTED))
    assert not status.apply(member(1, states.STARTED))
    assert status.apply(member(1, states.SUCCESS))
    assert not status.apply(member(1, states.FAILURE))
    assert list(status.members) == [QUEUED, DONE, QUEUED]
    assert (status.counts[DONE], status.counts[QUEUED], sum(status.counts)) == (1, 2, 3)


def test_map_begins_with_its_first_member_and_ends_with_its_last() -> None:
    status = MapStatus("id", "work", 2)
    status.apply(member(1, states.SUCCESS, started_at=101.0, at=109.0))
    assert (status.started_at, status.ended_at, status.ready) == (101.0, None, False)
    status.apply(member(0, states.REVOKED, started_at=100.0, at=111.0))
    assert (status.started_at, status.ended_at, status.ready) == (100.0, 111.0, True)


@pytest.mark.parametrize("index", [-1, 2])
def test_map_passes_over_a_record_when_it_has_no_such_member(index: int) -> None:
    status = MapStatus("id", "work", 2)
    assert not status.apply(member(index, states.SUCCESS))
    assert status.ended == 0


def test_map_shows_its_own_word_as_running_when_a_state_is_custom() -> None:
    status = MapStatus("id", "work", 1)
    status.apply(member(0, "DOWNLOADING"))
    assert status.members[0] == RUNNING


def test_map_groups_failures_by_error_and_keeps_the_first_index() -> None:
    status = MapStatus("id", "work", 9)
    for index in (7, 2, 5):
        status.apply(member(index, states.FAILURE, error="ValueError: bad"))
    kind = status.kinds["ValueError: bad"]
    assert (kind.count, kind.first, status.counts[FAILED]) == (3, 2, 3)


def test_map_groups_failures_by_type_alone_when_messages_have_no_end() -> None:
    total = KINDS_KEPT + 50
    status = MapStatus("id", "work", total)
    for index in range(total):
        status.apply(member(index, states.FAILURE, error=f"ValueError: {index}"))
    assert len(status.kinds) == KINDS_KEPT + 1
    assert status.kinds["ValueError: other messages"].count == 50


def test_log_keeps_its_beginning_and_its_end_and_says_so_between() -> None:
    log = Log()
    for number in range(10_000):
        log.add(float(number), "stdout", f"{number}\n")
    numbers = [int(text) for _, _, text in log.chunks if text.strip().isdigit()]
    assert numbers[:LOG_HEAD] == list(range(LOG_HEAD))
    assert numbers[-2_000:] == list(range(8_000, 10_000))
    assert "left out" in log.chunks[LOG_HEAD][2]
    assert len(log.chunks) <= LOG_CHUNKS + 1
    assert [text for *_, text in log.since(log.total - 3)[0]] == ["9997\n", "9998\n", "9999\n"]
    assert log.since(5)[0] == log.chunks[LOG_HEAD + 1 :]
    assert log.since(0)[0] == log.chunks
