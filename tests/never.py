"""Settings of a worker whose results never expire; named by CELERY_CONFIG_MODULE."""

CELERY_TASK_RESULT_EXPIRES = None
