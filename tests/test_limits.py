"""Limits: whose counts, and what may be one."""

from __future__ import annotations

import math

import pytest

from nbqueue.config import Settings
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.limits import NO_LIMITS, Limits, seconds, size_bytes


def test_own_limits_win_one_by_one() -> None:
    worker = Limits(time_limit=10, soft_time_limit=8)
    assert worker.with_those_of(Limits(soft_time_limit=3)) == Limits(10, 3)
    assert worker.with_those_of(Limits(time_limit=5)) == Limits(5, 8)
    assert worker.with_those_of(NO_LIMITS) is worker


@pytest.mark.parametrize(
    ("value", "size"),
    [(None, 0), (2_000, 2_000), ("300", 300), ("2 GB", 2_000_000_000), ("1.5 GiB", 3 << 29), ("64k", 64_000)],
)
def test_size_is_a_number_of_bytes_or_a_text_with_a_unit(value: object, size: int) -> None:
    assert size_bytes("memory_limit", value) == size


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "2 XB", "", "GB"])
def test_what_is_no_size_is_refused_and_named(value: object) -> None:
    with pytest.raises(ImproperlyConfigured, match="memory_limit must be a number of bytes above 0"):
        size_bytes("memory_limit", value)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "2"])
def test_what_is_no_number_of_seconds_is_refused_and_named(value: object) -> None:
    with pytest.raises(ImproperlyConfigured, match="soft_time_limit must be a number of seconds above 0"):
        seconds("soft_time_limit", value)


def test_no_limit_is_none_in_settings_as_celery_has_it() -> None:
    conf = Settings()
    conf.update(task_time_limit=None, task_soft_time_limit=2)
    assert (conf.task_time_limit, conf.task_soft_time_limit) == (0.0, 2.0)
    conf.task_memory_limit = "2 MB"  # type: ignore[assignment]
    assert conf.task_memory_limit == 2_000_000
    conf.task_memory_limit = 0
    assert conf.task_memory_limit == 0
