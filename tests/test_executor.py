"""What our executor does besides what the standard library's promise; that is in `tests/contracts/test_executor.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbqueue import Executor
from nbqueue.bindings import is_own
from nbqueue.calls import MOST
from nbqueue.exceptions import NBQueueError, NotPicklable, TaskRevokedError, WorkerLostError
from nbqueue.executor import LostCall
from tests.helpers import RedisServer, wait_until
from tests.workers import LEASE_S, RENEWAL_S, ROOT, Site

WAIT_S = 30.0


def add(x: int, y: int = 0) -> int:
    return x + y


def name_process(folder: str) -> int:
    """Leave a mark of this process, and return its number."""
    Path(folder, str(os.getpid())).touch()
    return os.getpid()


def die_first(path: str) -> str:
    """End this process, unless it was ended here before."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path: str, folder: str = "") -> int:
    if folder:
        name_process(folder)
    deadline = time.monotonic() + WAIT_S
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    return os.getpid()


def interrupt() -> None:
    raise KeyboardInterrupt


def nested(n: int) -> int:
    with Executor(1) as executor:
        return sum(executor.map(add, range(n), range(n)))


def refuse() -> None:
    raise LookupError("no such thing")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as found, Site(found):
        yield found


def executor_of(site: Site | RedisServer, workers: int = 2, **more: Any) -> Executor:
    """Return an executor on a server, with leases short enough to watch them lapse."""
    server = site if isinstance(site, RedisServer) else site.server
    broker, backend = server.url, None
    if isinstance(site, Site) and site.on_rabbitmq:
        broker, backend = site.broker_url, server.url
    more = {"worker_lease": LEASE_S, "worker_renewal": RENEWAL_S, **more}
    return Executor(workers, broker, backend, key_file=str(server.directory / "key"), **more)


def worker_of(executor: Executor) -> psutil.Process:
    """Return the process of its worker."""
    wait_until(lambda: executor._calls.worker is not None, WAIT_S, "its worker to be started")
    assert executor._calls.worker is not None
    return psutil.Process(executor._calls.worker.pid)


def run(server: RedisServer, text: str) -> subprocess.Popen[str]:
    """Start a program whose code is in `__main__`, where `executor` makes one on the server."""
    lines = (
        "import os, sys, threading, time",
        "from pathlib import Path",
        "from nbqueue import Executor",
        f"def executor(n=1): return Executor(n, broker={server.url!r}, key_file={str(server.directory / 'key')!r})",
        text,
    )
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.brokers
def test_calls_run_and_leave_nothing_at_the_broker(idle_site: Site) -> None:
    with executor_of(idle_site) as executor:
        assert list(executor.map(add, range(300), range(300))) == [2 * n for n in range(300)]
        queued = [executor.submit(time.sleep, 0.3) for _ in range(8)]
        assert queued[-1].cancel()
        assert isinstance(executor.submit(divmod, 1, 0).exception(WAIT_S), ZeroDivisionError)
        worker = worker_of(executor)
    assert not worker.is_running()
    assert [name for name in idle_site.app.broker.queues() if is_own(name)] == []  # type: ignore[attr-defined]
    kept: Any = idle_site.server_says("KEYS", "*")
    # Code stays for a while: others may send the same.
    left = [key for key in kept if b"executor" in key or (b"group" in key and b"group:code" not in key)]
    assert left == []


def test_server_keeps_nothing_of_calls_that_have_ended(idle_site: Site) -> None:
    with executor_of(idle_site) as executor:
        for _ in range(3):
            list(executor.map(add, range(700)))
            list(executor.map(say, range(20)))
            futures.wait([executor.submit(divmod, 1, 0) for _ in range(20)], WAIT_S)
            executor.submit(say, 1).result(WAIT_S)
        calls = executor._calls
        told = f"nbq:session:{executor._app.session}"
        wait_until(lambda: idle_site.server_says("XLEN", told) <= 200, WAIT_S, "it to drop what was read")  # type: ignore[operator]
        wait_until(lambda: idle_site.server_says("DBSIZE") < 40, WAIT_S, "it to forget")  # type: ignore[operator]
        assert not calls.sent
        assert not calls._ended
        assert not calls._waiting
        assert calls._unended == 0


