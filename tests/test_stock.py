"""The broker's server in kombu's own layout, encrypted and not."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from nbqueue import App
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.stock import kombu_connection
from tests.helpers import RedisServer, wait_until
from tests.rabbit import RabbitServer
from tests.test_endpoints import Encrypted, encrypted

__all__ = ["encrypted"]  # a fixture


def watch_itself(app: App) -> int:
    """Return what an event said that an app has sent to itself."""
    seen: list[dict[str, Any]] = []
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"mine-own": seen.append})

        def ready(*_: Any, **__: Any) -> None:
            app.emitter.emit("mine-own", value=7)

        receiver.on_consume_ready = ready  # type: ignore[method-assign]
        for _ in receiver.itercapture(timeout=10, wakeup=False):
            if seen:
                return int(seen[0]["value"])
    return 0


def test_events_go_through_a_database_of_its_own(redis_server: RedisServer) -> None:
    with App("x", broker=f"{redis_server.url}?virtual_host=3", set_as_current=False) as app:
        assert watch_itself(app) == 7


def test_events_go_where_settings_say(redis_server: RedisServer) -> None:
    names = {"event_exchange": "news", "event_queue_prefix": "reader"}
    with App("x", broker=redis_server.url, changes=names, set_as_current=False) as app, app.connection() as connection:
        assert watch_itself(app) == 7
        receiver = app.events.Receiver(connection)
        assert (receiver.exchange.name, receiver.queue.name) == ("news", f"reader.{receiver.node_id}")
        with redis_server.client() as client, client.pubsub(ignore_subscribe_messages=True) as heard:
            heard.subscribe("/0.news/mine.own")
            wait_until(lambda: client.pubsub_numsub("/0.news/mine.own")[0][1], 5, "the subscription")
            app.events.Dispatcher(connection, hostname="me").send("mine-own")
            wait_until(heard.get_message, 5, "the event")


def test_events_go_over_tls_on_redis(encrypted: Encrypted) -> None:
    with encrypted.app(broker_use_ssl=encrypted.tls) as app:
        assert watch_itself(app) == 7


@pytest.mark.rabbitmq
def test_events_go_over_tls_on_rabbitmq(rabbit_server: RabbitServer, redis_server: RedisServer) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{rabbit_server.tls_port}//"
    tls = {"ca_certs": str(rabbit_server.certificate), "cert_reqs": ssl.CERT_REQUIRED}
    with App("x", broker=url, backend=redis_server.url, broker_use_ssl=tls, set_as_current=False) as app:
        assert watch_itself(app) == 7
    with (
        App("x", broker=url, backend=redis_server.url, broker_use_ssl=True, set_as_current=False) as app,
        pytest.raises(ssl.SSLError, match="certificate verify failed"),
    ):
        app.connection().connect()


def test_broker_of_one_process_is_none_that_others_could_reach() -> None:
    with pytest.raises(ImproperlyConfigured, match="no server that other programs could talk to"):
        kombu_connection("memory://")
