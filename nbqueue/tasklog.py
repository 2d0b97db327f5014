"""What tasks log: written to their output, from the worker's level on, in the form that settings say."""

from __future__ import annotations

import logging
import sys
from typing import Final

from nbqueue.request import current_request

LOGGER: Final = "nbqueue.task"
FORMAT: Final = "%(message)s"  # who reads it reads the output of one task


class TaskFormatter(logging.Formatter):
    """Knows `%(task_name)s` and `%(task_id)s`, which are `???` outside a task."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        request = current_request()
        record.task_name = "???" if request is None else request.task
        record.task_id = "???" if request is None else request.id
        return super().format(record)


class _TaskLines(logging.Handler):
    """Writes to what is stderr then, unless the user has set up logging: then their handlers get it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if logging.getLogger().handlers:
            return
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 - a line of a log ends no task
            self.handleError(record)


def setup(level: int, line: str | None = None, date: str | None = None) -> None:
    """Have the loggers of tasks write to their output.

    Args:
        level: from which on.
        line: its form, as `logging.Formatter` takes it.
        date: that of its time.
    """
    handler = _TaskLines()
    handler.setFormatter(TaskFormatter(line or FORMAT, date))
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(level)
