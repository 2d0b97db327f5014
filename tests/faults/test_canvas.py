"""Workers die in the middle of a canvas: it ends all the same, and a chord's body runs once."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nbqueue import chain, chord
from tests import project
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(120)]


def runs(folder: Path) -> Counter[str]:
    """Return how often each task was begun."""
    return Counter(path.name.partition(".")[0] for path in folder.iterdir())


def test_body_of_a_chord_runs_once_when_workers_die_under_its_header(site: Site, tmp_path: Path) -> None:
    note = site.app.task(project.note.run, name="tests.project.note")
    worker = site.worker()
    header = [note.si(str(tmp_path), f"t{n}", 0.05) for n in range(40)]
    result = chord(header)(note.si(str(tmp_path), "body"))
    for number in (10, 25):
        wait_until(lambda: len(runs(tmp_path)) >= number, 30, "part of the header")  # noqa: B023
        worker.kill()
        worker = site.worker()
    assert result.get(timeout=60) == "body"
    counted = runs(tmp_path)
    assert set(counted) == {"body", *(f"t{n}" for n in range(40))}
    assert counted["body"] == 1


def test_chain_ends_when_its_worker_dies_between_its_steps(site: Site, tmp_path: Path) -> None:
    note = site.app.task(project.note.run, name="tests.project.note")
    worker = site.worker()
    result = chain(*(note.si(str(tmp_path), f"t{n}", 0.05) for n in range(20))).apply_async()
    for number in (5, 12):
        wait_until(lambda: len(runs(tmp_path)) >= number, 30, "part of the chain")  # noqa: B023
        worker.kill()
        worker = site.worker()
    assert result.get(timeout=60) == "t19"
    assert set(runs(tmp_path)) == {f"t{n}" for n in range(20)}


def test_task_that_is_replaced_again_and_again_survives_its_workers(site: Site, tmp_path: Path) -> None:
    folder = str(tmp_path)

    @site.app.task(bind=True, by_value=True, queue=site.queue)
    def count(self: Any, left: int) -> str:
        (Path(folder) / f"t{left}.{time.time_ns()}").touch()
        time.sleep(0.05)
        if left:
            self.replace(count.s(left - 1))
        return "end"

    worker = site.worker()
    note = site.app.task(project.note.run, name="tests.project.note", queue=site.queue)
    result = chain(count.s(30), note.si(folder, "after")).apply_async()
    for number in (5, 18):
        wait_until(lambda: len(runs(tmp_path)) >= number, 30, "some of the replacements")  # noqa: B023
        worker.kill()
        worker = site.worker()
    assert result.get(timeout=60) == "after"
    counted = runs(tmp_path)
    assert set(counted) == {"after", *(f"t{n}" for n in range(31))}
    assert counted["after"] == 1
    assert sum(counted.values()) <= 32 + 2  # what was under way when a worker was killed


def test_task_that_adds_to_its_header_and_is_replaced_survives_its_workers(site: Site, tmp_path: Path) -> None:
    folder = str(tmp_path)
    note = site.app.task(project.note.run, name="tests.project.note", queue=site.queue)

    @site.app.task(bind=True, by_value=True, queue=site.queue)
    def grow(self: Any, left: int) -> str:
        (Path(folder) / f"t{left}.{time.time_ns()}").touch()
        self.add_to_chord(note.si(folder, f"added{left}", 0.05))
        time.sleep(0.05)
        if left:
            self.replace(grow.s(left - 1))
        return "end"

    @site.app.task(by_value=True, queue=site.queue)
    def values(found: list[str]) -> list[str]:
        return found

    worker = site.worker()
    result = chord([grow.s(20), note.si(folder, "beside")])(values.s())
    for number in (8, 25):
        wait_until(lambda: len(runs(tmp_path)) >= number, 30, "part of it")  # noqa: B023
        worker.kill()
        worker = site.worker()
    found = result.get(timeout=60)
    assert found[:2] == ["end", "beside"]
    assert sorted(found[2:]) == sorted(f"added{left}" for left in range(21)), "each once, however often it ran"
