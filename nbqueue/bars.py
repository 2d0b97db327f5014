"""tqdm's bars as bars of the task that runs: nothing of tqdm is loaded or changed until a task imports it."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nbqueue.capture import Flusher, Recorder, Stream
from nbqueue.messages import Progress


class Bars:
    """Makes tqdm tell of its bars instead of writing them, wherever it would write to a task's own streams.

    Args:
        recorder: returns the recorder of the running task, or None between tasks.
        flusher: flushes later.
    """

    def __init__(self, recorder: Callable[[], Recorder | None], flusher: Flusher) -> None:
        self._recorder = recorder
        self._flusher = flusher

    def hook_std(self, module: ModuleType) -> None:
        """Change `tqdm.std`, which all of tqdm's classes for terminals are made of."""
        kind = module.tqdm
        display, close, clear = kind.display, kind.close, kind.clear
        bars = self

        def tell_display(bar: Any, msg: str | None = None, pos: int | None = None) -> Any:
            return bars.tell(bar) or display(bar, msg, pos)

        def tell_close(bar: Any) -> None:
            # One that was never displayed, as it was delayed, leaves nothing either.
            if not getattr(bar, "disable", True) and hasattr(bar, "_nbqueue") and bars.tell(bar, closed=True):
                bar.fp, bar.sp = io.StringIO(), _nothing  # what it writes to end its line
            close(bar)

        def keep_clear(bar: Any, nolock: bool = False) -> None:
            if not bars.tells(bar):
                clear(bar, nolock)

        kind.display, kind.close, kind.clear = tell_display, tell_close, keep_clear

    def hook_notebook(self, module: ModuleType) -> None:
        """Let `tqdm.notebook` have the same bars: there is no page here for its widgets, slow to load."""
        from tqdm import std  # noqa: PLC0415 - the task has just loaded it

        module.tqdm = module.tqdm_notebook = std.tqdm  # type: ignore[attr-defined]
        module.trange = module.tnrange = std.trange  # type: ignore[attr-defined]

    def tells(self, bar: Any) -> bool:
        """Tell whether a bar is told of: it would write to a stream of the running task."""
        file = getattr(bar, "fp", None)
        return self._recorder() is not None and isinstance(getattr(file, "_wrapped", file), Stream)

    def tell(self, bar: Any, *, closed: bool = False) -> bool:
        """Tell how far a bar has come; False if it is to write itself as ever."""
        if not self.tells(bar):
            return False
        recorder = self._recorder()
        assert recorder is not None
        known: tuple[Recorder, int, int] | None = getattr(bar, "_nbqueue", None)
        if known is None or known[0] is not recorder:
            number, parent = recorder.open_bar()
            known = bar._nbqueue = (recorder, number, parent)  # noqa: SLF001 - ours, on an object of tqdm's
        _, number, parent = known
        progress = Progress(
            number,
            float(bar.n),
            None if bar.total is None else float(bar.total),
            str(bar.desc or "").removesuffix(": "),
            closed=closed,
            parent=parent,
            unit="" if bar.unit == "it" else str(bar.unit).strip(),
            note=str(bar.postfix or ""),
            rate=None if closed else _rate(bar),
            leave=abs(bar.pos) == 0 if bar.leave is None else bool(bar.leave),
        )
        if closed:
            recorder.close_bar(number)
        if recorder.progress(progress, last=closed):
            self._flusher.soon(recorder)
        return True


def _nothing(text: str) -> None:
    """Stand for what prints a bar."""


def _rate(bar: Any) -> float | None:
    """Return units a second: lately, or all in all as long as that isn't known."""
    told = bar.format_dict
    rate, elapsed = told["rate"], told["elapsed"]
    if rate is None and elapsed > 0 and bar.n > bar.initial:
        rate = (bar.n - bar.initial) / elapsed
    return None if rate is None else float(rate)
