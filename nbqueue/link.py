"""Where an app is connected to, and how that is found out. The only place that starts the embedded server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from nbqueue.config import Environment, Settings, in_the_open, mask
from nbqueue.signing import read_key_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Link:
    """Where an app is connected to: URLs, the signing key, and whether the server is the embedded one."""

    broker_url: str
    backend_url: str | None
    key: bytes
    embedded: bool = False
    file: Path | None = None


def resolve(conf: Settings, environment: Environment) -> Link:
    """Return where to connect to; starts or joins the embedded server where nothing is configured.

    Raises:
        ImproperlyConfigured: what is configured can't be used.
    """
    # A file that was named is an argument, and wins over the environment.
    broker = conf.broker_url or (None if conf.connection_file else environment.broker_url)
    backend = conf.result_backend or environment.result_backend
    key_file = conf.key_file or environment.key_file
    file = conf.connection_file or environment.connection_file
    if broker is None:
        if file is None:
            return embedded_link()
        from nbqueue import connection, embedded  # only where there is a file

        found = connection.read(Path(file), embedded.machine_id())
        return Link(found.broker_url, found.backend_url, found.key, found.embedded, Path(file))
    if backend is None:
        backend = broker
    for url in {broker, backend}:
        if in_the_open(url):
            logger.warning("what goes to %s can be read on the way; rediss:// encrypts it", mask(url))
    if key_file:
        return Link(broker, backend, read_key_file(Path(key_file)))
    from nbqueue import embedded  # only where the key is this user's own

    return Link(broker, backend, embedded.own_key(embedded.Places.find(environment.variables)))


def embedded_link() -> Link:
    """Return the embedded server of this user, started if it isn't running."""
    from nbqueue import embedded  # see `resolve`

    variables = Environment.read().variables
    places = embedded.Places.find(variables)
    found = embedded.ensure(places, variables=variables)
    return Link(found.broker_url, found.backend_url, found.key, embedded=True, file=places.connection_file)
