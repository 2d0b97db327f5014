from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.times import due_time, expiry_time

NOW = 1_000_000.0
WEEK_S = 7 * 86_400.0


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


def test_expiry_is_a_week_after_a_task_may_start_unless_it_is_said() -> None:
    assert expiry_time(NOW, None, 0.0) == NOW + WEEK_S
    assert expiry_time(NOW, None, NOW + 100) == NOW + 100 + WEEK_S
    assert expiry_time(NOW, 60, 0.0) == NOW + 60
    assert expiry_time(NOW, datetime.fromtimestamp(NOW + 9, UTC), 0.0) == NOW + 9
