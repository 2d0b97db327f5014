"""Cells found again: after a restart, a reload, an interrupt, a killed child."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.lab import Lab
from tests.helpers import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

TWO_PARTS = """%%task parts
print("part one")
hold("two")
print("part two")
"both parts"
"""


def test_cell_run_again_after_a_restart_finds_its_task_output_and_result(lab: Lab) -> None:
    attach = "import nbqueue\nnbqueue.attach('parts').get()"
    with lab.open("restart", TWO_PARTS, "parts.get()", attach) as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).get_by_role("log")).to_have_text("part one")
        notebook.restart()
        notebook.run(0, 1)
        expect(notebook.output(1)).to_contain_text("parts is already running")
        expect(notebook.output(1)).to_contain_text("nothing was sent")
        expect(notebook.view(1).get_by_role("log")).to_have_text("part one")
        notebook.open_gate("two")
        notebook.run(2, 3)
        expect(notebook.output(2)).to_contain_text("'both parts'")
        expect(notebook.output(3)).to_contain_text("'both parts'")
        expect(notebook.output(1)).to_contain_text("parts succeeded in")
        assert notebook.errors == []


def test_view_says_that_it_is_not_live_when_its_kernel_is_gone(lab: Lab) -> None:
    with lab.open("gone", TWO_PARTS) as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Running")
        notebook.restart()
        expect(notebook.view(1)).to_contain_text("Not live")
        expect(notebook.view(1).locator(".nbq-chip")).to_contain_text("Running at")
        expect(notebook.view(1).get_by_role("button", name="Cancel")).to_be_hidden()
        notebook.open_gate("two")


def test_finished_view_is_static_html_after_a_reload(lab: Lab) -> None:
    with lab.open("saved", "%%task quick --wait\nprint('said')\n6 * 7") as notebook:
        notebook.run(0, 1)
        expect(notebook.output(1)).to_contain_text("quick succeeded in")
        notebook.save()
        notebook.reload()
        expect(notebook.output(1)).to_contain_text("quick succeeded in")
        expect(notebook.output(1)).to_contain_text("42")
        notebook.restart()
        notebook.reload()
        expect(notebook.output(1)).to_contain_text("quick succeeded in")
        expect(notebook.page.get_by_text("Loading widget")).to_have_count(0)


def test_running_view_is_found_again_by_its_cell_after_a_reload_and_a_restart(lab: Lab) -> None:
    with lab.open("reload", TWO_PARTS, "parts.get()") as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).get_by_role("log")).to_have_text("part one")
        notebook.save()
        notebook.restart()
        notebook.reload()
        notebook.run(0, 1)
        expect(notebook.output(1)).to_contain_text("nothing was sent")
        expect(notebook.view(1).get_by_role("log")).to_have_text("part one")
        notebook.open_gate("two")
        notebook.run(2)
        expect(notebook.output(2)).to_contain_text("'both parts'")
        expect(notebook.output(1)).to_contain_text("parts succeeded in")
        expect(notebook.page.get_by_text("Loading widget")).to_have_count(0)


def test_interrupted_wait_says_that_the_task_goes_on(lab: Lab) -> None:
    with lab.open("interrupt", TWO_PARTS.replace("parts", "parts --wait", 1), "parts.get()") as notebook:
        notebook.run(0)
        notebook.start(1)
        expect(notebook.view(1).get_by_role("log")).to_have_text("part one")
        notebook.interrupt()
        expect(notebook.output(1)).to_contain_text("Stopped watching. parts goes on")
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Running")
        notebook.open_gate("two")
        notebook.run(2)
        expect(notebook.output(2)).to_contain_text("'both parts'")
        expect(notebook.output(1)).to_contain_text("parts succeeded in")
        assert notebook.errors == []


TOLD = """%%task told
import os
again = (GATES / "pid").exists()
if not again:
    print("first attempt, line 0")
    (GATES / "pid.new").write_text(str(os.getpid()))
    (GATES / "pid.new").rename(GATES / "pid")
number = 0
while not again:
    number += 1
    print("first attempt, line", number)
    time.sleep(0.02)
print("second attempt")
hold("end")
"ended by the second"
"""


def test_view_opened_again_after_a_child_was_killed_shows_both_attempts(lab: Lab) -> None:
    with lab.open("killed", TOLD, "told.get()") as notebook:
        notebook.run(0, 1)
        log = notebook.view(1).get_by_role("log")
        expect(log).to_contain_text("first attempt, line 5")
        notebook.save()
        notebook.leave()
        pid = int((notebook.gates / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pid), 10, "the child to end")
        notebook.reload()
        expect(log).to_contain_text("first attempt, line 0")
        expect(log).to_contain_text("first attempt, line 5")
        expect(log).to_contain_text("second attempt")
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Running")
        notebook.open_gate("end")
        notebook.run(2)
        expect(notebook.output(2)).to_contain_text("'ended by the second'")
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Succeeded")
