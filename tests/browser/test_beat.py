"""The panel of what runs by the clock, and cells that do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from nbqueue.signing import create_key_file
from tests.browser.lab import ROOT, Lab
from tests.helpers import RedisServer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CLEAR = "from nbqueue import current_app\nfor entry in current_app().beat.list(): current_app().beat.delete(entry.name)"
# What of a panel stands out of it.
WIDER = """node => [...node.querySelectorAll('*')].filter(one => !one.closest('.nbq-said') &&
    one.getBoundingClientRect().right > node.getBoundingClientRect().right + 1).map(one => one.outerHTML)"""
TASK = "@task\ndef digest(n, word='a'):\n    return n"


def row_of(panel: Locator, name: str) -> Locator:
    return panel.locator(f'tr.nbq-row[data-name="{name}"]')


def test_panel_adds_changes_pauses_runs_and_deletes(lab: Lab) -> None:
    with lab.open("beat", CLEAR, "from nbqueue import task\n" + TASK, "%beat") as notebook:
        notebook.run(0, 1, 2, 3)
        panel = notebook.view(3)
        expect(panel).to_contain_text("Nothing is scheduled")
        panel.get_by_role("button", name="Add schedule").click()
        panel.get_by_label("Run", exact=True).fill("digest(3, word='b')")
        panel.get_by_role("radio", name="Crontab").click()
        when = panel.get_by_label("Minute, hour, day, month, weekday")
        panel.get_by_label("Time zone").fill("Europe/Oslo")
        when.fill("30 8-17/3 * * mon,thu")
        expect(panel.locator(".nbq-words")).to_have_text("Mondays and Thursdays at 08:30, 11:30, 14:30 and 17:30")
        expect(panel.locator(".nbq-firings li")).to_have_count(5)
        expect(panel.locator(".nbq-meaning")).to_contain_text("Next five firings, Europe/Oslo")
        when.fill("30 25 * * mon,thu")
        expect(panel.get_by_role("alert")).to_have_text("Hour is 0 to 23, not 25.")
        expect(panel.locator(".nbq-firings")).to_have_class(re.compile("nbq-dim"))
        expect(panel.locator(".nbq-firings li")).to_have_count(5)
        when.fill("30 8-17/3 * * mon,thu")
        expect(panel.locator(".nbq-mistake")).to_be_empty()
        panel.locator(".nbq-form").get_by_role("button", name="Add schedule").click()
        row = row_of(panel, "digest")
        expect(row).to_contain_text("Mondays and Thursdays at 08:30, 11:30, 14:30 and 17:30 Europe/Oslo")
        expect(row.locator(".nbq-c-count")).to_have_text(re.compile(r"^in \d+"))
        expect(panel.locator(".nbq-form")).to_be_hidden()
        expect(panel.locator(".nbq-lead")).to_contain_text(" leads")

        row.get_by_role("button", name="Run digest now (R)").click()
        expect(row.locator("g[data-is=succeeded]")).to_have_count(1)
        row.get_by_role("button", name=re.compile("Runs of digest: 1 done")).click()
        expect(panel.locator("tr.nbq-detail")).to_contain_text("by hand")

        row.get_by_role("button", name="Pause digest (P)").click()
        expect(row).to_contain_text("paused")
        expect(panel.locator(".nbq-sum")).to_have_text("1 schedule, 1 paused")
        row.get_by_role("button", name="Resume digest (P)").click()
        expect(row.locator(".nbq-c-count")).to_have_text(re.compile(r"^in \d+"))

        row.get_by_role("button", name="Edit digest (Enter)").click()
        panel.get_by_role("radio", name="Every").click()
        panel.get_by_label("Interval: 30s, 10m, 1h30m").fill("2h")
        panel.get_by_role("button", name="Save").click()
        expect(row).to_contain_text("every 2 hours")

        row.get_by_role("button", name="Delete digest (Delete)").click()
        expect(row).to_contain_text("Deleted.")
        row.get_by_role("button", name="Undo the deletion of digest").click()
        expect(row).to_contain_text("every 2 hours")
        row.get_by_role("button", name="Delete digest (Delete)").click()
        expect(row).to_have_count(0, timeout=20_000)
        expect(panel).to_contain_text("Nothing is scheduled")
        assert notebook.errors == []
        assert notebook.console == []


def test_cell_runs_by_the_clock_while_no_kernel_lives_and_others_changes_are_seen(lab: Lab) -> None:
    other = "from nbqueue import App; App().beat.add('theirs', '1h', App().signature('proj.tasks.load'))"
    add = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {other!r}], check=True)"
    with lab.open(
        "cells", CLEAR, "rate = 3", "%%task tick --every 1s\nrate * 2", "%load_ext nbqueue\n%beat", add
    ) as notebook:
        notebook.run(0, 1, 2, 3, 4)
        expect(notebook.output(3)).to_contain_text("tick runs every second, next ")
        expect(row_of(notebook.view(4), "tick")).to_be_visible()
        notebook.restart()
        expect(notebook.view(4)).to_contain_text(
            "Not live: the kernel does not answer. The schedule goes on without it."
        )
        notebook.run(4)
        panel = notebook.view(4)
        tick = row_of(panel, "tick")
        expect(tick.locator("g[data-is=succeeded]").nth(4)).to_be_attached()
        notebook.run(0, 5)
        theirs = row_of(panel, "theirs")
        expect(theirs).to_contain_text("every hour")

        # by keyboard alone; JupyterLab's own keys, as X for cutting a cell, stay out of it
        cells = notebook.page.locator(".jp-Notebook .jp-Cell")
        number = cells.count()
        theirs.focus()
        for key in ("p", "x", "d", "d"):
            notebook.page.keyboard.press(key)
        expect(theirs).to_contain_text("paused")
        expect(theirs).to_be_focused()
        notebook.page.keyboard.press("ArrowDown")
        expect(tick).to_be_focused()
        notebook.page.keyboard.press("Enter")
        form = panel.get_by_role("group", name="Edit tick")
        expect(form.get_by_label("Interval: 30s, 10m, 1h30m")).to_have_value("1 s")
        notebook.page.keyboard.press("Escape")
        expect(form).to_have_count(0)
        expect(tick).to_be_focused()
        notebook.page.keyboard.press("Delete")
        expect(tick).to_contain_text("Deleted.")
        expect(tick.get_by_role("button", name="Undo the deletion of tick")).to_be_focused()
        notebook.page.keyboard.press("Enter")
        expect(tick).to_contain_text("every second")
        assert cells.count() == number
        notebook.run(1)
        assert notebook.errors == []


@pytest.mark.parametrize("width", [400, 700])
def test_panel_and_its_form_are_not_wider_than_a_narrow_page(lab: Lab, width: int) -> None:
    name = """<img src=x onerror=alert(1)>"'] \\ a_schedule_with_a_name_that_is_longer_than_the_page_is_wide"""
    call = "current_app().signature('proj.tasks.load')"
    made = f"from nbqueue import current_app\ncurrent_app().beat.add({name!r}, '0 7 * * mon-fri', {call})"
    with lab.open(f"narrow-beat-{width}", CLEAR, made, "%beat") as notebook:
        notebook.run(0, 1, 2, 3)
        notebook.resize(width, 1400)
        panel = notebook.view(3)
        row = panel.locator("tr.nbq-row")
        expect(row).to_have_count(1)
        expect(row).to_contain_text(name[:70])
        row.focus()
        notebook.page.keyboard.press("p")
        expect(row.get_by_role("button", name="Resume")).to_be_visible()
        expect(row).to_be_focused()
        notebook.page.keyboard.press("Space")
        notebook.page.keyboard.press("Enter")
        expect(panel.locator(".nbq-firings li")).to_have_count(5)
        assert panel.evaluate("node => node.scrollWidth - node.clientWidth") <= 0
        assert panel.evaluate(WIDER) == []
        assert panel.locator("img").count() == 0
        assert notebook.errors == []
        notebook.run(1)


