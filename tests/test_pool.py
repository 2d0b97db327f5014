"""The pool with real children: what they run, how they end, and what is taken back from them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import nbqueue
from nbqueue import serialization
from nbqueue.config import child_environment
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.execute import CODES_KEPT
from nbqueue.forkserver import ChildSettings, start_fork_server
from nbqueue.frames import take_back
from tests.helpers import wait_until
from tests.pools import RunningPool, alive, job

ROOT = Path(__file__).resolve().parent.parent
LARGE = 5_000_000


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningPool]:
    with RunningPool(1) as running:
        yield running


@pytest.fixture
def pool(shared: RunningPool) -> RunningPool:
    """One child, which earlier tests have used; not to be broken."""
    assert not shared.pool.children[1].jobs
    return shared


def add(left: int, right: int) -> int:
    return left + right


def pid() -> int:
    return os.getpid()


def sleep_until(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.005)
    return "woke"


def touch_and_wait(begun: str, path: str) -> str:
    Path(begun).touch()
    return sleep_until(path)


def hold_the_lock_until(begun: str, path: str) -> None:
    """Keep every other thread of the process from running, as a slow call into C does."""
    import ctypes

    Path(begun).touch()
    usleep = ctypes.PyDLL(None).usleep
    while not Path(path).exists():
        usleep(20_000)


# ---- running


def test_pool_runs_every_job_once_when_there_are_a_thousand() -> None:
    with RunningPool(2) as running:
        jobs = [job(add, n, 1, seq=10_000 + n) for n in range(1_000)]
        left = list(reversed(jobs))

        def feed() -> bool:
            for number, child in running.pool.children.items():
                while left and len(child.jobs) < 40 and running.pool.send(number, left[-1]):
                    left.pop()
            return len(running.finished) == len(jobs)

        running.until(feed, "all jobs to end", 30.0)
        assert [serialization.loads(running.finished[j.seq].outcome.body) for j in jobs] == list(range(1, 1_001))
        assert {finished.child for finished in running.finished.values()} == {1, 2}
        assert all(not child.jobs for child in running.pool.children.values())


@pytest.mark.parametrize("same", [True, False], ids=["its own", "another"])
def test_fork_server_that_was_started_before_is_used_when_it_has_the_environment(same: bool) -> None:
    started = start_fork_server(child_environment({**os.environ, "OTHER": "" if same else "x"}, 1))
    with RunningPool(1, variables={**os.environ, "OTHER": ""}, started=started) as running:
        assert running.call(add, 1, 2) == 3
        found = running.pool._server
        assert found is not None
        assert (found.pid == started.process.pid) == same
        assert (started.process.poll() is None) == same, "what isn't used has ended"


@pytest.mark.parametrize("same", [True, False], ids=["its own", "others"])
def test_fork_server_that_was_told_its_settings_before_is_used_when_they_are_those(same: bool) -> None:
    started = start_fork_server(child_environment(dict(os.environ), 1))
    started.tell(ChildSettings(max_tasks=7 if same else 8))
    with RunningPool(1, max_tasks=7, started=started) as running:
        assert running.call(add, 1, 2) == 3
        assert (running.pool._server is started.process) == same
        assert (started.process.poll() is None) == same, "what isn't used has ended"


def test_fork_server_that_is_not_used_after_all_ends_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    started = start_fork_server(child_environment(dict(os.environ), 1))
    started.close()
    assert started.process.returncode == 0
    assert capfd.readouterr().err == ""


def test_child_is_a_small_process_when_it_is_idle() -> None:
    with RunningPool(1) as running:
        lines = Path(f"/proc/{running.pool.children[1].pid}/smaps_rollup").read_text().splitlines()
        sizes_kb = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        assert sizes_kb["Rss"] < 32_000
        assert sizes_kb["Private_Dirty"] < 6_000


def test_child_collects_garbage_though_its_fork_server_loads_without() -> None:
    def collects() -> bool:
        import gc

        return gc.isenabled()

    with RunningPool(1) as running:
        assert running.call(collects) is True


def test_child_has_no_connection_or_notebook_loaded_when_it_runs_a_task() -> None:
    def loaded() -> list[str]:
        import sys

        return [name for name in ("redis", "kombu", "asyncio", "IPython", "ipywidgets") if name in sys.modules]

    with RunningPool(1) as running:
        assert running.call(loaded) == []


def test_large_frames_pass_both_ways_when_they_are_files(pool: RunningPool) -> None:
    def turned(data: bytes) -> bytes:
        return data[::-1]

    data = random.randbytes(LARGE)
    assert pool.call(turned, data) == data[::-1]


def test_large_code_passes_when_it_is_a_file(pool: RunningPool) -> None:
    table = list(range(200_000))
    assert pool.call(lambda: len(table)) == 200_000


def test_code_is_sent_anew_when_the_child_has_dropped_it(pool: RunningPool) -> None:
    def made(number: int) -> Any:
        return lambda: number

    functions = [made(n) for n in range(CODES_KEPT + 10)]
    for _ in range(2):
        for at in range(0, len(functions), 50):
            seqs = [pool.send(function) for function in functions[at : at + 50]]
            assert [pool.value(seq) for seq in seqs] == list(range(len(functions)))[at : at + 50]


def test_task_runs_when_its_code_was_taken_back_as_the_child_read_the_task(pool: RunningPool, tmp_path: Path) -> None:
    blocked = pool.send(touch_and_wait, str(tmp_path / "begun"), str(tmp_path / "go"))
    pool.until((tmp_path / "begun").exists, "the first task to begin")
    seq = pool.send(lambda: "ran")
    # What a recall does in the worst instant: it gets the code, the child gets the task.
    assert take_back(pool.pool.children[1].recall, memoryview(bytearray(1 << 20)))[:1] == b"C"
    (tmp_path / "go").touch()
    assert pool.value(blocked) == "woke"
    assert pool.value(seq) == "ran"


def test_send_says_so_when_the_socket_is_full(pool: RunningPool, tmp_path: Path) -> None:
    blocked = pool.send(touch_and_wait, str(tmp_path / "begun"), str(tmp_path / "go"))
    pool.until((tmp_path / "begun").exists, "the first task to begin")
    sent = [made.seq for made in (job(len, b"x" * 50_000) for _ in range(1_000)) if pool.pool.send(1, made)]
    assert 0 < len(sent) < 1_000
    assert pool.pool.recall(1) == sent
    (tmp_path / "go").touch()
    assert pool.value(blocked) == "woke"


# ---- output


def test_prints_arrive_in_order_and_before_the_outcome_when_a_task_prints(pool: RunningPool) -> None:
    def speak() -> None:
        import sys

        print("one")
        print("two", file=sys.stderr)
        print("three")

    seq = pool.send(speak)
    pool.outcome(seq)
    assert [(o.name, o.text) for o in pool.outputs(seq)] == [
        ("stdout", "one\n"),
        ("stderr", "two\n"),
        ("stdout", "three\n"),
    ]


def test_print_arrives_while_the_task_runs_when_it_is_slow(pool: RunningPool, tmp_path: Path) -> None:
    def speak(path: str) -> None:
        import time
        from pathlib import Path

        print("begun")
        while not Path(path).exists():
            time.sleep(0.005)

    seq = pool.send(speak, str(tmp_path / "go"))
    pool.until(lambda: pool.outputs(seq), "the print to arrive")
    assert seq not in pool.finished
    (tmp_path / "go").touch()
    pool.outcome(seq)


def test_progress_arrives_when_a_task_tells_it(pool: RunningPool) -> None:
    def work() -> int:
        return sum(nbqueue.track(range(50), message="adding"))

    seq = pool.send(work)
    assert pool.value(seq) == sum(range(50))
    told = pool.progress(seq)
    assert (told[0].done, told[0].total, told[0].message) == (0, 50, "adding")
    assert (told[-1].done, told[-1].closed) == (50, True)


def test_prints_of_a_forked_process_are_the_tasks_own_when_a_task_forks(pool: RunningPool) -> None:
    def fork() -> int:
        import os

        child = os.fork()
        print(("y" if child else "x") * 10)
        if child == 0:
            return 0  # back in the machinery, in a process that is none of its
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    seq = pool.send(fork)
    assert pool.value(seq) == 0
    assert sorted("".join(output.text for output in pool.outputs(seq)).split()) == ["x" * 10, "y" * 10]


# ---- ends of tasks


def test_child_lives_on_when_a_task_exits(pool: RunningPool) -> None:
    before = pool.pool.children[1].pid
    failure = pool.failure(pool.send(lambda: sys.exit(3)))
    assert (failure.type, failure.message) == ("SystemExit", "3")
    assert pool.call(pid) == before


def test_interrupt_revokes_the_task_and_the_child_lives_on_when_it_sleeps(pool: RunningPool, tmp_path: Path) -> None:
    before = pool.pool.children[1].pid
    for n in range(10):
        seq = pool.send(touch_and_wait, str(tmp_path / f"begun{n}"), str(tmp_path / "never"))
        pool.until((tmp_path / f"begun{n}").exists, "the task to begin")
        pool.pool.interrupt(1, signal.SIGINT)
        assert pool.outcome(seq).outcome.state == "REVOKED"
    assert pool.call(pid) == before


def test_replies_stay_whole_when_interrupts_hit_a_task_that_prints(pool: RunningPool, tmp_path: Path) -> None:
    def speak(begun: str) -> None:
        from pathlib import Path

        Path(begun).touch()
        while True:
            print("x" * 50_000)

    for n in range(20):
        seq = pool.send(speak, str(tmp_path / str(n)))
        pool.until((tmp_path / str(n)).exists, "the task to begin")
        pool.pool.interrupt(1, signal.SIGINT)
        assert pool.outcome(seq).outcome.state == "REVOKED"
    assert pool.died == []


def test_interrupt_does_nothing_when_the_child_is_idle(pool: RunningPool) -> None:
    before = pool.pool.children[1].pid
    for _ in range(5):
        pool.pool.interrupt(1, signal.SIGINT)
        assert pool.call(add, 1, 1) == 2
    assert pool.call(pid) == before


def test_processes_of_a_task_are_interrupted_too_when_it_waits_for_them(pool: RunningPool, tmp_path: Path) -> None:
    def wait(begun: str) -> None:
        import subprocess

        subprocess.run(["sh", "-c", f"echo $$ > {begun}.new; mv {begun}.new {begun}; sleep 600"], check=True)

    begun = tmp_path / "begun"
    seq = pool.send(wait, str(begun))
    pool.until(begun.exists, "the process to begin")
    pool.pool.interrupt(1, signal.SIGINT)
    assert pool.outcome(seq).outcome.state == "REVOKED"
    wait_until(lambda: not alive(int(begun.read_text())), 5.0, "the process to end")


# ---- recall


@pytest.mark.parametrize("busy", [touch_and_wait, hold_the_lock_until])
def test_recall_takes_back_all_that_waits_when_the_child_is_busy(pool: RunningPool, tmp_path: Path, busy: Any) -> None:
    blocked = pool.send(busy, str(tmp_path / "begun"), str(tmp_path / "go"))
    pool.until((tmp_path / "begun").exists, "the first task to begin")
    waiting = [pool.send(add, n, n) for n in range(20)] + [pool.send(len, b"x" * LARGE), pool.send(add, 1, 1)]
    assert pool.pool.recall(1) == waiting
    assert list(pool.pool.children[1].jobs) == [blocked]
    again = pool.send(add, 3, 4)
    (tmp_path / "go").touch()
    assert pool.value(again) == 7
    assert not pool.finished.keys() & set(waiting)


def test_no_task_is_lost_or_run_twice_when_recalls_race_with_the_child(pool: RunningPool) -> None:
    functions = [add, lambda a, b: a + b, lambda a, b: b + a]
    waiting = {}
    for n in range(600):
        made = job(functions[n % 3], n, 1)
        waiting[made.seq] = made
        assert pool.pool.send(1, made)
        if n % 7 == 0:
            for seq in pool.pool.recall(1):
                assert pool.pool.send(1, waiting[seq])
        if n % 50 == 0:
            pool.turn(0)
    pool.until(lambda: waiting.keys() <= pool.finished.keys(), "all to end")
    assert all(pool.finished[seq].outcome.state == "SUCCESS" for seq in waiting)


# ---- ends of children


def kill_in_a_batch(running: RunningPool) -> None:
    """Kill the child at some point of a batch, and check what becomes of each task of it."""
    running.until(lambda: running.all_ready, "a child")
    jobs = [job(time.sleep, 0.002) for _ in range(30)]
    for made in jobs:
        assert running.pool.send(1, made)
    first = jobs[random.randrange(15)].seq
    running.until(lambda: first in running.finished, "some to end")
    deaths, child = len(running.died), running.pool.children[1].pid
    os.kill(child, signal.SIGKILL)
    running.until(lambda: len(running.died) > deaths, "the death")
    died = running.died[-1]
    ended = [made.seq for made in jobs if made.seq in running.finished]
    rest = [made.seq for made in jobs if made.seq not in running.finished]
    assert (died.child, died.cause) == (1, "signal 9 (SIGKILL)")
    assert ended == [made.seq for made in jobs[: len(ended)]]
    assert [died.started, *died.unstarted] == rest or list(died.unstarted) == rest
    assert len(died.unstarted) >= len(rest) - 1
    assert not alive(child)


def test_only_the_started_task_is_charged_when_children_are_killed() -> None:
    with RunningPool(1) as running:
        for _ in range(20):
            kill_in_a_batch(running)
        running.until(lambda: running.all_ready, "the last replacement")
        assert running.call(add, 2, 2) == 4


def test_cause_names_the_exit_code_when_a_task_ends_its_process() -> None:
    with RunningPool(1) as running:
        seq = running.send(os._exit, 3)
        waiting = [running.send(add, n, n) for n in range(3)]
        running.until(lambda: running.died, "the death")
        (died,) = running.died
        assert (died.cause, died.started, died.unstarted) == ("exit code 3", seq, tuple(waiting))


def test_last_words_are_told_with_the_line_when_a_task_ends_its_process_by_a_fault() -> None:
    def fault() -> None:
        import ctypes

        ctypes.string_at(0)

    with RunningPool(1) as running:
        seq = running.send(fault)
        running.until(lambda: running.died, "the death")
        (died,) = running.died
        assert (died.cause, died.started) == ("signal 11 (SIGSEGV)", seq)
        assert died.said.startswith("Fatal Python error: Segmentation fault")
        assert "in fault" in died.said
        running.until(lambda: running.all_ready, "a replacement")
        assert running.call(add, 1, 2) == 3


def test_outcome_comes_first_when_the_child_dies_right_after_it() -> None:
    with RunningPool(1) as running:

        def die_soon() -> None:
            import os
            import threading
            import time

            def end() -> None:
                time.sleep(0.05)
                os.abort()

            threading.Thread(target=end).start()

        seq = running.send(die_soon)
        wait_until(lambda: not alive(running.pool.children[1].pid), 10.0, "the child to die")
        running.until(lambda: running.died, "the death")
        assert running.finished[seq].outcome.state == "SUCCESS"
        assert (running.died[0].cause, running.died[0].started) == ("signal 6 (SIGABRT)", None)


def test_kill_ends_the_child_with_its_processes_when_it_ignores_signals(tmp_path: Path) -> None:
    def stubborn(begun: str) -> None:
        import signal
        import subprocess
        import time
        from pathlib import Path

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        other = subprocess.Popen(["sleep", "600"])
        Path(begun).write_text(str(other.pid))
        while True:
            with __import__("contextlib").suppress(BaseException):
                time.sleep(600)

    with RunningPool(1) as running:
        begun = tmp_path / "begun"
        seq = running.send(stubborn, str(begun))
        running.until(lambda: begun.exists() and begun.read_text(), "the task to begin")
        running.pool.interrupt(1, signal.SIGINT)
        running.pool.interrupt(1, signal.SIGTERM)
        running.pool.kill(1)
        running.until(lambda: running.died, "the death")
        assert running.died[0].started == seq
        wait_until(lambda: not alive(int(begun.read_text())), 5.0, "its process to end")
        running.until(lambda: running.all_ready, "a replacement")
        assert running.call(add, 1, 1) == 2


def test_child_is_replaced_when_a_task_writes_into_its_replies() -> None:
    def garble() -> None:
        import os
        import stat
        import time

        for descriptor in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.write(descriptor, b"\0\0\0\1?")
            except OSError:
                continue
        time.sleep(600)

    with RunningPool(1) as running:
        seq = running.send(garble)
        running.until(lambda: running.died, "the death")
        assert "garbled" in running.died[0].cause
        assert running.died[0].started == seq
        running.until(lambda: running.all_ready, "a replacement")


def test_pool_goes_on_when_its_fork_server_is_killed(tmp_path: Path) -> None:
    with RunningPool(2) as running:
        seq = running.send(touch_and_wait, str(tmp_path / "begun"), str(tmp_path / "never"))
        running.until((tmp_path / "begun").exists, "the task to begin")
        waiting = running.send(add, 1, 1)
        old = [child.pid for child in running.pool.children.values()]
        assert running.pool._server is not None
        os.kill(running.pool._server.pid, signal.SIGKILL)
        running.until(lambda: len(running.died) == 2, "both deaths")
        assert {died.child: (died.started, died.unstarted) for died in running.died} == {
            1: (seq, (waiting,)),
            2: (None, ()),
        }
        wait_until(lambda: not any(alive(number) for number in old), 5.0, "the old children to be gone")
        running.until(lambda: running.all_ready, "new children")
        assert running.call(add, 1, 1, child=2) == 2


def test_nothing_outlives_the_supervisor_when_it_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.pools import RunningPool
def busy():
    import subprocess
    subprocess.run(["sleep", "600"])
def pids():
    import os
    return os.getpid(), os.getppid()
with RunningPool(2) as running:
    found = [running.call(pids, child=n) for n in (1, 2)]
    running.send(busy)
    print(*{{pid for pair in found for pid in pair}}, flush=True)
    while True:
        running.turn()
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    with supervisor, contextlib.closing(supervisor.stdout):
        numbers = [int(word) for word in supervisor.stdout.readline().split()]
        assert len(numbers) == 3
        assert all(alive(number) for number in numbers)
        supervisor.kill()
        supervisor.wait()
    wait_until(lambda: not any(alive(number) for number in numbers), 10.0, "children and fork server to end")


def test_stop_ends_everything_in_time_when_a_child_is_busy(tmp_path: Path) -> None:
    with RunningPool(2) as running:
        running.send(touch_and_wait, str(tmp_path / "begun"), str(tmp_path / "never"))
        running.until((tmp_path / "begun").exists, "the task to begin")
        numbers = [child.pid for child in running.pool.children.values()]
        begun = time.monotonic()
        running.pool.stop(0.2)
        assert time.monotonic() - begun < 5.0
        wait_until(lambda: not any(alive(number) for number in numbers), 5.0, "the children to end")


# ---- starting


def test_start_says_what_is_wrong_when_a_module_can_not_be_imported() -> None:
    running = RunningPool(1, preload=("no_such_module_of_ours",))
    try:
        with pytest.raises(ImproperlyConfigured, match="no_such_module_of_ours"), running:
            pass
    finally:
        running.pool.stop(1.0)
        running.selector.close()


def test_pool_gives_up_when_its_fork_server_can_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbqueue.pool.sys.executable", "/bin/false")
    running = RunningPool(1)
    try:
        with pytest.raises(ImproperlyConfigured, match="/bin/false"), running:
            pass
    finally:
        running.pool.stop(1.0)
        running.selector.close()


def test_pool_starts_another_fork_server_when_the_one_it_was_given_has_ended() -> None:
    started = start_fork_server(child_environment(dict(os.environ), 1))
    started.process.kill()
    started.process.wait()
    with RunningPool(1, variables=dict(os.environ), started=started) as running:
        assert running.call(add, 1, 2) == 3, "another has taken its place"


def test_tasks_by_name_run_when_their_module_was_preloaded(tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text(
        "from nbqueue import App\n"
        "import os\n"
        "loaded_in = os.getpid()\n"
        "app = App()\n"
        "app.task(lambda: (loaded_in, os.getppid()), name='proj.where')\n"
    )
    (tmp_path / "more.py").write_text("import proj\nproj.app.task(lambda: 1, name='more.one')\n")
    with RunningPool(1, preload=("proj", "more"), path=(str(tmp_path),)) as running:
        assert running.call("more.one") == 1
        loaded_in, parent = running.call("proj.where")
        assert loaded_in == parent
        failure = running.failure(running.send("proj.other"))
        assert failure.type == "NotRegistered"
        assert "'proj.other'" in failure.message
        assert "proj.where" in failure.message


def test_children_draw_different_numbers_when_numpy_was_preloaded(tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text(
        "import numpy\nclass App:\n    tasks = {}\n    def send_task(self): ...\napp = App()\n"
    )

    def draw() -> float:
        import numpy as np

        return float(np.random.random())  # noqa: NPY002 - the generator that all of a process share

    with RunningPool(2, preload=("proj",), path=(str(tmp_path),)) as running:
        assert running.call(draw, child=1) != running.call(draw, child=2)


def test_main_is_nobodys_module_when_a_task_looks_at_it(pool: RunningPool) -> None:
    def look() -> list[str]:
        import __main__

        return sorted(name for name in vars(__main__) if not name.startswith("__"))

    assert pool.call(look) == []


def outcome_of(state: str, body: bytes = b"garbage", at: float = 0.0) -> bytes:
    outcome = b"O" + msgspec.msgpack.encode([4_711, state, body, at, at])
    return len(outcome).to_bytes(4, "big") + outcome


@pytest.mark.parametrize(
    "reply",
    [
        *(outcome_of(state) for state in ("FAILURE", "RETRY", "STARTED")),
        *(outcome_of("SUCCESS", at=at) for at in (float("inf"), float("nan"), -1.0, 1e300)),
        outcome_of("RETRY", msgspec.msgpack.encode([msgspec.msgpack.encode(["T", "m", "t"]), float("inf")])),
        bytes(64),
        b"\xff" * 64,
        b"\0\0\0\x05O\x92\x01\xa1\xff",
        (100_001).to_bytes(4, "big") + b"O" + b"\x91" * 100_000,
        b"\0\0\0\x02Bx",
    ],
    ids=["failure", "retry", "state", "inf", "nan", "past", "late", "due", "zeros", "ones", "text", "deep", "begun"],
)
def test_child_is_replaced_when_a_reply_in_its_name_can_not_be_read(reply: bytes) -> None:
    def pretend(reply: bytes) -> None:
        import os

        for descriptor in range(3, 32):
            try:
                os.write(descriptor, reply)
            except OSError:
                continue
        while True:
            pass

    with RunningPool(1) as running:
        seq = running.send(pretend, reply, seq=4_711)
        running.until(lambda: running.died, "the child to be ended")
        assert running.died[0].cause.startswith("its replies were garbled")
        assert running.died[0].started == seq
        running.until(lambda: running.all_ready, "another child")
        assert running.call(add, 1, 2) == 3


def test_cause_is_told_when_a_task_ends_a_child_that_was_to_be_replaced_after_it(tmp_path: Path) -> None:
    with RunningPool(1) as running:
        seq = running.send(touch_and_wait, str(tmp_path / "begun"), str(tmp_path / "never"))
        running.until((tmp_path / "begun").exists, "the task to begin")
        running.pool.retire(1)
        os.kill(running.pool.children[1].pid, signal.SIGSEGV)
        running.until(lambda: running.died, "the child to end")
        died = running.died[0]
        assert (died.cause, died.started, died.worn) == ("signal 11 (SIGSEGV)", seq, False)
