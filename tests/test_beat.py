"""Beat on a real server: what is due is sent once, whoever leads, and entries change while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nbqueue import App, beat, chain
from nbqueue.beat import Beat
from nbqueue.beside import BeatThread
from nbqueue.exceptions import ImproperlyConfigured, UnknownTask
from nbqueue.schedules import crontab
from tests.helpers import wait_until
from tests.workers import Site


def add(x: int, y: int) -> int:
    return x + y


@pytest.fixture
def site(idle_site: Site) -> Iterator[Site]:
    yield idle_site
    idle_site.app.beat.close()


@pytest.fixture
def leading(site: Site) -> Iterator[Beat]:
    with Beat(site.app, sync=False) as made:
        made.turn(wait=False)
        assert made.leads
        yield made


def queued(site: Site) -> int:
    return int(site.streams.size(site.queue).queued)


def move_back(site: Site, name: str, seconds: float) -> None:
    """Let an entry have been added so long ago."""
    import msgspec

    from nbqueue.entries import open_entry, sign_entry

    schedule, signer = site.app.beat, site.app.signer
    row = schedule.timetable.row(name)
    assert row is not None
    entry = open_entry(row.entry, name, signer)
    text = sign_entry(msgspec.structs.replace(entry, since=entry.since - seconds), signer)
    assert schedule.timetable.write(name, row, text, stand=row.stand, enabled=True)


def test_entry_fires_when_it_is_due_and_says_when_it_did(site: Site, leading: Beat) -> None:
    task = site.app.task(add)
    entry = site.app.beat.add("sum", 3600.0, task.s(2, 3))
    assert (entry.name, entry.rule, entry.task, entry.enabled, entry.count) == (
        "sum",
        "every 3600 s",
        task.name,
        True,
        0,
    )
    assert entry.next_at is not None
    assert timedelta(0) < entry.next_at - datetime.now(UTC) <= timedelta(hours=1)
    leading.turn(wait=False)
    assert queued(site) == 0
    move_back(site, "sum", 3600)
    leading.turn(wait=False)
    leading.turn(wait=False)
    assert queued(site) == 1
    entry = site.app.beat.get("sum")
    assert (entry.count, len(entry.runs)) == (1, 1)
    run = entry.runs[0]
    assert (run.state, run.missed, run.due_at) == ("PENDING", 0, entry.last_at)
    site.worker(concurrency=1)
    assert site.app.AsyncResult(run.id).get(timeout=15) == 5
    run = site.app.beat.get("sum").runs[0]
    assert run.state == "SUCCESS"
    assert run.started_at is not None
    assert run.ended_at is not None
    assert run.ended_at >= run.started_at


def test_entry_sends_code_and_data_that_outlive_whoever_added_it(site: Site, leading: Beat) -> None:
    later = site.new_app()
    large = list(range(100_000))

    @later.task
    def length() -> int:
        return len(large)

    later.beat.add("length", "every 1 h", length)
    later.close()
    move_back(site, "length", 3600)
    leading.turn(wait=False)
    site.worker(concurrency=1)
    assert site.app.AsyncResult(site.app.beat.get("length").runs[0].id).get(timeout=15) == 100_000


def test_canvas_fires_whole(site: Site, leading: Beat) -> None:
    task = site.app.task(add)
    site.app.beat.add("chain", timedelta(hours=1), chain(task.s(1, 1), task.s(2), task.s(3)))
    for fired in (1, 2):
        move_back(site, "chain", 3600 * fired)
        site.app.beat.timetable._client.hdel("nbq:beat:stands", "chain")
        leading._cursor = ""
        leading.turn(wait=False)
    site.worker(concurrency=1)
    assert site.app.AsyncResult(site.app.beat.get("chain").runs[-1].id).get(timeout=15) == 7


def test_graph_of_a_canvas_is_kept_while_it_may_run_when_results_expire_soon(site: Site, leading: Beat) -> None:
    site.app.conf.result_expires = 60.0
    task = site.app.task(add)
    site.app.beat.add("chain", "1h", chain(task.s(1, 1), task.s(2)))
    site.app.beat.run_now("chain")
    move_back(site, "chain", 3600)
    leading.turn(wait=False)
    with site.server.client() as client:
        kept_s = [client.ttl(key) for key in client.keys("nbq:graph:*")]
    assert len(kept_s) == 2
    assert min(kept_s) > 29 * 86_400


def test_paused_entry_waits_and_misses_nothing(site: Site, leading: Beat) -> None:
    site.app.beat.add("p", 3600.0, site.app.task(add).s(1, 1))
    assert site.app.beat.pause("p").next_at is None
    move_back(site, "p", 7200)
    leading.turn(wait=False)
    assert queued(site) == 0
    assert site.app.beat.resume("p").enabled
    leading.turn(wait=False)
    assert queued(site) == 0


def test_entry_is_run_by_hand_changed_deleted_and_brought_back(site: Site, leading: Beat) -> None:
    schedule, task = site.app.beat, site.app.task(add)
    schedule.add("e", 3600.0, task.s(1, 1))
    id_ = schedule.run_now("e")
    assert queued(site) == 1
    run = schedule.get("e").runs[0]
    assert (run.id, run.by_hand) == (id_, True)
    changed = schedule.change("e", rule="0 7 * * mon-fri", zone="Europe/Oslo", policy="all", signature=task.s(2, 2))
    assert (changed.rule, changed.zone, changed.policy, changed.count) == ("cron 0 7 * * 1-5", "Europe/Oslo", "all", 1)
    schedule.delete("e")
    assert schedule.list() == []
    with pytest.raises(UnknownTask, match="no entry 'e'"):
        schedule.run_now("e")
    assert schedule.undelete("e").runs == changed.runs
    with pytest.raises(UnknownTask, match="within the last hour"):
        schedule.undelete("e")
    site.worker(concurrency=1)
    assert site.app.AsyncResult(id_).get(timeout=15) == 2


def test_what_can_not_be_an_entry_is_refused_and_says_why(site: Site) -> None:
    schedule, call = site.app.beat, site.app.task(add).s(1, 1)
    for rule, zone, policy, why in (
        ("61 * * * *", "", "all", "minute is 0 to 59, not 61"),
        ("every now", "", "all", "names no interval"),
        ("0 7 * * *", "Europe/Osl", "all", "did you mean 'Europe/Oslo'"),
        (60.0, "", "some", "is none of coalesce, skip, all"),
        (0.0, "", "all", "must be above 0"),
    ):
        with pytest.raises(ImproperlyConfigured, match=why):
            schedule.add("bad", rule, call, zone=zone, policy=policy)
    schedule.add("twice", 60.0, call)
    with pytest.raises(ImproperlyConfigured, match="already"):
        schedule.add("twice", 60.0, call)
    schedule.add("twice", 90.0, call, replace=True)
    assert [entry.rule for entry in schedule.list()] == ["every 90 s"]


def test_settings_come_into_the_schedule_and_leave_it_with_the_app(site: Site) -> None:
    app = site.new_app()
    app.task(add, name="proj.add")
    app.conf.beat_schedule = {
        "each-minute": {"task": "proj.add", "schedule": 60.0, "args": (1, 2), "options": {"expires": 15, "queue": "q"}},
        "mornings": {"task": "proj.add", "schedule": crontab(hour=7, minute=30, day_of_week="mon-fri"), "args": (3, 4)},
    }
    app.conf.timezone = "Europe/Oslo"

    @app.on_after_configure.connect
    def set_up(sender: App, **_: Any) -> None:
        sender.add_periodic_task(timedelta(seconds=30), sender.tasks["proj.add"].s(5, 6), name="added")

    with Beat(app) as made:
        made.turn(wait=False)
    found = {entry.name: entry for entry in app.beat.list()}
    assert found.keys() == {"each-minute", "mornings", "added"}
    assert (found["mornings"].rule, found["mornings"].zone) == ("cron 30 7 * * 1-5", "Europe/Oslo")
    assert (found["each-minute"].queue, found["added"].rule, found["added"].origin) == ("q", "every 30 s", "tests")
    app.beat.pause("mornings")
    app.beat.add("by hand", 60.0, app.tasks["proj.add"].s(1, 1))
    del app.conf.beat_schedule["each-minute"]
    app.conf.beat_schedule["mornings"]["args"] = (5, 5)
    with Beat(app) as made:
        made.turn(wait=False)
    found = {entry.name: entry for entry in app.beat.list()}
    assert found.keys() == {"mornings", "added", "by hand"}
    assert not found["mornings"].enabled
    app.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"task": "a"}, "says no schedule"),
        ({"task": "a", "schedule": 60, "arg": ()}, "has no arg"),
        ({"task": "a", "schedule": "never"}, "entry 'x' of the schedule: 'never' names no interval"),
        ({"task": "a", "schedule": 60, "args": 16}, "args must be a list or tuple, not 16"),
        ({"task": "a", "schedule": 60, "args": "hello"}, "args must be a list or tuple, not 'hello'"),
        ({"task": "a", "schedule": 60, "kwargs": [16]}, "kwargs must be a dict"),
        (60, "must be a dict"),
    ],
)
def test_wrong_settings_of_the_schedule_are_named(said: Any, why: str) -> None:
    from nbqueue.periodic import configured

    app = App("proj", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {"x": said}
    with pytest.raises(ImproperlyConfigured, match=why):
        configured(app)


def test_one_leads_and_another_takes_over_when_it_goes(
    site: Site, leading: Beat, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Beat(site.app, name="second", sync=False) as second:
        second.turn(wait=False)
        assert not second.leads
        leader = site.app.beat.leader()
        assert leader is not None
        assert (leader.name, leader.standby) == (leading.name, 1)
        leading.stop()
        leading.run()
        second.turn(wait=False)
        assert second.leads


def test_beat_that_leads_no_more_fires_nothing(site: Site, leading: Beat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beat, "LEASE_S", 0.2)
    token = leading._ask_to_lead()
    with Beat(site.app, name="second", sync=False) as second:
        wait_until(lambda: bool(second._ask_to_lead()), 5, "the second to lead")
        site.app.beat.add("e", 3600.0, site.app.task(add).s(1, 1))
        move_back(site, "e", 3600)
        # the first still believes that it leads, as it was frozen, and knows of all that is due
        leading._load(second._timetable.lead(second.me, second.name, 5.0))
        leading._fire_due(token)
        assert not leading.leads
        assert (site.app.beat.get("e").count, queued(site)) == (0, 0)
        second.turn(wait=False)
        assert (site.app.beat.get("e").count, queued(site)) == (1, 1)


def test_change_takes_effect_at_once(site: Site) -> None:
    with BeatThread(site.app, sync=False):
        wait_until(lambda: site.app.beat.leader() is not None, 5, "it to lead")
        site.app.beat.add("quick", 0.5, site.app.task(add).s(1, 1))
        began = time.monotonic()
        wait_until(lambda: site.app.beat.get("quick").count > 1, 5, "two firings")
        assert time.monotonic() - began < 4.0
        site.app.beat.pause("quick")
        count = site.app.beat.get("quick").count
        site.app.beat.add("other", 0.3, site.app.task(add).s(1, 1))
        wait_until(lambda: site.app.beat.get("other").count > 2, 5, "another to fire")
        assert site.app.beat.get("quick").count == count


def test_history_is_of_the_last_runs(site: Site, leading: Beat) -> None:
    site.app.beat.add("often", 100.0, site.app.task(add).s(1, 1), policy="all")
    move_back(site, "often", 5_000)
    leading.turn(wait=False)
    entry = site.app.beat.get("often")
    assert entry.count >= 50
    assert len(entry.runs) == 30
    assert entry.runs[-1].due_at == entry.last_at
    assert [run.due_at for run in entry.runs] == sorted(run.due_at for run in entry.runs)


def test_entry_of_another_key_is_told_of_and_never_fires(site: Site, leading: Beat) -> None:
    from nbqueue.entries import Entry, sign_entry
    from nbqueue.signing import Signer

    forged = sign_entry(Entry(name="forged", rule="every 1 s", since=1.0, made="x"), Signer(b"o" * 32))
    client = site.app.beat.timetable._client
    client.hset("nbq:beat:entries", "forged", forged)
    client.hset("nbq:beat:entries", "garbage", b"{")
    client.xadd("nbq:beat:changes", {"n": "forged"})
    leading.turn(wait=False)
    assert [(entry.name, entry.enabled) for entry in site.app.beat.list()] == [("forged", False), ("garbage", False)]
    assert "can't be believed" in site.app.beat.list()[0].problem
    assert queued(site) == 0


def test_history_outlives_the_records_of_its_runs(site: Site, leading: Beat) -> None:
    site.app.beat.add("sum", 3600.0, site.app.task(add).s(2, 3))
    move_back(site, "sum", 3600)
    leading.turn(wait=False)
    by_hand = site.app.beat.run_now("sum")
    site.worker(concurrency=1)
    assert site.app.AsyncResult(by_hand).get(timeout=15) == 5
    wait_until(lambda: [run.state for run in site.app.beat.get("sum").runs] == ["SUCCESS"] * 2, 10, "both to end")
    before = site.app.beat.get("sum")
    for _ in range(2):
        leading._noted_at = 0.0
        leading.turn(wait=False)
    for run in before.runs:
        site.server_says("DEL", f"celery-task-meta-{run.id}")
    assert site.app.beat.get("sum") == before
    assert site.app.beat.list() == [before]


def test_end_that_is_noted_by_a_beat_that_leads_no_more_changes_nothing(site: Site, leading: Beat) -> None:
    site.app.beat.add("sum", 3600.0, site.app.task(add).s(2, 3))
    move_back(site, "sum", 3600)
    leading.turn(wait=False)
    site.worker(concurrency=1)
    wait_until(lambda: site.app.beat.get("sum").runs[0].state == "SUCCESS", 15, "it to end")
    row = site.app.beat.timetable.row("sum")
    site.server_says("SET", "nbq:beat:leader", "99999 0 somebody else", "PX", "60000")
    leading._noted_at = 0.0
    leading._note_ends(1)
    assert site.app.beat.timetable.row("sum") == row
