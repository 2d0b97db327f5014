"""When what is periodic is due: rules that take the time as an argument and know of no clock."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, NamedTuple, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from nbqueue.exceptions import ImproperlyConfigured

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_UNITS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_LENGTH: Final = re.compile(
    r"(\d+(?:\.\d+)?)\s*(d|days?|h|hours?|hrs?|m|min|mins|minutes?|s|sec|secs|seconds?)(?![a-z])\s*"
)
_RANGE: Final = re.compile(r"(\w+)-(\w+)(?:/(\d+))?")
_ASKED: Final = ("is_due", "remaining_estimate", "next_after")  # what makes a rule of Celery's one of its own kind
_STAR: Final = re.compile(r"\*(?:/(\d+))?")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LONGEST_MONTH: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# 29 February falls on a given weekday once in 28 years, or 40 where a century's year is no leap year
_YEARS: Final = 41


class ParseException(ImproperlyConfigured, ValueError):
    """Says what is wrong with a field of a crontab."""


class Rule(Protocol):
    """What says when an entry is due."""

    @property
    def text(self) -> str:
        """Return the rule as text, as `rule_of` takes it."""
        ...

    @property
    def zone(self) -> str:
        """Return the name of the zone that it is meant in; empty where none was said."""
        ...

    def next_after(self, now: datetime) -> datetime:
        """Return the first instant later than `now` at which the rule is due."""
        ...


class schedstate(NamedTuple):  # noqa: N801 - Celery's name
    """Whether a rule is due, and in how many seconds to look again."""

    is_due: bool
    next: float


class _CelerysRule:
    """What Celery's schedulers ask a rule."""

    def next_after(self, now: datetime) -> datetime:
        """Return the first instant later than `now` at which the rule is due."""
        raise NotImplementedError

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time until the rule is due after it ran last; below 0 if it should have run."""
        return self.next_after(last_run_at) - datetime.now(UTC)

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Tell whether the rule is due, having run last at `last_run_at`, and when to look again."""
        now = datetime.now(UTC)
        due = self.next_after(last_run_at)
        following = due if due > now else self.next_after(now)
        return schedstate(due <= now, (following - now).total_seconds())


def interval(text: str) -> timedelta:
    """Return the interval that words name.

    >>> interval("1h30m"), interval("every 5 s")
    (datetime.timedelta(seconds=5400), datetime.timedelta(seconds=5))
    """
    rest = text.strip().lower().removeprefix("every ").strip()
    total, at = 0.0, 0
    for match in _LENGTH.finditer(rest):
        if match.start() != at:
            break
        total, at = total + float(match[1]) * _UNITS[match[2][0]], match.end()
    if not rest or at != len(rest):
        raise ImproperlyConfigured(f'{text!r} names no interval; write it as "10m", "1h30m" or "every 5 s"')
    return timedelta(seconds=total)


