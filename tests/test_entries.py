"""Entries of the schedule: which firings are due, and what becomes of those that were missed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nbqueue.entries import (
    Entry,
    Firing,
    Run,
    Stand,
    after_firing,
    check,
    firings,
    ids_of,
    known_of,
    next_due,
    with_ends,
)
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.messages import Facts, Failure, encode_failure, sign_record
from nbqueue.signing import Signer

SIGNER = Signer(b"k" * 32)

START = datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp()


def entry(rule: str = "every 60 s", **more: object) -> Entry:
    return Entry(**{"name": "e", "rule": rule, "made": "m", "since": START, **more})  # type: ignore[arg-type]


def stand(last_due: float = 0.0) -> Stand:
    return Stand(name="e", made="m", last_due=last_due)


def test_nothing_fires_before_it_is_due() -> None:
    assert firings(entry(), stand(), START) == []
    assert firings(entry(), stand(), START + 59.9) == []
    assert next_due(entry(), stand()) == START + 60


def test_what_is_due_fires_once() -> None:
    now = START + 60.2
    assert firings(entry(), stand(), now) == [Firing(START + 60)]
    assert firings(entry(), stand(START + 60), now) == []


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("coalesce", [Firing(START + 180, missed=2)]),
        ("all", [Firing(START + 60), Firing(START + 120), Firing(START + 180)]),
        ("skip", [Firing(START + 180, missed=3, send=False)]),
    ],
)
def test_missed_firings_are_made_good_by_policy(policy: str, expected: list[Firing]) -> None:
    assert firings(entry(policy=policy), stand(), START + 180 + 30) == expected


def test_cron_that_is_due_for_longer_than_its_deadline_is_not_sent() -> None:
    hourly = entry("cron 0 * * * *", since=START - 1)
    now = START + 2 * 3600 + 90
    assert firings(hourly, stand(), now, 90.0) == [Firing(START + 7200, missed=2)]
    assert firings(hourly, stand(), now, 89.0) == [Firing(START + 7200, missed=3, send=False)]
    each = firings(entry("cron 0 * * * *", since=START - 1, policy="all"), stand(), now, 3700.0)
    assert [(one.due - START, one.send) for one in each] == [(0, False), (3600, True), (7200, True)]
    assert firings(entry(), stand(), START + 119, 10.0) == [Firing(START + 60)], "an interval has none"


def test_firing_that_is_hardly_late_is_not_skipped() -> None:
    assert firings(entry(policy="skip"), stand(), START + 180 + 10) == [Firing(START + 180, missed=2)]


def test_months_of_missed_seconds_are_soon_reckoned() -> None:
    month = 30 * 86_400
    quick = entry("every 0.5 s")
    (found,) = firings(quick, stand(), START + month + 0.3)
    assert found.due == START + month
    made_good = firings(entry("every 0.5 s", policy="all"), stand(), START + month)
    assert len(made_good) == 1_000
    assert made_good[0].due == START + 0.5


def test_clock_that_is_set_back_fires_nothing_twice() -> None:
    fired = after_firing(stand(), entry(), Run(START + 120, "i"))
    assert firings(entry(), fired, START + 60.5) == []
    assert firings(entry(), fired, START + 180.5) == [Firing(START + 180)]


def test_change_of_the_clocks_moves_a_crontab_with_its_zone() -> None:
    oslo = entry("cron 30 2 * * *", zone="Europe/Oslo")  # skipped on 29 March 2026
    day = 86_400
    assert [
        datetime.fromtimestamp(found.due, UTC).isoformat()
        for found in firings(entry("cron 30 2 * * *", zone="Europe/Oslo", policy="all"), stand(), START + 3 * day)
    ] == ["2026-03-29T01:00:00+00:00", "2026-03-30T00:30:00+00:00", "2026-03-31T00:30:00+00:00"]
    assert next_due(oslo, stand()) == datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()


def test_each_firing_has_one_id_whoever_fires_it() -> None:
    assert ids_of(entry(), 60.0) == ids_of(entry(rule="every 1 s"), 60.0)
    assert len({ids_of(entry(made=made), due) for made in ("a", "b") for due in (60.0, 60.001)}) == 4


def test_history_is_of_the_entry_that_is_there_now() -> None:
    fired = after_firing(stand(), entry(), Run(START, "i"))
    again = after_firing(fired, entry(made="another"), Run(START + 60, "j"))
    assert [run.id for run in again.runs] == ["j"]
    assert (fired.count, again.count) == (1, 1)
    many = stand()
    for n in range(40):
        many = after_firing(many, entry(), Run(START + n, f"i{n}"))
    assert [run.id for run in many.runs] == [f"i{n}" for n in range(10, 40)]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"name": " "}, "has a name"),
        ({"rule": "* * 31 2 *"}, "none of the months"),
        ({"rule": "every -5 s"}, "names no interval"),
        ({"zone": "Mars/Olympus"}, "no time zone"),
        ({"policy": "some"}, "coalesce, skip, all"),
    ],
)
def test_what_can_not_be_an_entry_is_named(wrong: dict[str, str], why: str) -> None:
    fields = {"rule": "0 7 * * *", **wrong}
    with pytest.raises(ImproperlyConfigured, match=why):
        check(entry(**fields), START)


def test_failure_that_is_noted_and_run_again_has_its_new_end() -> None:
    def record(state: str) -> bytes:
        body = encode_failure(Failure("ValueError", "bad", "")) if state == "FAILURE" else b""
        return sign_record(Facts(kind="record", id="i", state=state, started_at=1.0, at=3.0), body, SIGNER)

    stand = Stand(name="e", runs=(Run(0.0, "i"), Run(9.0, "other")))
    noted = with_ends(stand, {"i": record("FAILURE")}, SIGNER)
    assert [(run.state, run.started, run.ended) for run in noted.runs] == [("FAILURE", 1.0, 3.0), ("", 0.0, 0.0)]
    assert with_ends(noted, {"i": record("SUCCESS")}, SIGNER) is noted
    assert known_of(record("SUCCESS"), noted.runs[0], SIGNER).state == "SUCCESS"
    assert known_of(b"forged", noted.runs[0], SIGNER) == noted.runs[0]
    assert with_ends(stand, {"other": record("SUCCESS")}, SIGNER) is stand
