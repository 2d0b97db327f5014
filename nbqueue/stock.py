"""The broker's server as kombu's own programs see it: where Celery's remote control and events are.

Queues of tasks are not there: those are nbqueue's own. What loads kombu does so when it is called.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, urlsplit

from nbqueue.config import AMQP_SCHEMES, REDIS_SCHEMES, mask, redis_url, scheme_of
from nbqueue.exceptions import ImproperlyConfigured

CONTROL_EXCHANGE: Final = "celery"
EVENT_EXCHANGE: Final = "celeryev"
ANSWER_S: Final = 10.0  # how long any one answer may take
HEARTBEAT_S: Final = 30


def kombu_connection(url: str) -> Any:
    """Return a `kombu.Connection` to a broker's server; nothing is connected yet.

    Raises:
        ImproperlyConfigured: kombu has no way there.
    """
    scheme = scheme_of(url)
    if scheme in AMQP_SCHEMES:
        from nbqueue import amqp  # noqa: PLC0415 - loads kombu, see below

        return amqp.kombu_connection(url, heartbeat=HEARTBEAT_S, connect_timeout=ANSWER_S)
    import kombu  # noqa: PLC0415 - costs 60 ms and 10 MB, which few workers and clients need

    parts = urlsplit(url)
    if scheme not in REDIS_SCHEMES:
        raise ImproperlyConfigured(f"{mask(url)} is no server that other programs could talk to")
    if scheme in ("unix", "redis+socket"):
        local = urlsplit(redis_url(url))
        database = parse_qs(local.query).get("db", ["0"])[0]
        url = f"redis+socket://{local.path}?virtual_host={database}"
    options: dict[str, Any] = {
        "socket_timeout": ANSWER_S,
        "socket_connect_timeout": ANSWER_S,
        "socket_keepalive": scheme in ("redis", "sentinel"),
    }
    if scheme == "sentinel":
        url, known = _sentinels(parts)
        options |= known
    return kombu.Connection(url, transport_options=options)


def _sentinels(parts: SplitResult) -> tuple[str, dict[str, Any]]:
    """Return kombu's URL of sentinels, each with all that is said, and its options."""
    login, at, hosts = parts.netloc.rpartition("@")
    url = ";".join(f"sentinel://{login}{at}{host}{parts.path}" for host in hosts.split(";"))
    given = {name: values[0] for name, values in parse_qs(parts.query).items()}
    own = {name: given[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in given}
    return url, {"master_name": given.get("master_name", ""), "sentinel_kwargs": own}


def fanout_topic(exchange: str, routing_key: str, database: int) -> str:
    """Return the channel of a Redis server that kombu publishes to for a fanout exchange.

    >>> fanout_topic("celery.pidbox", "", 0), fanout_topic("celeryev", "task.multi", 2)
    ('/0.celery.pidbox', '/2.celeryev/task.multi')
    """
    return f"/{database}.{exchange}" + (f"/{routing_key}" if routing_key else "")
