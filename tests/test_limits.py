"""Limits: whose counts, and what may be one."""

from __future__ import annotations

import math

import pytest

from nbqueue.config import Settings
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.limits import NO_LIMITS, Limits, seconds


def test_own_limits_win_one_by_one() -> None:
    worker = Limits(time_limit=10, soft_time_limit=8)
    assert worker.with_those_of(Limits(soft_time_limit=3)) == Limits(10, 3)
    assert worker.with_those_of(Limits(time_limit=5)) == Limits(5, 8)
    assert worker.with_those_of(NO_LIMITS) is worker


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "2"])
def test_what_is_no_number_of_seconds_is_refused_and_named(value: object) -> None:
    with pytest.raises(ImproperlyConfigured, match="soft_time_limit must be a number of seconds above 0"):
        seconds("soft_time_limit", value)


def test_no_limit_is_none_in_settings_as_celery_has_it() -> None:
    conf = Settings()
    conf.update(task_time_limit=None, task_soft_time_limit=2)
    assert (conf.task_time_limit, conf.task_soft_time_limit) == (0.0, 2.0)
