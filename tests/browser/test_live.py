"""Tasks and maps under their cells while they live: shown, cancelled, failed."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.lab import SETTLE, Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

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
    with lab.open("failed", "%%task broken\nnumbers = [1, 2]\nnumbers[7]", SETTLE) as notebook:
        notebook.run(0, 1)
        view = notebook.view(1)
        expect(view.locator(".nbq-chip")).to_have_text("Failed")
        expect(view.locator(".nbq-error-text")).to_have_text("IndexError: list index out of range")
        expect(view.get_by_role("button", name="Retry")).to_be_visible()
        notebook.run(2)
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
    with lab.open("map", code, "len(runs.get(propagate=False)), runs.completed_count()", SETTLE) as notebook:
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
        expect(view.locator(".nbq-chip")).to_have_text("2 failed")
        notebook.run(3)
        expect(notebook.output(1)).to_contain_text("100 done, 2 failed")
        expect(notebook.output(1)).to_contain_text("ValueError: not this one")
        expect(notebook.view(1)).to_have_count(0)
        assert notebook.errors == []


LINES = """%%task lines
print("\\n".join(f"line {n}" for n in range(40)))
hold("more")
print("\\n".join(f"line {n}" for n in range(40, 43)))
hold("end")
"""


def test_log_follows_until_it_is_paused_and_then_counts_what_is_new(lab: Lab) -> None:
    with lab.open("log", LINES) as notebook:
        notebook.run(0, 1)
        log = notebook.view(1).get_by_role("log")
        following = notebook.view(1).locator(".nbq-plain")
        expect(log.get_by_text("line 39", exact=True)).to_be_in_viewport()
        expect(following).to_have_text("Following")
        log.press("Space")
        expect(following).to_have_text("Paused")
        notebook.open_gate("more")
        expect(following).to_have_text("3 new lines")
        expect(log.get_by_text("line 42", exact=True)).not_to_be_in_viewport()
        log.press("End")
        expect(following).to_have_text("Following")
        expect(log.get_by_text("line 42", exact=True)).to_be_in_viewport()
        notebook.open_gate("end")
        assert notebook.errors == []


def test_log_is_searched_from_the_keyboard(lab: Lab) -> None:
    with lab.open("search", LINES) as notebook:
        notebook.run(0, 1)
        log = notebook.view(1).get_by_role("log")
        expect(log).to_contain_text("line 39")
        # command mode has an action for nearly every one of these keys
        log.press("/")
        field = notebook.view(1).get_by_role("searchbox")
        field.type("line 1")
        expect(notebook.view(1).locator(".nbq-field .nbq-numbers")).to_have_text("11 of 11")
        expect(log.locator(".nbq-found")).to_be_in_viewport()
        field.press("Enter")
        expect(notebook.view(1).locator(".nbq-field .nbq-numbers")).to_have_text("10 of 11")
        field.press("Escape")
        expect(log.locator("mark")).to_have_count(0)
        expect(log).to_be_focused()
        assert notebook.page.locator(".jp-Notebook .jp-Cell").count() == 2
        notebook.open_gate("all")


def test_second_view_of_a_task_shows_what_the_first_one_does(lab: Lab) -> None:
    with lab.open("twice", LINES) as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).get_by_role("log")).to_contain_text("line 39")
        notebook.open_gate("more")
        expect(notebook.view(1).get_by_role("log")).to_contain_text("line 42")
        notebook.page.evaluate("() => jupyterapp.commands.execute('notebook:create-output-view')")
        second = notebook.page.locator(".jp-LinkedOutputView .nbq")
        expect(second.get_by_role("log")).to_contain_text("line 42")
        expect(second.get_by_role("log")).to_contain_text("line 0")
        notebook.page.evaluate("() => jupyterapp.shell.currentWidget.dispose()")
        notebook.open_gate("end")
        assert notebook.errors == []


def test_page_that_is_loaded_anew_shows_all_there_is_and_goes_on(lab: Lab) -> None:
    with lab.open("anew", LINES) as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).get_by_role("log")).to_contain_text("line 39")
        notebook.save()
        notebook.reload()
        log = notebook.view(1).get_by_role("log")
        expect(log).to_contain_text("line 39")
        expect(log).to_contain_text("line 0")
        notebook.open_gate("more")
        expect(log).to_contain_text("line 42")
        expect(notebook.view(1).locator(".nbq-logbar")).to_contain_text("43 lines")
        notebook.open_gate("end")
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Succeeded")


def test_flood_of_prints_shows_its_end_and_says_what_it_left_out(lab: Lab) -> None:
    code = """%%task flood
