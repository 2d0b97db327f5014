"""Settings of a worker as Celery has it by default: JSON alone."""

accept_content = ["json"]
