"""What our executor does besides what the standard library's promise; that is in `tests/contracts/test_executor.py`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbqueue import Executor
from nbqueue.bindings import is_own
from nbqueue.blobs import BlobStore
from nbqueue.brokered import Brokered, BrokeredSending
from nbqueue.calls import MOST, Call, Calls
from nbqueue.exceptions import BlobNotStored, NBQueueError, NotPicklable, Retry, TaskRevokedError, WorkerLostError
from nbqueue.executor import LostCall
from nbqueue.owner import Owner
from nbqueue.payloads import Ref
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


def count(folder: str, n: int, size: int = 0) -> int | bytes:
    """Leave a mark of this run; return so many bytes, or the number."""
    Path(folder, f"{n}.{uuid.uuid4().hex}").touch()
    return bytes(size) if size else n


def insist(folder: str) -> int:
    """Ask twice to be run again."""
    runs = len(list(Path(folder).iterdir()))
    count(folder, runs)
    if runs < 2:
        raise Retry("again", when=0.05)
    return runs


def end_worker() -> None:
    """End the supervisor of this process: the parent of the fork server that is its parent."""
    os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)
    time.sleep(WAIT_S)


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
    way = way_of(executor)
    wait_until(lambda: way.worker is not None, WAIT_S, "its worker to be started")
    assert way.worker is not None
    return psutil.Process(way.worker.pid)


def way_of(executor: Executor) -> Owner:
    """Return what sends its calls to a worker of its own."""
    way = executor._calls.way
    assert isinstance(way, Owner)
    return way


programs: list[subprocess.Popen[str]] = []  # that this test has started


def run(server: RedisServer, text: str) -> subprocess.Popen[str]:
    """Start a program whose code is in `__main__`, where `executor` makes one on the server."""
    lines = (
        "import os, sys, threading, time",
        "from pathlib import Path",
        "from nbqueue import Executor",
        f"def executor(n=1): return Executor(n, broker={server.url!r}, key_file={str(server.directory / 'key')!r})",
        text,
    )
    program = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    programs.append(program)
    return program


@pytest.fixture(autouse=True)
def _no_program_outlives_its_test() -> Iterator[None]:
    yield
    while programs:
        with programs.pop() as program:
            if program.poll() is None:
                program.kill()


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
        assert idle_site.server_says("EXISTS", f"nbq:session:{executor._app.session}") == 0
        assert idle_site.server_says("DBSIZE") < 20  # type: ignore[operator]
        assert not way_of(executor)._sent
        assert not calls._waiting
        assert calls._unended == 0


def test_whoever_submits_waits_while_very_many_have_gathered(server: RedisServer) -> None:
    with executor_of(server) as executor:
        assert executor.submit(add, 1).result(WAIT_S) == 1
        os.kill(worker_of(executor).pid, signal.SIGSTOP)
        sent: list[futures.Future[int]] = []
        large = bytes(8_000)  # more of these than the socket has room for
        thread = threading.Thread(
            target=lambda: sent.extend(executor.submit(len, large + bytes(n)) for n in range(MOST + 2500))
        )
        thread.start()
        try:
            wait_until(lambda: len(executor._calls._waiting) == MOST, WAIT_S, "it to be full")
            assert thread.is_alive()
        finally:
            os.kill(worker_of(executor).pid, signal.SIGCONT)
        thread.join()
        assert [future.result(WAIT_S) - 8_000 for future in sent] == list(range(MOST + 2500))


def test_worker_goes_on_while_its_owner_is_busy_with_what_it_has_heard(server: RedisServer) -> None:
    go = threading.Event()
    with executor_of(server) as executor:
        executor.submit(add, 1).add_done_callback(lambda _: go.wait(WAIT_S))
        sent = [executor.submit(bytes, 50_000) for _ in range(400)]  # five times what the socket has room for
        last = executor.submit(add, 1)
        time.sleep(0.5)
        go.set()
        assert all(len(future.result(WAIT_S)) == 50_000 for future in sent)
        assert last.result(WAIT_S) == 1
        assert executor._calls.way.worker.exit_code is None  # type: ignore[attr-defined]


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


def test_what_has_ended_runs_no_more_when_the_worker_is_lost(server: RedisServer, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with executor_of(server, 1) as executor:
        assert [future.result(WAIT_S) for future in [executor.submit(count, str(tmp_path), n) for n in range(50)]]
        held = executor.submit(wait_for, str(go))
        more = [executor.submit(count, str(tmp_path), n) for n in range(50, 100)]
        wait_until(held.running, WAIT_S, "it to run")
        worker_of(executor).kill()
        go.touch()
        assert held.result(WAIT_S)
        futures.wait(more, WAIT_S)
    assert [len(list(tmp_path.glob(f"{n}.*"))) for n in range(100)] == [1] * 100


def test_call_that_ends_its_worker_is_given_up_and_the_others_run(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbqueue.owner.LIVED_S", 0.0)
    with executor_of(server, 2, worker_max_losses=2) as executor:
        before = [executor.submit(time.sleep, 0.01) for _ in range(20)]
        poison = executor.submit(end_worker)
        after = [executor.submit(time.sleep, 0.01) for _ in range(20)]
        error = poison.exception(WAIT_S)
        assert isinstance(error, LostCall)
        assert "lost its worker 3 times" in str(error)
        assert [future.exception(WAIT_S) for future in (*before, *after)] == [None] * 40
        assert executor.submit(add, 1).result(WAIT_S) == 1


def test_worker_that_is_told_to_stop_is_replaced_and_charges_nothing(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[int] = []
    put_back = Calls.put_back

    def watched(calls: Calls, back: list[Call]) -> None:
        losses.extend(call.losses for call in back)
        put_back(calls, back)

    monkeypatch.setattr(Calls, "put_back", watched)
    with executor_of(server, 1) as executor:
        sent = [executor.submit(time.sleep, 0.02) for _ in range(50)]
        sent[0].result(WAIT_S)
        first = worker_of(executor)
        first.send_signal(signal.SIGTERM)
        assert [future.exception(WAIT_S) for future in sent] == [None] * 50
        assert worker_of(executor).pid != first.pid
    assert losses
    assert set(losses) == {0}


def test_worker_that_stops_begins_nothing_that_comes_later(server: RedisServer, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with executor_of(server, 2) as executor:
        assert list(executor.map(add, range(60))) == list(range(60))  # known to be quick
        held = executor.submit(wait_for, str(go))
        wait_until(held.running, WAIT_S, "it to run")
        stopping = worker_of(executor)
        stopping.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        later = [executor.submit(os.getppid) for _ in range(3)]
        time.sleep(0.3)
        assert not any(future.done() for future in later)
        go.touch()
        assert held.result(WAIT_S)
        assert all(future.result(WAIT_S) for future in later)
        assert worker_of(executor).pid != stopping.pid


def test_worker_that_stops_tells_first_what_its_owner_had_no_time_for(server: RedisServer, tmp_path: Path) -> None:
    go, inside = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        inside.set()
        go.wait(WAIT_S)

    with executor_of(server, 1) as executor:
        executor.submit(add, 1).add_done_callback(wait)
        assert inside.wait(WAIT_S)
        sent = [executor.submit(count, str(tmp_path), n, 60_000) for n in range(200)]
        wait_until(lambda: len(list(tmp_path.iterdir())) == 200, WAIT_S, "all to have run")
        worker_of(executor).send_signal(signal.SIGTERM)
        time.sleep(1.0)
        go.set()
        futures.wait(sent, WAIT_S)
    assert len(list(tmp_path.iterdir())) == 200, "none ran twice"


def test_worker_that_says_what_can_not_be_read_is_replaced(server: RedisServer) -> None:
    with executor_of(server, 1) as executor:
        assert executor.submit(add, 1).result(WAIT_S) == 1
        line = way_of(executor)._line
        assert line is not None
        line.duplex._incoming += b"\0\0\0\1x"  # seen with what comes next
        assert [future.result(WAIT_S) for future in [executor.submit(add, n) for n in range(20)]] == list(range(20))
        assert way_of(executor)._line is not line


def test_calls_go_on_without_the_server(private_redis: RedisServer) -> None:
    Site(private_redis).app.close()
    with executor_of(private_redis) as executor:
        assert executor.submit(add, 1).result(WAIT_S) == 1
        private_redis.kill()
        for _ in range(8):  # for longer than a lease
            assert list(executor.map(add, range(50))) == list(range(50))
            time.sleep(0.5)
        worker_of(executor).kill()
        assert executor.submit(add, 2).result(WAIT_S) == 2
        private_redis.start()
        workers = private_redis.client().hlen
        wait_until(lambda: workers("nbq:workers"), WAIT_S, "the worker to show itself again")
        assert executor.submit(add, 3).result(WAIT_S) == 3


def test_call_may_ask_to_be_run_again(server: RedisServer, tmp_path: Path) -> None:
    with executor_of(server, 1) as executor:
        assert executor.submit(insist, str(tmp_path)).result(WAIT_S) == 2


def test_waiting_call_is_cancelled_while_its_worker_is_lost(server: RedisServer, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with executor_of(server, 1) as executor:
        held = executor.submit(wait_for, str(go))
        queued = [executor.submit(count, str(tmp_path), n) for n in range(200)]
        wait_until(held.running, WAIT_S, "it to run")
        os.kill(worker_of(executor).pid, signal.SIGSTOP)
        cancelled: list[bool] = []
        thread = threading.Thread(target=lambda: cancelled.extend(future.cancel() for future in queued[100:]))
        thread.start()
        time.sleep(0.2)
        worker_of(executor).kill()
        thread.join(WAIT_S)
        go.touch()
        futures.wait(queued, WAIT_S)
        assert held.result(WAIT_S)
    kept = [future for future in queued if not future.cancelled()]
    assert len(kept) == 200 - sum(cancelled)
    assert sorted(int(path.stem) for path in tmp_path.glob("*.*")) == sorted(future.result() for future in kept)


def test_worker_that_can_not_be_started_breaks_the_executor(server: RedisServer) -> None:
    with executor_of(server) as executor:
        executor.submit(add, 1).result(WAIT_S)
        killed: set[int] = set()

        def kill() -> bool:
            worker = way_of(executor).worker
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
        "while not ex._calls.way._sent: time.sleep(0.01)\n"
        "print(ex._calls.way.worker.pid, ex._calls.queue, flush=True)\n"
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


def test_executor_of_a_fork_is_its_parents(server: RedisServer) -> None:
    program = run(
        server,
        "ex = executor(); values = ex.map(time.sleep, [0.05] * 30); next(values)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "  values.close()\n"
        "  try: ex.submit(abs, 1)\n"
        "  except RuntimeError as exc: print(exc, flush=True)\n"
        "  ex.shutdown()\n"
        "  os._exit(0)\n"
        "print(os.waitpid(pid, 0)[1], len(list(values)), flush=True)",
    )
    said, errors = program.communicate(timeout=WAIT_S)
    expected = "this executor is of the process that this one is a fork of; make another one here"
    assert said.splitlines() == [expected, "0 29"], errors


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


def test_callback_of_a_cancelled_call_may_shut_the_executor_down(server: RedisServer) -> None:
    executor = executor_of(server, 1)
    running, waiting = executor.submit(time.sleep, 0.5), executor.submit(time.sleep, 0.1)
    wait_until(running.running, WAIT_S, "it to run")
    waiting.add_done_callback(lambda _: executor.shutdown())
    thread = threading.Thread(target=waiting.cancel)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    executor.shutdown()
    assert running.result(0) is None


def test_callback_may_shut_an_executor_down_that_breaks(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbqueue.owner.RESTARTS", 1)
    executor = executor_of(server, 1)
    ended = threading.Event()

    def end(_: object) -> None:
        executor.shutdown()
        ended.set()

    future = executor.submit(wait_for, "nowhere")
    future.add_done_callback(end)
    wait_until(future.running, WAIT_S, "it to run")
    worker_of(executor).kill()
    assert ended.wait(WAIT_S)
    assert isinstance(future.exception(0), futures.BrokenExecutor)


def test_callback_may_want_what_a_thread_holds_that_cancels(server: RedisServer) -> None:
    lock, inside = threading.Lock(), threading.Event()

    def locked(_: object) -> None:
        inside.set()
        with lock:
            pass

    with executor_of(server, 1) as executor:
        with lock:
            executor.submit(add, 1).add_done_callback(locked)
            other = executor.submit(time.sleep, 0.1)
            assert inside.wait(WAIT_S)
            other.cancel()  # nobody reads the answer now
        with contextlib.suppress(futures.CancelledError):
            other.result(WAIT_S)
        assert executor.submit(add, 1).result(WAIT_S) == 1


def test_cancel_says_what_has_become_of_the_call(server: RedisServer) -> None:
    with executor_of(server, 1) as executor:
        for _ in range(40):
            sent = [executor.submit(time.sleep, 0.001) for _ in range(20)]
            sent[0].result(WAIT_S)
            said = [future.cancel() for future in reversed(sent)]
            futures.wait(sent, WAIT_S)
            assert said == [future.cancelled() for future in reversed(sent)]


def test_interrupted_cancel_leaves_no_future_behind(server: RedisServer) -> None:
    program = run(
        server,
        "import signal\n"
        "ex = executor(); sent = [ex.submit(time.sleep, s) for s in [0.5] + [0.01] * 9]\n"
        "while not sent[0].running(): time.sleep(0.01)\n"
        "os.kill(ex._calls.way.worker.pid, signal.SIGSTOP)\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try: sent[-1].cancel()\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)\n"
        "os.kill(ex._calls.way.worker.pid, signal.SIGCONT)\n"
        "ex.shutdown(); print(sent[-1].cancelled(), ex._calls._unended, ex._calls.way._answers)",
    )
    said, errors = program.communicate(timeout=WAIT_S)
    assert said.splitlines() == ["interrupted", "True 0 {}"], errors


def test_shutdown_cancels_what_a_lost_worker_took_along(server: RedisServer) -> None:
    executor = executor_of(server, 1)
    sent = [executor.submit(time.sleep, 0.3) for _ in range(50)]
    wait_until(sent[0].running, WAIT_S, "it to run")
    worker_of(executor).kill()
    executor.shutdown(cancel_futures=True)
    assert sum(future.cancelled() for future in sent) >= 49


def test_callback_of_what_can_not_be_sent_may_cancel_what_gathered_with_it(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise BlobNotStored("the disk is full")

    with executor_of(server, 1) as executor:
        assert executor.submit(len, "x").result(WAIT_S) == 1
        monkeypatch.setattr(BlobStore, "save", full)
        monkeypatch.setattr("nbqueue.calls.GATHER_S", 0.5)
        executor._calls._in_loop = True
        large, other = executor.submit(len, os.urandom(3_000_000)), executor.submit(divmod, 7, 2)
        large.add_done_callback(lambda _: other.cancel())
        assert isinstance(large.exception(WAIT_S), BlobNotStored)
        futures.wait([other], WAIT_S)
        monkeypatch.undo()
        assert executor.submit(len, "xy").result(WAIT_S) == 2


def test_large_data_of_an_initializer_is_there_when_the_first_call_is_cancelled(server: RedisServer) -> None:
    for _ in range(3):
        with executor_of(server, 1, initializer=len, initargs=(os.urandom(3_000_000),)) as executor:
            executor._calls.open()
            executor.submit(textwrap.dedent, "a").cancel()
            assert executor.submit(textwrap.dedent, "b").result(WAIT_S) == "b"


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


def test_large_data_of_code_is_stored_once_for_many_calls(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[Ref] = []
    save = BlobStore.save

    def watched(store: BlobStore, blobs: Mapping[Ref, memoryview], *more: Any) -> None:
        stored.extend(blobs)
        save(store, blobs, *more)

    monkeypatch.setattr(BlobStore, "save", watched)
    monkeypatch.setattr("nbqueue.executor.FRESH_S", 1_000.0)
    with executor_of(server, 1, initializer=len, initargs=(os.urandom(3_000_000),)) as executor:
        for n in range(10):
            assert executor.submit(textwrap.indent, "a", " " * n).result(WAIT_S) == " " * n + "a"
    assert len(stored) == len(set(stored)) > 0


class TestWithAnApp:
    """Calls go to the workers of an app."""

    def test_workers_of_an_app_run_the_calls(self, shared_site: Site) -> None:
        with Executor(app=shared_site.app) as executor:
            ran_in = psutil.Process(executor.submit(os.getpid).result(WAIT_S))
            assert shared_site.workers[0].pid in {parent.pid for parent in ran_in.parents()}
        assert shared_site.workers[0].process.poll() is None
        assert shared_site.app.backend.now() > 0

    def test_server_keeps_nothing_of_calls_that_have_ended(self, idle_site: Site) -> None:
        idle_site.worker()
        with Executor(app=idle_site.app) as executor:
            for _ in range(3):
                list(executor.map(add, range(700)))
                list(executor.map(say, range(20)))
                futures.wait([executor.submit(divmod, 1, 0) for _ in range(20)], WAIT_S)
                executor.submit(say, 1).result(WAIT_S)
            way, calls = executor._calls.way, executor._calls
            assert isinstance(way, Brokered)
            wait_until(lambda: idle_site.server_says("DBSIZE") < 40, WAIT_S, "it to forget")  # type: ignore[operator]
            assert not way.sent
            assert not way._ended
            assert not calls._waiting
            assert calls._unended == 0

    def test_whoever_submits_waits_while_the_server_stands_still(self, private_redis: RedisServer) -> None:
        with Site(private_redis) as site, Executor(app=site.app) as executor:
            site.worker()
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

    def test_queued_call_is_cancelled_and_what_runs_is_not(self, idle_site: Site, tmp_path: Path) -> None:
        go = tmp_path / "go"
        idle_site.worker()
        with Executor(app=idle_site.app) as executor:
            held = [executor.submit(wait_for, str(go)) for _ in range(8)]
            wait_until(lambda: any(future.running() for future in held), WAIT_S, "one to run")
            queued = [executor.submit(count, str(tmp_path), n) for n in range(100)]
            assert queued[-1].cancel()
            assert not next(future for future in held if future.running()).cancel()
            go.touch()
            futures.wait([*held, *queued], WAIT_S)
        assert not list(tmp_path.glob("99.*"))

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
            assert isinstance(future.sending, BrokeredSending)
            assert future.sending.told is not None
            idle_site.app.AsyncResult(future.sending.told.id).revoke()
            with pytest.raises(futures.CancelledError):
                future.result(WAIT_S)
