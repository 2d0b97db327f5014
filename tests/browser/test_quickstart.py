"""The first notebook that a person opens."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.lab import ROOT, Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def test_quickstart_opens_and_runs_top_to_bottom(lab: Lab) -> None:
    with lab.open_copy(ROOT / "notebooks" / "01_quickstart.ipynb") as notebook:
        notebook.run_all()
        expect(notebook.page.get_by_text("The quickstart did its job.", exact=True)).to_be_visible(timeout=200_000)
        expect(notebook.page.locator(".jp-OutputArea").filter(has_text="forest succeeded in")).to_be_visible()
        expect(notebook.page.locator(".nbq")).to_have_count(0)
        assert notebook.errors == []
