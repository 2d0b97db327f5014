"""Cameras: what is to be done every so often with all that events have told, under Celery's names.

    class DumpCam(Polaroid):
        clear_after = True

        def on_shutter(self, state):
            print(f"{state.event_count} events, {state.task_count} tasks")

`nbqueue -A proj events -c proj.DumpCam --frequency 2` runs one.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from nbqueue.event_state import State
from nbqueue.rates import per_second
from nbqueue.signals import Signal

if TYPE_CHECKING:
    from nbqueue.app import App

__all__ = ["Polaroid"]

logger = logging.getLogger(__name__)


class Polaroid:
    """Calls `on_shutter` every so often, in a thread of its own, while no event comes in. Used as a context manager.

    Args:
        state: of the events.
        freq: seconds between two pictures.
        maxrate: no more than so many, such as "10/m".
        cleanup_freq: seconds between two calls of `on_cleanup`.
        timer: taken for Celery's sake.
        app: of the events.
    """

    shutter_signal = Signal("shutter_signal", {"state"})
    cleanup_signal = Signal("cleanup_signal")
    clear_after = False  # True: the state is empty after each picture

    def __init__(
        self,
        state: State,
        freq: float = 1.0,
        maxrate: str | float | None = None,
        cleanup_freq: float = 3600.0,
        timer: object = None,
        app: App | None = None,
    ) -> None:
        del timer
        self.state = state
        self.app = app
        self.freq = freq
        self.cleanup_freq = cleanup_freq
        rate = per_second(maxrate)
        self._least_s = 1 / rate if rate else 0.0
        self._next_at = 0.0  # as for `_least_s`
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nbqueue camera", daemon=True)

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()

    def on_shutter(self, state: State) -> Any:
        """Do what is to be done with a picture; for classes of one's own."""

    def on_cleanup(self) -> Any:
        """Do what is to be done now and then; for classes of one's own."""

    def install(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Take the last picture, and end."""
        self._cancelled.set()
        if self._thread.is_alive():
            self._thread.join()
            self.capture()

    def capture(self) -> None:
        """Take a picture now."""
        self.state.freeze_while(self.shutter, clear_after=self.clear_after)

    def shutter(self) -> None:
        """Call `on_shutter`, unless that were too often."""
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + self._least_s
            self.shutter_signal.send(self.state)
            self.on_shutter(self.state)

    def cleanup(self) -> None:
        """Call `on_cleanup`."""
        self.cleanup_signal.send(self.state)
        self.on_cleanup()

    def _run(self) -> None:
        clean_at = time.monotonic() + self.cleanup_freq
        while not self._cancelled.wait(self.freq):
            try:
                self.capture()
                if time.monotonic() >= clean_at:
                    clean_at = time.monotonic() + self.cleanup_freq
                    self.cleanup()
            except Exception:
                logger.exception("a picture could not be taken")
