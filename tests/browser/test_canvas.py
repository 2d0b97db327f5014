"""The notebook on canvases, in a browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.lab import ROOT, Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def test_canvases_of_the_notebook_run_top_to_bottom(lab: Lab) -> None:
    with lab.open_copy(ROOT / "notebooks" / "05_canvas.ipynb") as notebook:
        notebook.run_all()
        best = re.compile("tells them apart: 9[0-9.]+% on unseen")
        told = notebook.page.locator(".jp-OutputArea").filter(has_text=best)
        expect(told).to_be_visible(timeout=200_000)
        expect(notebook.page.get_by_text("['SUCCESS', 'FAILURE', 'FAILURE']")).to_be_visible()
        assert notebook.errors == []
