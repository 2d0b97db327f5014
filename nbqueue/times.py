"""When a call may start, and until when: Unix seconds from what people write."""

from __future__ import annotations

from datetime import UTC, datetime
from numbers import Real
from typing import Final, cast

from nbqueue.exceptions import ImproperlyConfigured

UNSET: Final = 0.0  # fields of messages that hold this very object, their default, are left out on the wire
LATEST: Final = 1e11  # Unix seconds, beyond which no date can be written
_WEEK_S: Final = 7 * 86_400.0


def due_time(now: float, countdown: float | None, eta: datetime | str | None) -> float:
    """Return when a call may start, Unix seconds; 0.0 for at once."""
    if eta is not None:
        if countdown is not None:
            raise TypeError("give countdown or eta, not both")
        return _instant("eta", eta)
    if countdown is None:
        return UNSET
    if not _is_number(countdown) or not abs(countdown) < LATEST:
        raise ValueError(f"countdown is a number of seconds, not {countdown!r}")
    return now + countdown if countdown > 0 else UNSET


def expiry_time(now: float, expires: float | datetime | str | None, due: float) -> float:
    """Return when a call that has not started is dropped, Unix seconds: a week after it may start by default."""
    if expires is None:
        return max(now, due) + _WEEK_S
    return _instant("expires", expires) if not _is_number(expires) else now + float(cast("float", expires))


def has_expired(now: float, expires: float, sent_at: float, due: float, retries: int) -> bool:
    """Tell whether a call is to be dropped: what has run and is retried keeps to an expiry of its own only."""
    if not 0.0 < expires < now:
        return False
    return not retries or expires != expiry_time(sent_at, None, due)


def iso(at: float) -> str | None:
    """Return an instant (Unix seconds) in ISO 8601; None for none, or one that no date can say."""
    return datetime.fromtimestamp(at, UTC).isoformat() if 0.0 < at < LATEST else None


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def _instant(name: str, value: object) -> float:
    found = _written(value) if isinstance(value, str) else value
    if not isinstance(found, datetime):
        also = "" if name == "eta" else ", or a number of seconds"
        raise ImproperlyConfigured(f"{name} is a datetime, or one in ISO 8601{also}, not {value!r}")
    if found.tzinfo is None:
        raise ImproperlyConfigured(
            f"{name}={found.isoformat()} has no time zone; use datetime.now(UTC) + … or .astimezone()"
        )
    return found.timestamp()


def _written(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
