"""Loggers, where Celery has them."""

import logging

from nbqueue.log import get_task_logger

__all__ = ["get_logger", "get_task_logger"]

get_logger = logging.getLogger
