"""Tasks that run again: their records meanwhile, their arguments, their ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from nbqueue import chord, serialization, states
from nbqueue.cellrun import CellRun
from nbqueue.exceptions import (
    Ignore,
    MaxRetriesExceededError,
    NotPicklable,
    Reject,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
)
from nbqueue.execute import BoundTask
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = pytest.mark.brokers

FAR_S = 600.0


class Busy(Exception):
    pass


def third_time(self: BoundTask, folder: str) -> dict[str, Any]:
    """Succeed at the second retry."""
    request = self.request
    (Path(folder) / f"run.{request.retries}.{time.time_ns()}").touch()
    if request.retries < 2:
        raise self.retry(exc=Busy(f"at retry {request.retries}"), countdown=0.05)
    return {"retries": request.retries, "attempt": request.attempt, "id": request.id}


def count_down(self: BoundTask, left: int) -> str:
    if left:
        raise self.retry(args=(left - 1,), countdown=0)
    return f"after {self.request.retries}"


def always_busy(self: BoundTask, countdown: float = 0.0) -> None:
    raise self.retry(countdown=countdown)


def fails_by_itself(number: int) -> None:
    raise Busy(f"number {number}")


def ignored() -> None:
    raise Ignore("nothing to do")


def rejected() -> None:
    raise Reject("not mine")


def given_back(self: BoundTask) -> int:
    if self.request.attempt < 3:
        raise Reject("not yet", requeue=True)
    return self.request.attempt


def test_task_runs_again_until_it_succeeds(shared_site: Site, tmp_path: Path) -> None:
    result = shared_site.app.task(third_time, bind=True).delay(str(tmp_path))
    value = result.get(timeout=20)
    assert value == {"retries": 2, "attempt": 3, "id": result.id}
    assert [path.name.split(".")[1] for path in sorted(tmp_path.iterdir())] == ["0", "1", "2"]
    assert shared_site.app.broker.size("nbqueue") == shared_site.app.broker.size("another")


def test_record_says_why_and_when_while_a_task_waits_for_its_retry(shared_site: Site) -> None:
    task = shared_site.app.task(fails_by_itself, autoretry_for=(Busy,), default_retry_delay=FAR_S, max_retries=5)
    result = task.delay(1)
    wait_until(lambda: result.state == states.RETRY, 10, "the task to be put off")
    latest = result.watched.latest
    assert latest is not None
    facts = latest.facts
    assert (facts.error, facts.retries, facts.max_retries) == ("Busy: number 1", 1, 5)
    assert facts.eta == pytest.approx(time.time() + FAR_S, abs=30)
    assert "fails_by_itself" in latest.failure.traceback
    assert "nbqueue/retries" not in latest.failure.traceback
    assert not result.ready()
    assert (repr(result.result), result.retries) == ("Busy('number 1')", 1)
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    assert shared_site.app.broker.size("nbqueue").delayed == 0


def test_retry_takes_other_arguments_along(shared_site: Site) -> None:
    assert shared_site.app.task(count_down, bind=True).delay(3).get(timeout=20) == "after 3"


def other_by_position(self: Any, first: int, second: int, label: str = "") -> Any:
    if not self.request.retries:
        self.retry(args=(first + 1, second + 1), countdown=0)
    return first, second, label


def other_by_name(self: Any, first: int, /, second: int, *rest: int, label: str = "") -> Any:
    if not self.request.retries:
        self.retry(kwargs={"second": second + 10, "label": "new"}, countdown=0)
    return first, second, rest, label


def test_arguments_of_a_retry_take_the_place_of_the_calls_however_that_had_them(shared_site: Site) -> None:
    by_position, by_name = (
        shared_site.app.task(run, bind=True, max_retries=1) for run in (other_by_position, other_by_name)
    )
    calls = [
        (by_position.s(first=1, second=2, label="kept"), (2, 3, "kept")),
        (by_position.s(1, second=2), (2, 3, "")),
        (by_name.s(1, 2, 3, label="old"), (1, 12, (3,), "new")),
    ]
    assert [call.apply_async().get(timeout=20) for call, _ in calls] == [expected for _, expected in calls]
    assert [call.apply().get() for call, _ in calls] == [expected for _, expected in calls]


def later(self: Any, x: int) -> int:
    if not self.request.retries:
        self.retry(countdown=300)
    return x


def test_members_of_a_map_that_wait_for_their_retry_say_so(shared_site: Site) -> None:
    sent = shared_site.app.task(later, bind=True).map([1, 2])
    ids = [result.id for result in sent.results]
    load = shared_site.app.backend.load
    wait_until(lambda: all(text and b"RETRY" in text for text in load(ids)), 15, "both to be put off")
    assert [result.state for result in sent.results] == ["RETRY", "RETRY"]
    sent.revoke()


def test_task_by_name_runs_again_as_its_module_says(shared_site: Site) -> None:
    assert shared_site.app.send_task("tests.project.moody", (2,)).get(timeout=20) == "calm at retry 2"


def test_task_asks_for_retries_through_its_own_name(shared_site: Site) -> None:
    result = shared_site.app.send_task("tests.project.stuck")
    with pytest.raises(ConnectionError, match="no way out"):
        result.get(timeout=20)
    assert result.retries == 2


def test_task_fails_when_its_retries_are_used_up(shared_site: Site) -> None:
    with pytest.raises(MaxRetriesExceededError, match="retried 2 times"):
        shared_site.app.task(always_busy, bind=True, max_retries=2).delay().get(timeout=20)
    task = shared_site.app.task(fails_by_itself, autoretry_for=(Busy,), retry_backoff=0.01, max_retries=2)
    with pytest.raises(Exception, match="number 7"):
        task.delay(7).get(timeout=20)


def test_members_of_a_map_are_retried_each_by_itself(shared_site: Site) -> None:
    results = shared_site.app.task(count_down, bind=True).map([0, 2, 1])
    assert results.get(timeout=20) == ["after 0", "after 2", "after 1"]
    facts = [fact.facts for fact in results.watched.facts if fact is not None]
    assert [one.retries for one in facts] == [0, 2, 1]
    counts = shared_site.server_says("HGETALL", f"nbq:progress:{results.id}")
    assert counts in ([b"SUCCESS", b"3"], {b"SUCCESS": b"3"}), "a retry is no end"


def test_task_cancelled_while_it_runs_is_not_retried(shared_site: Site, tmp_path: Path) -> None:
    def wait_then_retry(self: BoundTask, folder: str) -> None:
        (Path(folder) / "begun").touch()
        while not (Path(folder) / "go").exists():
            time.sleep(0.01)
        self.retry(countdown=0)

    result = shared_site.app.task(wait_then_retry, bind=True).delay(str(tmp_path))
    wait_until((tmp_path / "begun").exists, 10, "the task to begin")
    result.revoke()
    (tmp_path / "go").touch()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)


def test_ignored_and_rejected_tasks_end_as_such(shared_site: Site) -> None:
    with pytest.raises(Ignore, match="nothing to do"):
        shared_site.app.task(ignored).delay().get(timeout=20)
    with pytest.raises(Reject, match="not mine"):
        shared_site.app.task(rejected).delay().get(timeout=20)


def test_task_given_back_to_its_queue_runs_again(shared_site: Site) -> None:
    assert shared_site.app.task(given_back, bind=True).delay().get(timeout=20) == 3


def test_cell_runs_again_after_an_error(shared_site: Site, tmp_path: Path) -> None:
    source = (
        "from pathlib import Path\n"
        f"runs = Path({str(tmp_path)!r}) / 'runs'\n"
        "runs.write_text(runs.read_text() + 'x' if runs.exists() else 'x')\n"
        "if len(runs.read_text()) < 2:\n"
        "    raise OSError('not yet')\n"
        "'done'"
    )
    packed = serialization.dumps_args((CellRun(source, "<cell>"),), {})
    result = shared_site.app.send_cell(packed, name="cell", max_retries=1)
    assert result.get(timeout=20) == "done"
    packed = serialization.dumps_args((CellRun("while True: pass", "<cell>"),), {})
    with pytest.raises(SoftTimeLimitExceeded):
        shared_site.app.send_cell(packed, name="cell", soft_time_limit=0.2).get(timeout=20)


# ---- with other options than the call was sent with


def moved(self: BoundTask, options: dict[str, Any], before: Any = None) -> list[Any]:
    """Run again with these options, and once more with none; return what the call says then."""
    r = self.request
    if r.retries < 2:
        self.retry(countdown=0.05 if r.retries else 0, **(options if not r.retries else {}))
    return [r.queue, r.delivery_info["priority"], r.shadow, r.headers, r.timelimit[0], r.retries, r.attempt, before]


def sent_elsewhere(site: Site, **more: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return options for a retry, and what its call says then."""
    there = f"{site.queue}.there"
    options = {"queue": there, "priority": 5, "shadow": "moved", "headers": {"a": 1}, "time_limit": 40, **more}
    return options, [there, 5, "moved", {"a": 1}, 40.0, 2, 3, None]