print("line 0 of a flood of prints")
hold("flood")
print("\\n".join(f"line {n} of a flood of prints" for n in range(1, 20_000)))
hold("end")"""
    with lab.open("flood", code) as notebook:
        notebook.run(0, 1)
        log = notebook.view(1).get_by_role("log")
        expect(log).to_contain_text("line 0 of a flood")
        notebook.open_gate("flood")
        expect(log).to_contain_text("line 19999 of a flood")
        expect(notebook.view(1).locator(".nbq-logbar")).to_contain_text("20,000 lines")
        expect(log.locator(".nbq-skipped").first).to_contain_text("lines skipped here")
        assert log.locator(".nbq-line").count() <= 2_000
        notebook.open_gate("end")
        assert notebook.errors == []


def test_view_that_is_read_in_stays_until_its_reader_leaves(lab: Lab) -> None:
    with lab.open("read", LINES) as notebook:
        notebook.run(0, 1)
        log = notebook.view(1).get_by_role("log")
        expect(log).to_contain_text("line 39")
        log.focus()
        notebook.open_gate("all")
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Succeeded")
        expect(log).to_contain_text("line 42")
        # longer than one that nobody reads in would stay
        notebook.page.wait_for_timeout(5_000)
        expect(log).to_contain_text("line 42")
        log.press("Escape")
        expect(notebook.output(1)).to_contain_text("lines succeeded in")
        expect(notebook.view(1)).to_have_count(0)


def test_map_is_read_from_the_keyboard_cell_by_cell(lab: Lab) -> None:
    code = """from nbqueue import task
@task
def work(n):
    if n == 5:
        raise ValueError("not this one")
    if n > 9:
        hold("rest")
runs = work.map(range(12))"""
    with lab.open("keys", code, SETTLE) as notebook:
        notebook.run(0, 1)
        view = notebook.view(1)
        expect(view.locator("canvas")).to_have_accessible_name("9 done, 1 failed of 12")
        grid, tip = view.locator("canvas"), view.locator(".nbq-tip")
        grid.press("f")
        expect(tip).to_contain_text("#5 failed on local@")
        expect(tip).to_contain_text("ValueError: not this one")
        grid.press("ArrowRight")
        expect(tip).to_contain_text("#6 done")
        grid.press("End")
        expect(tip).to_contain_text(re.compile("#11 (running|queued)"))
        grid.press("Escape")
        expect(tip).to_be_hidden()
        view.get_by_role("button", name="1 failed").click()
        expect(view.get_by_role("button", name="1 failed")).to_have_attribute("aria-pressed", "true")
        expect(view.get_by_role("img", name=re.compile("where in the map"))).to_be_visible()
        notebook.open_gate("rest")
        expect(view.locator(".nbq-chip")).to_have_text("1 failed")
        notebook.run(2)
        expect(notebook.output(1)).to_contain_text("11 done, 1 failed in")
        assert notebook.errors == []


def test_task_that_starts_later_says_when(lab: Lab) -> None:
    code = """from nbqueue import task
@task
def later():
    pass
