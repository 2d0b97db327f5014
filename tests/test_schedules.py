from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.schedules import ParseException, crontab, interval, maybe_schedule, next_firings, schedule

OSLO = ZoneInfo("Europe/Oslo")
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def field(least: int, greatest: int) -> st.SearchStrategy[str]:
    """Texts of one field that cron and Celery read alike."""
    numbers = st.integers(least, greatest)
    # of one value croniter makes all: it reads 5-5 as *
    spans = st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)
    part = st.one_of(
        st.just("*"),
        st.integers(1, greatest).map(lambda step: f"*/{step}"),
        numbers.map(str),
        spans.map(lambda span: f"{span[0]}-{span[1]}"),
        st.tuples(spans, st.integers(1, greatest)).map(lambda given: f"{given[0][0]}-{given[0][1]}/{given[1]}"),
    )
    return st.lists(part, min_size=1, max_size=3).map(",".join)


LINES = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6)).map(" ".join)
INSTANTS = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@settings(deadline=None)
@given(LINES, INSTANTS)
def test_crontab_is_due_when_another_library_says(line: str, now: datetime) -> None:
    other = croniter(line, now, day_or=False, max_years_between_matches=60)
    assert next_firings(crontab.from_string(line), now, 3) == [other.get_next(datetime) for _ in range(3)]


@settings(deadline=None)
@given(LINES, INSTANTS, st.sampled_from(["Europe/Oslo", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kolkata"]))
def test_crontab_goes_forward_in_every_zone(line: str, now: datetime, zone: str) -> None:
    firings = next_firings(crontab.from_string(line, tz=ZoneInfo(zone)), now, 3)
    assert now < firings[0] < firings[1] < firings[2]


def test_crontab_fires_once_after_a_local_time_that_is_skipped() -> None:
    # on 29 March 2026 clocks in Oslo go from 02:00 to 03:00, at 01:00 UTC
    rule = crontab(30, 2, tz=OSLO)
    assert next_firings(rule, datetime(2026, 3, 28, 12, tzinfo=UTC), 2) == [
        datetime(2026, 3, 29, 1, tzinfo=UTC),
        datetime(2026, 3, 30, 0, 30, tzinfo=UTC),
    ]
    often = crontab("*/20", "2-3", tz=OSLO)
    assert next_firings(often, datetime(2026, 3, 29, 0, 59, tzinfo=UTC), 2) == [
        datetime(2026, 3, 29, 1, tzinfo=UTC),
        datetime(2026, 3, 29, 1, 20, tzinfo=UTC),
    ]


def test_crontab_fires_after_a_midnight_that_is_skipped() -> None:
    # on 6 September 2026 clocks in Santiago go from 00:00 to 01:00, at 04:00 UTC
    rule = crontab(0, 0, tz=ZoneInfo("America/Santiago"))
    assert rule.next_after(datetime(2026, 9, 5, 12, tzinfo=UTC)) == datetime(2026, 9, 6, 4, tzinfo=UTC)


def test_crontab_fires_once_when_a_local_time_is_repeated() -> None:
    # on 25 October 2026 clocks in Oslo show 02:00 to 03:00 twice, from 00:00 UTC on
    rule = crontab(30, 2, tz=OSLO)
    assert next_firings(rule, datetime(2026, 10, 24, 12, tzinfo=UTC), 2) == [
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
        datetime(2026, 10, 26, 1, 30, tzinfo=UTC),
    ]


def test_crontab_takes_every_form_that_celery_takes() -> None:
    rule = crontab(
        minute="0-30/10,45", hour=[7, 9], day_of_week="fri-mon", month_of_year="jan,december", day_of_month=1
    )
    assert rule.minute == {0, 10, 20, 30, 45}
    assert rule.hour == {7, 9}
    assert rule.day_of_week == {5, 6, 0, 1}
    assert rule.month_of_year == {1, 12}
    assert rule.day_of_month == {1}
    assert crontab(hour="22-4/2").hour == {22, 0, 2, 4}
    assert crontab(month_of_year="*/5").month_of_year == {1, 6, 11}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("60 * * * *", "minute is 0 to 59, not 60"),
        ("*/0 * * * *", "step of 0"),
        ("* * * * someday", "day_of_week: 'someday'"),
        ("* * 30 feb *", "has a day 30"),
        ("* * * *", "has 4 fields"),
        ("1, * * * *", "minute: ''"),
    ],
)
def test_crontab_says_what_is_wrong(line: str, what: str) -> None:
    with pytest.raises(ParseException, match=what) as raised:
        crontab.from_string(line)
    assert isinstance(raised.value, ValueError)


def test_crontab_finds_what_is_rarely_due() -> None:
    # 2100 is no leap year
    rule = crontab(0, 0, day_of_month=29, month_of_year=2, day_of_week="wed")
    due = rule.next_after(datetime(2096, 3, 1, tzinfo=UTC))
    assert (due.month, due.day, due.isoweekday()) == (2, 29, 3)


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("10m", 600), ("1h30m", 5400), ("every 5 s", 5), ("0.5s", 0.5), ("2 days", 172_800), ("1 hour 5 min", 3900)],
)
def test_interval_reads_words(words: str, seconds: float) -> None:
    assert interval(words) == timedelta(seconds=seconds)


@pytest.mark.parametrize("words", ["", "every", "10", "m", "10 mice", "5m or so", "-5m"])
def test_interval_refuses_other_words(words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="names no interval"):
        interval(words)


@settings(deadline=None)
@given(INSTANTS, st.integers(1, 10**7), INSTANTS)
def test_schedule_is_due_whole_intervals_from_its_start(now: datetime, length_s: int, start: datetime) -> None:
    due = schedule(length_s, start=start).next_after(now)
    assert timedelta(0) < due - now <= timedelta(seconds=length_s)
    assert (due - start) % timedelta(seconds=length_s) == timedelta(0)


class Moody(schedule):
    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at)


class Hourly(crontab):
    def __init__(self) -> None:
        super().__init__(minute=0)


def test_rule_that_decides_by_itself_is_refused_and_one_with_a_name_of_its_own_is_not() -> None:
    assert maybe_schedule(Hourly()) == crontab(minute=0)
    with pytest.raises(ImproperlyConfigured, match="Moody has an is_due of its own, which nobody would ask"):
        maybe_schedule(Moody(5))


def test_rules_refuse_what_can_not_be_meant() -> None:
    with pytest.raises(ImproperlyConfigured, match="no time zone"):
        crontab().next_after(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the mistake
    with pytest.raises(ImproperlyConfigured, match="above 0"):
        schedule(0)
    with pytest.raises(ImproperlyConfigured, match="no number"):
        schedule(float("nan"))
    assert schedule("10m").next_after(NOON) == NOON + timedelta(minutes=10)
