"""What a worker writes about tasks."""

from __future__ import annotations

import pytest

from nbqueue.reports import cause_of_death


@pytest.mark.parametrize(
    ("cause", "out_of_memory", "shown"),
    [
        ("signal 9 (SIGKILL)", False, "signal 9 (SIGKILL, out of memory?)"),
        ("signal 9 (SIGKILL)", True, "out of memory, signal 9 (SIGKILL)"),
        ("signal 11 (SIGSEGV)", True, "signal 11 (SIGSEGV)"),
        ("exit code 1", False, "exit code 1"),
    ],
)
def test_end_by_force_is_put_down_to_memory_as_far_as_is_known(cause: str, out_of_memory: bool, shown: str) -> None:
    assert cause_of_death(cause, out_of_memory=out_of_memory) == shown
