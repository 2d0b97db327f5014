"""Where an app is connected to, and how that is found out. The only place that starts the embedded server."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nbqueue import endpoints
from nbqueue.config import (
    AMQP_SCHEMES,
    Environment,
    Settings,
    encrypted_way,
    in_the_open,
    mask,
    redis_beside,
    scheme_of,
)
from nbqueue.signing import read_key_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Link:
    """Where an app is connected to.

    Args:
        broker_url: where messages go.
        backend_url: where results are kept.
        key: the signing key.
        directory: where this user's data lies on this machine.
        embedded: the server is the embedded one, whose workers all share that directory.
        file: the connection file, if there is one.
    """

    broker_url: str = field(repr=False)
    backend_url: str | None = field(repr=False)
    key: bytes = field(repr=False)
    directory: Path
    embedded: bool = False
    file: Path | None = None

    @property
    def blobs(self) -> Path:
        """Return where large data is kept on this machine."""
        return self.directory / "blobs"

    @cached_property
    def joined(self) -> bool:
        """Tell whether broker and backend are one Redis, so that a record and an ack are one step."""
        return self.backend_url == self.broker_url and scheme_of(self.broker_url) != "memory"

    @property
    def blobs_travel(self) -> bool:
        """Tell whether large data goes through the backend too, as workers may be elsewhere."""
        return not self.embedded and self.backend_url is not None and scheme_of(self.backend_url) != "memory"


def told(link: Link, conf: Settings) -> dict[str, Any]:
    """Return what a worker's children need to send calls of their own: JSON, and secret."""
    own = ("result_backend", "key_file", "connection_file", "include", "imports")
    settings = {
        name: value
        for name, value in conf.changed().items()
        if name not in own and not name.startswith(("broker_", "redis_", "result_backend")) and _is_json(value)
    }
    return {
        "broker_url": link.broker_url,
        "backend_url": link.backend_url,
        "key": link.key.hex(),
        "directory": str(link.directory),
        "embedded": link.embedded,
        "settings": settings,
    }


def heard(text: Mapping[str, Any]) -> Link:
    """Return the link that `told` has told of."""
    key, directory = bytes.fromhex(text["key"]), Path(text["directory"])
    return Link(text["broker_url"], text["backend_url"], key, directory, text["embedded"])


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def resolve(conf: Settings, environment: Environment, *, work_follows: bool = False) -> Link:
    """Return where to connect to; starts or joins the embedded server where nothing is configured.

    Args:
        conf: of the app.
        environment: of this process.
        work_follows: an embedded server that has to be started gets a worker at once.

    Raises:
        ImproperlyConfigured: what is configured can't be used.
    """
    broker = endpoints.broker_url(conf, environment)
    backend = endpoints.backend_url(conf, environment)
    key_file = conf.key_file or environment.key_file
    file = conf.connection_file or environment.connection_file
    if broker is None:
        if file is None:
            return embedded_link(work_follows=work_follows)
        from nbqueue import connection, embedded  # only where there is a file

        found = connection.read(Path(file), embedded.machine_id())
        own = Path(found.directory) if found.directory else embedded.Places.find(environment.variables).data
        return Link(found.broker_url, found.backend_url, found.key, own, found.embedded, Path(file))
    if scheme_of(broker) in AMQP_SCHEMES:
        backend = redis_beside(broker, backend)
    elif backend is None:
        backend = broker
    for url in {broker, backend}:
        if in_the_open(url):
            logger.warning("what goes to %s can be read on the way; %s encrypts it", mask(url), encrypted_way(url))
    from nbqueue import embedded  # not before it is known that something is configured

    places = embedded.Places.find(environment.variables)
    key = read_key_file(Path(key_file)) if key_file else embedded.own_key(places)
    return Link(broker, backend, key, places.data)


def embedded_link(*, work_follows: bool = False) -> Link:
    """Return the embedded server of this user, started if it isn't running, with a worker if work follows."""
    from nbqueue import embedded  # see `resolve`

    variables = Environment.read().variables
    places = embedded.Places.find(variables)
    found = embedded.ensure(places, variables=variables, work_follows=work_follows)
    return Link(found.broker_url, found.backend_url, found.key, places.data, embedded=True, file=places.connection_file)
