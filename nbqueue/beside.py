"""A beat in a thread of a process that has something else to do, such as a worker."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final, Self

from nbqueue import signals

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.beat import Beat

STOP_S: Final = 7.0

logger = logging.getLogger(__name__)


class BeatThread:
    """Runs a beat until the block ends. Used as a context manager.

    Args:
        app: whose schedule it sends.
        options: of `Beat`.
    """

    def __init__(self, app: App, **options: Any) -> None:
        self.app = app
        self.options = options
        self.beat: Beat | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nbqueue beat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        if self.beat is not None:
            self.beat.stop()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        from nbqueue.beat import Beat  # noqa: PLC0415 - 40 ms, for which nobody waits here

        try:
            with Beat(self.app, **self.options) as self.beat:
                if not self._stopped.is_set():
                    signals.beat_embedded_init.send(self.beat)
                    self.beat.run()
        except Exception:
            logger.exception("the beat has ended")
