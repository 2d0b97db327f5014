"""Projects as Celery's user guide has them, with one import line changed, and configured by old and by new names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.test_cli import run
from tests.helpers import wait_until
from tests.workers import ROOT, Site

pytestmark = pytest.mark.timeout(60)

APP = """
from nbqueue import Celery

app = Celery('proj', include=['proj.tasks'])
app.config_from_object('proj.celeryconfig')

if __name__ == '__main__':
    app.start()
"""
TASKS = """
from nbqueue import shared_task

from proj.celery import app


@app.task
def add(x, y):
    return x + y


@shared_task(bind=True)
def where(self):
    return self.request.queue
"""
OLD = """
from datetime import timedelta

from kombu import Exchange, Queue
from nbqueue.schedules import crontab

BROKER_URL = {broker!r}
CELERY_RESULT_BACKEND = {backend!r}
CELERY_TASK_SERIALIZER = 'json'
CELERY_RESULT_SERIALIZER = 'json'
CELERY_ACCEPT_CONTENT = ['json']
CELERY_TIMEZONE = 'Europe/Oslo'
CELERY_ENABLE_UTC = True
CELERYD_CONCURRENCY = 1
CELERYD_PREFETCH_MULTIPLIER = 1
CELERYD_TASK_TIME_LIMIT = 30
CELERY_TASK_RESULT_EXPIRES = timedelta(hours=1)
CELERY_DEFAULT_QUEUE = 'default'
CELERY_QUEUES = (
    Queue('default', Exchange('default'), routing_key='default'),
    Queue('low', Exchange('media', type='topic'), routing_key='media.#'),
)
CELERY_ROUTES = ({{'proj.tasks.where': {{'exchange': 'media', 'routing_key': 'media.video'}}}},)
CELERY_ANNOTATIONS = {{'*': {{'max_retries': 1}}}}
CELERYBEAT_SCHEDULE = {{
    'add-every-monday-morning': {{
        'task': 'proj.tasks.add', 'schedule': crontab(hour=7, minute=30, day_of_week=1), 'args': (16, 16),
    }},
}}
"""
NEW = """
broker_url = {broker!r}
result_backend = {backend!r}
task_serializer = 'json'
result_serializer = 'json'
accept_content = ['json']
timezone = 'Europe/Oslo'
enable_utc = True
worker_concurrency = 1
worker_prefetch_multiplier = 1
task_default_queue = 'default'
task_queues = {{'default': None, 'low': {{'exchange': 'media', 'exchange_type': 'topic', 'routing_key': 'media.#'}}}}
task_routes = {{'proj.tasks.where': {{'queue': 'low'}}}}
beat_schedule = {{'add': {{'task': 'proj.tasks.add', 'schedule': 3600.0, 'args': (16, 16)}}}}
"""


@pytest.fixture
def project(idle_site: Site, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return the directory of a project."""
    folder = tmp_path / "proj"
    folder.mkdir()
    text = {"old": OLD, "new": NEW}[getattr(request, "param", "new")]
    (folder / "__init__.py").write_text("")
    (folder / "celery.py").write_text(APP)
    (folder / "tasks.py").write_text(TASKS)
    settings = text.format(broker=idle_site.broker_url, backend=idle_site.server.url)
    (folder / "celeryconfig.py").write_text(settings)
    return tmp_path


@contextmanager
def working(site: Site, directory: Path, *words: str) -> Iterator[Path]:
    """Have a worker, started as its user would."""
    log = directory / "log"
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{directory}", "NBQUEUE_KEY_FILE": str(site.key_file)},
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "children, queues" in log.read_text(), 40, "the worker to say that it works")
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.brokers
@pytest.mark.parametrize("project", ["old", "new"], indirect=True)
def test_project_of_celerys_guide_runs_with_its_import_changed(idle_site: Site, project: Path) -> None:
    with working(idle_site, project, "-m", "nbqueue", "-A", "proj", "worker", "-l", "INFO") as log:
        assert "1 children, queues default, low" in log.read_text()
        assert log.read_text().count("worker_prefetch_multiplier") == 1, "what has no meaning is said once"
        sent = run(idle_site, "-A", "proj", "call", "proj.tasks.add", "--args=[2, 2]", directory=project)
        assert sent.returncode == 0, sent.stderr
        said = run(idle_site, "-A", "proj", "result", sent.stdout.strip(), directory=project)
        assert (said.returncode, said.stdout) == (0, "4\n"), said.stderr
        program = (
            "from proj.tasks import add, where\n"
            "from proj.celery import app\n"
            "print(add.delay(4, 4).get(timeout=20), where.delay().get(timeout=20), app.conf.timezone)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=project,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{project}", "NBQUEUE_KEY_FILE": str(idle_site.key_file)},
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.stdout == "8 low Europe/Oslo\n", done.stderr + log.read_text()


def test_program_of_the_project_is_its_command_line(idle_site: Site, project: Path) -> None:
    with working(idle_site, project, "-m", "proj.celery", "worker", "-l", "info") as log:
        sent = run(idle_site, "-A", "proj.celery:app", "call", "proj.tasks.add", "-a", "[1, 2]", directory=project)
        said = run(idle_site, "-A", "proj", "result", sent.stdout.strip(), directory=project)
        assert said.stdout == "3\n", said.stderr + log.read_text()
