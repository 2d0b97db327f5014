from __future__ import annotations

import pytest

from nbqueue.autoscale import Autoscaler
from nbqueue.exceptions import ImproperlyConfigured


def test_busy_worker_doubles_up_to_what_waits_and_its_bound() -> None:
    scaler = Autoscaler(10, 1, 30.0)
    assert scaler.size(0.0, size=1, busy=1, waiting=100) == 2
    assert scaler.size(1.0, size=2, busy=2, waiting=100) == 4
    assert scaler.size(2.0, size=4, busy=4, waiting=1) == 5
    assert scaler.size(3.0, size=8, busy=8, waiting=100) == 10
    assert scaler.size(4.0, size=4, busy=4, waiting=0) == 4
    assert scaler.size(5.0, size=4, busy=3, waiting=100) == 4, "those that are idle take it"


def test_worker_keeps_as_many_as_were_busy_at_once_of_late() -> None:
    scaler = Autoscaler(8, 2, 30.0)
    assert scaler.size(100.0, size=8, busy=8, waiting=1) == 8
    assert scaler.size(110.0, size=8, busy=5, waiting=0) == 8
    assert scaler.size(129.0, size=8, busy=1, waiting=0) == 8
    assert scaler.size(130.0, size=8, busy=1, waiting=0) == 8, "eight were, when it was looked at first"
    assert scaler.size(160.0, size=8, busy=3, waiting=0) == 3
    assert scaler.size(190.0, size=3, busy=0, waiting=0) == 3
    assert scaler.size(220.0, size=3, busy=0, waiting=0) == 2


def test_bounds_hold_for_what_there_is_and_give_way_to_what_is_asked_for() -> None:
    scaler = Autoscaler(4, 2, 30.0)
    assert scaler.size(0.0, size=1, busy=0, waiting=0) == 2
    assert scaler.size(0.0, size=9, busy=9, waiting=9) == 4
    scaler.hold(6)
    assert (scaler.most, scaler.fewest) == (6, 2)
    scaler.set(fewest=0)
    assert (scaler.most, scaler.fewest) == (6, 1)


@pytest.mark.parametrize(("most", "fewest"), [(0, 0), (1, 2), (3, -1)])
def test_bounds_that_are_none_are_refused(most: int, fewest: int) -> None:
    with pytest.raises(ImproperlyConfigured, match="MAX,MIN"):
        Autoscaler(most, fewest, 30.0)
