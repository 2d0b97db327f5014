"""Logging: loggers for tasks, and the handlers that the command line sets up. The library itself sets none."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, Final

from nbqueue.config import mask

FORMAT: Final = "[%(asctime)s: %(levelname)s/%(name)s] %(message)s"
LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def get_task_logger(name: str) -> logging.Logger:
    """Return the logger a task module writes to; its lines stream back with the task's output."""
    return logging.getLogger(f"nbqueue.task.{name}")


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
