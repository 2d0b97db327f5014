"""The panel of workers."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def test_panel_shows_starts_and_stops_workers(lab: Lab) -> None:
    with lab.open("workers", "%workers start 1", "%workers", "%%task held\nhold('end')") as notebook:
        notebook.run(0, 1)
        expect(notebook.output(1)).to_contain_text("local-1@")
        notebook.run(2, 3)
        panel = notebook.view(2)
        row = panel.locator("tr.nbq-row").filter(has=notebook.page.get_by_text("local-1", exact=True))
        expect(row).to_contain_text("this machine")
        expect(panel.locator(".nbq-sum")).to_have_text(re.compile(r"\d workers? · [1-9]\d* of \d+ children busy"))
        row.get_by_role("button", name="Children of local-1").click()
        expect(panel.locator("tr.nbq-child:not(.nbq-narrow)")).to_have_count(1)
        row.get_by_role("button", name="Log").first.click()
        expect(panel.get_by_role("log")).to_contain_text("1 children, queues")
        notebook.open_gate("end")
        expect(notebook.output(3)).to_contain_text("held succeeded in")
        row.get_by_role("button", name="Stop").click()
        expect(row).to_have_count(0)
        assert notebook.errors == []


def test_panel_cancels_what_a_child_is_at(lab: Lab) -> None:
    with lab.open("shift", "%%task stuck\nhold('never')", "%workers") as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Running")
        notebook.run(2)
        panel = notebook.view(2)
        panel.get_by_role("button", name="Children of local").first.click()
        child = panel.locator("tr.nbq-child").filter(has_text="stuck")
        expect(child).to_contain_text("pid")
        child.get_by_role("button", name="Cancel").click()
        child.get_by_role("button", name="Cancel it?").click()
        expect(notebook.output(1)).to_contain_text("stuck cancelled after")
        assert notebook.errors == []


@pytest.mark.parametrize("width", [400, 700])
def test_panel_is_not_wider_than_a_narrow_page(lab: Lab, width: int) -> None:
    with lab.open(f"narrow-workers-{width}", "%%task quick --wait\n1", "%workers") as notebook:
        notebook.run(0, 1, 2)
        notebook.resize(width, 900)
        panel = notebook.view(2)
        expect(panel.locator("tr.nbq-row").first).to_be_visible()
        wider = panel.evaluate("node => node.scrollWidth - node.clientWidth")
        assert wider <= 0
