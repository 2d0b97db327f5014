"""What an executor of the standard library promises, asked of its own and of ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nbqueue import Executor
from nbqueue.signing import create_key_file
from tests.helpers import RedisServer, wait_until

Make = Callable[..., futures.Executor]
LONG_S = 30.0


def add(x: int, y: int = 0) -> int:
    return x + y


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def until(path: str) -> str:
    """Wait for a file that a test makes, so that a call runs for as long as the test wants."""
    Path(path + ".began").touch()
    deadline = time.monotonic() + LONG_S
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    return path


def fail(text: str) -> None:
    raise RuntimeError(text)  # a comment that the traceback shows


def leave() -> None:
    raise SystemExit(3)


def named(fn: int, self: int) -> tuple[int, int]:
    return fn, self


class Adder:
    """An object whose method and whose call can be submitted."""

    def __init__(self, by: int) -> None:
        self.by = by

    def add(self, x: int) -> int:
        return x + self.by

    __call__ = add


class Stubborn:
    """Can't be pickled, or can't be read again."""

    def __init__(self, *, there: bool) -> None:
        self.there = there

    def __reduce__(self) -> Any:
        if self.there:
            raise ValueError("not to be pickled")
        return fail, ("not to be read",)


def stubborn() -> Stubborn:
    return Stubborn(there=True)


def unreadable() -> Stubborn:
    return Stubborn(there=False)


class OddError(Exception):
    """An error whose class can be pickled and not be made again."""

    def __init__(self, text: str, *, number: int) -> None:
        super().__init__(text)
        self.number = number


def odd() -> None:
    raise OddError("odd", number=1)


def remember(path: str, text: str) -> None:
    with Path(path, str(os.getpid())).open("a") as file:
        file.write(text)


def refuse() -> None:
    raise LookupError("no such thing")


@pytest.fixture(scope="module", params=["processes", "ours"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Yield what makes an executor: the standard library's or ours."""
    if request.param == "processes":
        yield ProcessPoolExecutor
        return
    with RedisServer() as server:
        key_file = server.directory / "key"
        create_key_file(key_file)
        yield partial(Executor, broker=server.url, key_file=str(key_file))


@pytest.fixture(scope="module")
def executor(make: Make) -> Iterator[futures.Executor]:
    """Yield one with two processes that most tests share, and that they leave idle."""
    with make(2) as shared:
        yield shared


@pytest.fixture
def held(executor: futures.Executor, tmp_path: Path) -> Iterator[list[Future[str]]]:
    """Yield calls that run, and keep every process busy until the test has ended."""
    names = [str(tmp_path / f"go{n}") for n in range(2)]
    running = [executor.submit(until, name) for name in names]
    wait_until(lambda: all(Path(name + ".began").exists() for name in names), LONG_S, "both to run")
    try:
        yield running
    finally:
        for name in names:
            Path(name).touch()
        futures.wait(running, LONG_S)


# ---- submit


def test_submit_passes_arguments_and_returns_the_value(executor: futures.Executor) -> None:
    assert executor.submit(add, 1).result(LONG_S) == 1
    assert executor.submit(add, 1, y=8).result(LONG_S) == 9
    assert executor.submit(pow, 2, 5).result(LONG_S) == 32


def test_submit_passes_arguments_that_are_named_like_its_own(executor: futures.Executor) -> None:
    assert executor.submit(named, fn=1, self=2).result(LONG_S) == (1, 2)
    with pytest.raises(TypeError):
        executor.submit(arg=1)  # type: ignore[call-arg, unused-ignore]


def test_submit_takes_whatever_can_be_called(executor: futures.Executor) -> None:
    adder = Adder(3)
    assert executor.submit(adder.add, 4).result(LONG_S) == 7
    assert executor.submit(adder, 5).result(LONG_S) == 8
    assert executor.submit(partial(add, 1), 2).result(LONG_S) == 3
    assert executor.submit(complex, 1, 2).result(LONG_S) == 1 + 2j
    assert isinstance(executor.submit(Adder, 1).result(LONG_S), Adder)


