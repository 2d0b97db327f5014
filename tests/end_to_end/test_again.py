"""Tasks that failed and are run again: the same id, arguments and place in their map, and a new end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nbqueue import states
from nbqueue.again import Again
from nbqueue.exceptions import UnknownTask
from nbqueue.execute import BoundTask
from nbqueue.notebook.text import plain_text
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = pytest.mark.brokers


class Broken(Exception):
    pass


def needs(path: str) -> str:
    """Work only once a file is there."""
    print("looking")
    if not Path(path).exists():
        raise Broken("not there yet")
    return "found"


def needs_some(number: int, folder: str) -> int:
    if number % 3 == 0 and not Path(folder, "mended").exists():
        raise Broken(f"kind {number % 2}")
    return number


def summed(values: np.ndarray, path: str) -> float:
    needs(path)
    return float(values.sum())


def waits_for_its_retry(self: BoundTask, path: str) -> str:
    if Path(path).exists():
        return f"retry {self.request.retries}"
    raise self.retry(countdown=600)


def test_task_that_failed_runs_again_and_its_handle_has_the_new_value(shared_site: Site, tmp_path: Path) -> None:
    path = tmp_path / "cured"
    result = shared_site.app.task(needs, by_value=True).delay(str(path))
    with pytest.raises(Broken):
        result.get(timeout=20)
    status = result.watched.status
    assert status.error == "Broken: not there yet"
    path.touch()
    assert result.retry() is result
    assert result.get(timeout=20) == "found"
    assert result.successful()
    assert result.traceback is None
    # what it said before is still there, and the new run is told of as a first attempt
    wait_until(lambda: status.log.lines == 2, 5, "both runs' lines")
    assert (status.state, status.error, status.failure, status.attempt) == (states.SUCCESS, "", None, 1)
    with shared_site.new_app() as later:
        assert later.AsyncResult(result.id).get(timeout=20) == "found"


def test_task_that_fails_again_can_be_run_again(shared_site: Site, tmp_path: Path) -> None:
    path = tmp_path / "cured"
    result = shared_site.app.task(needs, by_value=True).delay(str(path))
    for _ in range(3):
        with pytest.raises(Broken):
            result.get(timeout=20)
        result.retry()
    with pytest.raises(Broken):
        result.get(timeout=20)
    path.touch()
    with shared_site.new_app() as later:  # by anybody who knows the id
        assert later.AsyncResult(result.id).retry().get(timeout=20) == "found"


def test_large_arguments_are_still_there_when_a_task_runs_again(shared_site: Site, tmp_path: Path) -> None:
    path = tmp_path / "cured"
    result = shared_site.app.task(summed, by_value=True).delay(np.ones(100_000), str(path))
    with pytest.raises(Broken):
        result.get(timeout=20)
    path.touch()
    assert result.retry().get(timeout=20) == 100_000.0


def test_members_that_failed_run_again_in_their_places(shared_site: Site, tmp_path: Path) -> None:
    task = shared_site.app.task(needs_some, by_value=True)
    results = task.starmap([(number, str(tmp_path)) for number in range(10)])
    with pytest.raises(Broken):
        results.get(timeout=20)
    wait_until(results.ready, 20, "the others")
    assert results.watched.failures() == [0, 3, 6, 9]
    assert results.watched.failures(like=3) == [3, 9]
    status = results.watched.status
    assert {kind.text: kind.count for kind in status.kinds.values()} == {"Broken: kind 0": 2, "Broken: kind 1": 2}
    (tmp_path / "mended").touch()
    results.retry(results.watched.failures(like=3))
    assert not results.ready() or status.counts[2] == 8
    wait_until(results.ready, 20, "two of them")
    assert results.watched.failures() == [0, 6]
    assert [kind.text for kind in status.kinds.values()] == ["Broken: kind 0"]
    assert "Broken: kind 1" not in plain_text(status)
    assert results.retry().get(timeout=20) == list(range(10))
    assert (results.completed_count(), results.successful()) == (10, True)
    assert sorted(result.get() for result in results.as_completed()) == list(range(10))
    assert results[3].get() == 3
    assert results.app.backend.progress(results.id) == {states.SUCCESS: 10, states.FAILURE: 0}
    assert shared_site.app.broker.size("nbqueue").queued == 0


def test_member_that_runs_again_does_not_pass_for_a_copy_of_what_was_sent_before(
    shared_site: Site, tmp_path: Path
) -> None:
    app = shared_site.app
    results = app.task(needs, by_value=True).map([str(tmp_path / "never")])
    results.get(timeout=20, propagate=False)
    (kept,) = app.broker.kept([results[0].id])  # type: ignore[attr-defined]
    again, group = Again(app.broker, app.blobs, app.signer)._anew(results[0].id, kept)
    assert (again.id, again.body, group) == (results[0].id, kept.body, results.id)
    assert again.header.encode() != kept.header


def test_task_that_waits_for_its_retry_is_tried_at_once(shared_site: Site, tmp_path: Path) -> None:
    path = tmp_path / "cured"
    result = shared_site.app.task(waits_for_its_retry, by_value=True, bind=True).delay(str(path))
    wait_until(lambda: result.state == states.RETRY, 20, "the first try")
    path.touch()
    assert result.retry().get(timeout=20) == "retry 1"
    assert shared_site.app.broker.size("nbqueue").delayed == 0


def test_end_still_counts_when_nothing_is_kept_to_run_again(shared_site: Site, tmp_path: Path) -> None:
    result = shared_site.app.task(needs, by_value=True).delay(str(tmp_path / "never"))
    with pytest.raises(Broken):
        result.get(timeout=20)
    with shared_site.server.client() as client:
        assert client.delete(f"nbq:failed:{result.id}") == 1
    with pytest.raises(UnknownTask, match=f"task {result.id} can't run again: no message of it is kept"):
        result.retry()
    assert result.state == states.FAILURE
    with pytest.raises(Broken):
        result.get(timeout=1)


def test_task_that_has_not_failed_is_not_run_again(shared_site: Site) -> None:
    result = shared_site.app.task(len, name="tests.len", by_value=True).delay("four")
    assert result.get(timeout=20) == 4
    with pytest.raises(UnknownTask, match="can't run again: it has not failed"):
        result.retry()
    assert result.get(timeout=1) == 4


def test_id_that_was_used_again_since_is_not_run_again_in_its_older_form(shared_site: Site, tmp_path: Path) -> None:
    task = shared_site.app.task(needs, by_value=True)
    with pytest.raises(Broken):
        task.apply_async((str(tmp_path / "never"),), task_id="mine").get(timeout=20)
    path = tmp_path / "there"
    path.touch()
    with shared_site.new_app() as later:
        again = later.task(needs, by_value=True).apply_async((str(path),), task_id="mine")
        assert again.get(timeout=20) == "found"
        with pytest.raises(UnknownTask):
            again.retry()
    assert shared_site.new_app().AsyncResult("mine").get(timeout=20) == "found"


def test_nothing_is_kept_of_a_task_that_was_forgotten(shared_site: Site, tmp_path: Path) -> None:
    result = shared_site.app.task(needs, by_value=True).delay(str(tmp_path / "never"))
    with pytest.raises(Broken):
        result.get(timeout=20)
    result.forget()
    with shared_site.server.client() as client:
        assert client.keys(f"*{result.id}*") == []
