"""Settings of a worker: results never expire, and calls inherit priorities; named by CELERY_CONFIG_MODULE."""

CELERY_TASK_RESULT_EXPIRES = None
CELERY_TASK_INHERIT_PARENT_PRIORITY = True
