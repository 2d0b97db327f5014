"""The URLs that settings mean: of broker and backend, with what Celery says of them in settings of their own.

A URL is the one form in which a way to a server travels, to children and in connection files; so encryption and the
like become its parameters, by redis-py's names: `rediss://host?ssl_ca_certs=FILE`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from nbqueue.config import AMQP_SCHEMES, Environment, Settings, checked_broker_url, mask, nodes_of, scheme_of
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.tls import tls_options

_ASKED: Final = 100  # a callable that gives nodes without end is asked so often for each
_PORTS: Final = {"redis": 6379, "amqp": 5672}
_ENCRYPTED: Final = {"sentinel": "sentinel", "redis": "rediss", "rediss": "rediss", "amqp": "amqps", "amqps": "amqps"}


def broker_url(conf: Settings, environment: Environment) -> str | None:
    """Return the broker's URL, or those of a RabbitMQ cluster's nodes in the order in which they are tried.

    None where nothing says one.

    Raises:
        ImproperlyConfigured: what the settings say of it can't be.
    """
    both = {url for url in (conf.broker_read_url, conf.broker_write_url) if url}
    if both and both != {conf.broker_url or next(iter(both))}:
        raise ImproperlyConfigured(
            "broker_url, broker_read_url and broker_write_url must be the same: to take a message and to send what "
            "follows it is one step at one server"
        )
    url = conf.broker_url or next(iter(both), None)
    if url is None and (conf.broker_host or conf.broker_transport):
        url = conf.broker_transport or "amqp"
    if url is not None and "://" not in url:
        url = _joined(
            *(url.removeprefix("py"), conf.broker_host, conf.broker_port, conf.broker_user, conf.broker_password),
            conf.broker_vhost,
        )
    # A file that was named is an argument, and wins over the environment.
    url = url or (None if conf.connection_file else checked_broker_url(environment.broker_url))
    if url is None:
        return None
    options = _connecting(url, conf.broker_transport_options, conf.broker_connection_timeout, keepalive=None)
    nodes = [extended(node, "broker_use_ssl", conf.broker_use_ssl, options) for node in nodes_of(url)]
    return ";".join(_ordered(nodes, conf.broker_failover_strategy))


def _ordered(nodes: Sequence[str], strategy: Any) -> Sequence[str]:
    """Return nodes in the order in which they are tried, each once: the first again follows the last.

    Args:
        nodes: their URLs, as they are said.
        strategy: `round-robin`, `shuffle`, or what returns an iterator over a list of them, as for kombu.

    Raises:
        ImproperlyConfigured: the callable gives none of them, or something else.
    """
    if len(nodes) == 1 or strategy in (None, "round-robin"):
        return nodes
    if strategy == "shuffle":
        return random.sample(nodes, len(nodes))
    found = list(dict.fromkeys(itertools.islice(strategy(list(nodes)), _ASKED * len(nodes))))
    if not found or not set(found) <= set(nodes):
        raise ImproperlyConfigured(
            f"broker_failover_strategy: {strategy!r} must give URLs of the list that it is called with, "
            f"not {[mask(str(one)) for one in found]}"
        )
    return found


def backend_url(conf: Settings, environment: Environment) -> str | None:
    """Return the backend's URL; None where nothing says one, which for a Redis broker means that server."""
    url = conf.result_backend
    if url == "redis":
        url = _joined(
            *("redis", conf.redis_host, conf.redis_port, conf.redis_username, conf.redis_password),
            None if conf.redis_db is None else str(conf.redis_db),
        )
    url = url or environment.result_backend
    if url is None:
        return None
    given = conf.result_backend_transport_options
    options = _connecting(url, given, conf.redis_socket_connect_timeout, keepalive=conf.redis_socket_keepalive)
    return extended(url, "redis_backend_use_ssl", conf.redis_backend_use_ssl, options)


def extended(url: str, name: str, value: Any, options: Mapping[str, str]) -> str:
    """Return a URL with what a setting says of encryption, and other parameters; what it says itself stays.

    Raises:
        ImproperlyConfigured: it is no URL, or there is no way to this server that is encrypted.
    """
    _check(url)
    tls = tls_options(name, value)
    if tls is not None:
        scheme = scheme_of(url)
        if scheme not in _ENCRYPTED:
            raise ImproperlyConfigured(f"{name} has no meaning for {mask(url)}, which stays on this machine")
        if scheme in AMQP_SCHEMES and "ssl_password" in tls:
            raise ImproperlyConfigured(f"{name}: the client of RabbitMQ takes no key file with a password")
        if scheme == "sentinel":
            tls = {"ssl": "True", **tls}
        url = f"{_ENCRYPTED[scheme]}://{url.partition('://')[2]}"
    parameters = {**options, **(tls or {})}
    given = {part.partition("=")[0] for part in url.partition("?")[2].split("&")}
    added = urlencode({key: part for key, part in parameters.items() if key not in given}, safe="/", quote_via=quote)
    return url if not added else f"{url}{'&' if '?' in url else '?'}{added}"


def _check(url: str) -> None:
    """Refuse what a client would stumble over later, without a word of where it comes from."""
    if scheme_of(url) == "sentinel":  # several hosts, which others take apart
        return
    try:
        _ = urlsplit(url).port
    except ValueError as exc:
        raise ImproperlyConfigured(f"{mask(url)} is no URL: {exc}; write redis://host:6379/0 or the like") from None


def _connecting(
    url: str, given: Mapping[str, Any], timeout_s: float | None, *, keepalive: bool | None
) -> dict[str, str]:
    """Return what transport options say of making a connection, which is all that has a meaning here."""
    seconds = given.get("socket_connect_timeout", given.get("connect_timeout", timeout_s))
    keep = given.get("socket_keepalive", keepalive)
    scheme = scheme_of(url)
    if scheme in AMQP_SCHEMES:
        return {} if seconds is None else {"connect_timeout": str(float(seconds))}
    if scheme not in ("redis", "rediss", "sentinel"):
        return {}
    found = _sentinel(url, given) if scheme == "sentinel" else {}
    found |= {} if seconds is None else {"socket_connect_timeout": str(float(seconds))}
    return found if keep is None else {**found, "socket_keepalive": str(bool(keep))}


def _sentinel(url: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Return what transport options say of sentinels.

    Raises:
        ImproperlyConfigured: they don't say which of the servers they watch is meant.
    """
    name = given.get("master_name")
    if not name and "master_name=" not in url:
        raise ImproperlyConfigured(
            f"{mask(url)} needs the name under which sentinels know the server: "
            'broker_transport_options = {"master_name": "mymaster"}, or ?master_name=mymaster'
        )
    found = {"master_name": str(name)} if name else {}
    own = given.get("sentinel_kwargs") or {}
    return found | {f"sentinel_{key}": str(own[key]) for key in ("username", "password") if own.get(key)}


def _joined(
    scheme: str, host: str | None, port: int | None, user: str | None, password: str | None, path: str | None
) -> str:
    """Return a URL from its parts; those of Celery's defaults where they are None."""
    login = ""
    if user or password:
        login = f"{quote(user or '', safe='')}:{quote(password or '', safe='')}@"
    where = "" if scheme == "memory" else f"{host or 'localhost'}:{port or _PORTS[scheme]}"
    return f"{scheme}://{login}{where}" + (f"/{quote(path, safe='')}" if path else "")
