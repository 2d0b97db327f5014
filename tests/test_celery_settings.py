"""Both generations of Celery's names, and the ways to set what they name."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from nbqueue import App, Celery
from nbqueue.celery_settings import KNOWN, new_name, old_name
from nbqueue.config import NEVER_S, Settings, masked
from nbqueue.exceptions import ImproperlyConfigured
from tests.workers import ROOT

OLD = {
    "BROKER_URL": "redis://localhost",
    "CELERY_RESULT_BACKEND": "redis://localhost/1",
    "CELERY_TIMEZONE": "Europe/Oslo",
    "CELERY_ENABLE_UTC": False,
    "CELERYD_CONCURRENCY": 3,
    "CELERY_TASK_RESULT_EXPIRES": timedelta(hours=2),
    "CELERY_ROUTES": {"feeds.*": "feeds"},
    "CELERY_DEFAULT_QUEUE": "other",
    "CELERY_IMPORTS": ("proj.tasks",),
    "CELERYD_TASK_TIME_LIMIT": 60,
}
NEW = {
    "broker_url": "redis://localhost",
    "result_backend": "redis://localhost/1",
    "timezone": "Europe/Oslo",
    "enable_utc": False,
    "worker_concurrency": 3,
    "result_expires": 7200.0,
    "task_routes": {"feeds.*": "feeds"},
    "task_default_queue": "other",
    "imports": ("proj.tasks",),
    "task_time_limit": 60.0,
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write a module that can be imported; it counts its imports."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def app(**options: Any) -> App:
    return App("test", set_as_current=False, **options)


def test_every_setting_of_celery_is_known_by_each_of_its_names() -> None:
    defaults = pytest.importorskip("celery.app.defaults")
    assert defaults.SETTING_KEYS == KNOWN
    for old, new in defaults._TO_NEW_KEY.items():
        assert new_name(old, ()) == new
    for name in KNOWN:
        assert new_name(old_name(name), ()) == name
        assert new_name(f"CELERY_{name.upper()}", (), "CELERY") == name


def test_every_setting_that_is_known_by_a_field_has_an_effect_somewhere() -> None:
    fenced = {"config.py", "celery_settings.py"}
    code = "\n".join(path.read_text() for path in (ROOT / "nbqueue").rglob("*.py") if path.name not in fenced)
    assert [name for name in Settings().keys() if not re.search(rf"\b{name}\b", code)] == []  # noqa: SIM118 - no dict


def test_names_of_both_generations_mean_the_same_mixed_or_not() -> None:
    old, new, mixed = Settings(), Settings(), Settings()
    old.update(OLD)
    new.update(NEW)
    mixed.update({**dict(list(OLD.items())[::2]), **dict(list(NEW.items())[1::2])})
    assert old.changed() == new.changed() == mixed.changed() == NEW


def test_setting_is_read_and_set_by_attribute_and_by_item_under_either_name() -> None:
    conf = Settings()
    conf.CELERY_TIMEZONE = "Europe/Oslo"
    conf["CELERYD_CONCURRENCY"] = 3
    assert conf.timezone == conf["timezone"] == conf.CELERY_TIMEZONE == conf.get("CELERY_TIMEZONE") == "Europe/Oslo"  # type: ignore[attr-defined]
    assert conf.worker_concurrency == 3
    assert "BROKER_URL" in conf
    assert "broker_url" in conf
    assert "brokr_url" not in conf
    assert conf.get("broker_url", "unset") == "unset"
    assert conf.changes == {"timezone": "Europe/Oslo", "worker_concurrency": 3}
    assert (conf.setdefault("timezone", "UTC"), conf.setdefault("CELERY_ROUTES", {"a": "b"})) == (
        "Europe/Oslo",
        {"a": "b"},
    )
    assert dict(conf)["task_routes"] == {"a": "b"}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("task_serialiser", "task_serializer"),
        ("CELERY_TASK_SERIALISER", "CELERY_TASK_SERIALIZER"),
        ("BROKER_ULR", "BROKER_URL"),
        ("CELERYD_CONCURENCY", "CELERYD_CONCURRENCY"),
        ("CELERYBEAT_SHEDULE", "CELERYBEAT_SCHEDULE"),
        ("task_default_que", "task_default_queue"),
    ],
)
def test_wrong_name_is_refused_and_the_nearest_of_its_generation_named(wrong: str, right: str) -> None:
    conf = Settings()
    with pytest.raises(ImproperlyConfigured, match=f"no setting '{wrong}'; did you mean '{right}'"):
        conf.update({wrong: "x"})
    with pytest.raises(ImproperlyConfigured, match=right):
        conf[wrong] = "x"
    with pytest.raises(ImproperlyConfigured, match=right):
        setattr(conf, wrong, "x")
    with pytest.raises(AttributeError, match=right):
        getattr(conf, wrong)
    with pytest.raises(KeyError, match=right):
        conf[wrong]


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("timezone", "Europe/Olso", "did you mean 'Europe/Oslo'"),
        ("timezone", 5, "a name such as"),
        ("broker_url", "redsi://localhost", "did you mean rediss?://"),
        ("broker_url", ["redis://a", "redis://b"], "names 2 servers, which don't share .* sentinel://"),
        ("broker_url", "redis://a;redis://b", "names 2 servers, which don't share .* sentinel://"),
        ("broker_url", ["amqp://a", "redis://b"], "redis://b is no node of a cluster beside amqp://a"),
        ("broker_url", "amqp://a;amqps://b", "begin each URL with amqp://"),
        ("broker_url", "amqp://me:hunter2@a;b", "b is no URL"),
        ("broker_url", ["amqp://a/one", "amqp://b/two"], "one virtual host, not one, two"),
        ("broker_failover_strategy", "suffle", "'round-robin', 'shuffle' or a callable, .* did you mean 'shuffle'"),
        ("result_backend", "amqp", "come with a later version"),
        ("result_backend", "rpc://", "come with a later version"),
        ("result_backend", "db+sqlite:///results.db", "keeps results in Redis only"),
        ("result_backend", "django-db", "keeps results in Redis only"),
        ("CELERYD_CONCURRENCY", "many", "worker_concurrency must be a number"),
        ("enable_utc", "yes", "must be True or False"),
        ("task_time_limit", float("nan"), "must be a number of at least 0"),
    ],
)
def test_wrong_value_is_refused_with_the_setting_and_what_is_right(name: str, value: object, right: str) -> None:
    conf = Settings()
    with pytest.raises(ImproperlyConfigured, match=right):
        conf.update({name: value})
    assert conf.changed() == {}


def test_password_is_in_no_error_of_a_wrong_url() -> None:
    for name in ("broker_url", "result_backend"):
        with pytest.raises(ImproperlyConfigured) as caught:
            Settings().update({name: "db+postgresql://me:hunter2@host/db"})
        assert "hunter2" not in str(caught.value)


def test_setting_without_meaning_is_kept_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    conf = Settings()
    with caplog.at_level(logging.WARNING, "nbqueue"):
        conf.update(worker_prefetch_multiplier=1, broker_pool_limit=None)
        conf.CELERYD_PREFETCH_MULTIPLIER = 2
    assert [record.getMessage() for record in caplog.records] == [
        "without meaning here, and doing nothing: worker_prefetch_multiplier"
    ]
    assert conf.worker_prefetch_multiplier == 2  # type: ignore[attr-defined]
    assert conf.get("worker_pool_putlocks", True) is True


@pytest.mark.parametrize(
    ("value", "seconds"), [(60, 60.0), (timedelta(days=1), 86_400.0), (None, NEVER_S), (0, NEVER_S)]
)
def test_results_expire_after_seconds_or_a_timedelta_or_never(value: object, seconds: float) -> None:
    conf = Settings()
    conf.CELERY_TASK_RESULT_EXPIRES = value
    assert conf.result_expires == seconds
    assert conf.result_failure_expires is None
    conf.update(result_failure_expires=value)
    assert conf.result_failure_expires == (None if value is None else seconds)


def test_module_of_settings_is_read_when_the_first_is_asked_for(module: Any) -> None:
    name = module("celeryconfig_late", "from datetime import timedelta\nimport os\nCELERY_TIMEZONE = 'Europe/Oslo'\n")
    made = app()
    made.config_from_object(name)
    assert name not in sys.modules
    assert made.conf.timezone == "Europe/Oslo"
    assert name in sys.modules


def test_module_may_import_helpers_and_hold_names_of_its_own_but_no_misspelt_setting(module: Any) -> None:
    good = module(
        "celeryconfig_good",
        "from nbqueue.schedules import crontab\nhost = 'localhost'\nbroker_url = f'redis://{host}'\n"
        "def route(*a): ...\n",
    )
    assert app(config_source=good).conf.broker_url == "redis://localhost"
    bad = module("celeryconfig_bad", "task_serialiser = 'json'\n")
    with pytest.raises(ImproperlyConfigured, match=r"celeryconfig_bad: .*'task_serialiser'; did you mean 'task_ser"):
        _ = app(config_source=bad).conf
    worse = module("celeryconfig_worse", "CELERY_NONESUCH_AT_ALL = 1\n")
    with pytest.raises(ImproperlyConfigured, match="CELERY_NONESUCH_AT_ALL"):
        _ = app(config_source=worse).conf


def test_namespace_takes_only_what_begins_with_it(module: Any) -> None:
    name = module(
        "django_like",
        "DEBUG = True\nTIME_ZONE = 'UTC'\nBROKER_URL = 'redis://no'\nCELERY_BROKER_URL = 'redis://yes'\n"
        "CELERY_TASK_TIME_LIMIT = 5\nCELERY_WORKER_CONCURRENCY = 2\n",
    )
    made = app()
    made.config_from_object(name, namespace="CELERY")
    assert made.conf.changed() == {"broker_url": "redis://yes", "task_time_limit": 5.0, "worker_concurrency": 2}
    with pytest.raises(ImproperlyConfigured, match="did you mean 'CELERY_TASK_TIME_LIMIT'"):
        made.config_from_object(SimpleNamespace(CELERY_TASK_TIME_LIMITS=5), namespace="CELERY", force=True)
    assert made.conf.task_time_limit == 5.0, "what can't be read changes nothing"


def test_what_is_no_setting_is_not_looked_at() -> None:
    class Settings:
        CELERY_TASK_TIME_LIMIT = 5

        @property
        def USE_L10N(self) -> bool:  # noqa: N802 - as Django's
            raise RuntimeError("deprecated")

        def task_routes(self, name: str, *_: object) -> str:
            return name

    made = app()
    made.config_from_object(Settings(), namespace="CELERY")
    assert made.conf.task_time_limit == 5.0
    made.config_from_object(Settings())
    assert made.conf.task_time_limit == 5.0
    assert made.destination("called")[0] == "called", "a function may be a setting"


def test_object_class_dict_and_attribute_of_a_module_serve_as_sources(module: Any) -> None:
    name = module(
        "with_parts", "class Config:\n    timezone = 'Europe/Oslo'\n    class Inner:\n        enable_utc = False\n"
    )

    class Config:
        timezone = "Europe/Oslo"

    for source in (Config, Config(), {"timezone": "Europe/Oslo"}, f"{name}:Config", f"{name}.Config"):
        made = app()
        made.config_from_object(source)
        assert made.conf.timezone == "Europe/Oslo"
    assert app(config_source=f"{name}:Config.Inner").conf.enable_utc is False


def test_source_that_is_missing_is_named_unless_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImproperlyConfigured, match="settings are to come from 'no_such_module'"):
        app().config_from_object("no_such_module", force=True)
    made = app()
    made.config_from_object("no_such_module", silent=True)
    assert made.conf.changed() == {}
    monkeypatch.delenv("MY_CONFIG", raising=False)
    with pytest.raises(ImproperlyConfigured, match="MY_CONFIG is not set"):
        made.config_from_envvar("MY_CONFIG")
    assert made.config_from_envvar("MY_CONFIG", silent=True) is False


def test_module_that_fails_to_import_something_is_not_taken_for_missing(module: Any) -> None:
    name = module("celeryconfig_broken", "from os import nothing_of_this_name\n")
    with pytest.raises(ImproperlyConfigured, match="nothing_of_this_name"):
        app().config_from_object(name, silent=True, force=True)


def test_environment_names_the_module_of_settings(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CONFIG", module("celeryconfig_env", "enable_utc = False\n"))
    made = app()
    assert made.config_from_envvar("MY_CONFIG") is True
    assert made.conf.enable_utc is False
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "celeryconfig_env")
    assert app().conf.enable_utc is False
    assert app(config_source={}).conf.enable_utc is True, "an app with settings of its own has no use for others"


def test_what_a_program_sets_wins_over_its_configuration_and_that_over_defaults() -> None:
    made = app(broker="redis://given", task_time_limit=1)
    made.add_defaults({"task_time_limit": 3, "task_soft_time_limit": 3, "worker_concurrency": 3})
    made.add_defaults(lambda: {"worker_max_tasks_per_child": 3})
    made.config_from_object({"broker_url": "redis://config", "task_time_limit": 2, "task_soft_time_limit": 2})
    conf = made.conf
    assert (conf.broker_url, conf.task_time_limit, conf.task_soft_time_limit) == ("redis://given", 1.0, 2.0)
    assert (conf.worker_concurrency, conf.worker_max_tasks_per_child) == (3, 3)
    made.config_from_object({"worker_concurrency": 4})
    assert (conf.task_soft_time_limit, conf.worker_concurrency) == (3.0, 4), "one source takes another's place"
    conf.worker_concurrency = 5
    made.config_from_object({"worker_concurrency": 6})
    assert conf.worker_concurrency == 5


def test_constructor_takes_what_celerys_takes(caplog: pytest.LogCaptureFixture) -> None:
    made = Celery(
        "proj",
        broker="redis://localhost",
        include=["proj.tasks"],
        changes={"worker_concurrency": 2},
        timezone="Europe/Oslo",
        autofinalize=True,
        loader="app",
        fixups=[],
        set_as_current=False,
    )
    assert (made.conf.include, made.conf.worker_concurrency) == (("proj.tasks",), 2)
    assert made.timezone == ZoneInfo("Europe/Oslo")
    assert "autofinalize, fixups, loader" in caplog.text
    with pytest.raises(ImproperlyConfigured, match="brokr"):
        Celery("proj", brokr="redis://localhost")
    with pytest.raises(ImproperlyConfigured, match="come with a later version"):
        Celery("proj", broker="amqp://", backend="amqp")


def test_zone_of_times_is_utc_or_the_machines_unless_one_is_named() -> None:
    made = app()
    assert made.timezone is UTC
    made.conf.enable_utc = False
    assert isinstance(made.timezone, timezone)
    made.conf.timezone = ZoneInfo("Asia/Tokyo")
    assert made.conf.timezone == "Asia/Tokyo"
    assert str(made.timezone) == "Asia/Tokyo"


def test_table_and_text_show_what_was_set_without_secrets_however_deep() -> None:
    conf = Settings(broker_url="redis://:hunter2@host/0")
    conf.update(
        security_key_password="hunter2",
        broker_transport_options={"sentinel_kwargs": {"password": "hunter2", "redis://:hunter2@b": 1}, "sep": ":"},
        database_engine_options=[{"url": "postgresql://me:hunter2@host"}],
        key_file="/home/me/key",
    )
    assert "hunter2" not in repr(conf.table()) + conf.humanize() + repr(conf)
    assert conf.table()["broker_transport_options"]["sep"] == ":"
    assert conf.table()["key_file"] == "/home/me/key"
    assert "broker_url: 'redis://:***@host/0'" in conf.humanize().splitlines()
    assert conf.table(censored=False)["security_key_password"] == "hunter2"
    assert conf.table(with_defaults=True)["task_default_queue"] == "nbqueue"


@pytest.mark.parametrize("name", ["API_KEY", "s3_secret_access_key", "redis_password", "auth_token", "AccountKey_key"])
def test_value_of_a_secret_name_is_masked(name: str) -> None:
    assert masked({name: "hunter2"}) == {name: "***"}
    assert masked({"options": [{name: "hunter2"}]}) == {"options": [{name: "***"}]}