def test_whoever_submits_waits_while_very_many_have_gathered(private_redis: RedisServer) -> None:
    Site(private_redis).app.close()
    with executor_of(private_redis) as executor:
        assert executor.submit(add, 1).result(WAIT_S) == 1
        os.kill(private_redis.pid, signal.SIGSTOP)
        sent: list[futures.Future[int]] = []
        thread = threading.Thread(target=lambda: sent.extend(executor.submit(add, n) for n in range(MOST + 1500)))
        thread.start()
        try:
            wait_until(lambda: len(executor._calls._waiting) == MOST, WAIT_S, "it to be full")
            assert thread.is_alive()
        finally:
            os.kill(private_redis.pid, signal.SIGCONT)
        thread.join()
        assert [future.result(WAIT_S) for future in sent] == list(range(MOST + 1500))


def test_call_whose_process_dies_runs_again(server: RedisServer, tmp_path: Path) -> None:
    with executor_of(server) as executor:
        assert executor.submit(die_first, str(tmp_path / "died")).result(WAIT_S) == "alive"
        lost = executor.submit(die)
        error = lost.exception(WAIT_S)
        assert isinstance(error, LostCall)
        assert isinstance(error, WorkerLostError)
        assert isinstance(error, futures.BrokenExecutor)
        assert "SIGKILL" in str(error)
        assert executor.submit(add, 1).result(WAIT_S) == 1


def test_worker_that_is_killed_is_replaced_and_nothing_is_lost(server: RedisServer, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with executor_of(server) as executor:
        running = [executor.submit(wait_for, str(go), str(tmp_path)) for _ in range(2)]
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, WAIT_S, "both to run")
        queued = [executor.submit(add, n) for n in range(100)]
        worker_of(executor).kill()
        go.touch()
        assert [future.result(WAIT_S) for future in queued] == list(range(100))
        assert all(future.result(WAIT_S) for future in running)


def test_worker_that_can_not_be_started_breaks_the_executor(server: RedisServer) -> None:
    with executor_of(server) as executor:
        executor.submit(add, 1).result(WAIT_S)
        killed: set[int] = set()

        def kill() -> bool:
            worker = executor._calls.worker
            if worker is not None and worker.exit_code is None and worker.pid not in killed:
                killed.add(worker.pid)
                worker.process.kill()
            return executor._calls.broken is not None

        future = executor.submit(wait_for, "nowhere")
        wait_until(kill, WAIT_S, "it to give up")
        assert len(killed) == 3
        with pytest.raises(futures.BrokenExecutor, match="has ended, exit code -9, 3 times"):
            future.result(WAIT_S)
        with pytest.raises(futures.BrokenExecutor):
            executor.submit(add, 1)


def test_worker_ends_when_its_owner_is_killed(server: RedisServer, tmp_path: Path) -> None:
    program = run(
        server,
        f"ex = executor(); ex.submit(Path({str(tmp_path / 'ran')!r}).touch).result()\n"
        "for n in range(100): ex.submit(time.sleep, 1)\n"
        "while not ex._calls.sent: time.sleep(0.01)\n"
        "print(ex._calls.worker.pid, ex._calls.queue, flush=True)\n"
        "time.sleep(60)",
    )
    with program:
        assert program.stdout is not None
        pid, queue = program.stdout.readline().split()
        worker = psutil.Process(int(pid))
        children = worker.children(recursive=True)
        assert children
        program.kill()
    gone = [worker, *children]
    wait_until(lambda: not any(process.is_running() for process in gone), WAIT_S, "the worker to end")
    with server.client() as client:
        wait_until(lambda: not client.keys(f"*{queue}*"), WAIT_S, "its queue to be dropped")
        assert queue.encode() not in client.smembers("nbq:queues")


def test_program_that_ends_waits_for_what_it_submitted(server: RedisServer, tmp_path: Path) -> None:
    program = run(
        server,
        f"def mark(n): time.sleep(0.05); Path({str(tmp_path)!r}, str(n)).touch()\n"
        "ex = executor(2)\n"
        "for n in range(10): ex.submit(mark, n).add_done_callback(lambda _: print('ended', flush=True))",
    )
    said, errors = program.communicate(timeout=WAIT_S)
    assert program.returncode == 0, errors
    assert said.count("ended") == 10
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(10))