@pytest.fixture
def two_queues(idle_site: Site) -> Site:
    """Return a site with a worker that listens to two queues."""
    idle_site.worker("-Q", f"{idle_site.queue},{idle_site.queue}.there")
    return idle_site


def test_retry_has_other_options_and_keeps_them_in_the_next(two_queues: Site) -> None:
    options, said = sent_elsewhere(two_queues)
    task = two_queues.app.task(moved, bind=True)
    assert task.apply_async((options,), priority=2).get(timeout=20) == said
    assert task.delay({"priority": 0, "expires": None, "queue": None}).get(timeout=20)[:2] == [two_queues.queue, 0]
    for queue in (two_queues.queue, f"{two_queues.queue}.there"):
        size = two_queues.app.broker.size(queue)
        assert (size.queued, size.claimed, size.delayed) == (0, 0, 0)


def test_arguments_of_a_retry_go_in_another_form(two_queues: Site) -> None:
    task = two_queues.app.task(moved, bind=True)
    options = {"serializer": "json", "compression": "gzip", "priority": 1}
    assert task.delay(options, [1, (2, 3)]).get(timeout=20)[-1] == [1, [2, 3]], "as JSON has it"
    failed = task.delay(options, Busy("no JSON"))
    with pytest.raises(NotPicklable, match="can't be said in json"):
        failed.get(timeout=20)


