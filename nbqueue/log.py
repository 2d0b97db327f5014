"""Logging: loggers for tasks, and the handlers that the command line sets up. The library itself sets none."""

from __future__ import annotations

import io
import logging
import sys
import threading
from pathlib import Path
from typing import Any, Final

from nbqueue import signals
from nbqueue.config import mask

FORMAT: Final = "[%(asctime)s: %(levelname)s/%(name)s] %(message)s"
LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def get_task_logger(name: str) -> logging.Logger:
    """Return the logger a task module writes to; its lines stream back with the task's output."""
    return logging.getLogger(f"nbqueue.task.{name}")


class Lines(io.TextIOBase):
    """Stands for a stream: what is written to it is logged, and what its logger then writes to it goes to that stream.

    Args:
        logger: gets the lines.
        level: of each of them.
        stream: that it stands for.
    """

    def __init__(self, logger: logging.Logger, level: int, stream: Any) -> None:
        super().__init__()
        self._logger = logger
        self._level = level
        self._stream = stream
        self._logging = threading.local()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Log text, unless it is the end of a line, which `print` writes by itself."""
        if getattr(self._logging, "now", False):
            return int(self._stream.write(text))
        self._logging.now = True
        try:
            if line := text.rstrip("\n"):
                self._logger.log(self._level, "%s", line)
        finally:
            self._logging.now = False
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()


class Logs:
    """What Celery's programs ask of `app.log`."""

    def get_default_logger(self, name: str = "nbqueue") -> logging.Logger:
        """Return a logger; nbqueue's own if it isn't named."""
        return logging.getLogger(name)

    def redirect_stdouts_to_logger(
        self, logger: logging.Logger, loglevel: int | str | None = None, stdout: bool = True, stderr: bool = True
    ) -> Lines:
        """Log what is printed from now on; who wants `sys.stdout` and `sys.stderr` back has kept them.

        Args:
            logger: gets the lines.
            loglevel: of each of them; a warning if None.
            stdout: whether what goes there is logged.
            stderr: whether what goes there is logged.
        """
        names = logging.getLevelNamesMapping()
        level = names[loglevel.upper()] if isinstance(loglevel, str) else loglevel or logging.WARNING
        lines = Lines(logger, level, sys.stderr)
        sys.stdout, sys.stderr = lines if stdout else sys.stdout, lines if stderr else sys.stderr
        return lines


class _Masked(logging.Formatter):
    """Keeps passwords of URLs out of every line."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if "://" not in line:
            return line
        return " ".join(mask(word) if "://" in word else word for word in line.split(" "))


def setup(
    level: str = "warning",
    stream: Any = None,
    *,
    file: str | Path | None = None,
    line: str | None = None,
    date: str | None = None,
) -> None:
    """Send nbqueue's log lines somewhere, from a level on.

    Args:
        level: of `LEVELS`.
        stream: where they go; stderr if None.
        file: where they go instead; opened anew when something has moved it away.
        line: the form of a line, as `logging.Formatter` takes it.
        date: the form of its time.
    """
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(stream or sys.stderr)
    else:
        from logging.handlers import WatchedFileHandler  # noqa: PLC0415 - few write to files themselves

        handler = WatchedFileHandler(file, delay=False)
    handler.setFormatter(_Masked(line or FORMAT, date))
    root = logging.getLogger("nbqueue")
    for before in root.handlers:
        before.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


def tell_receivers(level: str, file: str | Path | None = None, line: str | None = None) -> None:
    """Send the signals of logging: a receiver of `setup_logging` does all of it, others may change what is set up.

    Args:
        level: of `LEVELS`.
        file: where lines go; stderr if None.
        line: the form of a line.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    about = {"loglevel": number, "logfile": None if file is None else str(file), "format": line or FORMAT}
    root = logging.getLogger("nbqueue")
    if signals.setup_logging.receivers:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = []
        root.propagate = True
        signals.setup_logging.send(None, **about, colorize=False)
    else:
        signals.after_setup_logger.send(None, logger=root, **about, colorize=False)
        tasks = logging.getLogger("nbqueue.task")
        signals.after_setup_task_logger.send(None, logger=tasks, **about, colorize=False)
