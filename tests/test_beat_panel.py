"""Cells that run by the clock, `%beat`, and what its panel is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from nbqueue import states
from nbqueue.app import App
from nbqueue.beat import Beat
from nbqueue.exceptions import ImproperlyConfigured, UnknownTask
from nbqueue.notebook import beat as magic
from nbqueue.notebook import beatpanel, written
from nbqueue.notebook.entries import as_text, when
from nbqueue.notebook.magics import TaskMagics, parse_line
from nbqueue.periodic import Leader, ShownEntry, ShownRun
from nbqueue.result import AsyncResult
from tests.helpers import wait_until
from tests.test_beat import move_back, queued
from tests.test_magics import shell
from tests.workers import ROOT, Site

__all__ = ["shell"]

NOW = datetime(2026, 11, 23, 13, 4, tzinfo=UTC)


@pytest.fixture
def site(idle_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(magic, "current_app", lambda: idle_site.app)
    yield idle_site
    idle_site.app.beat.close()


@pytest.fixture
def magics(site: Site, shell: InteractiveShell) -> TaskMagics:
    return TaskMagics(shell, site.app, show=lambda *_, **__: None)


class Page:
    """Stands for the page of a panel: says what a person does, and keeps what it is told."""

    def __init__(self, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[dict[str, Any]] = []
        monkeypatch.setattr(beatpanel.BeatWidget, "send", lambda _, message: self.told.append(message))
        self.panel = beatpanel.Panel(app)

    def says(self, what: str, **content: Any) -> dict[str, Any]:
        """Return the answer to what a person does."""
        self.told.clear()
        self.panel._do({"do": what, **content})
        return next(message for message in self.told if "alive" not in message)

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """What the page draws."""
        self.panel._rests_until = 0.0
        self.panel._do({"do": "look"})
        return {entry["name"]: entry for entry in self.panel.widget.all()["put"]}


def add(x: int, y: int = 1) -> int:
    return x + y


# ---- cells


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("report --every 10m --cron '0 7 * * *'", "--every and --cron are two ways"),
        ("report --every ''", "say when"),
        ("report --zone Europe/Oslo", "--zone says something of"),
        ("report --every 10m --zone Europe/Oslo", "--zone says in which zone"),
        ("report --missed skip", "--missed says something of"),
        ("report --every 10m --missed never", "invalid choice"),
        ("report --every 10m --wait", "--wait has no meaning"),
        ("report --cron '0 7 * * *' --countdown 3", "--countdown has no meaning"),
        ("report --every 10m --again", "--again has no meaning"),
    ],
)
def test_line_refuses_what_a_periodic_cell_can_not_be(line: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_line(line)


def test_cell_runs_by_the_clock_with_what_it_reads_and_no_kernel(
    site: Site, shell: InteractiveShell, magics: TaskMagics, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns |= {"rates": {"NOK": 11.5}, "large": bytes(200_000)}
    magics.task("report --every 1h -o size -q " + site.queue, "size = len(large)\nrates['NOK'] * 2")
    said = capsys.readouterr().out
    assert said.startswith("report runs every hour, next ")
    assert "No beat leads yet, so nothing fires: %beat start" in said
    assert queued(site) == 0
    assert "report" not in shell.user_ns
    entry = site.app.beat.get("report")
    assert (entry.task, entry.rule, entry.policy) == ("report", "every 3600 s", "coalesce")
    site.app.close()  # as if the kernel were gone
    move_back(site, "report", 3600)
    with Beat(site.new_app(), sync=False) as beat:
        beat.turn(wait=False)
    site.worker(concurrency=1)
    found = site.app.attach("report")
    assert isinstance(found, AsyncResult)
    assert found.get(timeout=15) == 23.0
    assert found.outputs == {"size": 200_000}
    assert found.id == site.app.beat.get("report").runs[0].id


def test_cell_that_is_run_again_changes_nothing_but_what_it_says(
    site: Site, shell: InteractiveShell, magics: TaskMagics, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns["x"] = 1
    magics.task("report --cron '0 7 * * mon-fri' --zone Europe/Oslo", "x + 1")
    site.app.beat.run_now("report")
    site.app.beat.pause("report")
    before = site.app.beat.get("report")
    capsys.readouterr()
    magics.task("report --cron '0 7 * * mon-fri' --zone Europe/Oslo", "x + 1")
    said = capsys.readouterr().out
    assert "report is scheduled already and runs every weekday at 07:00 Europe/Oslo; it is paused." in said
    assert "%beat resume report" in said
    assert site.app.beat.get("report") == before
    shell.user_ns["x"] = 2
    magics.task("report --cron '0 8 * * *' --missed skip", "x + 1")
    assert "report runs from now on every day at 08:00 UTC; it is paused" in capsys.readouterr().out
    after = site.app.beat.get("report")
    assert (after.rule, after.zone, after.policy, after.enabled) == ("cron 0 8 * * *", "UTC", "skip", False)
    assert (after.count, after.runs) == (before.count, before.runs)


def test_cell_does_not_take_the_place_of_what_settings_have(site: Site, magics: TaskMagics) -> None:
    site.app.beat.add_packed("nightly", 60.0, site.app.beat.packed(site.app.task(add).s(1)), origin="conf:proj")
    with pytest.raises(UsageError, match="the settings of proj have an entry 'nightly'; take another name"):
        magics.task("nightly --every 10m", "1")


def test_cell_names_what_is_wrong_with_its_times_and_schedules_nothing(site: Site, magics: TaskMagics) -> None:
    for line, why in (
        ("r --cron '0 25 * * *'", "hour is 0 to 23, not 25"),
        ("r --every soon", "names no interval"),
        ("r --cron '0 7 * * *' --zone Europe/Olso", "did you mean 'Europe/Oslo'"),
        ("--every 10m", "what runs by the clock has a name"),
    ):
        with pytest.raises(UsageError, match=why):
            magics.task(line, "1")
    assert site.app.beat.list() == []


def test_cell_that_was_run_by_hand_is_found_by_its_name(site: Site, magics: TaskMagics) -> None:
    magics.task("report --every 1h", "6 * 7")
    id_ = site.app.beat.run_now("report")
    assert site.app.attach("report").id == id_


def test_cell_without_a_beat_reads_a_variable_of_its_own_name(site: Site, shell: InteractiveShell) -> None:
    shell.user_ns["report"] = 7
    TaskMagics(shell, site.app, show=lambda *_, **__: None).task("report --every 10m", "report + 1")
    assert site.app.beat.get("report").rule == "every 600 s"


# ---- the magic


def test_magics_load_nothing_of_the_schedule_until_it_is_used() -> None:
    heavy = ("nbqueue.periodic", "nbqueue.timetable", "nbqueue.schedules", "nbqueue.notebook.beatpanel")
    program = (
        f"import nbqueue.notebook.magics, nbqueue.notebook.beat, sys; print([m for m in {heavy} if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert said.stdout == "[]\n"


def test_magic_lists_pauses_runs_and_deletes(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    magic.beat("list")
    assert "Nothing is scheduled" in capsys.readouterr().out
    site.app.beat.add("sum", "10m", site.app.task(add).s(1))
    magic.beat("")
    said = capsys.readouterr().out
    assert "No beat leads, so nothing fires" in said
    assert "sum  every 10 minutes  next " in said
    magic.beat("pause sum")
    assert "%beat resume sum" in capsys.readouterr().out
    magic.beat("list")
    assert "sum  every 10 minutes  paused" in capsys.readouterr().out
    magic.beat("resume sum")
    assert "sum goes on: every 10 minutes, next " in capsys.readouterr().out
    magic.beat("run sum")
    assert site.app.beat.get("sum").runs[0].id in capsys.readouterr().out
    magic.beat("list")
    assert "1 queued" in capsys.readouterr().out
    magic.beat("delete sum")
    assert site.app.beat.list() == []
    magic.beat("undelete sum")
    assert site.app.beat.get("sum").count == 1


def test_magic_names_the_nearest_word_and_entry(site: Site) -> None:
    site.app.beat.add("sum", "10m", site.app.task(add).s(1))
    for line, why in (
        ("pase sum", "did you mean pause?"),
        ("pause", "%beat: 'pause' is nothing it can do"),
        ("pause sun", "the schedule has no sun; did you mean sum?"),
        ("run 'sum", "No closing quotation"),
        ("undelete never", "no entry 'never' was deleted"),
    ):
        with pytest.raises(UsageError, match=why.replace("?", r"\?")):
            magic.beat(line)


def test_magic_starts_a_beat_that_outlives_this_process(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.app.beat.add("sum", "10m", site.app.task(add).s(1))
    made = []
    start = site.app.start_beat

    def remembered() -> Any:
        made.append(start())
        return made[0]

    site.app.start_beat = remembered  # type: ignore[assignment, method-assign]
    try:
        magic.beat("start")
        assert "goes on without this kernel" in capsys.readouterr().out
        wait_until(lambda: site.app.beat.leader() is not None, 20, "it to lead")
        magic.beat("start")
        assert "leads already" in capsys.readouterr().out
        assert len(made) == 1
    finally:
        del site.app.start_beat
        for one in made:
            one.stop()


def shown_entry(**more: Any) -> ShownEntry:
    fields: dict[str, Any] = {"rule": "cron 0 7 * * 1-5", "zone": "Europe/Oslo", "task": "report", "queue": "q"}
    fields |= {"enabled": True, "policy": "coalesce", "origin": "", "next_at": NOW + timedelta(hours=17)}
    return ShownEntry(**{"name": "nightly", **fields, "last_at": None, "count": 0, **more})


def ran(state: str, took_s: float | None = None, missed: int = 0) -> ShownRun:
    ended = None if took_s is None else NOW + timedelta(seconds=took_s)
    return ShownRun(NOW, "id" if state != "MISSED" else "", state, NOW, ended, missed, False)


def test_text_tells_when_who_leads_and_what_the_last_runs_came_to() -> None:
    runs = (ran(states.SUCCESS, 4.0), ran(states.FAILURE, 22.0), ran("MISSED", missed=3), ran(states.STARTED))
    entries = [shown_entry(runs=runs), shown_entry(name="bad\x1b[31m", problem="It can't be believed: mac")]
    text = as_text(entries, Leader("local-1", NOW, 2)).splitlines()
    assert text[0] == "Beat: local-1 leads, 2 stand by"
    assert text[1].startswith("nightly  every weekday at 07:00 Europe/Oslo  next ")
    assert text[1].endswith("1 done, 1 failed, 1 running, 3 missed, last took 0:22")
    assert text[2] == "bad      can't fire: It can't be believed: mac"


def test_time_of_the_next_firing_says_the_day_where_it_is_another() -> None:
    entry = shown_entry(next_at=NOW + timedelta(minutes=6))
    assert when(entry, NOW).endswith("(in 6:00)")
    assert len(when(entry, NOW).split()[0]) == len("13:10")
    assert len(when(shown_entry(next_at=NOW + timedelta(seconds=5)), NOW).split()[0]) == len("13:04:05")
    assert when(shown_entry(next_at=NOW + timedelta(days=30)), NOW).startswith("23 Dec ")
    assert when(shown_entry(next_at=NOW), NOW + timedelta(seconds=1)).endswith("(due)")


# ---- the panel


def test_panel_adds_what_is_written_and_says_what_is_wrong(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    task = site.app.task(add)
    page = Page(site.app, monkeypatch)
    form = {"name": "", "queue": "", "kind": "cron", "text": "0 7 * * mon-fri", "zone": "Europe/Oslo"}
    answer = page.says("add", run="addd(2)", **form)
    assert answer["failed"] == "add"
    assert "did you mean add" in answer["text"]
    assert page.says("add", run="add(2, y=[3])", policy="all", **form) == {"done": "add", "name": "add"}
    entry = site.app.beat.get("add")
    assert (entry.rule, entry.zone, entry.policy, entry.task) == ("cron 0 7 * * 1-5", "Europe/Oslo", "all", task.name)
    answer = page.says("add", run="add(2)", policy="all", **form)
    assert "the schedule has an entry 'add' already" in answer["text"].lower()
    assert page.says("add", run="add(2)", policy="all", **form | {"name": "other", "queue": "elsewhere"})["done"]
    assert site.app.beat.get("other").queue == "elsewhere"
    assert list(page.entries) == ["add", "other"]


def test_panel_changes_times_and_keeps_what_is_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.app.beat.add("sum", "10m", site.app.task(add).s(1))
    page = Page(site.app, monkeypatch)
    assert page.says("change", name="sum", kind="every", text="1h30m", zone="", policy="skip")["done"] == "change"
    row = page.entries["sum"]
    assert (row["words"], row["text"], row["policy"], row["on"]) == ("every 90 minutes", "1 h 30 m", "skip", True)
    answer = page.says("change", name="sum", kind="cron", text="61 * * * *", zone="UTC", policy="skip")
    assert answer == {"failed": "change", "name": "sum", "text": "Minute is 0 to 59, not 61."}
    assert page.entries["sum"] == row


@pytest.mark.brokers
def test_panel_pauses_runs_deletes_and_undoes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.app.beat.add("sum", "10m", site.app.task(add).s(1))
    page = Page(site.app, monkeypatch)
    page.says("pause", name="sum")
    assert (page.entries["sum"]["on"], page.entries["sum"]["next"]) == (False, None)
    page.says("resume", name="sum")
    answer = page.says("run", name="sum")
    row = page.entries["sum"]
    assert row["on"]
    assert [(run["is"], run["id"], run["hand"]) for run in row["runs"]] == [("queued", answer["id"], True)]
    page.says("delete", name="sum")
    assert page.entries == {}
    page.says("undelete", name="sum")
    assert page.entries["sum"]["count"] == 1
    assert page.says("pause", name="nobody")["text"] == "The schedule has no entry 'nobody'."


def test_panel_sees_what_others_change_and_tells_what_is_new_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.app.beat.add("mine", "5m", site.app.task(add).s(1))
    page = Page(site.app, monkeypatch)
    page.told.clear()
    for _ in range(3):
        assert list(page.entries) == ["mine"]
    assert [sorted(message) for message in page.told] == [["alive", "n"]] * 3
    other = site.new_app()
    other.beat.add("theirs", "5m", other.task(add).s(1))
    other.beat.delete("mine")
    other.close()
    page.told.clear()
    assert list(page.entries) == ["theirs"]
    [news] = page.told
    assert ([entry["name"] for entry in news["put"]], news["gone"]) == (["theirs"], ["mine"])
    page.told.clear()
    page.panel._do({"do": "all"})
    assert page.told[0] | {"alive": 0} == {"alive": 0, "all": True, **page.panel.widget.all()}
    assert page.told[0]["n"] == news["n"]


def test_panel_of_a_large_schedule_is_bounded_and_rests(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    task = site.app.task(add)
    packed = site.app.beat.packed(task.s(1))
    for number in range(beatpanel.MOST + 5):
        site.app.beat.add_packed(f"e{number:04}", "1h", packed)
    page = Page(site.app, monkeypatch)
    assert (len(page.entries), page.panel.told.facts["more"]) == (beatpanel.MOST, 5)
    looks = []
    monkeypatch.setattr(page.panel, "look", lambda: looks.append(1))
    page.panel._do({"do": "look"})
    assert looks == []
    assert page.told[-1]["n"] == page.panel.told.number


def test_panel_does_things_in_the_order_of_their_clicks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.app.beat.add("sum", "10m", site.app.task(add).s(1))
    page = Page(site.app, monkeypatch)
    for _ in range(5):
        for what in ("delete", "undelete", "look"):
            page.panel._said(None, {"do": what, "name": "sum"}, None)
    wait_until(lambda: not page.panel._working, 10, "all of it to be done")
    assert [message["done"] for message in page.told if "done" in message] == ["delete", "undelete"] * 5
    assert not [message for message in page.told if "failed" in message]
    assert list(page.entries) == ["sum"]


def test_panel_says_that_the_server_is_away_and_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.app.beat.add("sum", "10m", site.app.task(add).s(1))
    page = Page(site.app, monkeypatch)

    def away() -> list[ShownEntry]:
        raise UnknownTask("no answer")

    monkeypatch.setattr(site.app.beat, "list", away)
    page.told.clear()
    assert list(page.entries) == ["sum"]
    assert page.told == [{"alive": 0, "trouble": "no answer"}]


def test_preview_has_five_firings_in_the_zone_of_the_rule() -> None:
    form = {"kind": "cron", "text": "30 8-17/3 * * mon,thu", "zone": "Europe/Oslo"}
    found = written.shown_preview(form, NOW)
    assert found["words"] == "Mondays and Thursdays at 08:30, 11:30, 14:30 and 17:30"
    assert [(one["day"], one["time"]) for one in found["firings"]] == [
        ("Mon 23 Nov", "14:30"),
        ("Mon 23 Nov", "17:30"),
        ("Thu 26 Nov", "08:30"),
        ("Thu 26 Nov", "11:30"),
        ("Thu 26 Nov", "14:30"),
    ]
    assert written.shown_preview(form | {"text": "30 25 * * *"}, NOW) == {"mistake": "Hour is 0 to 23, not 25."}
    assert "cron has five" in written.shown_preview(form | {"text": "30 25"}, NOW)["mistake"]
    every = written.shown_preview({"kind": "every", "text": "90s", "zone": "Asia/Kolkata"}, NOW)
    assert [one["time"] for one in every["firings"]][:2] == ["18:34:30", "18:36:00"]


def test_strip_has_thirty_marks_and_says_what_was_missed() -> None:
    runs = (ran(states.SUCCESS, 1.0, missed=2), *[ran(states.FAILURE, 2.0)] * 29)
    marks = beatpanel.strip(runs)
    assert len(marks) == 30
    assert [mark["is"] for mark in marks[:2]] == ["succeeded", "failed"]
    assert beatpanel.strip(runs[:1])[0] == {"is": "missed", "due": NOW.timestamp(), "missed": 2}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "add(",
        "add(x)",
        "add(**{})",
        "lambda: 1",
        "add()()",
        "1",
        "a b",
        "(" * 500,
        "add(" + "[" * 500,
        "__import__('os').x()",
    ],
)
def test_call_that_is_none_is_refused(text: str, site: Site) -> None:
    site.app.task(add)
    with pytest.raises(ImproperlyConfigured):
        written.call_of(text, site.app, {})


def test_call_is_of_a_variable_of_the_notebook_first_and_of_a_worker_by_its_whole_name(site: Site) -> None:
    task = site.app.task(add)
    found = written.call_of("mine(1, y=-2.5)", site.app, {"mine": task})
    assert (found.task, found.args, found.kwargs) == (task.name, (1,), {"y": -2.5})
    assert written.call_of("proj.tasks.load", site.app, {}).task == "proj.tasks.load"
    assert written.call_of("add", site.app, {"add": 3}).task == task.name
