"""The benchmark runs, and its table holds what it should; no time is asserted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.peers import SYSTEMS
from tests.benchmarks.run import ROWS, main, report

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_short_benchmark_prints_every_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    assert main(["--short", "--report", str(path)]) == 0
    printed = capsys.readouterr().out
    assert path.read_text() in printed
    for row in ROWS:
        line = next(line for line in printed.splitlines() if line.startswith(f"| {row.title} |"))
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        assert len(cells) == 1 + len(SYSTEMS)
    for name, system in SYSTEMS.items():
        assert (f"| {name} is not installed |" in printed) != system.installed()


def test_a_system_that_is_not_installed_has_a_row_that_says_so() -> None:
    figures = {row.figure: 2.0 for row in ROWS} | {"map_n": 1.0, "send_n": 1.0, "trips_n": 1.0, "processes": 3.0}
    text = report({name: [figures] for name in SYSTEMS if name != "Celery"}, "about")
    assert "| Celery is not installed |" in text
    assert ": ProcessPoolExecutor" in text
    assert ": Celery" not in text
