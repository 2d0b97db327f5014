"""The states of a task, with Celery's names and meanings.

`UNKNOWN` is ours: an id that nobody sent. Celery calls that `PENDING`.
"""

from typing import Final

PENDING: Final = "PENDING"
RECEIVED: Final = "RECEIVED"
STARTED: Final = "STARTED"
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
REVOKED: Final = "REVOKED"
REJECTED: Final = "REJECTED"
RETRY: Final = "RETRY"
IGNORED: Final = "IGNORED"
UNKNOWN: Final = "UNKNOWN"

READY_STATES: Final = frozenset({SUCCESS, FAILURE, REVOKED, REJECTED, IGNORED})
UNREADY_STATES: Final = frozenset({PENDING, RECEIVED, STARTED, RETRY})
EXCEPTION_STATES: Final = frozenset({RETRY, FAILURE, REVOKED})
PROPAGATE_STATES: Final = frozenset({FAILURE, REVOKED})
ALL_STATES: Final = READY_STATES | UNREADY_STATES | {UNKNOWN}

# From the one that counts most; None is any other, such as one of a task's own.
_PLACES: Final = {
    state: place
    for place, state in enumerate((SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING))
}


def precedence(state: str) -> int:
    """Return the place of a state among all: the less, the more it counts.

    >>> precedence("SUCCESS") < precedence("PROGRESS") < precedence("PENDING")
    True
    """
    return _PLACES.get(state, _PLACES[None])


class state(str):  # noqa: N801 - Celery's name
    """A state that is compared by what counts more, not by its letters.

    >>> state("PENDING") < state("PROGRESS") < state("SUCCESS")
    True
    """

    __slots__ = ()

    def __gt__(self, other: str) -> bool:
        return precedence(self) < precedence(other)

    def __ge__(self, other: str) -> bool:
        return precedence(self) <= precedence(other)

    def __lt__(self, other: str) -> bool:
        return precedence(self) > precedence(other)

    def __le__(self, other: str) -> bool:
        return precedence(self) >= precedence(other)