def test_members_of_a_map_and_calls_of_a_canvas_run_again_elsewhere_and_what_follows_follows_once(
    two_queues: Site, tmp_path: Path
) -> None:
    options, said = sent_elsewhere(two_queues)
    task = two_queues.app.task(moved, bind=True)
    results = task.map([options, {"priority": 1}])
    assert results.get(timeout=20) == [said, [two_queues.queue, 1, None, None, None, 2, 3, None]]

    def note(values: Any, folder: str) -> Any:
        (Path(folder) / f"body.{time.time_ns()}").touch()
        return values

    body = two_queues.app.task(note).s(str(tmp_path))
    assert chord([task.s(options), task.s({})])(body).get(timeout=20)[0] == said
    assert len(list(tmp_path.iterdir())) == 1
    first = two_queues.app.task(dict, name="first").s([("queue", f"{two_queues.queue}.there")])
    assert (first | task.s("before") | body).apply_async().get(timeout=20)[0] == f"{two_queues.queue}.there"
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(TypeError, match="ignore_result of a call of a canvas"):
        (task.s({"ignore_result": True}) | body).apply_async().get(timeout=20)
    assert len(list(tmp_path.iterdir())) == 2


def test_retry_expires_and_ends_at_its_limit_as_it_says(two_queues: Site) -> None:
    def slow(self: BoundTask, **options: Any) -> None:
        if not self.request.retries:
            self.retry(**options)
        time.sleep(60)

    task = two_queues.app.task(slow, bind=True)
    with pytest.raises(TimeLimitExceeded):
        task.delay(countdown=0, time_limit=0.3).get(timeout=20)
    with pytest.raises(SoftTimeLimitExceeded):
        task.delay(countdown=0, soft_time_limit=0.3).get(timeout=20)
    with pytest.raises(TaskRevokedError, match="expired"):
        task.delay(countdown=0.2, expires=0.1).get(timeout=20)


def test_value_of_a_retry_is_kept_or_not_as_it_says(two_queues: Site) -> None:
    def one(self: BoundTask, ignore: bool) -> int:
        if not self.request.retries:
            self.retry(countdown=0, ignore_result=ignore)
        return 1

    task = two_queues.app.task(one, bind=True)
    assert task.delay(True).get(timeout=20) is None
    assert task.apply_async((False,), ignore_result=True).get(timeout=20) == 1


def test_retry_that_waits_in_another_queue_is_known_there_and_can_be_revoked_and_run_by_hand(idle_site: Site) -> None:
    def later(self: BoundTask, there: str) -> str:
        if not self.request.retries:
            self.retry(countdown=FAR_S, queue=there)
        return str(self.request.queue)

    idle_site.worker()
    there = f"{idle_site.queue}.there"
    task = idle_site.app.task(later, bind=True)
    revoked, single, (member,) = task.delay(there), task.delay(there), task.map([there])
    wait_until(lambda: idle_site.app.broker.size(there).delayed == 3, 20, "the retries")
    wait_until(lambda: revoked.queue == single.queue == there, 20, "their records")
    revoked.revoke()
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=10)
    assert idle_site.app.broker.size(there).delayed == 2
    idle_site.worker("-Q", there)
    single.retry()
    assert single.get(timeout=20) == there
    member.revoke()
    with pytest.raises(TaskRevokedError):
        member.get(timeout=10)


def test_callbacks_are_added_as_the_error_says(two_queues: Site, tmp_path: Path) -> None:
    def linked(self: BoundTask, folder: str) -> str:
        if "replaced" in (self.request.headers or {}):
            return "end"
        raise self.replace(
            self.signature_from_request(link=noting.s(folder), headers={"replaced": True}, args=(folder,), kwargs={})
        )

    def note(value: str, folder: str) -> None:
        (Path(folder) / value).touch()

    noting = two_queues.app.task(note)
    result = two_queues.app.task(linked, bind=True).delay(str(tmp_path))
    assert result.get(timeout=20) == "end"
    wait_until((tmp_path / "end").exists, 10, "the callback")