class schedule(_CelerysRule):  # noqa: N801 - Celery's name
    """A rule that is due at even intervals.

    Args:
        run_every: the interval: a `timedelta`, a number of seconds, or words such as "10m".
        relative: taken for Celery's sake, as are the next two.
        nowfun: no clock is asked here.
        app: needed for nothing.
        start: an instant at which the rule is due; the others lie whole intervals before and after it.
    """

    def __init__(
        self,
        run_every: timedelta | float | str,
        relative: bool = False,
        nowfun: object = None,
        app: object = None,
        *,
        start: datetime = _EPOCH,
    ) -> None:
        del relative, nowfun, app
        self.run_every = _interval(run_every)
        if self.run_every < timedelta(milliseconds=1):
            raise ImproperlyConfigured(f"run_every={run_every!r} is no interval; it must be above 0")
        self.start = _aware("start", start)

    def __repr__(self) -> str:
        return f"<schedule: every {self.run_every}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, schedule) and (self.run_every, self.start) == (other.run_every, other.start)

    def __hash__(self) -> int:
        return hash((self.run_every, self.start))

    @property
    def seconds(self) -> float:
        """Return the interval."""
        return self.run_every.total_seconds()

    @property
    def human_seconds(self) -> str:
        """Return the interval as people say it: `1 h 30 m`."""
        return shown_interval(self.seconds)

    @property
    def text(self) -> str:
        """Return the rule as text, as `rule_of` takes it."""
        length = f"every {self.seconds:.3f}".rstrip("0").rstrip(".") + " s"
        return length if self.start == _EPOCH else f"{length} from {self.start.isoformat()}"

    @property
    def zone(self) -> str:
        """Return no zone: an interval is as long in each."""
        return ""

    def next_after(self, now: datetime) -> datetime:
        """Return the first instant later than `now` at which the rule is due."""
        passed = (_aware("now", now).astimezone(UTC) - self.start) // self.run_every
        return (self.start + (passed + 1) * self.run_every).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of a crontab: its name, its least and greatest value, and the names of its values."""

    name: str
    least: int
    greatest: int
    names: tuple[str, ...] = field(default=())

    def expand(self, spec: str | int | Iterable[int]) -> frozenset[int]:
        """Return the values that `spec` names."""
        if isinstance(spec, str):
            values = [value for part in spec.split(",") for value in self._part(part.strip().lower())]
        else:
            values = [self._check(value) for value in ([spec] if isinstance(spec, int) else spec)]
        if not values:
            raise ParseException(f"{self.name}={spec!r} names no value")
        return frozenset(values)

    def text(self, values: frozenset[int]) -> str:
        """Return what `expand` makes these values of."""
        if len(values) == self.greatest - self.least + 1:
            return "*"
        for step in range(2, self.greatest):
            if values == frozenset(range(self.least, self.greatest + 1, step)) and len(values) > 2:
                return f"*/{step}"
        parts: list[list[int]] = []
        for value in sorted(values):
            if parts and parts[-1][1] == value - 1:
                parts[-1][1] = value
            else:
                parts.append([value, value])
        return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)

    def _part(self, part: str) -> list[int]:
        if star := _STAR.fullmatch(part):
            return list(range(self.least, self.greatest + 1, self._step(star[1])))
        if not (span := _RANGE.fullmatch(part)):
            return [self._number(part)]
        first, last = self._number(span[1]), self._number(span[2])
        if last < first:
            # past the end and on from the start: 22-4, fri-mon
            values = [*range(first, self.greatest + 1), *range(self.least, last + 1)]
        else:
            values = list(range(first, last + 1))
        return values[:: self._step(span[3])]

    def _step(self, text: str | None) -> int:
        step = int(text or 1)
        if not step:
            raise ParseException(f"{self.name}: a step of 0 names no value")
        return step

    def _number(self, text: str) -> int:
        if text.isdecimal():
            return self._check(int(text))
        if len(text) >= 3 and text[:3] in self.names:
            return self.names.index(text[:3]) + self.least
        raise ParseException(f'{self.name}: {text!r} is none of its values; write *, */5, 1-5, 1-9/2 or "1,15"')

    def _check(self, value: int) -> int:
        if not self.least <= value <= self.greatest:
            raise ParseException(f"{self.name} is {self.least} to {self.greatest}, not {value}")
        return value


_MINUTE: Final = _Field("minute", 0, 59)
_HOUR: Final = _Field("hour", 0, 23)
_DAY_OF_WEEK: Final = _Field("day_of_week", 0, 6, _WEEKDAYS)
_DAY_OF_MONTH: Final = _Field("day_of_month", 1, 31)
_MONTH_OF_YEAR: Final = _Field("month_of_year", 1, 12, _MONTHS)


class crontab(_CelerysRule):  # noqa: N801 - Celery's name
    """A rule in the manner of cron; like Celery's, due when all of its fields agree.

    A local time that a change of the clocks skips is due once, at the first instant after it; one that they repeat is
    due the first time only.

    Args:
        minute: 0-59, as a number, several, or text: `*`, `*/15`, `0-30`, `0-30/10`, `0,30`, and ranges past the end.
        hour: 0-23, likewise.
        day_of_week: 0-6 from Sunday on, or names: `mon-fri`.
        day_of_month: 1-31, likewise.
        month_of_year: 1-12, or names.
        nowfun: taken for Celery's sake: no clock is asked here.
        app: taken for Celery's sake.
        tz: the zone of these fields; that of the app's settings if None, and UTC where there is no app.
    """

    def __init__(
        self,
        minute: str | int | Iterable[int] = "*",
        hour: str | int | Iterable[int] = "*",
        day_of_week: str | int | Iterable[int] = "*",
        day_of_month: str | int | Iterable[int] = "*",
        month_of_year: str | int | Iterable[int] = "*",
        nowfun: object = None,
        app: object = None,
        *,
        tz: tzinfo | None = None,
    ) -> None:
        del nowfun, app
        self.minute = _MINUTE.expand(minute)
        self.hour = _HOUR.expand(hour)
        self.day_of_week = _DAY_OF_WEEK.expand(day_of_week)
        self.day_of_month = _DAY_OF_MONTH.expand(day_of_month)
        self.month_of_year = _MONTH_OF_YEAR.expand(month_of_year)
        self.own_zone = tz
        self.tz = tz or UTC
        if min(self.day_of_month) > max(_LONGEST_MONTH[month - 1] for month in self.month_of_year):
            raise ParseException(f"none of the months {sorted(self.month_of_year)} has a day {day_of_month}")

    def __repr__(self) -> str:
        return f"<crontab: {self.text[5:]} (m/h/dM/MY/d)>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, crontab) and (self.text, self.tz) == (other.text, other.tz)

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def text(self) -> str:
        """Return the rule as text, as `rule_of` takes it."""
        fields = (
            *((_MINUTE, self.minute), (_HOUR, self.hour), (_DAY_OF_MONTH, self.day_of_month)),
            *((_MONTH_OF_YEAR, self.month_of_year), (_DAY_OF_WEEK, self.day_of_week)),
        )
        return f"cron {' '.join(field.text(values) for field, values in fields)}"

    @property
    def zone(self) -> str:
        """Return the name of its zone; empty where none was said."""
        if self.own_zone is None:
            return ""
        return "UTC" if self.own_zone is UTC else str(self.own_zone)

    @classmethod
    def from_string(cls, text: str, *, tz: tzinfo | None = None) -> crontab:
        """Return the rule of a line of cron: minute, hour, day of month, month, day of week.

        >>> crontab.from_string("0 7 * * mon-fri").next_after(datetime(2026, 7, 3, 8, tzinfo=UTC)).isoformat()
        '2026-07-06T07:00:00+00:00'
        """
        fields = text.split()
        if len(fields) != 5:
            raise ParseException(f"{text!r} has {len(fields)} fields; cron has five: minute, hour, day, month, weekday")
        minute, hour, day_of_month, month_of_year, day_of_week = fields
        return cls(minute, hour, day_of_week, day_of_month, month_of_year, tz=tz)

    def next_after(self, now: datetime) -> datetime:
        """Return the first instant later than `now` at which the rule is due."""
        earliest = _aware("now", now).astimezone(UTC)
        # a day earlier: what a change of the clocks skipped before midnight is due after it
        for day in self._days(earliest.astimezone(self.tz).date() - timedelta(days=1)):
            for hour in sorted(self.hour):
                for minute in sorted(self.minute):
                    due = _instant(datetime(day.year, day.month, day.day, hour, minute), self.tz)  # noqa: DTZ001
                    if due > earliest:
                        return due
        raise ImproperlyConfigured(f"this crontab is not due within {_YEARS} years of {now}")

    def _days(self, first: date) -> Iterator[date]:
        for year in range(first.year, first.year + _YEARS):
            for month in sorted(self.month_of_year):
                for number in sorted(self.day_of_month):
                    if number > _length_of_month(year, month):
                        break
                    day = date(year, month, number)
                    if day >= first and day.isoweekday() % 7 in self.day_of_week:
                        yield day


def rule_of(text: str, zone: str = "UTC") -> Rule:
    """Return the rule that a text names: `every 10 m`, `cron 0 7 * * mon-fri`, or either without its first word.

    Args:
        text: an interval, or the five fields of cron.
        zone: in which these fields are meant.

    Raises:
        ImproperlyConfigured: it names none, or there is no such zone.

    >>> rule_of("cron 0 7 * * mon-fri", "Europe/Oslo").next_after(datetime(2026, 7, 3, 8, tzinfo=UTC)).isoformat()
    '2026-07-06T05:00:00+00:00'
    """
    words = text.strip()
    if words.startswith("cron "):
        words = words[5:]
    elif words.startswith("every ") or len(words.split()) != 5:
        length, _, start = words.partition(" from ")
        try:
            return schedule(length, start=datetime.fromisoformat(start) if start else _EPOCH)
        except ValueError as exc:
            raise ImproperlyConfigured(f"{start!r} is no instant to count intervals from: {exc}") from None
    return crontab.from_string(words, tz=zone_of(zone))


def zone_of(name: str) -> tzinfo:
    """Return a zone.

    Raises:
        ImproperlyConfigured: there is none of this name; names the nearest.
    """
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else '; it is a name such as "Europe/Oslo"'
        raise ImproperlyConfigured(f"there is no time zone {name!r}{hint}") from None


def maybe_schedule(found: object, relative: bool = False, app: object = None) -> Rule:
    """Return what stands for a rule in settings as one: a rule, a `timedelta`, a number of seconds, or text.

    Raises:
        ImproperlyConfigured: it is none of these.
    """
    del relative, app
    if isinstance(found, str):
        return rule_of(found, "")
    if isinstance(found, timedelta | int | float) and not isinstance(found, bool):
        return schedule(found)
    if isinstance(found, schedule | crontab):
        plain = schedule if isinstance(found, schedule) else crontab
        if own := [name for name in _ASKED if getattr(type(found), name) is not getattr(plain, name)]:
            raise ImproperlyConfigured(
                f"{type(found).__name__} has an {' and a '.join(own)} of its own, which nobody would ask: the schedule "
                "keeps a crontab or an interval; let the task decide whether there is anything to do"
            )
        return found
    raise ImproperlyConfigured(f"{found!r} is no schedule; give a crontab, a timedelta, or a number of seconds")


def shown_interval(seconds: float) -> str:
    """Return an interval as people say it.

    >>> shown_interval(5400), shown_interval(0.5)
    ('1 h 30 m', '0.5 s')
    """
    parts: list[str] = []
    rest = seconds
    for unit, length in _UNITS.items():
        if unit == "s":
            if rest or not parts:
                parts.append(f"{rest:g} s")
        elif rest >= length:
            parts.append(f"{int(rest // length)} {unit}")
            rest %= length
    return " ".join(parts)


def next_firings(rule: Rule, now: datetime, count: int) -> list[datetime]:
    """Return the next `count` instants at which a rule is due, the nearest first."""
    firings: list[datetime] = []
    for _ in range(count):
        now = rule.next_after(now)
        firings.append(now)
    return firings


def _interval(run_every: timedelta | float | str) -> timedelta:
    if isinstance(run_every, timedelta):
        return run_every
    if isinstance(run_every, str):
        return interval(run_every)
    if not math.isfinite(run_every):
        raise ImproperlyConfigured(f"run_every={run_every} is no number of seconds")
    return timedelta(seconds=run_every)


def _aware(name: str, value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ImproperlyConfigured(f"{name}={value.isoformat()} has no time zone; use datetime.now(UTC)")
    return value


def _length_of_month(year: int, month: int) -> int:
    after = date(year + month // 12, month % 12 + 1, 1)
    return (after - timedelta(days=1)).day


def _instant(local: datetime, tz: tzinfo) -> datetime:
    """Return when a zone's clocks show `local` for the first time, or pass over it."""
    due = local.replace(tzinfo=tz).astimezone(UTC)
    if due.astimezone(tz).replace(tzinfo=None) == local:
        return due
    # skipped: the clocks change between what the offset after and the one before make of it
    before, after = local.replace(tzinfo=tz, fold=1).astimezone(UTC), due
    offset = after.astimezone(tz).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) // 2 // _SECOND * _SECOND
        if middle.astimezone(tz).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after
