"""The modules of a few lines: logging, the current app, where it is connected to, hooks on imports."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from nbqueue import App, current
from nbqueue.config import Environment, Settings
from nbqueue.connection import Connection, write
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.hooks import AfterImport
from nbqueue.link import resolve
from nbqueue.log import get_task_logger, setup
from nbqueue.signing import create_key_file


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    root = logging.getLogger("nbqueue")
    before = (root.handlers[:], root.level, root.propagate)
    yield io.StringIO()
    root.handlers[:], root.level, root.propagate = before


def test_log_goes_to_the_stream_from_its_level_on_and_once(logs: io.StringIO) -> None:
    setup("info", logs)
    setup("warning", logs)
    get_task_logger("mine").info("left out")
    get_task_logger("mine").warning("said")
    assert logs.getvalue().count("said") == 1
    assert "left out" not in logs.getvalue()
    assert "WARNING/nbqueue.task.mine" in logs.getvalue()


def test_log_holds_no_password(logs: io.StringIO) -> None:
    setup("info", logs)
    logging.getLogger("nbqueue.x").error("no answer from redis://me:secret@host/0 and %s", "amqp://:hidden@b")
    assert "secret" not in logs.getvalue()
    assert "hidden" not in logs.getvalue()
    assert "redis://me:***@host/0" in logs.getvalue()


def test_current_app_is_the_last_that_was_made_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "_current", None)
    first = current.current_app()
    assert current.current_app() is first
    second = App("second")
    assert current.current_app() is second
    App("third", set_as_current=False)
    assert current.current_app() is second

    @current.task(queue="gpu")
    def work() -> None: ...

    assert (work.app, work.queue) == (second, "gpu")


def environment(tmp_path: Path, **variables: str) -> Environment:
    return Environment.read({"NBQUEUE_HOME": str(tmp_path), **variables})


def test_arguments_come_before_the_environment_and_that_before_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    create_key_file(key)
    file = tmp_path / "connection.json"
    write(file, Connection("redis://file", "redis://file", b"f" * 32))
    conf = Settings()
    variables = {"NBQUEUE_BROKER_URL": "redis://localhost:1", "NBQUEUE_KEY_FILE": str(key)}
    found = resolve(conf, environment(tmp_path, **variables, NBQUEUE_CONNECTION_FILE=str(file)))
    assert (found.broker_url, found.backend_url, found.embedded) == (
        "redis://localhost:1",
        "redis://localhost:1",
        False,
    )
    conf.broker_url = "redis://localhost:2"
    assert resolve(conf, environment(tmp_path, **variables)).broker_url == "redis://localhost:2"
    named = Settings()
    named.connection_file = str(file)
    found = resolve(named, environment(tmp_path, **variables))
    assert (found.broker_url, found.key) == ("redis://file", b"f" * 32)


def test_backend_of_its_own_and_where_large_data_lies(tmp_path: Path) -> None:
    conf = Settings()
    conf.broker_url, conf.result_backend = "redis://localhost:1", "memory://"
    found = resolve(conf, environment(tmp_path))
    assert (found.backend_url, found.blobs_travel) == ("memory://", False)
    assert found.blobs.is_relative_to(tmp_path)
    conf.result_backend = None
    assert resolve(conf, environment(tmp_path)).blobs_travel


def test_server_elsewhere_without_encryption_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    conf = Settings()
    conf.broker_url = "redis://elsewhere"
    logging.getLogger("nbqueue").propagate = True
    with caplog.at_level(logging.WARNING):
        resolve(conf, environment(tmp_path))
    assert "can be read on the way" in caplog.text


def test_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    conf = Settings()
    conf.broker_url, conf.key_file = "redis://localhost:1", str(tmp_path / "none")
    with pytest.raises(ImproperlyConfigured, match="none"):
        resolve(conf, environment(tmp_path))


def test_hook_is_called_after_the_import_and_at_once_for_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooked_module.py").write_text("X = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[tuple[str, int]] = []

    def note(module: ModuleType) -> None:
        seen.append((module.__name__, getattr(module, "X", 0)))

    hooks = AfterImport({"hooked_module": note, "json": note})
    hooks.install()
    try:
        import hooked_module  # type: ignore[import-not-found]

        assert seen == [("json", 0), ("hooked_module", 1)]
        assert hooked_module.__spec__.origin.endswith("hooked_module.py")
        with pytest.raises(ModuleNotFoundError):
            import no_such_module_at_all  # type: ignore[import-not-found]  # noqa: F401
    finally:
        sys.meta_path.remove(hooks)
        sys.modules.pop("hooked_module", None)
