"""A project whose workers tell of what they send."""

from __future__ import annotations

from tests.project import app

app.conf.task_send_sent_event = True
