"""The URLs that settings mean, and encrypted ways to real servers."""

from __future__ import annotations

import itertools
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbqueue import App
from nbqueue.broker import ServerBroker
from nbqueue.config import Environment, Settings, in_the_open, mask
from nbqueue.endpoints import backend_url, broker_url
from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured
from nbqueue.signing import create_key_file
from tests.helpers import RedisServer, wait_until
from tests.proxy import Proxy
from tests.rabbit import RabbitServer, make_certificate
from tests.workers import ROOT

NOTHING = Environment.read({})


def broker(**settings: Any) -> str | None:
    return broker_url(Settings(**settings), NOTHING)


def backend(**settings: Any) -> str | None:
    return backend_url(Settings(**settings), NOTHING)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, None),
        ({"broker_url": "redis"}, "redis://localhost:6379"),
        ({"BROKER_URL": "pyamqp://guest@host//"}, "amqp://guest@host//"),
        ({"BROKER_HOST": "host", "BROKER_PORT": "5673", "BROKER_VHOST": "/"}, "amqp://host:5673/%2F"),
        (
            {"BROKER_TRANSPORT": "redis", "BROKER_HOST": "host", "BROKER_PASSWORD": "p@w", "BROKER_VHOST": "1"},
            "redis://:p%40w@host:6379/1",
        ),
        ({"broker_read_url": "redis://a", "broker_write_url": "redis://a"}, "redis://a"),
        ({"broker_url": "redis://a", "broker_use_ssl": True}, "rediss://a"),
        (
            {"broker_url": "amqp://a//", "broker_use_ssl": {"ca_certs": "/c a.pem"}},
            "amqps://a//?ssl_ca_certs=/c%20a.pem",
        ),
        (
            {
                "BROKER_URL": "redis://a/1?ssl_cert_reqs=optional",
                "BROKER_USE_SSL": {"ssl_keyfile": "/k", "ssl_certfile": "/c", "ssl_cert_reqs": ssl.CERT_NONE},
            },
            "rediss://a/1?ssl_cert_reqs=optional&ssl_keyfile=/k&ssl_certfile=/c",
        ),
        (
            {"broker_url": "rediss://a", "broker_use_ssl": {"ssl_cert_reqs": "CERT_NONE"}},
            "rediss://a?ssl_cert_reqs=none",
        ),
        (
            {
                "broker_url": "redis://a",
                "broker_connection_timeout": 2,
                "broker_transport_options": {"socket_keepalive": 0},
            },
            "redis://a?socket_connect_timeout=2.0&socket_keepalive=False",
        ),
        ({"broker_url": "amqp://a", "broker_connection_timeout": 2}, "amqp://a?connect_timeout=2.0"),
        ({"broker_url": ["amqp://a//", "pyamqp://b", "amqp://a//"]}, "amqp://a//;amqp://b"),
        (
            {"broker_url": "amqp://a;amqp://b", "broker_use_ssl": {"ca_certs": "/c"}, "broker_connection_timeout": 2},
            "amqps://a?connect_timeout=2.0&ssl_ca_certs=/c;amqps://b?connect_timeout=2.0&ssl_ca_certs=/c",
        ),
        (
            {"broker_url": "amqp://a;amqp://b;amqp://c", "broker_failover_strategy": "round-robin"},
            "amqp://a;amqp://b;amqp://c",
        ),
        (
            {"broker_url": "amqp://a;amqp://b", "broker_failover_strategy": lambda urls: itertools.cycle(urls[::-1])},
            "amqp://b;amqp://a",
        ),
        ({"broker_url": ["sentinel://a", "sentinel://b?master_name=m"]}, "sentinel://a;b?master_name=m"),
    ],
)
def test_settings_of_celery_become_the_url_of_the_broker(settings: dict[str, Any], url: str | None) -> None:
    assert broker(**settings) == url


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, None),
        ({"CELERY_RESULT_BACKEND": "redis"}, "redis://localhost:6379"),
        (
            {
                "CELERY_RESULT_BACKEND": "redis",
                "CELERY_REDIS_HOST": "h",
                "CELERY_REDIS_DB": 2,
                "CELERY_REDIS_PASSWORD": "p",
            },
            "redis://:p@h:6379/2",
        ),
        (
            {"result_backend": "redis://a", "redis_backend_use_ssl": {"ssl_ca_certs": "/c"}},
            "rediss://a?ssl_ca_certs=/c",
        ),
        ({"result_backend": "redis://a", "redis_socket_keepalive": False}, "redis://a?socket_keepalive=False"),
    ],
)
def test_settings_of_celery_become_the_url_of_the_backend(settings: dict[str, Any], url: str | None) -> None:
    assert backend(**settings) == url


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"broker_use_ssl": {"cert_reqs": "always"}}, "'required', 'optional' or 'none', not 'always'"),
        ({"broker_use_ssl": {"cafile": "/c"}}, "can't have 'cafile'"),
        ({"redis_backend_use_ssl": "yes"}, "redis_backend_use_ssl must be True, False or a dict"),
        ({"broker_url": "redis+socket:///s", "broker_use_ssl": True}, "stays on this machine"),
        ({"broker_url": "amqp://a", "broker_use_ssl": {"password": "hunter2"}}, "no key file with a password"),
        ({"broker_read_url": "redis://a", "broker_write_url": "redis://b"}, "must be the same"),
        ({"broker_port": "many"}, "broker_port must be a number"),
        ({"broker_transport_options": "fast"}, "broker_transport_options must be a dict"),
        (
            {"broker_url": "amqp://a;amqp://b", "broker_failover_strategy": lambda _: ["amqp://me:hunter2@c"]},
            r"must give URLs of the list that it is called with, not \['amqp://me:\*\*\*@c'\]",
        ),
    ],
)
def test_what_can_not_be_is_refused_by_its_name(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=says) as caught:
        broker(**settings)
    assert "hunter2" not in str(caught.value)


