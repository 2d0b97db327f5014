"""The table of features names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.workers import ROOT

TABLE: Final = Path(__file__).with_name("README.md")
_NAMED: Final = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[str]:
    """Return the rows of all tables but their heads."""
    lines = TABLE.read_text().splitlines()
    return [
        line for line in lines if line.startswith("| ") and line not in ("| feature | test |", "| difference | test |")
    ]


@pytest.mark.parametrize("row", rows())
def test_row_names_a_test_that_exists(row: str) -> None:
    named = _NAMED.findall(row)
    assert named, f"this row names no test: {row}"
    for path, name in named:
        text = (ROOT / path).read_text()
        assert re.search(rf"^(?:    )?(?:async )?def {name}\(", text, re.MULTILINE), f"{path} has no {name}"