one = later.apply_async(countdown=3_000)
one"""
    with lab.open("later", code) as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text(re.compile(r"Scheduled .*\d+:\d\d"))
        expect(notebook.view(1).locator(".nbq-time")).to_have_text(re.compile(r"starts in (49|50):\d\d"))
        notebook.view(1).get_by_role("button", name="Cancel").click()
        expect(notebook.output(1)).to_contain_text("later cancelled")


def test_view_that_is_out_of_sight_draws_nothing_until_it_is_seen(lab: Lab) -> None:
    told = "while 'line 42' not in str(lines.watched.status.log.chunks):\n    time.sleep(0.02)\ntime.sleep(0.3)"
    with lab.open("unseen", LINES, told) as notebook:
        notebook.run(0, 1)
        log = notebook.view(1).locator(".nbq-log")  # hidden, it has no role
        expect(log).to_contain_text("line 39")
        notebook.view(1).evaluate("node => { node.style.display = 'none' }")
        notebook.open_gate("more")
        notebook.run(2)
        assert "line 42" not in (log.text_content() or "")
        notebook.view(1).evaluate("node => { node.style.display = '' }")
        expect(log).to_contain_text("line 42")
        notebook.open_gate("end")
        assert notebook.errors == []


def test_failed_cell_runs_again_from_its_view(lab: Lab) -> None:
    code = "%%task mend\nprint('looking')\nassert (GATES / 'mended').exists(), 'not yet'\n'mended'"
    with lab.open("mend", code, "mend.get()") as notebook:
        notebook.run(0, 1)
        view = notebook.view(1)
        expect(view.locator(".nbq-error-text")).to_have_text("AssertionError: not yet")
        view.get_by_role("button", name="Retry").click()
        expect(view.get_by_role("log")).to_contain_text(re.compile("looking.*looking", re.DOTALL))
        expect(view.locator(".nbq-chip")).to_have_text("Failed")
        notebook.open_gate("mended")
        view.get_by_role("button", name="Retry").click()
        expect(notebook.output(1)).to_contain_text("mend succeeded in")
        notebook.run(2)
        expect(notebook.output(2)).to_contain_text("'mended'")
        assert notebook.errors == []


def test_members_that_failed_run_again_by_kind_and_all_together(lab: Lab) -> None:
    code = """from nbqueue import task
@task
def work(n):
    if n % 10 == 0 and not (GATES / "mended").exists():
        raise ValueError(f"kind {n % 20}")
    return n
runs = work.map(range(60))"""
    with lab.open("again", code, "sum(runs.get())") as notebook:
        notebook.run(0, 1)
        view = notebook.view(1)
        expect(view.locator(".nbq-chip")).to_have_text("6 failed")
        notebook.open_gate("mended")
        first = view.locator(".nbq-kind").filter(has_text="kind 10")
        first.get_by_role("button", name="Retry 3").click()
        expect(view.locator(".nbq-chip")).to_have_text("3 failed")
        expect(view.locator("canvas")).to_have_accessible_name("57 done, 3 failed of 60")
        expect(first).to_have_count(0)
        view.get_by_role("button", name="Retry all 3").click()
        expect(notebook.output(1)).to_contain_text("60 done in")
        notebook.run(2)
        expect(notebook.output(2)).to_contain_text(str(sum(range(60))))
        assert notebook.errors == []


def test_task_that_waits_for_its_retry_is_tried_now_or_no_more(lab: Lab) -> None:
    code = """from nbqueue import task
@task(bind=True, max_retries=None)
def again(self, gate):
    if (GATES / gate).exists():
        return "there"
    raise self.retry(exc=LookupError(gate), countdown=3_000)
{0} = again.delay("{0}")
{0}"""
    with lab.open("now", code.format("one"), code.format("two")) as notebook:
        notebook.run(0, 1, 2)
        one, two = notebook.view(1), notebook.view(2)
        expect(one.locator(".nbq-where")).to_have_text("attempt 2")
        one.get_by_role("button", name="Try now").click()
        expect(one.locator(".nbq-where")).to_have_text("attempt 3")
        notebook.open_gate("one")
        one.get_by_role("button", name="Try now").click()
        expect(notebook.output(1)).to_contain_text("again succeeded in")
        two.get_by_role("button", name="Stop retrying").click()
        expect(notebook.output(2)).to_contain_text("again cancelled after")
        assert notebook.errors == []
