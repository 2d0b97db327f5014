"""What users' own tests get: workers, servers, apps and fixtures; the fixtures are tried in projects as users have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nbqueue import App
from nbqueue.exceptions import ImproperlyConfigured, TimeoutError  # noqa: A004 - Celery's name
from nbqueue.testing import PrivateServer, memory_app, start_worker
from tests.helpers import wait_until
from tests.test_architecture import heavy_modules_after
from tests.workers import ROOT, Site

WAIT_S = 30.0
Pytest = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_pytest(tmp_path: Path) -> Pytest:
    """Return what writes a project's files and runs its tests."""

    def run(*options: str, **files: str) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return subprocess.run(
            [sys.executable, *command(*options)],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=WAIT_S * 2,
            check=False,
        )

    return run


def command(*options: str) -> list[str]:
    plugin = () if "nbqueue.testing.pytest_plugin" in options else ("-p", "nbqueue.testing.pytest_plugin")
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *plugin, "-W", "error", *options]


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NBQUEUE_", "PYTEST_"))}
    return {**kept, "NBQUEUE_HOME": str(home / "home"), "PYTHONPATH": str(ROOT)}


def passed(done: subprocess.CompletedProcess[str], number: int) -> None:
    assert f"{number} passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_project_of_ten_lines_has_its_tasks_run_by_a_worker(run_pytest: Pytest, tmp_path: Path) -> None:
    done = run_pytest(
        test_tasks="""
def test_task_runs(celery_app, celery_worker):
    @celery_app.task
    def mul(x, y):
        return x * y

    celery_worker.reload()
    assert mul.delay(4, 4).get(timeout=10) == 16
""",
    )
    passed(done, 1)
    assert not (tmp_path / "home").exists(), "the user's own data is left alone"


def test_project_of_modules_runs_by_value_by_name_and_as_a_canvas(run_pytest: Pytest) -> None:
    done = run_pytest(
        helper="def double(x): return 2 * x\n",
        proj="""
from nbqueue import shared_task
import helper

@shared_task(name="proj.add")
def add(x, y): return helper.double(x + y)

@shared_task(bind=True, max_retries=1)
def flaky(self):
    if not self.request.retries: raise self.retry(countdown=0)
    return self.request.retries
""",
        conftest="""
import pytest

@pytest.fixture(scope="session")
def celery_includes(): return ["proj"]

@pytest.fixture(scope="session")
def celery_config(): return {"broker_url": "memory://", "result_backend": "cache+memory://", "timezone": "Europe/Oslo"}
""",
        test_tasks="""
import pytest
from nbqueue import chain, group
import proj

@pytest.mark.usefixtures("celery_session_app", "celery_session_worker")
class TestTasks:
    def test_by_value(self): assert proj.add.delay(1, 2).get(timeout=10) == 6
    def test_by_name(self, celery_session_app):
        assert celery_session_app.send_task("proj.add", (1, 2)).get(timeout=10) == 6
    def test_canvas(self):
        assert chain(group(proj.add.s(n, n) for n in range(3)), total.s()).apply_async().get(10) == 12
    def test_retry(self): assert proj.flaky.delay().get(timeout=10) == 1
    def test_settings(self, celery_session_app): assert celery_session_app.conf.timezone == "Europe/Oslo"

from nbqueue import shared_task
@shared_task
def total(values): return sum(values)
""",
    )
    passed(done, 5)


def test_each_test_has_an_app_of_its_own_with_the_settings_of_its_mark(run_pytest: Pytest) -> None:
    done = run_pytest(
        "--strict-markers",
        test_apps="""
import pytest
from nbqueue import current_app

@pytest.mark.celery(task_default_queue="first")
def test_first(celery_app, depends_on_current_app):
    assert celery_app.conf.task_default_queue == "first"
    assert current_app() is celery_app
    celery_app.send_task("nobody.has.it")
    assert celery_app.broker.size("first").queued == 1

@pytest.mark.nbqueue(task_default_queue="first")
def test_second(nbqueue_app):
    assert nbqueue_app.broker.size("first").queued == 0

def test_eager(celery_app):
    celery_app.conf.task_always_eager = True
    assert celery_app.task(lambda: 1, name="one").delay().get() == 1
""",
    )
    passed(done, 3)


def test_json_alone_is_enough_for_tests(run_pytest: Pytest) -> None:
    done = run_pytest(
        proj="from nbqueue import shared_task\n@shared_task\ndef add(x, y): return x + y\n",
        test_json="""
import pytest, proj

@pytest.mark.celery(accept_content=["json"], task_serializer="json", result_serializer="json")
def test_json(celery_app, celery_worker): assert proj.add.delay(1, 2).get(timeout=10) == 3
""",
    )
    passed(done, 1)


