"""Small things, where Celery has them."""

from __future__ import annotations

import uuid as _uuid

__all__ = ["uuid"]


def uuid() -> str:
    """Return a new id, as for a task whose id is to be known before it is sent."""
    return str(_uuid.uuid4())