def test_wait_for_a_result_can_be_interrupted(server: RedisServer) -> None:
    program = run(
        server,
        "ex = executor(); f = ex.submit(time.sleep, 0.7); g = ex.submit(abs, -1); print('up', flush=True)\n"
        "try: f.result(); print('no')\n"
        "except KeyboardInterrupt: print('interrupted', g.result(), f.done(), flush=True)",
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    said, errors = program.communicate(timeout=WAIT_S)
    assert (said, program.returncode) == ("interrupted 1 True\n", 0), errors


def test_fork_of_a_program_ends_without_waiting_for_its_parents_calls(server: RedisServer, tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = run(
        server,
        f"def wait():\n  while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "ex = executor(); ex.submit(wait)\n"
        "pid = os.fork()\n"
        "if pid: print(os.waitpid(pid, 0)[1], flush=True)",
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "0\n"
    go.touch()
    program.communicate(timeout=WAIT_S)
    assert program.returncode == 0


def test_call_may_have_an_executor_of_its_own(server: RedisServer) -> None:
    with executor_of(server, 1) as executor:
        assert executor.submit(nested, 5).result(WAIT_S) == 20


def test_callback_may_submit_and_cancel(server: RedisServer) -> None:
    with executor_of(server, 1) as executor:
        more: list[futures.Future[int]] = []
        first = executor.submit(add, 1)
        first.add_done_callback(lambda done: more.append(executor.submit(add, done.result(), 1)))
        first.add_done_callback(lambda _: more[0].cancel())
        wait_until(lambda: more and more[0].done(), WAIT_S, "what the callback submitted")
        assert more[0].cancelled() or more[0].result() == 2


def test_callback_may_shut_the_executor_down(server: RedisServer) -> None:
    executor = executor_of(server, 1)
    ended = threading.Event()

    def end(_: object) -> None:
        executor.shutdown()
        ended.set()

    executor.submit(add, 1).add_done_callback(end)
    assert ended.wait(WAIT_S)
    executor.shutdown()


def say(n: int) -> None:
    print("line", n)
    print("warning", n, file=sys.stderr)


def test_what_calls_print_is_printed_here_before_they_have_ended(
    server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with executor_of(server, 1) as executor:
        executor.submit(say, -1).result(WAIT_S)
        assert capsys.readouterr() == ("line -1\n", "warning -1\n")
        list(executor.map(say, range(50)))
        said, warned = capsys.readouterr()
    assert sorted(said.splitlines()) == sorted(f"line {n}" for n in range(50))
    assert len(warned.splitlines()) == 50


def test_failures_are_told_by_futures_and_nowhere_else(server: RedisServer, capfd: pytest.CaptureFixture[str]) -> None:
    with executor_of(server, 1) as executor:
        assert isinstance(executor.submit(divmod, 1, 0).exception(WAIT_S), ZeroDivisionError)
    assert "ZeroDivisionError" not in capfd.readouterr().err


def test_interrupt_that_a_call_raises_is_its_error(server: RedisServer) -> None:
    with executor_of(server, 1) as executor:
        assert isinstance(executor.submit(interrupt).exception(WAIT_S), TaskRevokedError)


def test_process_is_replaced_after_so_many_calls(server: RedisServer) -> None:
    with executor_of(server, 1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(WAIT_S) for _ in range(9)]
    assert len(set(pids)) == 3


@pytest.mark.parametrize("number", [0, -1, "3"])
def test_number_of_calls_of_a_process_is_checked(number: Any) -> None:
    text = "must be an integer" if isinstance(number, str) else "must be >= 1"
    with pytest.raises((TypeError, ValueError), match=text):
        Executor(1, max_tasks_per_child=number)


def test_map_reads_its_iterables_as_far_as_its_buffer_goes(server: RedisServer) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(1_000):
            read.append(n)
            yield n

    with executor_of(server) as executor:
        values = executor.map(add, numbers(), buffersize=4)
        assert len(read) == 4
        assert [next(values) for _ in range(10)] == list(range(10))
        assert len(read) == 14
        assert list(executor.map(add, range(50), chunksize=7, buffersize=2)) == list(range(50))
        with pytest.raises(ValueError, match="buffersize must be None or > 0"):
            executor.map(add, [1], buffersize=0)
        with pytest.raises(TypeError, match="buffersize must be an integer or None"):
            executor.map(add, [1], buffersize="2")  # type: ignore[arg-type]


def test_what_can_not_travel_is_named(server: RedisServer) -> None:
    with executor_of(server) as executor:
        error = executor.submit(partial(add, y=threading.Lock()), 1).exception(WAIT_S)  # type: ignore[arg-type]
        assert isinstance(error, NotPicklable)


def test_future_says_that_the_broker_can_not_be_reached(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("0" * 64)
    with RedisServer() as server, Site(server) as site:
        url, key_file = server.url, site.key_file
        server.kill()
        with Executor(1, broker=url, key_file=str(key_file), task_publish_retry=False) as executor:
            error = executor.submit(add, 1).exception(WAIT_S)
    assert isinstance(error, NBQueueError)


def test_other_workers_take_none_of_its_calls(idle_site: Site, tmp_path: Path) -> None:
    other = idle_site.worker("--all-queues")
    with executor_of(idle_site, 1) as executor:
        pids = set(executor.map(name_process, [str(tmp_path)] * 200))
        own = {child.pid for child in worker_of(executor).children(recursive=True)}
        theirs = {child.pid for child in psutil.Process(other.pid).children(recursive=True)}
    assert pids <= own
    assert not pids & theirs


class TestWithAnApp:
    """Calls go to the workers of an app."""

    def test_workers_of_an_app_run_the_calls(self, shared_site: Site) -> None:
        with Executor(app=shared_site.app) as executor:
            ran_in = psutil.Process(executor.submit(os.getpid).result(WAIT_S))
            assert shared_site.workers[0].pid in {parent.pid for parent in ran_in.parents()}
        assert shared_site.workers[0].process.poll() is None
        assert shared_site.app.backend.now() > 0

    def test_arguments_travel_whatever_serializer_the_app_has(self, shared_site: Site) -> None:
        app = shared_site.new_app()
        app.conf.task_serializer = "json"
        with app, Executor(app=app) as executor:
            assert executor.submit(add, {1}.union, 1).exception(WAIT_S) is not None
            assert executor.submit(sorted, {3, 1}).result(WAIT_S) == [1, 3]

    def test_failing_initializer_breaks_the_executor_and_nothing_else(self, shared_site: Site) -> None:
        with Executor(app=shared_site.app, initializer=refuse) as executor:
            sent = [executor.submit(time.sleep, 0.2) for _ in range(20)]
            with pytest.raises(futures.BrokenExecutor, match="the initializer failed: LookupError: no such thing"):
                sent[-1].result(WAIT_S)
        with Executor(app=shared_site.app) as executor:
            assert executor.submit(add, 1).result(WAIT_S) == 1

    @pytest.mark.parametrize("given", [{"max_workers": 2}, {"broker": "redis://x"}, {"max_tasks_per_child": 3}])
    def test_what_belongs_to_its_workers_can_not_be_given(self, shared_site: Site, given: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(given))} can't be given with an app"):
            Executor(app=shared_site.app, **given)

    def test_task_may_be_submitted(self, shared_site: Site) -> None:
        task = shared_site.app.task(add)
        with Executor(app=shared_site.app) as executor:
            assert executor.submit(task, 1, 2).result(WAIT_S) == 3

    def test_call_that_somebody_revokes_is_cancelled(self, idle_site: Site) -> None:
        with Executor(app=idle_site.app) as executor:
            future = executor.submit(add, 1)
            wait_until(lambda: future.sending is not None and future.sending.settled.is_set(), WAIT_S, "it to be sent")
            assert future.sending is not None
            assert future.sending.told is not None
            idle_site.app.AsyncResult(future.sending.told.id).revoke()
            with pytest.raises(futures.CancelledError):
                future.result(WAIT_S)
