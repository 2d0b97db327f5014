"""Rules in words, and what is said while one is written."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nbqueue.notebook.rules import preview, words_of
from nbqueue.schedules import crontab, rule_of
from tests.test_schedules import LINES

NOON = datetime(2026, 11, 23, 13, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("every 30 s", "every 30 seconds"),
        ("every 1 h", "every hour"),
        ("every 90 m", "every 90 minutes"),
        ("every 0.5 s", "every 0.5 s"),
        ("* * * * *", "every minute"),
        ("*/10 * * * *", "every 10 minutes"),
        ("15,45 * * * *", "every hour at :15 and :45"),
        ("0 7 * * *", "every day at 07:00"),
        ("0 7 * * 1-5", "every weekday at 07:00"),
        ("30 8-17/3 * * mon,thu", "Mondays and Thursdays at 08:30, 11:30, 14:30 and 17:30"),
        ("30 9-17 * * *", "every hour from 09:30 to 17:30"),
        ("*/15 8-17 * * sat,sun", "every weekend day, every 15 minutes from 08:00 to 17:45"),
        ("5 */2 * * *", "every 2 hours at :05"),
        ("30 2 1,15 * *", "on the 1st and 15th of every month at 02:30"),
        ("0 12 24-26 12 *", "on the 24th to 26th of December at 12:00"),
        ("0 9 13 * fri", "on the 13th of every month if that is a Friday at 09:00"),
        ("0 6 * jun-aug *", "every day in June to August at 06:00"),
        ("0 6 * * mon-sat", "every day but Sunday at 06:00"),
    ],
)
def test_rule_is_said_in_words(rule: str, words: str) -> None:
    assert words_of(rule_of(rule)) == words


@settings(deadline=None)
@given(LINES, LINES)
def test_rules_that_differ_are_said_differently(one: str, other: str) -> None:
    first, second = crontab.from_string(one), crontab.from_string(other)
    assume(first != second)
    assert words_of(first) != words_of(second)


def test_mistake_is_named_and_nothing_else_is_said() -> None:
    found = preview("30 25 * * mon,thu", "Europe/Oslo", NOON)
    assert (found.mistake, found.words, found.firings) == ("Hour is 0 to 23, not 25.", "", ())
    assert preview("0 7 * * 9", "UTC", NOON).mistake == "Day of week is 0 to 6, not 9."
    assert preview("0 7 * *", "UTC", NOON).mistake.startswith("'0 7 * *' names no interval")
    assert "did you mean 'Europe/Oslo'?" in preview("0 7 * * *", "Europe/Olso", NOON).mistake


@settings(deadline=None)
@given(st.text(max_size=40) | st.text("0123456789*/,- monsun", max_size=30), st.sampled_from(["UTC", "", "Mars/Base"]))
def test_anything_that_is_typed_is_a_rule_or_a_mistake(text: str, zone: str) -> None:
    found = preview(text, zone, NOON)
    assert bool(found.mistake) != bool(found.firings)


def test_firing_that_a_change_of_the_clocks_moves_says_so() -> None:
    found = preview("30 2 * * *", "Europe/Oslo", datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert [(one.at.astimezone(ZoneInfo("Europe/Oslo")).strftime("%d %H:%M"), one.note) for one in found.firings][
        :2
    ] == [
        ("29 03:00", "the clocks skip 02:30"),
        ("30 02:30", ""),
    ]


def test_firing_whose_time_comes_twice_says_so() -> None:
    found = preview("30 2 * * *", "Europe/Oslo", datetime(2026, 10, 24, 12, tzinfo=UTC))
    assert [one.note for one in found.firings][:2] == ["02:30 comes twice; it runs the first time", ""]
