"""Memory in use, and what the kernel says of its end."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from nbqueue.memory import OutOfMemory, rss_bytes


def test_memory_in_use_grows_with_what_is_kept() -> None:
    before = rss_bytes(os.getpid())
    kept = mmap.mmap(-1, 50_000_000)  # memory of its own: a large process may have as much at hand
    kept.write(b"x" * 50_000_000)
    assert 40_000_000 < rss_bytes(os.getpid()) - before < 200_000_000
    assert len(kept) == 50_000_000


def test_process_that_is_gone_uses_none() -> None:
    assert rss_bytes(2**22 + 1) == 0


def test_end_by_the_kernel_is_known_for_a_while_when_a_counter_has_grown(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom 4\noom_kill 3\n")
    watched = OutOfMemory([tmp_path / "missing", events])
    assert not watched.happened(100.0)
    events.write_text("oom 5\noom_kill 4\n")
    assert watched.happened(101.0)
    assert watched.happened(103.0), "several children may have ended"
    assert not watched.happened(107.0)


def test_this_machine_counts_ends_for_want_of_memory() -> None:
    counters = OutOfMemory()._counters
    assert any("oom_kill " in path.read_text() for path in counters if path.exists())
