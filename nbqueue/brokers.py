"""Which broker a URL means. What a program doesn't use of them it doesn't load."""

from __future__ import annotations

from typing import Any

from nbqueue.broker import Broker, StreamsBroker
from nbqueue.config import AMQP_SCHEMES, REDIS_SCHEMES, redis_beside, scheme_of


def open_broker(url: str, *, backend_url: str | None = None, name: str = "nbq-client", **streams: Any) -> Broker:
    """Return the broker of a URL; nothing is connected yet.

    Args:
        url: `redis://`, `rediss://`, `redis+socket://`, `unix://`, `sentinel://`, `amqp://`, `amqps://` or `memory://`.
        backend_url: for RabbitMQ, the Redis that keeps the rest.
        name: what the server shows of this connection.
        streams: arguments of `Streams`.

    Raises:
        ImproperlyConfigured: RabbitMQ has no Redis beside it.
    """
    scheme = scheme_of(url)
    if scheme in REDIS_SCHEMES:
        return StreamsBroker(url, name=name, **streams)
    # Both load kombu, which costs 60 ms.
    if scheme in AMQP_SCHEMES:
        from nbqueue.amqp_broker import AmqpBroker

        return AmqpBroker(url, redis_beside(url, backend_url), name=name, **streams)
    from nbqueue.memory_broker import KombuBroker, in_memory

    return KombuBroker(in_memory(), url)
