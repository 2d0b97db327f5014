"""Logging: loggers for tasks, and the handlers that the command line sets up. The library itself sets none."""

from __future__ import annotations

import logging
import sys
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


def setup(level: str = "warning", stream: Any = None) -> None:
    """Send nbqueue's log lines to `stream` (stderr), from `level` on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Masked(FORMAT))
    root = logging.getLogger("nbqueue")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