def test_value_that_is_an_exception_is_a_value(executor: futures.Executor) -> None:
    assert isinstance(executor.submit(ValueError, "x").result(LONG_S), ValueError)


def test_wrong_arguments_are_told_by_the_future(executor: futures.Executor) -> None:
    assert isinstance(executor.submit(add, 1, 2, 3).exception(LONG_S), TypeError)  # type: ignore[call-arg]


def test_exception_comes_back_with_the_remote_traceback_as_its_cause(executor: futures.Executor) -> None:
    future = executor.submit(fail, "broken")
    with pytest.raises(RuntimeError, match=r"^broken$") as caught:
        future.result(LONG_S)
    assert caught.value is future.exception()
    cause = caught.value.__cause__
    assert cause is not None
    assert "raise RuntimeError(text)  # a comment that the traceback shows" in str(cause)
    assert "raise RuntimeError(text)  # a comment" in cause.tb  # type: ignore[attr-defined]


def test_exit_of_a_call_is_its_error_and_ends_no_process(executor: futures.Executor) -> None:
    assert isinstance(executor.submit(leave).exception(LONG_S), SystemExit)
    assert executor.submit(add, 1).result(LONG_S) == 1


def test_argument_that_can_not_travel_is_told_by_the_future(executor: futures.Executor) -> None:
    assert executor.submit(add, threading.Lock()).exception(LONG_S) is not None  # type: ignore[arg-type]
    assert executor.submit(add, 1).result(LONG_S) == 1


@pytest.mark.parametrize("fn", [stubborn, odd])
def test_outcome_that_can_not_travel_is_an_error_and_the_next_call_runs(
    executor: futures.Executor, fn: Callable[[], Any], request: pytest.FixtureRequest
) -> None:
    if isinstance(executor, ProcessPoolExecutor) and fn is odd:
        pytest.skip("an error that can't be read breaks the standard library's pool")
    assert executor.submit(fn).exception(LONG_S) is not None
    assert executor.submit(add, 1).result(LONG_S) == 1


# ---- states of futures


def test_future_runs_and_is_done(executor: futures.Executor, held: list[Future[str]]) -> None:
    wait_until(lambda: all(future.running() for future in held), LONG_S, "them to be shown as running")
    assert not any(future.done() for future in held)
    with pytest.raises(futures.TimeoutError):
        held[0].result(0.01)
    with pytest.raises(futures.TimeoutError):
        held[0].exception(0.01)


def test_call_that_runs_can_not_be_cancelled(executor: futures.Executor, held: list[Future[str]]) -> None:
    assert not held[0].cancel()
    assert not held[0].cancelled()


def test_call_that_has_ended_can_not_be_cancelled(executor: futures.Executor) -> None:
    future = executor.submit(add, 1)
    assert future.result(LONG_S) == 1
    assert not future.cancel()
    assert future.done()


def test_queued_call_is_cancelled_and_never_runs(
    executor: futures.Executor, held: list[Future[str]], tmp_path: Path
) -> None:
    queued = [executor.submit(until, str(tmp_path / f"queued{n}")) for n in range(20)]
    told: list[Future[str]] = []
    queued[-1].add_done_callback(told.append)
    assert queued[-1].cancel()
    assert queued[-1].cancel()
    assert queued[-1].cancelled()
    assert queued[-1].done()
    assert told == [queued[-1]]
    with pytest.raises(CancelledError):
        queued[-1].result(0)
    with pytest.raises(CancelledError):
        queued[-1].exception(0)
    for n in range(20):
        (tmp_path / f"queued{n}").touch()
    for n in range(2):
        (tmp_path / f"go{n}").touch()
    futures.wait(queued, LONG_S)
    assert not (tmp_path / "queued19.began").exists()


