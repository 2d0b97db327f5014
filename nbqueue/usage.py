"""How much processor and memory processes use, as a worker tells of its own. Source: Linux's proc(5)."""

from __future__ import annotations

import os
import time
from typing import Final

from nbqueue.memory import rss_bytes

_TICKS_S: Final = 1 / (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)


class Usage:
    """Measures processes, each since it was measured last."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}  # pid -> when, and the processor time it had used by then

    def of(self, pid: int) -> tuple[float, int]:
        """Return the share of one core that a process used, and its memory in bytes; zeros where that isn't known."""
        now, used = time.monotonic(), _processor_s(pid)
        at, before = self._seen.get(pid, (now, used))
        self._seen[pid] = (now, used)
        share = (used - before) / (now - at) if now > at else 0.0
        return max(0.0, round(share, 2)), rss_bytes(pid)

    def forget_but(self, pids: set[int]) -> None:
        """Forget processes that are no more."""
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in pids}


def _processor_s(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - Path would double what it costs
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICKS_S
