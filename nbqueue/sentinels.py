"""A Redis whose address sentinels know: each new connection asks them where the primary is.

Source: "High availability with Redis Sentinel" (redis.io), and kombu's form of URLs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import redis
from redis.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.sentinel import Sentinel

_PORT: Final = 26379
_ASK_S: Final = 1.0  # for an answer of a sentinel, before the next is asked


def connect_by_sentinels(url: str, options: Mapping[str, Any]) -> redis.Redis:
    """Return a client of the primary; a connection that it makes after a failover is to the new one.

    Args:
        url: `sentinel://:password@host:port;host:port/db?master_name=NAME`; the login is the server's, that of the
            sentinels are the parameters `sentinel_username` and `sentinel_password`.
        options: of connections to the primary.
    """
    rest, _, query = url.removeprefix("sentinel://").partition("?")
    where, _, database = rest.partition("/")
    login, _, hosts = where.rpartition("@")
    given: dict[str, Any] = dict(parse_qsl(query))
    service = given.pop("master_name")
    own = {name: given.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in given}
    own |= {name: _parsed(name, value) for name, value in given.items() if name.startswith("ssl")}
    if "ssl" in own:
        own["ssl"] = True
    user, _, password = login.partition(":")
    asked = Sentinel(
        [_address(text) for text in hosts.split(";")],
        sentinel_kwargs={"socket_timeout": _ASK_S, "socket_connect_timeout": _ASK_S, **own},
    )
    about = {name: _parsed(name, value) for name, value in given.items()}
    client: redis.Redis = asked.master_for(
        service,
        **{**options, **about, **({"ssl": True} if "ssl" in own else {})},
        db=int(database or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
    )
    return client


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    return host, int(port or _PORT)


def _parsed(name: str, value: str) -> Any:
    parse = URL_QUERY_ARGUMENT_PARSERS.get(name)
    return parse(value) if parse is not None else value
