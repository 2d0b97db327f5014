"""States, as Celery's programs compare them."""

from __future__ import annotations

import operator
from itertools import product

from celery import states as celerys

from nbqueue import states


def test_states_are_compared_as_celerys_are() -> None:
    known = sorted((states.ALL_STATES | {"PROGRESS"}) - {states.UNKNOWN})
    for one, other in product(known, known):
        for compare in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq):
            ours, theirs = compare(states.state(one), other), compare(celerys.state(one), other)
            assert ours == theirs, (one, compare.__name__, other)
    assert [states.precedence(one) for one in known] == [celerys.precedence(one) for one in known]
