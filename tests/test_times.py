from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.times import due_time, expiry_time, has_expired

NOW = 1_000_000.0
WEEK_S = 7 * 86_400.0


@pytest.mark.parametrize("countdown", [float("inf"), float("nan"), -float("inf"), 1e300])
def test_countdown_to_no_time_there_is_is_refused(countdown: float) -> None:
    with pytest.raises(ValueError, match="countdown is a number of seconds"):
        due_time(0.0, countdown, None)


def test_due_time_comes_from_countdown_or_eta() -> None:
    assert due_time(NOW, None, None) == 0.0
    assert due_time(NOW, 10, None) == NOW + 10
    assert due_time(NOW, -5, None) == 0.0
    assert due_time(NOW, None, datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=5)) == NOW + 5


def test_due_time_refuses_what_can_not_be_meant() -> None:
    with pytest.raises(TypeError, match="not both"):
        due_time(NOW, 1, datetime.now(UTC))
    with pytest.raises(ValueError, match="nan"):
        due_time(NOW, float("nan"), None)
    with pytest.raises(ImproperlyConfigured, match="no time zone"):
        due_time(NOW, None, datetime(2026, 1, 1))  # noqa: DTZ001 - that is the mistake


def test_instants_may_be_written_in_iso_8601_and_what_is_none_is_refused() -> None:
    written = datetime.fromtimestamp(NOW + 5, UTC).isoformat()
    assert due_time(NOW, None, written) == expiry_time(NOW, written, 0.0) == NOW + 5
    with pytest.raises(ImproperlyConfigured, match="eta is a datetime, or one in ISO 8601, not 'soon'"):
        due_time(NOW, None, "soon")
    with pytest.raises(ImproperlyConfigured, match="expires is a datetime, or one in ISO 8601, or a number of seconds"):
        expiry_time(NOW, cast("Any", timedelta(hours=1)), 0.0)
    with pytest.raises(ValueError, match="countdown is a number of seconds, not '1'"):
        due_time(NOW, cast("Any", "1"), None)


def test_expiry_is_a_week_after_a_task_may_start_unless_it_is_said() -> None:
    assert expiry_time(NOW, None, 0.0) == NOW + WEEK_S
    assert expiry_time(NOW, None, NOW + 100) == NOW + 100 + WEEK_S
    assert expiry_time(NOW, 60, 0.0) == NOW + 60
    assert expiry_time(NOW, datetime.fromtimestamp(NOW + 9, UTC), 0.0) == NOW + 9


@pytest.mark.parametrize(
    ("expires", "retries", "dropped"),
    [(0.0, 0, False), (NOW - 1, 0, True), (NOW - 1, 2, True), (NOW + 1, 0, False), (NOW + WEEK_S, 0, True)],
)
def test_call_is_dropped_once_its_expiry_has_passed(expires: float, retries: int, dropped: bool) -> None:
    later = NOW if expires < NOW + 5 else NOW + 2 * WEEK_S
    assert has_expired(later, expires, NOW - 10, 0.0, retries) is dropped


def test_retry_is_not_dropped_when_its_call_was_sent_without_an_expiry() -> None:
    expires = expiry_time(NOW, None, NOW + 60)
    later = expires + 1
    assert has_expired(later, expires, NOW, NOW + 60, 0)
    assert not has_expired(later, expires, NOW, NOW + 60, 1)
