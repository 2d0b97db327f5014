"""Tasks and maps under their cells: live, cancelled, failed, and found again."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.lab import ROOT, Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

LOAD = "%load_ext nbqueue"
LONG = """%%task long
import time
from nbqueue import track
for step in track(range(100), message="steps"):
    time.sleep(0.1)
    print("step", step)
"all done"
"""


def test_quickstart_runs_top_to_bottom(lab: Lab) -> None:
    notebook = lab.open_file(ROOT / "notebooks" / "01_quickstart.ipynb")
    notebook.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    notebook.page.get_by_text("The quickstart did its job.", exact=True).wait_for(timeout=100_000)
    expect(notebook.page.locator(".jp-OutputArea").filter(has_text="forest succeeded in")).not_to_have_count(0)
    assert notebook.errors == []
    notebook.close()


def test_running_task_shows_state_worker_bar_and_prints(lab: Lab) -> None:
    notebook = lab.open("running", LOAD, LONG)
    notebook.run(0, 1)
    view = notebook.view(1)
    expect(view.locator(".nbq-chip")).to_have_text("Running", timeout=20_000)
    expect(view.locator(".nbq-where")).to_contain_text("local@")
    expect(view.get_by_role("progressbar")).to_be_visible()
    expect(view.get_by_role("log")).to_contain_text("step 3")
    expect(view.locator(".nbq-time")).to_have_text(re.compile(r"\d+\.\d s"))
    notebook.see(1, "succeeded in", timeout_s=30)
    expect(notebook.output(1)).to_contain_text("'all done'")
    assert notebook.errors == []
    notebook.close()


def test_cancel_answers_while_the_kernel_runs_another_cell(lab: Lab) -> None:
    notebook = lab.open("cancel", LOAD, LONG, "import time; time.sleep(6); 'busy no more'")
    notebook.run(0, 1)
    expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Running", timeout=20_000)
    notebook.start(2)
    notebook.view(1).get_by_role("button", name="Cancel").click()
    notebook.see(1, "cancelled after", timeout_s=4)
    expect(notebook.output(2)).not_to_contain_text("busy no more")
    notebook.see(2, "busy no more")
    notebook.close()


def test_failed_task_shows_its_error_and_the_cells_own_line(lab: Lab) -> None:
    notebook = lab.open("failed", LOAD, "%%task broken\nnumbers = [1, 2]\nnumbers[7]")
    notebook.run(0, 1)
    notebook.see(1, "broken")
    expect(notebook.output(1)).to_contain_text("IndexError: list index out of range", timeout=20_000)
    expect(notebook.output(1)).to_contain_text("numbers[7]")
    notebook.close()


def test_map_counts_what_is_done_and_what_failed(lab: Lab) -> None:
    code = """from nbqueue import task
import time
@task
def work(n):
    time.sleep(0.01)
    if n in (5, 50):
        raise ValueError("not this one")
    return n
runs = work.map(range(200))"""
    notebook = lab.open("map", LOAD, code, "len(runs.get(propagate=False)), runs.completed_count()")
    notebook.run(0, 1)
    expect(notebook.view(1)).to_contain_text("map of 200", timeout=10_000)
    expect(notebook.view(1).locator("canvas")).to_be_visible()
    notebook.run(2)
    notebook.see(2, "(200, 198)")
    expect(notebook.output(1)).to_contain_text("198 done, 2 failed", timeout=10_000)
    expect(notebook.output(1)).to_contain_text("ValueError: not this one")
    notebook.close()


def test_hostile_strings_stay_text(lab: Lab) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    code = f"""%%task
import time
from nbqueue import progress
progress(1, 3, {evil!r})
print({evil!r}, "\\x1b[31mred\\x1b[0m", "\\u202eabc")
time.sleep(2)
raise ValueError({evil!r})"""
    notebook = lab.open("hostile", LOAD, code)
    notebook.run(0, 1)
    expect(notebook.view(1).get_by_role("log")).to_contain_text(evil, timeout=20_000)
    assert notebook.view(1).locator("img, script").count() == 0
    notebook.see(1, "failed after")
    assert notebook.output(1).locator("img, script").count() == 0
    expect(notebook.output(1)).to_contain_text(evil)
    assert notebook.errors == []
    notebook.close()


def test_cell_run_again_after_a_restart_finds_its_task_output_and_result(lab: Lab) -> None:
    notebook = lab.open("restart", LOAD, LONG, "long.get()", "import nbqueue; nbqueue.attach('long').get()")
    notebook.run(0, 1)
    expect(notebook.view(1).get_by_role("log")).to_contain_text("step 10", timeout=20_000)
    notebook.restart()
    notebook.run(0, 1)
    notebook.see(1, "long is already running")
    notebook.see(1, "nothing was sent")
    expect(notebook.view(1).get_by_role("log")).to_contain_text("step 1\n", timeout=5_000)
    notebook.run(2, 3)
    expect(notebook.output(2)).to_contain_text("'all done'")
    expect(notebook.output(3)).to_contain_text("'all done'")
    notebook.close()


def test_view_of_a_kernel_that_is_gone_says_that_it_is_not_live(lab: Lab) -> None:
    notebook = lab.open("gone", LOAD, LONG)
    notebook.run(0, 1)
    expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Running", timeout=20_000)
    notebook.restart()
    expect(notebook.view(1)).to_contain_text("Not live", timeout=20_000)
    expect(notebook.view(1).get_by_role("button", name="Cancel")).to_be_hidden()
    notebook.close()


def test_saved_notebook_shows_the_end_without_a_kernel(lab: Lab) -> None:
    notebook = lab.open("saved", LOAD, "%%task quick --wait\nprint('said')\n6 * 7")
    notebook.run(0, 1)
    notebook.save()
    notebook.restart()
    notebook.page.reload()
    notebook.wait_for_kernel()
    notebook.see(1, "succeeded in")
    expect(notebook.output(1)).not_to_contain_text("Loading widget")
    notebook.close()


def test_interrupted_wait_says_that_the_task_goes_on(lab: Lab) -> None:
    notebook = lab.open("interrupt", LOAD, LONG.replace("%%task long", "%%task waited --wait"), "waited.get()")
    notebook.run(0)
    notebook.start(1)
    expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Running", timeout=20_000)
    notebook.interrupt()
    notebook.see(1, "Stopped watching. waited goes on")
    notebook.run(2)
    expect(notebook.output(2)).to_contain_text("'all done'")
    notebook.close()


def test_view_fits_a_narrow_page(lab: Lab) -> None:
    code = LONG.replace("%%task long", "%%task a_name_that_is_rather_long_for_a_narrow_page")
    notebook = lab.open("narrow", LOAD, code, width=480)
    notebook.run(0, 1)
    view = notebook.view(1)
    expect(view.locator(".nbq-chip")).to_have_text("Running", timeout=20_000)
    assert view.evaluate("node => node.scrollWidth <= node.clientWidth")
    view.get_by_role("button", name="Cancel").click()
    notebook.see(1, "cancelled after")
    notebook.close()
