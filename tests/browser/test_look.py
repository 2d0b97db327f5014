"""What a view may never do to the page: run what a task says, or leave its width."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import SETTLE, Lab, Notebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

MARKUP = "<img src=x onerror=hacked()><script>hacked = 1</script>"
HOSTILE = f"{MARKUP} \x1b[31mred\x1b[0m \u202eabc"
LONG_NAME = "a_name_that_is_rather_long_for_a_narrow_page"


def shows_as_text(notebook: Notebook, place: Locator) -> None:
    """Assert that a place shows the hostile string with nothing hidden, and that none of it came to life."""
    expect(place).to_contain_text(MARKUP)
    expect(place).to_contain_text("red \\x202eabc")
    assert place.locator("img, script").count() == 0
    assert notebook.page.evaluate("() => window.hacked === undefined")
    assert notebook.errors == []


def fits(place: Locator) -> None:
    """Assert that neither a place nor what is in it is wider than itself, but for code that scrolls on its own."""
    wide = place.evaluate(
        """root => [root, ...root.querySelectorAll('*')].filter(node => node.scrollWidth > node.clientWidth + 1
            && node.clientWidth && getComputedStyle(node).overflowX === 'visible').map(node => node.outerHTML)"""
    )
    assert wide == []
    assert place.evaluate("node => node.scrollWidth <= node.clientWidth")


def test_hostile_name_log_and_error_are_text_while_live_and_at_the_end(lab: Lab) -> None:
    code = f"""from nbqueue import progress, task
@task(name={HOSTILE!r})
def work(n):
    progress(1, 3, {HOSTILE!r})
    print({HOSTILE!r})
    hold("end")
    raise ValueError({HOSTILE!r})
one = work.delay(1)
one"""
    with lab.open("hostile", code, "many = work.map(range(2))", SETTLE) as notebook:
        notebook.run(0, 1)
        view = notebook.view(1)
        shows_as_text(notebook, view.get_by_role("log"))
        shows_as_text(notebook, view.locator(".nbq-name"))
        expect(view.locator(".nbq-label")).to_contain_text("<img src=x")
        notebook.run(2)
        notebook.open_gate("end")
        shows_as_text(notebook, view.locator(".nbq-error-text"))
        notebook.view(2).scroll_into_view_if_needed()
        expect(notebook.view(2).locator(".nbq-chip")).to_have_text("2 failed")
        notebook.run(3)
        expect(notebook.output(1)).to_contain_text("failed after")
        shows_as_text(notebook, notebook.output(1).locator("code"))
        shows_as_text(notebook, notebook.output(1).locator("details pre").first)
        shows_as_text(notebook, notebook.output(1).locator("details pre").last)
        expect(notebook.output(2)).to_contain_text("2 failed")
        shows_as_text(notebook, notebook.output(2))


def test_hostile_errors_are_text_while_a_task_is_retried_and_in_a_map(lab: Lab) -> None:
    one = f"""from nbqueue import task
@task(bind=True, max_retries=3, name={HOSTILE!r})
def again(self):
    try:
        raise ValueError({HOSTILE!r})
    except ValueError as exc:
        raise self.retry(exc=exc, countdown=600)
first = again.delay()
first"""
    many = f"""@task
def part(n):
    if n == 1:
        raise ValueError({HOSTILE!r})
    hold("end")
parts = part.map(range(3))"""
    with lab.open("hostile-errors", one, many) as notebook:
        notebook.run(0, 1)
        view = notebook.view(1)
        expect(view.locator(".nbq-chip")).to_have_text("Retrying")
        expect(view.locator(".nbq-time")).to_have_text(re.compile("next in (9|10):"))
        shows_as_text(notebook, view.locator(".nbq-error-text"))
        expect(view.locator(".nbq-source-hit")).to_contain_text(f"raise ValueError('{MARKUP}")
        view.locator("summary").click()
        shows_as_text(notebook, view.locator(".nbq-traceback"))
        fits(view)
        notebook.run(2)
        shows_as_text(notebook, notebook.view(2).locator(".nbq-kind-text"))
        notebook.view(2).locator("canvas").press("f")
        shows_as_text(notebook, notebook.view(2).locator(".nbq-tip"))
        notebook.resize(400, 1400)
        fits(notebook.view(1))
        fits(notebook.view(2).locator(".nbq-kinds"))
        view.get_by_role("button", name="Stop retrying").click()
        expect(notebook.output(1)).to_contain_text("cancelled after")
        notebook.open_gate("end")


def test_output_overwritten_by_carriage_returns_is_one_line(lab: Lab) -> None:
    code = """%%task counting
for n in range(4):
    print(n, "of 3", end="\\r")
print()
hold("end")"""
    with lab.open("overwritten", code) as notebook:
        notebook.run(0, 1)
        expect(notebook.view(1).get_by_role("log")).to_have_text("3 of 3")
        notebook.open_gate("end")
        expect(notebook.output(1).get_by_text("Log, 1 line")).to_be_visible()


def test_colours_follow_the_theme_without_news_of_the_task(lab: Lab) -> None:
    with lab.open("theme", "%%task held\nhold('end')") as notebook:
        notebook.run(0, 1)
        chip = notebook.view(1).locator(".nbq-chip")
        expect(chip).to_have_text("Running")
        # a gone kernel sends nothing that would draw the view again
        notebook.restart()
        expect(notebook.view(1)).not_to_have_class(re.compile("nbq-dark"))
        notebook.set_theme("JupyterLab Dark")
        expect(notebook.view(1)).to_have_class(re.compile("nbq-dark"))
        notebook.set_theme("JupyterLab Light")
        expect(notebook.view(1)).not_to_have_class(re.compile("nbq-dark"))
        notebook.open_gate("end")


@pytest.mark.parametrize("width", [400, 700])
def test_nothing_is_wider_than_a_narrow_page(lab: Lab, width: int) -> None:
    task = f"""%%task {LONG_NAME}
from nbqueue import progress, track
for step in track(range(3), message="{"x" * 80}"):
    pass
time.sleep(0.5)
progress(123456, 1234567, "a label that is rather long")
print("{"y" * 300}")
hold("end")
raise ValueError("{"z" * 300}")"""
    many = f"""from nbqueue import task
@task
def {LONG_NAME}(n):
    if n % 3 == 0:
        raise ValueError("{"z" * 300}")
    if n > 97:
        hold("end")
many = {LONG_NAME}.map(range(100))"""
    with lab.open(f"narrow-{width}", task, many, SETTLE) as notebook:
        notebook.resize(width, 1400)
        notebook.run(0, 1, 2)
        expect(notebook.view(1).get_by_role("log")).to_contain_text("yyy")
        expect(notebook.view(1).get_by_role("progressbar")).to_be_visible()
        expect(notebook.view(1).locator(".nbq-bar-done")).to_be_visible()
        fits(notebook.view(1))
        expect(notebook.view(2).locator(".nbq-legend")).to_contain_text("33 failed")
        fits(notebook.view(2))
        notebook.open_gate("end")
        expect(notebook.view(1).locator(".nbq-chip")).to_have_text("Failed")
        fits(notebook.view(1))
        notebook.view(2).scroll_into_view_if_needed()  # what is out of sight isn't drawn
        expect(notebook.view(2).locator(".nbq-chip")).to_have_text("34 failed")
        fits(notebook.view(2))
        notebook.run(3)
        expect(notebook.output(1)).to_contain_text("failed after")
        expect(notebook.output(2)).to_contain_text("in call order")
        fits(notebook.output(1).locator("div[style]").first)
        fits(notebook.output(2).locator("div[style]").first)
