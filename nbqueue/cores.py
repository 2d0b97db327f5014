"""How many cores this process may use: `worker_concurrency = "auto"`.

Source: cgroups(7), sched(7); Celery's user guide, `worker_concurrency`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may run on, or fewer, if a group of processes that it is in may use less.

    A share of a core counts as a whole one. Elsewhere than on Linux these are the machine's.

    Args:
        root: where `/proc` and `/sys` are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield how many cores each group of processes may use that this process is in, if that is bounded."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        path = PurePosixPath(own.lstrip("/"))
        for group in (path, *path.parents):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = _quota(base / group, first="cpu.max" if not controllers else "cpu.cfs_quota_us")
                if quota > 0:
                    yield quota / period


def _quota(group: Path, first: str) -> tuple[int, int]:
    """Return microseconds of time on cores, and in how many; raises where there is no bound."""
    if first == "cpu.max":
        quota, period = (group / first).read_text().split()
        return int(quota), int(period)
    return int((group / first).read_text()), int((group / "cpu.cfs_period_us").read_text())
