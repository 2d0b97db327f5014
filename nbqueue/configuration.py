"""The settings of one app: those given to it, and a source that is read when the first of them is asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any, Final

from nbqueue.config import Environment, Layer, Settings
from nbqueue.exceptions import ImproperlyConfigured

logger = logging.getLogger(__name__)

# Arguments of Celery's app that name parts which are what they are here.
WITHOUT_MEANING: Final = frozenset({"amqp", "autofinalize", "control", "events", "fixups", "loader", "log", "tasks"})


class Configuration:
    """Makes an app's settings. A source may be code that imports the app's own modules, so it is read late.

    Args:
        given: arguments of the app: settings, or Celery's others, which have no meaning here.
        source: as `use` takes it; what `CELERY_CONFIG_MODULE` names if None.
        namespace: as `use` takes it.
    """

    def __init__(self, given: Mapping[str, Any], source: Any = None, namespace: str = "") -> None:
        idle = sorted(name for name, value in given.items() if name in WITHOUT_MEANING and value is not None)
        if idle:
            logger.warning("an app's arguments without meaning here, doing nothing: %s", ", ".join(idle))
        self.settings = Settings()
        self.settings.update({name: value for name, value in given.items() if name not in WITHOUT_MEANING})
        self._lock = threading.RLock()
        self._pending: list[Callable[[], None]] = []
        self._read = False
        self._has_source = False
        if source is not None:
            self.use(source, namespace=namespace)

    def use(self, source: Any, *, namespace: str = "", silent: bool = False, force: bool = False) -> None:
        """Take settings from a source, in place of one that was named before.

        Args:
            source: a module, object or dict, or the name of one.
            namespace: what its names begin with, and an underscore.
            silent: a module that can't be found has no settings.
            force: read it now.

        Raises:
            ImproperlyConfigured: at once if it is read now, else when the first setting is asked for.
        """

        def take() -> None:
            from nbqueue.sources import read  # most apps have no source

            values = read(source, dict(self.settings.items()), namespace=namespace, silent=silent)
            self.settings.replace(values, Layer.SOURCE)

        self._has_source = True
        self._later(take, now=force)

    def add_defaults(self, values: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Take settings that hold where nothing else says anything; a function is called when they are needed."""

        def take() -> None:
            self.settings.put(values() if callable(values) else values, Layer.DEFAULTS)

        self._later(take)

    def complete(self) -> Settings:
        """Return the settings, after reading what hasn't been read yet."""
        with self._lock:
            if not self._read and not self._has_source:
                named = Environment.read().variables.get("CELERY_CONFIG_MODULE")
                if named:
                    self.use(named)
            while self._pending:
                self._pending[0]()
                del self._pending[0]
            self._read = True
        return self.settings

    def _later(self, take: Callable[[], None], *, now: bool = False) -> None:
        with self._lock:
            self._pending.append(take)
            if now or self._read:
                self.complete()


def zone(conf: Settings) -> tzinfo:
    """Return the zone of times that say none: `timezone`, else UTC, or this machine's if `enable_utc` is off."""
    if isinstance(conf.timezone, tzinfo):
        return conf.timezone
    if conf.timezone:
        from zoneinfo import ZoneInfo  # costs 2 ms, and few ask

        return ZoneInfo(conf.timezone)
    here = datetime.now().astimezone().tzinfo
    return UTC if conf.enable_utc or here is None else here


def from_environment(variable: str, *, silent: bool) -> str | None:
    """Return the module of settings that a variable of the environment names; None if silent and it isn't set.

    Raises:
        ImproperlyConfigured: it isn't set.
    """
    named = Environment.read().variables.get(variable)
    if not named and not silent:
        raise ImproperlyConfigured(f"{variable} is not set; it is to name a module of settings")
    return named or None
