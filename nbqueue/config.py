"""Settings: one typed class with Celery's lower-case names, and the one place that reads the environment.

Where broker, backend and key come from, first wins: arguments, `app.conf`, `NBQUEUE_BROKER_URL` /
`NBQUEUE_RESULT_BACKEND` / `NBQUEUE_KEY_FILE`, a connection file (`NBQUEUE_CONNECTION_FILE`), the embedded server.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.limits import size_bytes
from nbqueue.routing import priority, queue_names, routers

REDIS_SCHEMES: Final = ("redis", "rediss", "redis+socket", "unix")
AMQP_SCHEMES: Final = ("amqp", "amqps")
SCHEMES: Final = (*REDIS_SCHEMES, *AMQP_SCHEMES, "memory")

_QUERY_SECRET: Final = re.compile(r"([?&](?:ssl_)?password=)[^&\s'\"]*")

# Settings of Celery that have no meaning here: accepted, so that a configuration can be carried over.
WITHOUT_MEANING: Final = frozenset(
    {
        *("worker_prefetch_multiplier", "broker_connection_retry_on_startup", "broker_transport_options", "enable_utc"),
        *("task_default_exchange", "task_default_exchange_type", "task_default_routing_key", "task_queue_max_priority"),
    }
)


@dataclass
class Settings:
    """Holds every setting; durations are seconds. Unknown names and wrong types raise, naming what is right."""

    broker_url: str | None = None
    result_backend: str | None = None
    key_file: str | None = None
    connection_file: str | None = None
    task_default_queue: str = "nbqueue"
    task_default_priority: int = 0  # 0 to 9, which is the soonest
    task_routes: Any = None  # as `routing.routers` takes it
    task_queues: tuple[str, ...] = ()  # what workers listen to by default; the default queue if empty
    task_create_missing_queues: bool = True  # False: a queue that isn't in task_queues is an error
    task_ignore_result: bool = False
    task_publish_retry: bool = True
    task_publish_retry_policy: dict[str, float] = field(
        default_factory=lambda: {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 2.0}
    )
    task_time_limit: float = 0.0  # seconds a task may run; 0: as long as it takes
    task_soft_time_limit: float = 0.0  # seconds after which SoftTimeLimitExceeded is raised in it; 0: never
    task_memory_limit: int = 0  # bytes, or a text such as "2 GB", that a task's child may use; 0: what there is
    worker_max_tasks_per_child: int = 0  # a child that has run so many is replaced; 0: never
    worker_max_memory_per_child: int = 0  # KiB; a child that uses more after a task is replaced; 0: never
    result_expires: float = 7 * 86_400.0
    blobs_max_bytes: float = 20e9  # of large data, on each machine and on the server; what is of no use goes first
    worker_concurrency: int = 0  # 0: as many as cores
    worker_lease: float = 10.0  # how long a claim holds without renewal
    worker_renewal: float = 3.0  # between renewals, and between two looks at lapsed claims
    worker_max_child_deaths: int = 3  # a task that ended its child this often is given up
    worker_max_losses: int = 10  # a task that lost its worker this often gets one more run, alone, and is given up then
    backend_timeout: float = 60.0  # how long a wait bears a backend that does not answer
    include: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        default = _DEFAULTS.get(name, _MISSING)
        if default is _MISSING:
            raise ImproperlyConfigured(unknown_setting(name))
        object.__setattr__(self, name, _checked(name, value, default))

    def update(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set several settings at once; all names are checked before any value is taken."""
        every = {**(values or {}), **more}
        for name in every:
            if name not in _DEFAULTS and name not in WITHOUT_MEANING:
                raise ImproperlyConfigured(unknown_setting(name))
        for name, value in every.items():
            if name not in WITHOUT_MEANING:
                setattr(self, name, value)

    def __repr__(self) -> str:
        """Return what differs from the defaults, without passwords: notebooks keep what they show."""
        shown = ((name, mask(value) if isinstance(value, str) else value) for name, value in self.changed().items())
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown)})"

    def changed(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        return {name: value for name, value in self.items() if value != _DEFAULTS[name]}

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield each name with its value."""
        for name in _DEFAULTS:
            yield name, getattr(self, name)


def unknown_setting(name: str) -> str:
    """Return the text that says a setting doesn't exist, and which one may have been meant."""
    near = difflib.get_close_matches(name, _DEFAULTS, n=1)
    return f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _checked(name: str, value: Any, default: Any) -> Any:
    if name in _OWN_CHECKS:
        return _OWN_CHECKS[name](value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ImproperlyConfigured(f"{name} must be True or False, not {value!r}")
    elif isinstance(default, int | float):
        value = _number(name, value, default)
    elif isinstance(default, tuple):
        value = (value,) if isinstance(value, str) else tuple(value)
    elif isinstance(default, dict):
        if not isinstance(value, Mapping):
            raise ImproperlyConfigured(f"{name} must be a dict, not {value!r}")
        value = {**default, **value}
    elif value is not None and not isinstance(value, str):
        raise ImproperlyConfigured(f"{name} must be a string, not {value!r}")
    return value


def _number(name: str, value: Any, default: float) -> float:
    if value is None and not default:
        return default  # Celery's way to say that there is no limit
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ImproperlyConfigured(f"{name} must be a number of at least 0, not {value!r}")
    return type(default)(value)


def _routes(value: Any) -> Any:
    routers(value)
    return value


_OWN_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "task_memory_limit": lambda value: size_bytes("task_memory_limit", value or None),
    "task_default_priority": lambda value: priority(value) or 0,
    "task_routes": _routes,
    "task_queues": queue_names,
}
_MISSING: Final = object()
_DEFAULTS: Final[dict[str, Any]] = {
    f.name: f.default_factory() if callable(f.default_factory) else f.default for f in dataclasses.fields(Settings)
}


@dataclass(frozen=True)
class Environment:
    """What nbqueue reads of the environment, read once."""

    broker_url: str | None
    result_backend: str | None
    key_file: str | None
    connection_file: str | None
    variables: Mapping[str, str] = field(repr=False)

    @classmethod
    def read(cls, variables: Mapping[str, str] | None = None) -> Environment:
        """Return the settings that the environment holds."""
        found = dict(os.environ) if variables is None else variables
        return cls(
            found.get("NBQUEUE_BROKER_URL") or None,
            found.get("NBQUEUE_RESULT_BACKEND") or None,
            found.get("NBQUEUE_KEY_FILE") or None,
            found.get("NBQUEUE_CONNECTION_FILE") or None,
            found,
        )


def scheme_of(url: str) -> str:
    """Return the scheme of a broker's or backend's URL.

    Raises:
        ImproperlyConfigured: nbqueue has no transport of that name.
    """
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f"did you mean {near[0]}://?" if near else f"it is one of {', '.join(f'{s}://' for s in SCHEMES)}"
        raise ImproperlyConfigured(f"{mask(url)} is no URL of a broker or backend nbqueue knows; {hint}")
    return scheme


def redis_url(url: str) -> str:
    """Return a URL in redis-py's form; `redis+socket:///path?virtual_host=1` is Celery's for a unix socket."""
    if scheme_of(url) != "redis+socket":
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{unquote(parts.path)}?db={database}"


def redis_beside(broker: str, backend: str | None) -> str:
    """Return the backend of a broker that needs a Redis beside it.

    Raises:
        ImproperlyConfigured: there is none.
    """
    if backend is None or scheme_of(backend) not in REDIS_SCHEMES:
        raise ImproperlyConfigured(
            f"{mask(broker)} carries messages and keeps no results: set result_backend, or NBQUEUE_RESULT_BACKEND, "
            "to a Redis such as redis://localhost"
        )
    return backend


def in_the_open(url: str) -> bool:
    """Tell whether a URL leads to another host without encryption."""
    if scheme_of(url) not in ("redis", "amqp"):
        return False
    host = urlsplit(url).hostname or "localhost"
    return not (host in ("localhost", "::1") or host.startswith("127."))


def mask(url: str) -> str:
    """Return a URL without its password, for logs, errors and pages."""
    url = _QUERY_SECRET.sub(r"\1***", url)
    head, sep, rest = url.partition("://")
    if not sep or "@" not in rest:
        return url
    login, _, host = rest.rpartition("@")
    user = login.partition(":")[0]
    return f"{head}://{user}:***@{host}" if ":" in login else f"{head}://***@{host}"


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for processes that outlive a kernel: without Jupyter's variables and our own."""
    kept = {name: value for name, value in variables.items() if not name.startswith(_NOT_FOR_CHILDREN)}
    if "inline" in kept.get("MPLBACKEND", "inline"):
        kept["MPLBACKEND"] = "agg"  # the kernel's own backend draws into a cell that isn't there
    return kept


def child_environment(variables: Mapping[str, str], children: int) -> dict[str, str]:
    """Return the environment of a worker's children: a clean one, with the cores shared out among them.

    Args:
        variables: of the worker.
        children: how many share this machine's cores.
    """
    kept = clean_environment(variables)
    threads = str(max(1, (os.cpu_count() or 1) // max(1, children)))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        kept.setdefault(name, threads)
    # Plotly would look for a browser here; the page that shows its figures is elsewhere.
    kept.setdefault("PLOTLY_RENDERER", "plotly_mimetype+notebook_connected")
    return kept


_NOT_FOR_CHILDREN: Final = ("JPY_", "JUPYTER_TOKEN", "JUPYTERHUB_", "NBQUEUE_")