def test_callbacks_get_the_future_in_order_also_one_that_fails(
    executor: futures.Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []

    def breaks(future: Future[Any]) -> None:
        told.append(future)
        raise ValueError("a callback that fails")

    go = tmp_path / "go"
    future = executor.submit(until, str(go))
    future.add_done_callback(breaks)
    future.add_done_callback(lambda _: told.append(threading.current_thread() is threading.main_thread()))
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"):
        caplog.clear()
        with caplog.at_level(logging.ERROR, "concurrent.futures"):
            go.touch()
            wait_until(lambda: len(told) == 2, LONG_S, "both callbacks")
    assert told == [future, False]
    assert "a callback that fails" in caplog.text
    future.add_done_callback(told.append)
    assert told[2] is future


# ---- map


def test_map_yields_values_in_order_and_stops_at_the_shortest(executor: futures.Executor) -> None:
    assert list(executor.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(executor.map(add, range(3), range(100))) == [0, 2, 4]
    assert list(executor.map(add, [])) == []


def test_map_raises_at_the_place_of_the_error(executor: futures.Executor) -> None:
    values = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(values) == (0, 1)
    assert next(values) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_map_raises_when_time_is_over(executor: futures.Executor, held: list[Future[str]]) -> None:
    values = executor.map(nap, [0, 0], timeout=0.1)
    with pytest.raises(futures.TimeoutError):
        next(values)


@pytest.mark.parametrize("chunksize", [1, 6, 40, 50])
def test_map_makes_no_difference_between_sizes_of_chunks(executor: futures.Executor, chunksize: int) -> None:
    found = list(executor.map(pow, range(40), range(40), chunksize=chunksize))
    assert found == [pow(n, n) for n in range(40)]


def test_map_refuses_chunks_of_nothing(executor: futures.Executor) -> None:
    with pytest.raises(ValueError, match=r"^chunksize must be >= 1\.$"):
        executor.map(add, range(4), chunksize=-1)


def test_map_that_is_left_cancels_what_waits(
    executor: futures.Executor, held: list[Future[str]], tmp_path: Path
) -> None:
    values = executor.map(partial(remember, str(tmp_path)), ["x"] * 50, timeout=0.05)
    with pytest.raises(futures.TimeoutError):
        next(values)
    for n in range(2):
        (tmp_path / f"go{n}").touch()
    executor.submit(add, 1).result(LONG_S)
    # The last of them is sent, or taken back, before what is submitted later.
    ran = sum(len(path.read_text()) for path in tmp_path.glob("[0-9]*"))
    assert ran < 50


# ---- wait and as_completed


def test_wait_returns_at_the_first_the_first_error_and_all(executor: futures.Executor, tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    slow: Future[Any] = executor.submit(until, go)
    quick: Future[Any] = executor.submit(add, 1)
    done, left = futures.wait([slow, quick], LONG_S, FIRST_COMPLETED)
    assert (done, left) == ({quick}, {slow})
    broken: Future[Any] = executor.submit(fail, "x")
    done, left = futures.wait([slow, broken], LONG_S, FIRST_EXCEPTION)
    assert (done, left) == ({broken}, {slow})
    assert futures.wait([slow, quick], 0.01) == ({quick}, {slow})
    Path(go).touch()
    assert futures.wait([slow, quick, broken], LONG_S) == ({slow, quick, broken}, set())


def test_as_completed_yields_each_once_as_it_ends(executor: futures.Executor, tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    slow: Future[Any] = executor.submit(until, go)
    quick: Future[Any] = executor.submit(add, 1)
    ended = futures.as_completed([slow, quick, quick], LONG_S)
    assert next(ended) is quick
    Path(go).touch()
    assert list(ended) == [slow]
    with pytest.raises(futures.TimeoutError):
        list(futures.as_completed([executor.submit(nap, 0.5)], timeout=0))


def test_wait_and_as_completed_work_across_executors(make: Make, executor: futures.Executor) -> None:
    with make(1) as other:
        both = [executor.submit(add, 1), other.submit(add, 2)]
        assert {future.result() for future in futures.as_completed(both, LONG_S)} == {1, 2}
        assert futures.wait(both, LONG_S).not_done == set()


def test_event_loop_runs_calls_in_it(executor: futures.Executor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="broken"):
            await loop.run_in_executor(executor, fail, "broken")
        return await asyncio.gather(*(loop.run_in_executor(executor, add, n) for n in range(20)))

    assert asyncio.run(main()) == list(range(20))


def test_many_threads_submit_at_once(executor: futures.Executor) -> None:
    found: dict[int, list[int]] = {}

    def submit(start: int) -> None:
        found[start] = [future.result(LONG_S) for future in [executor.submit(add, start, n) for n in range(200)]]

    threads = [threading.Thread(target=submit, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1000 * n: [1000 * n + x for x in range(200)] for n in range(8)}


# ---- construction and shutdown


@pytest.mark.parametrize("number", [0, -1])
def test_number_of_workers_must_be_above_0(make: Make, number: int) -> None:
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        make(number)


def test_initializer_must_be_callable(make: Make) -> None:
    with pytest.raises(TypeError, match=r"^initializer must be a callable$"):
        make(1, initializer=5)


def test_submit_is_refused_after_shutdown(make: Make) -> None:
    executor = make(1)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        executor.submit(add, 1)
    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
        executor.map(add, [1])


def test_block_waits_for_what_was_submitted(make: Make) -> None:
    with make(2) as executor:
        submitted = [executor.submit(add, n) for n in range(50)]
    assert all(future.done() for future in submitted)
    assert [future.result() for future in submitted] == list(range(50))


def test_shutdown_without_waiting_lets_everything_run(make: Make) -> None:
    executor = make(1)
    submitted = [executor.submit(nap, 0.01) for _ in range(5)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        executor.submit(add, 1)
    assert futures.wait(submitted, LONG_S).not_done == set()
    executor.shutdown()


def test_shutdown_cancels_what_waits_if_it_is_told_to(make: Make, tmp_path: Path) -> None:
    go = tmp_path / "go"
    executor = make(1)
    first = executor.submit(until, str(go))
    wait_until(lambda: Path(f"{go}.began").exists(), LONG_S, "the first to run")
    others = [executor.submit(nap, 0.01) for _ in range(300)]
    executor.shutdown(wait=False, cancel_futures=True)
    go.touch()
    assert first.result(LONG_S) == str(go)
    wait_until(lambda: all(future.done() for future in others), LONG_S, "all to end")
    assert sum(future.cancelled() for future in others) > 100
    executor.shutdown()


def test_executor_that_nobody_refers_to_runs_what_it_has(make: Make) -> None:
    submitted = [make(1).submit(nap, 0.01) for _ in range(1)]
    assert submitted[0].result(LONG_S) == 0.01


def test_initializer_runs_once_in_each_process(make: Make, tmp_path: Path) -> None:
    with make(2, initializer=remember, initargs=(str(tmp_path), "ready;")) as executor:
        futures.wait([executor.submit(nap, 0.01) for _ in range(20)], LONG_S)
        assert sorted(executor.map(add, range(5))) == list(range(5))
    said = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert said
    assert set(said.values()) == {"ready;"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_initializer_that_fails_breaks_the_executor(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    with make(2, initializer=refuse) as executor:
        others = [executor.submit(nap, 0.01)]
        with contextlib.suppress(futures.BrokenExecutor):
            others += [executor.submit(nap, 0.01) for _ in range(200)]
        for other in others:
            with pytest.raises(futures.BrokenExecutor):
                other.result(LONG_S)

        def refused() -> bool:
            try:
                executor.submit(add, 1)
            except futures.BrokenExecutor:
                return True
            return False

        wait_until(refused, LONG_S, "it to refuse calls")
