"""Tasks that are given up: kept with what ended them, sent again, dropped."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from nbqueue import states
from nbqueue.deadletters import DeadLetters
from nbqueue.exceptions import Reject, WorkerLostError
from tests.end_to_end.test_cli import options_of, run
from tests.hand import put, take
from tests.helpers import wait_until
from tests.workers import Site

pytestmark = [pytest.mark.brokers, pytest.mark.faults, pytest.mark.timeout(60)]


def deadly_until(path: str) -> str:
    """End its own process until a file is there."""
    if not Path(path).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def deadly_at_two(number: int, path: str) -> int:
    if number == 2:
        deadly_until(path)
    return number


def rejected_or_broken(how: str) -> None:
    if how == "rejected":
        raise Reject("not mine")
    raise ValueError(how)


def rejected() -> None:
    raise Reject("not mine")


def cli(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return run(site, *options_of(site), *words)


def test_task_that_was_given_up_is_kept_and_runs_when_it_is_sent_again(site: Site, tmp_path: Path) -> None:
    site.worker(concurrency=1)
    path = tmp_path / "cured"
    result = site.app.task(deadly_until, by_value=True).delay(str(path))
    with pytest.raises(WorkerLostError, match=r"^Given up: it ended its child 3 times\. Last: signal 9 \(SIGKILL"):
        result.get(timeout=30)
    (letter,) = DeadLetters(site.app).list()
    assert (letter.id, letter.queue) == (result.id, "nbqueue")
    assert letter.name.endswith("deadly_until")
    assert letter.error.startswith("WorkerLostError: Given up")
    said = cli(site, "dead")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"{result.id}  20")
    assert "deadly_until  WorkerLostError: Given up: it ended its child 3 times." in said.stdout
    assert cli(site, "status").stdout.splitlines()[-1] == "dead letters: 1 (nbqueue dead)"
    path.touch()
    assert cli(site, "dead", "requeue", result.id).stdout == f"{result.id}: sent\n"
    with site.new_app() as later:
        assert later.AsyncResult(result.id).get(timeout=20) == "alive"
    assert cli(site, "dead").stdout == "No dead letters.\n"
    assert site.app.broker.size("nbqueue").claimed == 0


def test_member_of_a_map_is_sent_again_by_itself(site: Site, tmp_path: Path) -> None:
    site.worker()
    path = tmp_path / "cured"
    results = site.app.task(deadly_at_two, by_value=True).starmap([(n, str(path)) for n in range(4)])
    values = results.get(timeout=30, propagate=False)
    assert isinstance(values[2], WorkerLostError)
    path.touch()
    said = cli(site, "dead", "requeue", "--all")
    assert said.stdout == f"{results.id}-2: sent\n", said.stderr
    with site.new_app() as later:
        again = later.GroupResult(results.id)
        assert again.get(timeout=20) == [0, 1, 2, 3]
        counts = later.backend.progress(results.id)
        assert counts.get(states.FAILURE, 0) == 0
        assert counts[states.SUCCESS] == 4


def test_rejected_task_is_kept_until_it_is_dropped(site: Site) -> None:
    site.worker(concurrency=1)
    sent = [site.app.task(rejected, by_value=True).delay() for _ in range(3)]
    for result in sent:
        with pytest.raises(Reject):
            result.get(timeout=20)
    letters = DeadLetters(site.app)
    assert [letter.error for letter in letters.list()] == ["not mine"] * 3
    assert cli(site, "dead", "drop", sent[0].id, "nothing").stdout == "1 dropped\n"
    assert letters.drop([sent[1].id]) == 1
    assert cli(site, "dead", "drop", "--all").stdout == "1 dropped\n"
    assert letters.list() == []
    assert sent[2].state == states.REJECTED


def test_task_that_failed_runs_again_and_not_an_older_one_of_its_id_that_was_given_up(site: Site) -> None:
    site.worker(concurrency=1)
    task = site.app.task(rejected_or_broken, by_value=True)
    with pytest.raises(Reject):
        task.apply_async(("rejected",), task_id="daily").get(timeout=20)
    with site.new_app(by_value=False) as later:
        again = later.task(rejected_or_broken, by_value=True).apply_async(("broken",), task_id="daily")
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                again.get(timeout=20)
            again.retry()


def test_dead_letter_is_not_sent_again_when_its_id_lives_or_it_was_altered(site: Site, tmp_path: Path) -> None:
    worker = site.worker(concurrency=1)
    task = site.app.task(rejected, by_value=True)
    live, altered = task.apply_async(task_id="live"), task.apply_async(task_id="altered")
    for result in (live, altered):
        with pytest.raises(Reject):
            result.get(timeout=20)
    worker.kill()
    with site.new_app() as later:
        later.task(rejected, by_value=True).apply_async(task_id="live")
    with site.server.client() as client:
        client.hset("nbq:dead:bodies", "altered", b"another body")
    said = DeadLetters(site.app).requeue(["live", "altered", "nothing"])
    assert said["live"] == "live"
    assert said["altered"].startswith("refused (signature")
    assert said["nothing"] == "unknown"
    again = cli(site, "dead", "requeue", "nothing")
    assert (again.returncode, again.stdout) == (1, "nothing: unknown\n")


def test_garbage_among_the_dead_letters_is_shown_as_such_and_can_be_dropped(site: Site) -> None:
    with site.server.client() as client:
        client.zadd("nbq:dead:at", {"nothing": 1, "text": 2, "short": 3, b"\xff": 4})
        client.hset("nbq:dead", mapping={"text": "not packed", "short": b"\x91\xa1q", b"\xff": b"\x93\xa1q\xa1h\xa1r"})
    letters = DeadLetters(site.app)
    shown = letters.list()
    assert [letter.id for letter in shown] == ["nothing", "text", "short", "\ufffd"]
    assert all(letter.error.startswith("its record can't be believed") for letter in shown)
    assert letters.requeue(["nothing", "text", "short"]) == dict.fromkeys(("nothing", "text", "short"), "unknown")
    assert letters.drop(["nothing", "text", "short"]) == 2
    assert len(letters.list()) == 1


def test_command_needs_to_know_which_dead_letters(site: Site) -> None:
    for words in (("requeue",), ("drop", "--all", "x")):
        said = cli(site, "dead", *words)
        assert said.returncode == 2
        assert "name the tasks, or give --all" in said.stderr


def test_oldest_dead_letters_go_when_there_are_too_many(site: Site) -> None:
    """Without workers: the script alone, with records that nobody reads."""
    from nbqueue.deliveries import Outgoing, Settlement

    for start in range(0, 1_002, 501):
        site.app.broker.publish([Outgoing("q", f"t{n}", "h", b"b") for n in range(start, start + 501)])
        deliveries, _ = site.app.broker.claim(501, ["q"])
        site.app.broker.settle([Settlement(delivery, b"{}", dead=True) for delivery in deliveries])
    kept = [id_ for id_, _ in site.streams.dead_letters()]
    assert len(kept) == 1_000
    assert not {"t0", "t1"} & set(kept)
    assert site.streams.counters() == {"dead letter dropped": 2}


def test_task_whose_workers_are_lost_too_often_is_kept(site: Site) -> None:
    result = site.app.send_task("tests.project.add", (1, 2))
    (message,) = take(site)
    put(site, [{**message, "w": 11}])
    site.worker(concurrency=1)
    with pytest.raises(WorkerLostError, match="lost its worker 11 times, the last time while it ran alone"):
        result.get(timeout=20)
    wait_until(lambda: [letter.id for letter in DeadLetters(site.app).list()] == [result.id], 5, "the letter")


def test_task_whose_workers_were_lost_too_often_runs_once_more_and_others_after_it(site: Site, tmp_path: Path) -> None:
    results = [site.app.send_task("tests.project.note", (str(tmp_path), f"t{n}", 0.1)) for n in range(6)]
    put(site, [{**message, "w": 10} if number in (1, 2) else message for number, message in enumerate(take(site))])
    site.worker(concurrency=4)
    assert [result.get(timeout=20) for result in results] == [f"t{n}" for n in range(6)]
    began = {path.name.partition(".")[0]: int(path.name.partition(".")[2]) for path in tmp_path.iterdir()}
    for alone in ("t1", "t2"):
        assert all(abs(began[alone] - at) >= 0.09e9 for name, at in began.items() if name != alone)
