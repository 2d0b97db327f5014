"""Rules of the schedule in words, and what whoever writes one is shown: when it fires, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.schedules import Rule, crontab, next_firings, rule_of, schedule, shown_interval

WEEKDAYS: Final = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
MOST_TIMES: Final = 6  # times of a day that are named one by one
_UNITS: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_WEEK: Final = frozenset(range(7))
_MONTHDAYS: Final = frozenset(range(1, 32))
_YEAR: Final = frozenset(range(1, 13))


@dataclass(frozen=True)
class Firing:
    """One coming firing: when, and what a change of the clocks does to it, if anything."""

    at: datetime
    note: str = ""


@dataclass(frozen=True)
class Preview:
    """What a rule means: in words, and its next firings; or what is wrong with it."""

    words: str = ""
    firings: tuple[Firing, ...] = ()
    mistake: str = ""


def preview(text: str, zone: str, now: datetime, count: int = 5) -> Preview:
    """Return what a rule means that a person is writing.

    Args:
        text: as `rule_of` takes it.
        zone: in which a crontab's fields are meant.
        now: after which it fires.
        count: firings to look ahead.
    """
    try:
        rule = rule_of(text, zone)
        due = next_firings(rule, now, count)
    except ImproperlyConfigured as exc:
        return Preview(mistake=sentence(str(exc)))
    except (OverflowError, ValueError):
        return Preview(mistake="That is longer than a calendar goes.")
    return Preview(words_of(rule), tuple(Firing(at, note_on(rule, at)) for at in due))


def sentence(text: str) -> str:
    """Return an error's text as a sentence of its own.

    >>> sentence("day_of_week is 0 to 6, not 9")
    'Day of week is 0 to 6, not 9.'
    """
    for field in ("day_of_week", "day_of_month", "month_of_year"):
        text = text.replace(field, field.replace("_", " "))
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def note_on(rule: Rule, due: datetime) -> str:
    """Return what a change of the clocks does to a firing; empty if nothing.

    >>> from datetime import UTC
    >>> from zoneinfo import ZoneInfo
    >>> note_on(crontab(30, 2, tz=ZoneInfo("Europe/Oslo")), datetime(2026, 3, 29, 1, tzinfo=UTC))
    'the clocks skip 02:30'
    """
    if not isinstance(rule, crontab):
        return ""
    local = due.astimezone(rule.tz).replace(tzinfo=None)
    if local.hour not in rule.hour or local.minute not in rule.minute or local.second:
        skipped = _skipped(rule, local)
        return f"the clocks skip {skipped}" if skipped else "the clocks change"
    first, second = (local.replace(tzinfo=rule.tz, fold=fold).utcoffset() for fold in (0, 1))
    if first is not None and second is not None and first > second:
        return f"{local:%H:%M} comes twice; it runs the first time"
    return ""


def _skipped(rule: crontab, after: datetime) -> str:
    """Return the last time of a rule that a change of the clocks skips just before `after`, both of its zone."""
    at = after.replace(second=0, microsecond=0)
    for minutes in range(1, 24 * 60):
        earlier = at - timedelta(minutes=minutes)
        if earlier.hour in rule.hour and earlier.minute in rule.minute:
            return f"{earlier:%H:%M}"
    return ""


# ---- words


def words_of(rule: Rule) -> str:
    """Return a rule in words; rules that differ have different words.

    >>> words_of(rule_of("every 10m")), words_of(rule_of("0 7 * * mon-fri"))
    ('every 10 minutes', 'every weekday at 07:00')
    >>> words_of(rule_of("30 8-17/3 * * mon,thu"))
    'Mondays and Thursdays at 08:30, 11:30, 14:30 and 17:30'
    >>> words_of(rule_of("30 2 1 * *")), words_of(rule_of("15 * * * *"))
    ('on the 1st of every month at 02:30', 'every hour at :15')
    """
    if isinstance(rule, schedule):
        _, counted, start = rule.text.partition(" from ")
        return f"every {_length(rule.seconds)}{counted}{start}"
    if not isinstance(rule, crontab):
        return rule.text
    days, times = _days(rule), _times(rule)
    if not days:
        return f"every day {times}" if times.startswith("at ") else times
    return f"{days} {times}" if times.startswith("at ") else f"{days}, {times}"


def _length(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds == length:
            return unit
        if seconds % length == 0:
            return f"{int(seconds // length)} {unit}s"
    return shown_interval(seconds)


def _times(rule: crontab) -> str:
    """Return the times of a day: after "at", or how often."""
    minutes, hours = sorted(rule.minute), sorted(rule.hour)
    step = _step(minutes, 60)
    often = ("every minute" if step == 1 else f"every {step} minutes") if step else ""
    if len(hours) == 24:
        return often or f"every hour at {_series(minutes, _past)}"
    if len(minutes) * len(hours) <= MOST_TIMES:
        return f"at {_listed([f'{hour:02d}:{minute:02d}' for hour in hours for minute in minutes])}"
    return _hourly(often, minutes, hours)


def _hourly(often: str, minutes: Sequence[int], hours: Sequence[int]) -> str:
    """Return times of some hours of a day; `often` says the minutes if they are even."""
    (first, last), *others = _runs(hours)
    if len(minutes) == 1 and (step := _step(hours, 24)):
        return f"every {step} hours at {_past(minutes[0])}"
    if not others and (often or len(minutes) == 1):
        between = f"from {first:02d}:{minutes[0]:02d} to {last:02d}:{minutes[-1]:02d}"
        return f"{often or 'every hour'} {between}"
    return f"{often or f'at {_series(minutes, _past)}'} of hours {_series(hours, str)}"


def _days(rule: crontab) -> str:
    """Return the days of a year, empty for all of them."""
    weekdays, monthdays, months = rule.day_of_week, rule.day_of_month, rule.month_of_year
    in_months = "" if months == _YEAR else _series(sorted(months), lambda month: MONTHS[month - 1])
    if monthdays == _MONTHDAYS:
        named = _weekdays(weekdays)
        if not in_months:
            return named
        return f"{named} in {in_months}" if named else f"every day in {in_months}"
    on = f"on the {_series(sorted(monthdays), _ordinal)} of {in_months or 'every month'}"
    if weekdays == _WEEK:
        return on
    return f"{on} if that is a {_series(sorted(weekdays), lambda day: WEEKDAYS[day], 'or')}"


def _weekdays(days: frozenset[int]) -> str:
    if days == _WEEK:
        return ""
    if days == {1, 2, 3, 4, 5}:
        return "every weekday"
    if days == {0, 6}:
        return "every weekend day"
    if len(days) == 6:
        (left,) = _WEEK - days
        return f"every day but {WEEKDAYS[left]}"
    # a week begins on Monday where people say its days
    return _listed([f"{WEEKDAYS[day]}s" for day in sorted(days, key=lambda day: day or 7)])


def _step(values: Sequence[int], size: int) -> int:
    """Return the step of values that are all multiples of it below `size`; 0 if they are not."""
    if len(values) < 2 or values[0]:
        return 0
    step = values[1]
    return step if size % step == 0 and list(values) == list(range(0, size, step)) else 0


def _runs(values: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and runs[-1][1] == value - 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs


def _series(values: Sequence[int], shown: Callable[[int], str], word: str = "and") -> str:
    """Return values as people list them, three or more in a row as a span."""
    parts = []
    for first, last in _runs(values):
        if last - first < 2:
            parts += [shown(value) for value in range(first, last + 1)]
        else:
            parts.append(f"{shown(first)} to {shown(last)}")
    return _listed(parts, word)


def _listed(parts: Sequence[str], word: str = "and") -> str:
    *first, last = parts
    return f"{', '.join(first)} {word} {last}" if first else last


def _past(minute: int) -> str:
    return f":{minute:02d}"


def _ordinal(number: int) -> str:
    """Return a number of a day.

    >>> [_ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 31)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '22nd', '31st']
    """
    ending = "th" if 10 <= number % 100 <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
