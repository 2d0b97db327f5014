"""Messages put into queues by hand, as whoever may write to the broker can: on Redis, and on RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import amqp

from nbqueue.amqp import Queues, connect
from nbqueue.deliveries import stream_key
from tests.workers import Site

Field = bytes | str | int

# What a stream's entry calls the parts of a message; all of them but the body are headers on RabbitMQ.
_HEADERS: Final = {"i": "id", "h": "nbq"}


def put(site: Site, messages: Sequence[Mapping[str, Field]], *, queue: str = "nbqueue") -> None:
    """Put messages into a queue.

    Args:
        site: whose broker it is.
        messages: `i`, the id; `h`, the signed text; `b`, the body; `a`, `c` and `w`, the counters. Any may be missing,
            and anything may be in them.
        queue: made, if it is missing.
    """
    if not site.on_rabbitmq:
        for fields in messages:
            site.streams.client.xadd(stream_key(queue, "n"), dict(fields))
        return
    with _channel(site, queue) as (channel, name):
        for fields in messages:
            headers = {_HEADERS.get(key, key): value for key, value in fields.items() if key != "b"}
            body = fields.get("b", b"")
            channel.basic_publish_confirm(amqp.Message(body, application_headers=headers), "", name)


def take(site: Site, *, queue: str = "nbqueue") -> list[dict[str, Field]]:
    """Take all messages that wait out of a queue; `put` puts them back."""
    found: list[dict[str, Field]] = []
    if not site.on_rabbitmq:
        name = stream_key(queue, "n")
        for entry, fields in site.streams.client.xrange(name):
            found.append({key.decode(): value for key, value in fields.items()})
            site.streams.client.xdel(name, entry)
        return found
    with _channel(site, queue) as (channel, name):
        while (message := channel.basic_get(name, no_ack=True)) is not None:
            found.append({"i": message.headers["id"], "h": message.headers["nbq"], "b": message.body})
    return found


@contextmanager
def _channel(site: Site, queue: str) -> Iterator[tuple[Any, str]]:
    """Yield a channel, and the name of a queue that exists."""
    with connect(site.broker_url, name="by hand") as connection:
        name = Queues(connection).declare(queue, 0)
        channel = connection.channel()
        channel.auto_decode = False
        yield channel, name
        channel.close()
