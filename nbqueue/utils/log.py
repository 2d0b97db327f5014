"""Loggers of tasks, where Celery has them."""

from nbqueue.log import get_task_logger

__all__ = ["get_task_logger"]
