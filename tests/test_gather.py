"""`nbqueue.gather`: when a worker waits a moment for more."""

from __future__ import annotations

from itertools import count

from nbqueue.gather import ENOUGH, PAUSE_S, SOON_S, Gather


def feed(
    gather: Gather, brings: int, seconds: float, *, quick: bool = True, every_s: float = 0.0005, began: float = 100.0
) -> tuple[int, int]:
    """Let messages come one by one, and `brings` after each pause; return how many claims there were, and pauses."""
    now, claims, pauses = began, 0, 0
    while now < began + seconds:
        if gather.until:
            assert gather.left_s(gather.until - PAUSE_S / 2) > 0
            now = max(now, gather.until)
            assert gather.left_s(now) == 0
            pauses += 1
            gather.arrived(brings, now, quick=quick, drained=True)
        else:
            now += every_s
            gather.arrived(1, now, quick=quick, drained=True)
        claims += 1
    return claims, pauses


def test_pauses_go_on_where_they_bring_several() -> None:
    claims, pauses = feed(Gather(), ENOUGH, 1.0)
    assert pauses > 0.9 * claims


def test_pauses_are_rare_where_somebody_waits_for_each_result() -> None:
    claims, pauses = feed(Gather(), 1, 5.0)
    assert 0 < pauses < claims / 200


def test_pauses_end_when_they_bring_too_few() -> None:
    gather = Gather()
    feed(gather, ENOUGH, 1.0)
    claims, pauses = feed(gather, ENOUGH - 1, 1.0, began=101.0)
    assert pauses < claims / 50


def test_what_comes_seldom_or_takes_its_time_is_taken_at_once() -> None:
    assert feed(Gather(), ENOUGH, 20.0, every_s=2 * SOON_S)[1] == 0
    assert feed(Gather(), ENOUGH, 1.0, quick=False)[1] == 0


def test_empty_claims_count_for_nothing() -> None:
    gather = Gather()
    for number in count():
        gather.arrived(0, 100.0 + number / 1000, quick=True, drained=True)
        assert not gather.until
        if number == 1_000:
            break


def test_nothing_is_waited_for_where_a_claim_left_something_behind() -> None:
    gather = Gather()
    feed(gather, ENOUGH, 1.0)
    gather.arrived(1_000, 101.0, quick=True, drained=False)
    assert not gather.until
