"""The broker's server as kombu's own programs see it: where Celery's remote control and events are.

Queues of tasks are not there: those are nbqueue's own. What loads kombu does so when it is called.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, urlsplit

from nbqueue.config import AMQP_SCHEMES, REDIS_SCHEMES, mask, redis_url, scheme_of
from nbqueue.exceptions import BadMessage, ImproperlyConfigured

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


def bindings_key(exchange: str) -> str:
    """Return the key of a Redis server where kombu keeps which queues a direct exchange leads to.

    >>> bindings_key("reply.celery.pidbox")
    '_kombu.binding.reply.celery.pidbox'
    """
    return f"_kombu.binding.{exchange}"


def bound_queues(bindings: Iterable[bytes], routing_key: str) -> list[str]:
    r"""Return the queues that kombu's bindings of a direct exchange have for a routing key.

    >>> bound_queues([b"a\x06\x16\x06\x16a.reply", b"b\x06\x16\x06\x16b.reply", b"?"], "a")
    ['a.reply']
    """
    parts = [binding.decode(errors="replace").split("\x06\x16") for binding in bindings]
    return [found[2] for found in parts if len(found) == 3 and found[0] == routing_key and found[2]]


def envelope(body: bytes, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> str:
    """Return a message of JSON as kombu writes it to a Redis server.

    Source: the virtual transports of kombu 5.
    """
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": dict(headers),
            "properties": {
                "delivery_mode": 1,
                "delivery_info": {"exchange": exchange, "routing_key": routing_key},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


def opened(message: bytes) -> Any:
    """Return what a message of JSON says that kombu has written to a Redis server.

    >>> opened(envelope(b'{"method": "ping"}', "celery.pidbox", "", {}).encode())
    {'method': 'ping'}

    Raises:
        BadMessage: it isn't one, or of another content than JSON.
    """
    try:
        fields = json.loads(message)
        if fields["content-type"] != "application/json":
            raise BadMessage("format", f"content of {fields['content-type']}")
        body = fields["body"]
        return json.loads(base64.b64decode(body) if fields["properties"].get("body_encoding") == "base64" else body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise BadMessage("format", f"no message of kombu's: {exc!r}") from exc
