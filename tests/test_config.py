from __future__ import annotations

from pathlib import Path

import pytest

from nbqueue import App, connection
from nbqueue.config import Environment, Settings, child_environment, in_the_open, mask, redis_url, scheme_of
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.link import resolve
from nbqueue.signing import create_key_file


def test_unknown_setting_names_the_nearest_right_one() -> None:
    settings = Settings()
    with pytest.raises(ImproperlyConfigured, match="did you mean 'task_default_queue'"):
        settings.task_defualt_queue = "x"
    with pytest.raises(ImproperlyConfigured, match="result_expires"):
        settings.update(result_expire=1)


def test_update_takes_nothing_when_one_name_is_wrong() -> None:
    settings = Settings()
    with pytest.raises(ImproperlyConfigured):
        settings.update({"task_default_queue": "other", "wrong": 1})
    assert settings.task_default_queue == "nbqueue"


@pytest.mark.parametrize(
    ("name", "value"),
    [("result_expires", "soon"), ("task_ignore_result", 1), ("worker_lease", -1), ("broker_url", 5)],
)
def test_setting_of_a_wrong_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ImproperlyConfigured, match=name):
        setattr(Settings(), name, value)


def test_setting_of_celerys_without_a_meaning_here_is_accepted() -> None:
    Settings().update(worker_prefetch_multiplier=4)


def test_url_of_an_unknown_scheme_names_the_nearest_and_hides_the_password() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"redsi://:\*\*\*@host.*did you mean rediss?://"):
        scheme_of("redsi://:hunter2@host")
    with pytest.raises(ImproperlyConfigured):
        App(broker="ftp://host", set_as_current=False)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://:pw@host/0", "redis://:***@host/0"),
        ("redis://user:pw@host", "redis://user:***@host"),
        ("rediss://host/0?username=me&password=pw&db=1", "rediss://host/0?username=me&password=***&db=1"),
        ("redis://host/0", "redis://host/0"),
        ("redis+socket:///run/b.sock", "redis+socket:///run/b.sock"),
    ],
)
def test_mask_hides_passwords(url: str, masked: str) -> None:
    assert mask(url) == masked
    assert "pw" not in mask(url)


def test_settings_show_what_was_set_and_no_password() -> None:
    settings = Settings(broker_url="redis://:pw@host/0", worker_concurrency=3)
    assert repr(settings) == "Settings(broker_url='redis://:***@host/0', worker_concurrency=3)"


def test_socket_urls_are_turned_into_the_clients_form() -> None:
    assert redis_url("redis+socket:///run/b.sock?virtual_host=3") == "unix:///run/b.sock?db=3"
    assert redis_url("redis://host/1") == "redis://host/1"


@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        ("redis://example.org", True),
        ("redis://10.1.2.3:6379/0", True),
        ("rediss://example.org", False),
        ("redis://localhost", False),
        ("redis://127.0.0.1:6379", False),
        ("redis://", False),
        ("redis+socket:///run/b.sock", False),
        ("memory://", False),
    ],
)
def test_plain_text_to_another_host_is_noticed(url: str, is_open: bool) -> None:
    assert in_the_open(url) is is_open


def test_environment_is_read_by_its_names() -> None:
    found = Environment.read({"NBQUEUE_BROKER_URL": "redis://x", "NBQUEUE_KEY_FILE": ""})
    assert (found.broker_url, found.key_file) == ("redis://x", None)


def test_children_get_neither_jupyters_variables_nor_ours() -> None:
    kept = child_environment(
        {
            "PATH": "/bin",
            "JPY_SESSION_NAME": "x",
            "NBQUEUE_KEY_FILE": "k",
            "JUPYTERHUB_API_TOKEN": "t",
            "MKL_NUM_THREADS": "7",
        },
        children=1000,
    )
    assert kept["PATH"] == "/bin"
    assert not [name for name in kept if name.startswith(("JPY_", "NBQUEUE_", "JUPYTERHUB_"))]
    assert (kept["OMP_NUM_THREADS"], kept["MKL_NUM_THREADS"]) == ("1", "7")
    assert kept["PLOTLY_RENDERER"].startswith("plotly_mimetype")  # a browser on the worker helps nobody


def test_connection_file_that_was_named_wins_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    connection.write(file, connection.Connection("redis+socket:///named", "redis+socket:///named", b"k" * 32))
    environment = Environment.read({"NBQUEUE_BROKER_URL": "redis://localhost"})
    settings = Settings()
    settings.connection_file = str(file)
    assert resolve(settings, environment).broker_url == "redis+socket:///named"
    settings.broker_url = "redis://127.0.0.1"
    settings.key_file = str(tmp_path / "key")
    create_key_file(tmp_path / "key")
    assert resolve(settings, environment).broker_url == "redis://127.0.0.1"
