"""tqdm's bars in a real child."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nbqueue.messages import Progress
from tests.pools import RunningPool

pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def pool() -> Iterator[RunningPool]:
    with RunningPool(1) as running:
        yield running


def bars(pool: RunningPool, work: Any, *args: Any) -> tuple[list[Progress], list[str], Any]:
    """Return what was told of bars, what was printed, and the value."""
    seq = pool.send(work, *args)
    value = pool.value(seq)
    return pool.progress(seq), [output.text for output in pool.outputs(seq)], value


@pytest.mark.parametrize("module", ["tqdm", "tqdm.auto", "tqdm.notebook", "tqdm.autonotebook"])
def test_bar_of_any_of_tqdms_modules_is_told(pool: RunningPool, module: str) -> None:
    def work(name: str) -> int:
        import importlib
        import warnings

        warnings.simplefilter("ignore")  # one is experimental
        tqdm = importlib.import_module(name).tqdm
        return sum(tqdm(range(20), desc="numbers", unit="file"))

    told, printed, value = bars(pool, work, module)
    assert value == 190
    assert printed == []
    last = told[-1]
    assert (last.done, last.total, last.message, last.unit, last.closed) == (20, 20, "numbers", "file", True)
    assert told[0].done == 0
    assert len({progress.bar for progress in told}) == 1


def test_nested_bars_know_what_they_are_in(pool: RunningPool) -> None:
    def work() -> None:
        from tqdm import tqdm, trange

        for _ in trange(2, desc="outer"):
            for _ in tqdm(range(3), desc="inner", leave=False):
                pass

    told, printed, _ = bars(pool, work)
    outer = next(progress.bar for progress in told if progress.message == "outer")
    inner = {progress.bar: progress.parent for progress in told if progress.message == "inner"}
    assert len(inner) == 2
    assert set(inner.values()) == {outer}
    assert all(progress.parent == -1 for progress in told if progress.bar == outer)
    assert printed == []


def test_bar_without_a_total_and_with_notes(pool: RunningPool) -> None:
    def work() -> None:
        from tqdm import tqdm

        with tqdm(unit="B", unit_scale=True) as bar:
            bar.update(5_000)
            bar.set_postfix(loss=0.5)

    told, _, _ = bars(pool, work)
    last = told[-1]
    assert (last.total, last.done, last.unit, last.note, last.closed) == (None, 5_000, "B", "loss=0.5", True)


def test_bar_that_is_broken_off_ends_where_it_stood(pool: RunningPool) -> None:
    def work() -> None:
        from tqdm import tqdm

        for n in tqdm(range(100)):
            if n == 7:
                break

    told, _, _ = bars(pool, work)
    assert told[-1].closed
    assert told[-1].done < 10


def test_disabled_bar_and_one_for_a_file_are_left_alone(pool: RunningPool) -> None:
    def work() -> str:
        import io

        from tqdm import tqdm

        list(tqdm(range(3), disable=True))
        file = io.StringIO()
        list(tqdm(range(3), file=file))
        return file.getvalue()

    told, printed, value = bars(pool, work)
    assert (told, printed) == ([], [])
    assert "3/3" in value


def test_write_goes_to_the_output_beside_the_bar(pool: RunningPool) -> None:
    def work() -> None:
        from tqdm import tqdm

        for n in tqdm(range(2)):
            tqdm.write(f"line {n}")

    told, printed, _ = bars(pool, work)
    assert "".join(printed).split("\n")[:2] == ["line 0", "line 1"]
    assert told[-1].closed


def test_bars_for_notebooks_load_no_widgets(pool: RunningPool) -> None:
    def work() -> list[str]:
        import sys

        from tqdm.notebook import tnrange, tqdm_notebook, trange

        for _ in tqdm_notebook(trange(2)):
            list(tnrange(2))
        return [name for name in sys.modules if name.partition(".")[0] in ("IPython", "ipywidgets")]

    told, _, loaded = bars(pool, work)
    assert loaded == []
    assert told[-1].closed


def test_bar_tells_its_rate_and_whether_it_stays(pool: RunningPool) -> None:
    def work() -> None:
        import time

        from tqdm import tqdm

        for leave in (True, False):
            for _ in tqdm(range(5), desc=str(leave), leave=leave, mininterval=0):
                time.sleep(0.05)

    told, _, _ = bars(pool, work)
    for leave in (True, False):
        mine = [progress for progress in told if progress.message == str(leave)]
        assert any(progress.rate and 1 < progress.rate < 25 for progress in mine)
        assert (mine[-1].closed, mine[-1].leave) == (True, leave)


def test_bars_of_threads_are_not_nested_in_one_another(pool: RunningPool) -> None:
    def work() -> None:
        import threading

        from tqdm import tqdm

        together = threading.Barrier(3)

        def count(name: str) -> None:
            for _ in tqdm(range(2), desc=name):
                together.wait(10)
                list(tqdm(range(2), desc=f"in {name}"))

        threads = [threading.Thread(target=count, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    told, _, _ = bars(pool, work)
    outer = {progress.message: progress.bar for progress in told if progress.message in ("a", "b", "c")}
    parents = {(progress.message, progress.parent) for progress in told}
    assert {(name, -1) for name in "abc"} <= parents
    assert {(name, parent) for name, parent in parents if parent != -1} <= {
        (f"in {name}", bar) for name, bar in outer.items()
    }


def test_bar_of_pandas_is_told(pool: RunningPool) -> None:
    pytest.importorskip("pandas")

    def work() -> int:
        import pandas as pd
        from tqdm.auto import tqdm

        tqdm.pandas(desc="rows")
        return int(pd.Series(range(50)).progress_apply(lambda n: n * 2).sum())

    told, printed, value = bars(pool, work)
    assert value == 2_450
    assert printed == []
    assert (told[-1].message, told[-1].done, told[-1].closed) == ("rows", 50, True)


def test_delayed_bar_leaves_nothing_when_it_ends_before(pool: RunningPool) -> None:
    def work() -> None:
        from tqdm import tqdm

        list(tqdm(range(3), delay=60))

    assert bars(pool, work)[:2] == ([], [])


def test_brief_bars_do_not_flood_the_worker_when_there_are_thousands(pool: RunningPool) -> None:
    def work() -> None:
        from tqdm import tqdm

        for _ in tqdm(range(2_000), desc="outer"):
            list(tqdm(range(2), desc="inner", leave=False))
            list(tqdm(range(2), desc="kept"))

    told, _, _ = bars(pool, work)
    assert len(told) < 1_000  # of 12,000
    assert (told[-1].message, told[-1].done) == ("outer", 2_000)
    open_bars = {progress.bar for progress in told} - {progress.bar for progress in told if progress.closed}
    assert open_bars == set()