def test_notebook_of_periodic_cells_runs_top_to_bottom(lab: Lab) -> None:
    with lab.open_copy(ROOT / "notebooks" / "06_periodic_cells.ipynb") as notebook:
        notebook.run_all()
        expect(notebook.page.get_by_text(re.compile(r"^Batch \d+ needs a look: \d"))).to_be_visible(timeout=150_000)
        panel = notebook.page.locator(".nbq-beat")
        panel.scroll_into_view_if_needed()  # off screen it asks for nothing
        expect(panel).to_contain_text("Nothing is scheduled")
        assert notebook.errors == []


def test_panel_starts_a_beat_where_none_leads(lab: Lab, redis_server: RedisServer, tmp_path: Path) -> None:
    key = tmp_path / "key"
    create_key_file(key)
    app = (
        f"from nbqueue import App\napp = App('away', broker={redis_server.url!r}, key_file={str(key)!r})\n"
        "app.beat.add('sum', '1h', app.signature('proj.tasks.add'))"
    )
    stop = (
        "import signal\nfrom nbqueue.processes import PidFile\n"
        "[PidFile(path).end((signal.SIGTERM, 10.0)) for path in (app.link.directory / 'workers').glob('beat*.pid')]"
    )
    with lab.open("away", app, "%beat", stop) as notebook:
        notebook.run(0, 1, 2)
        panel = notebook.view(2)
        expect(panel).to_contain_text("No beat leads, so nothing fires.")
        try:
            panel.get_by_role("button", name="Start beat here").click()
            expect(panel.locator(".nbq-lead")).to_contain_text(re.compile(r"beat.* leads"))
            expect(panel).not_to_contain_text("No beat leads")
        finally:
            notebook.run(3)
        expect(notebook.output(3)).to_contain_text("[True]")
        expect(panel).to_contain_text(re.compile(r"No beat leads since \d\d:\d\d\. Firings are kept and run once"))
        assert notebook.errors == []
