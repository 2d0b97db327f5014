"""Tasks and maps under their cells while they live: shown, cancelled, failed."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]

STEPS = """%%task steps
from nbqueue import progress
for step in (1, 2, 3):
    time.sleep(0.2)  # a bar is sent ten times a second at most
    progress(step, 3, "steps")
    print("step", step)
    hold(f"after {step}")
"all done"
"""


def test_running_task_shows_state_worker_moving_bar_and_prints(lab: Lab) -> None:
    with lab.open("running", STEPS) as notebook:
        notebook.run(0, 1)
        view = notebook.view(1)
        expect(view.locator(".nbq-chip")).to_have_text("Running")
        expect(view.locator(".nbq-where")).to_contain_text("local@")
        expect(view.locator(".nbq-time")).to_have_text(re.compile(r"\d+(\.\d s|:\d\d)"))
        expect(view.get_by_role("log")).to_have_text("step 1")
        bar = view.get_by_role("progressbar")
        expect(bar).to_have_attribute("aria-valuetext", "1 of 3")
        narrow = bar.locator(".nbq-ink").evaluate("node => node.getBoundingClientRect().width")
        notebook.open_gate("after 1")
        expect(bar).to_have_attribute("aria-valuetext", "2 of 3")
        expect(view.get_by_role("log")).to_contain_text("step 2")
        notebook.page.wait_for_function(
            "before => document.querySelector('.nbq-ink').getBoundingClientRect().width > 1.5 * before", arg=narrow
        )
        notebook.open_gate("after 2")
        notebook.open_gate("after 3")
        expect(notebook.output(1)).to_contain_text("steps succeeded in")
        expect(notebook.output(1)).to_contain_text("'all done'")
        expect(notebook.view(1)).to_have_count(0)
        assert notebook.errors == []


def test_cancel_works_while_the_kernel_runs_another_cell(lab: Lab) -> None:
    busy = "hold('busy'); 'busy no more'"
    with lab.open("cancel", STEPS, busy) as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Running")
        notebook.start(2)
        notebook.wait_until_busy()
        notebook.view(1).get_by_role("button", name="Cancel").click()
        expect(notebook.output(1)).to_contain_text("steps cancelled after")
        expect(notebook.view(1)).to_have_count(0)
        expect(notebook.output(2)).not_to_contain_text("busy no more")
        notebook.open_gate("busy")
        expect(notebook.output(2)).to_contain_text("busy no more")
        assert notebook.errors == []


def test_failed_cell_shows_its_error_and_its_own_line(lab: Lab) -> None:
    with lab.open("failed", "%%task broken\nnumbers = [1, 2]\nnumbers[7]") as notebook:
        notebook.run(0, 1)
        output = notebook.output(1)
        expect(output).to_contain_text("broken failed after")
        expect(output.locator("code")).to_have_text("IndexError: list index out of range")
        expect(output.locator("pre").first).to_contain_text("Cell broken, line 3")
        expect(output.locator("pre b")).to_contain_text("numbers[7]")
        expect(output.locator("details pre").first).to_contain_text('File "<cell broken>", line 3')
        expect(output).not_to_contain_text("nbqueue/")
        assert notebook.errors == []


def test_map_shows_counts_and_ends_with_them(lab: Lab) -> None:
    code = """from nbqueue import task
@task
def work(n):
    if n in (5, 50):
        raise ValueError("not this one")
    if n > 99:
        hold("rest")
    return n
runs = work.map(range(102))"""
    with lab.open("map", code, "len(runs.get(propagate=False)), runs.completed_count()") as notebook:
        notebook.run(0, 1)
        view = notebook.view(1)
        expect(view.locator(".nbq-where")).to_contain_text("map of 102")
        expect(view.locator(".nbq-legend")).to_contain_text("98 done")
        expect(view.locator(".nbq-legend")).to_contain_text("2 failed")
        expect(view.locator("canvas")).to_have_accessible_name("98 done, 2 failed of 102")
        expect(view.locator(".nbq-kind")).to_contain_text("ValueError: not this one")
        notebook.open_gate("rest")
        notebook.run(2)
        expect(notebook.output(2)).to_contain_text("(102, 100)")
        expect(notebook.output(1)).to_contain_text("100 done, 2 failed")
        expect(notebook.output(1)).to_contain_text("ValueError: not this one")
        expect(notebook.view(1)).to_have_count(0)
        assert notebook.errors == []