def test_trap_makes_the_current_app_an_error(run_pytest: Pytest) -> None:
    done = run_pytest(
        conftest="import pytest\n@pytest.fixture(scope='session')\ndef use_celery_app_trap(): return True\n",
        test_trap="""
import pytest, nbqueue
def test_trap(celery_app):
    with pytest.raises(RuntimeError, match="this test is to use none"): nbqueue.current_app().conf
""",
    )
    passed(done, 1)


def test_fixtures_of_celerys_own_plugin_are_left_alone(run_pytest: Pytest) -> None:
    done = run_pytest(
        *("-p", "celery.contrib.pytest", "-W", "ignore"),
        test_celery="""
def test_app(celery_app): assert "nbqueue" not in type(celery_app).__module__
def test_ours(nbqueue_app): assert type(nbqueue_app).__module__ == "nbqueue.app"
""",
    )
    passed(done, 2)


def test_plugin_loads_nothing_that_no_test_asks_for() -> None:
    loads = "import sys, nbqueue.testing.pytest_plugin, nbqueue.testing.celery_names"
    assert heavy_modules_after(f"{loads}\nassert 'nbqueue.app' not in sys.modules") == []


def test_server_and_worker_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "test_wait.py").write_text(
        "import time, pathlib\n"
        "def test_wait(nbqueue_server, nbqueue_worker):\n"
        "    pathlib.Path('told').write_text(f'{nbqueue_worker.process.pid} {nbqueue_server.directory}')\n"
        "    pathlib.Path('told').rename('ready')\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, *command()], cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.DEVNULL
    ) as run:
        wait_until((tmp_path / "ready").exists, WAIT_S, "the test to run")
        pid, directory = (tmp_path / "ready").read_text().split()
        worker = psutil.Process(int(pid))
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not worker.is_running(), WAIT_S, "the worker to end")

    def servers() -> list[psutil.Process]:
        return [process for process in psutil.process_iter(["cmdline"]) if directory in str(process.info["cmdline"])]

    wait_until(lambda: not servers(), WAIT_S, "the server to end")


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_worker_runs_tasks_that_are_declared_later_and_ends_with_the_block(shared_site: Site, pool: str) -> None:
    app = shared_site.new_app(by_value=False)
    app.conf.task_default_queue = "of-a-test"
    before = app.task(add_before)
    with app:
        with start_worker(app, 2, pool, "error", hostname="w1@%h") as worker:
            assert worker.hostname.startswith("w1@")

            @app.task
            def later(x: int) -> int:
                return x + 1

            assert worker.running
            assert later.delay(1).get(timeout=WAIT_S) == 2
            assert before.delay(1).get(timeout=WAIT_S) == 101
            worker.reload()
        assert worker.process.exit_code is not None
        assert not before.by_value


def add_before(x: int) -> int:
    return x + 100


def test_worker_that_runs_nothing_in_time_is_told(shared_site: Site) -> None:
    app = shared_site.new_app()
    app.conf.task_default_queue = "slow"
    with (
        app,
        pytest.raises(TimeoutError, match=r"has run no task within 0\.001 s"),
        start_worker(app, ping_task_timeout=0.001),
    ):
        pass


def test_worker_that_can_not_work_is_told(shared_site: Site) -> None:
    app = shared_site.new_app()
    with app, pytest.raises(ImproperlyConfigured, match="fast"), start_worker(app, pool="fast"):
        pass
    with PrivateServer() as server:
        app = App("gone", server.url, key_file=server.key_file, set_as_current=False)
        assert app.backend.now() > 0
        app.conf.task_queues = ("a",)
        app.conf.task_create_missing_queues = False
        with app, pytest.raises(ImproperlyConfigured, match="has ended, exit code"), start_worker(app, queues="b"):
            pass


def test_app_in_memory_runs_calls_where_they_are_made() -> None:
    app = memory_app(task_eager_propagates=True)
    pids: list[int] = []

    @app.task
    def note(x: int) -> int:
        pids.append(os.getpid())
        return x

    assert note.delay(1).get() == 1
    assert list(note.map([1, 2]).get()) == [1, 2]
    assert (note.s(1) | note.s()).apply_async().get() == 1
    assert set(pids) == {os.getpid()}


def test_private_server_starts_quickly_and_leaves_nothing() -> None:
    began = time.monotonic()
    with PrivateServer() as server:
        assert time.monotonic() - began < WAIT_S
        first, second = server.new_link(), server.new_link()
        assert first.broker_url != second.broker_url
        directory = server.directory
    assert not directory.exists()
