"""How much memory a process uses, and whether the kernel has ended any for want of it."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_RECENT_S: Final = 5.0
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def rss_bytes(pid: int) -> int:
    """Return the memory that a process has in use; 0 if there is none of that id."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - Path would double what it costs
            return int(file.read().split()[1]) * _PAGE_BYTES
    except ProcessLookupError:
        return 0
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return 0
        import psutil  # noqa: PLC0415 - children on Linux stay smaller without it

        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
        return 0


class OutOfMemory:
    """Tells whether the kernel has just ended a process for want of memory. To be looked at every few seconds.

    Args:
        counters: files with a line `oom_kill N`; the first that has one counts. Those of this process's control
            group, then that of the whole machine, if None.
    """

    def __init__(self, counters: Sequence[Path] | None = None) -> None:
        self._counters = _counters() if counters is None else counters
        self._seen = self._count()
        self._at = -math.inf

    def happened(self, now: float) -> bool:
        """Tell whether it has in the last 5 seconds, on the monotonic clock."""
        count = self._count()
        if count > self._seen:
            self._seen, self._at = count, now
        return now - self._at < _RECENT_S

    def _count(self) -> int:
        for path in self._counters:
            with contextlib.suppress(OSError, ValueError):
                for line in path.read_text().splitlines():
                    name, _, number = line.partition(" ")
                    if name == "oom_kill":
                        return int(number)
        return 0


def _counters() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                found.append(root / group.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                found.append(root / "memory" / group.lstrip("/") / "memory.oom_control")
    return [*found, Path("/proc/vmstat")]
