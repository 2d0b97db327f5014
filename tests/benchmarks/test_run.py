"""The benchmarks run, and their report holds what it should; no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import capacity, growth
from tests.benchmarks.peers import SYSTEMS
from tests.benchmarks.report import BY_NAME, ROWS, text
from tests.benchmarks.run import main


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_short_benchmark_prints_every_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    assert main(["--short", "--report", str(path)]) == 0
    printed = capsys.readouterr().out
    assert path.read_text() in printed
    for row in ROWS:
        lines = [line for line in printed.splitlines() if line.startswith(f"| {row.title} |")]
        assert len(lines) == (1 if row.ours == BY_NAME else 2)
        if row.figure != "pipeline_rate":
            assert "not measured" not in lines[0]
    for name, system in SYSTEMS.items():
        assert (f"| {name} was not measured |" in printed) != system.installed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_growth_is_measured_and_drawn(tmp_path: Path) -> None:
    assert growth.main(["--short", "--to", str(tmp_path)]) == 0
    picture = (tmp_path / "growth.svg").read_text()
    assert "<svg" in picture
    assert growth.main(["--only-draw", "--to", str(tmp_path)]) == 0
    assert (tmp_path / "growth.svg").read_text() == picture, "the same figures, the same picture"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_capacity_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main(["--short"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["queued alone, with its record"] > 100
    assert [point["workers"] for point in found["workers"]] == [4]
    assert found["workers"][0]["alive"] == 4


def test_report_compares_with_the_best_peer_within_each_round() -> None:
    ours = [{"map_rate": 30.0, "p50_ms": 2.0}, {"map_rate": 10.0, "p50_ms": 1.0}]
    huey = [{"map_rate": 3.0, "p50_ms": 1.0}, {"map_rate": 2.0, "p50_ms": 2.0}]
    rq = [{"map_rate": 1.0, "p50_ms": 8.0}, {}]
    said = text({"nbqueue": ours, "huey": huey, "RQ": rq}, "about")
    rates = next(line for line in said.splitlines() if line.startswith("| map of no-ops"))
    assert "| 20 (10 to 30) | huey 2 (2 to 3) | 7.50 (5.00 to 10.00) |" in rates, "not 20 / 2.5"
    assert "7.50 ✗, ?" in rates, "the goal is 10; the pool was not measured"
    assert "| ProcessPoolExecutor was not measured |" in said


def test_goal_of_a_duration_is_kept_from_below() -> None:
    said = text({"nbqueue": [{"p50_ms": 1.0}], "Ray": [{"p50_ms": 2.5}]}, "about")
    assert "0.40 ✓" in next(line for line in said.splitlines() if line.startswith("| round trip p50"))
