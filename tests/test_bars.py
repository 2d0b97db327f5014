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

        warnings.simplefilter("ignore")  # tqdm misses ipywidgets, or is experimental
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
