"""More bytes than a message or a command may have: refused by name, or sent in parts."""

from __future__ import annotations

import time

import pytest

from nbqueue.exceptions import PayloadTooLarge, TaskError
from nbqueue.messages import MAX_MESSAGE_BYTES, MAX_STEERING_BYTES
from tests.faults.test_messages import still_works
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(90)]

MB = 1 << 20


def zeros(size_bytes: int) -> bytes:
    return bytes(size_bytes)


def late_zeros(size_bytes: int) -> bytes:
    time.sleep(1.0)
    return bytes(size_bytes)


def fail_with_data(size_bytes: int) -> None:
    raise ValueError("x" * size_bytes)


def length_of(data: bytes) -> int:
    return len(data)


def test_result_larger_than_a_message_arrives(site: Site) -> None:
    site.worker()
    assert site.app.task(zeros, by_value=True).delay(MAX_MESSAGE_BYTES + MB).get(timeout=60).count(0) > 67_000_000
    assert still_works(site)


@pytest.mark.slow
def test_error_larger_than_a_message_is_told_without_its_data(site: Site) -> None:
    site.worker()
    with pytest.raises(Exception, match="xxx") as caught:
        site.app.task(fail_with_data, by_value=True).delay(70 * MB).get(timeout=60)
    assert isinstance(caught.value, (ValueError, TaskError))
    assert len(str(caught.value)) < MB
    assert still_works(site)


@pytest.mark.slow
def test_large_results_kept_during_an_outage_are_stored_in_parts(site: Site) -> None:
    site.server_says("CONFIG", "SET", "proto-max-bulk-len", str(100 * MB))
    worker = site.worker(concurrency=8)
    results = site.app.task(late_zeros, by_value=True).map([16 * MB] * 8)
    wait_until(lambda: site.app.broker.size("nbqueue").claimed == 8, 10, "them to be claimed")
    site.server.sigstop()
    wait_until(lambda: "the server can't be used" in worker.log.read_text(), 30, "the worker to notice")
    site.server.sigcont()
    assert [len(value) for value in results.get(timeout=60)] == [16 * MB] * 8
    assert worker.process.poll() is None


@pytest.mark.slow
def test_map_of_large_arguments_is_sent_in_parts(site: Site) -> None:
    site.server_says("CONFIG", "SET", "client-query-buffer-limit", str(100 * MB))
    site.worker()
    results = site.app.task(length_of, by_value=True).map([bytes(16 * MB)] * 10)
    assert results.get(timeout=60) == [16 * MB] * 10


def fail_with_wide_text(name: str) -> None:
    raise ValueError("\U0001f600" * 1_000)


def test_names_too_long_for_a_signed_text_are_refused_before_anything_is_sent(site: Site) -> None:
    site.worker()
    task = site.app.task(fail_with_wide_text, by_value=True)
    long = "n" * MAX_STEERING_BYTES
    for send in (
        lambda: task.apply_async(("x",), shadow=long),
        lambda: task.apply_async(("x",), task_id=long),
        lambda: site.app.task(fail_with_wide_text, name=long, by_value=True).map(["x"]),
        (task.s("x").set(task_id=long) | task.s()).apply_async,
    ):
        with pytest.raises(PayloadTooLarge, match="is the most; shorten them"):
            send()
    # What can be sent has an end that can be read, whatever its error.
    result = task.apply_async(("x",), shadow="n" * (MAX_STEERING_BYTES - 700))
    with pytest.raises(ValueError, match="\U0001f600"):
        result.get(timeout=20)
