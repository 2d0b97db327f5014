"""Settings of a worker whose failures are kept for an hour; named by CELERY_CONFIG_MODULE."""

CELERY_TASK_RESULT_EXPIRES = 86_400
result_failure_expires = 3_600