def test_nodes_are_shuffled_where_settings_say_so_and_masked_each() -> None:
    urls = [f"amqp://me:hunter2@{letter}//" for letter in "abc"]
    tried = {broker(broker_url=urls, broker_failover_strategy="shuffle") for _ in range(200)}
    assert tried == {";".join(order) for order in itertools.permutations(urls)}
    assert mask(";".join(urls)) == "amqp://me:***@a//;amqp://me:***@b//;amqp://me:***@c//"
    assert broker_url(Settings(), Environment.read({"NBQUEUE_BROKER_URL": ";".join(urls)})) == ";".join(urls)
    with pytest.raises(ImproperlyConfigured, match="sentinel://"):
        broker_url(Settings(), Environment.read({"NBQUEUE_BROKER_URL": "redis://a;redis://b"}))


@pytest.mark.parametrize(("url", "is_open"), [("amqp://localhost;amqp://b", True), ("amqps://a;amqps://b", False)])
def test_nodes_are_in_the_open_when_one_of_them_is(url: str, is_open: bool) -> None:
    assert in_the_open(url) is is_open


def test_transport_options_without_meaning_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    Settings(broker_transport_options={"visibility_timeout": 3600, "socket_keepalive": True})
    assert [record.getMessage() for record in caplog.records] == [
        "broker_transport_options: without meaning here, and doing nothing: visibility_timeout"
    ]


class Encrypted:
    """A Redis that is reached with TLS only, and only with a certificate of one's own."""

    def __init__(self, server: RedisServer) -> None:
        if not (server.directory / "key.pem").exists():
            make_certificate(server.directory)
        certificate, key = str(server.directory / "certificate.pem"), str(server.directory / "key.pem")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
        context.load_cert_chain(certificate, key)
        context.verify_mode = ssl.CERT_REQUIRED
        self.proxy = Proxy(server.socket, tls=context)
        self.tls = {"ssl_ca_certs": certificate, "ssl_certfile": certificate, "ssl_keyfile": key}
        self.key_file = server.directory / "signing"
        if not self.key_file.exists():
            create_key_file(self.key_file)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxy.port}"

    def app(self, **settings: Any) -> App:
        return App("test", broker=self.url, key_file=self.key_file, set_as_current=False, **settings)


@pytest.fixture
def encrypted(redis_server: RedisServer) -> Iterator[Encrypted]:
    made = Encrypted(redis_server)
    with made.proxy:
        yield made


def queues(app: App) -> set[str]:
    assert isinstance(app.broker, ServerBroker)
    return app.broker.queues()


def test_redis_is_reached_with_the_certificates_that_settings_name_and_not_without(encrypted: Encrypted) -> None:
    with encrypted.app(broker_use_ssl=encrypted.tls) as app:
        assert queues(app) == set()
        assert app.link.joined
    for less in ({}, {"ssl_ca_certs": encrypted.tls["ssl_ca_certs"]}, {"ssl_cert_reqs": "none"}):
        with encrypted.app(broker_use_ssl=less or True) as app, pytest.raises(BackendUnavailable):
            queues(app)
    with encrypted.app(broker_use_ssl={**encrypted.tls, "ssl_ca_certs": None, "ssl_cert_reqs": "none"}) as app:
        assert queues(app) == set()


def test_worker_and_client_meet_over_tls(encrypted: Encrypted, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from nbqueue import Celery\n"
        f"app = Celery('mine', broker={encrypted.url!r}, broker_use_ssl={encrypted.tls!r})\n"
        "@app.task\ndef twice(x):\n    return 2 * x\n"
        "@app.task\ndef four_times(x):\n    return twice.delay(2 * x).id\n"
    )
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "nbqueue", "-A", "mine", "worker", "-c", "1"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NBQUEUE_KEY_FILE": str(encrypted.key_file)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with encrypted.app(broker_use_ssl=encrypted.tls) as app:
            wait_until(lambda: bool(app.offers()), 40, "the worker to show itself")
            inner = app.send_task("mine.four_times", (3,)).get(timeout=20)
            assert app.AsyncResult(inner).get(timeout=10) == 12, (tmp_path / "log").read_text()
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0


@pytest.mark.rabbitmq
def test_rabbitmq_is_reached_with_the_certificates_that_settings_name(
    rabbit_server: RabbitServer, redis_server: RedisServer
) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{rabbit_server.tls_port}//"
    tls = {"ca_certs": str(rabbit_server.certificate), "cert_reqs": ssl.CERT_REQUIRED}
    for given, works in ((tls, True), ({"cert_reqs": ssl.CERT_NONE}, True), (True, False)):
        with App("test", broker=url, backend=redis_server.url, broker_use_ssl=given, set_as_current=False) as app:
            if works:
                assert app.broker.size("encrypted-settings").queued == 0
            else:
                with pytest.raises(BackendUnavailable, match="certificate verify failed"):
                    app.broker.size("encrypted-settings")
