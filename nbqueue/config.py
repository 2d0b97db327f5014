"""Settings: one typed class with Celery's lower-case names, and the one place that reads the environment.

Where broker, backend and key come from, first wins: arguments, `app.conf`, `NBQUEUE_BROKER_URL` /
`NBQUEUE_RESULT_BACKEND` / `NBQUEUE_KEY_FILE`, a connection file (`NBQUEUE_CONNECTION_FILE`), the embedded server.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import enum
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from nbqueue import contents
from nbqueue.annotations import task_annotations
from nbqueue.bindings import KINDS, bound_queues
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.limits import size_bytes
from nbqueue.poolkinds import pool_kind
from nbqueue.rates import per_second
from nbqueue.routing import priority, routers

REDIS_SCHEMES: Final = ("redis", "rediss", "redis+socket", "unix", "sentinel")
AMQP_SCHEMES: Final = ("amqp", "amqps")
SCHEMES: Final = (*REDIS_SCHEMES, *AMQP_SCHEMES, "memory")
TRANSPORT_OPTIONS: Final = (
    *("socket_connect_timeout", "connect_timeout", "socket_keepalive", "master_name", "sentinel_kwargs"),
)
FAILOVER_STRATEGIES: Final = ("round-robin", "shuffle")
_AMQP: Final = ("amqp://", "amqps://", "pyamqp://")
_TRANSPORTS: Final = ("redis", "amqp", "pyamqp", "memory")
# Where Celery can keep results besides.
_ELSEWHERE: Final = frozenset(
    {
        *(
            "db",
            "database",
            "cache",
            "memcached",
            "mongodb",
            "cassandra",
            "couchbase",
            "couchdb",
            "elasticsearch",
            "s3",
        ),
        *("azureblockblob", "arangodb", "cosmosdbsql", "dynamodb", "consul", "file", "filesystem", "gs", "disabled"),
        *("django-db", "django-cache"),
    }
)
NEVER_S: Final = 100 * 365 * 86_400.0  # servers take such numbers, and none that are much larger

logger = logging.getLogger(__name__)

_QUERY_SECRET: Final = re.compile(r"([?&](?:ssl_|sentinel_)?password=)[^&\s'\"]*")
_NEXT_URL: Final = re.compile(r";(?=[a-z+]+://)", re.IGNORECASE)
_SECRET: Final = re.compile(
    r"pass|secret|token|(^|[_-])api|signature|credential|private|(^|[_-])key($|[_-])", re.IGNORECASE
)
_NO_SECRET: Final = re.compile(r"key_?file|routing_key|keyprefix|key_prefix", re.IGNORECASE)


class _Layered:
    """What settings are made of; apart, as it is no setting."""

    _layers: tuple[dict[str, Any], ...]  # one for each `Layer`
    _idle: dict[str, Any]  # what has no meaning here
    version = 0  # goes up when a setting changes
    _listeners: dict[str, Callable[[], None]]


@dataclass(init=False, repr=False, eq=False)
class Settings(_Layered):
    """Holds every setting; durations are seconds. Unknown names and wrong types raise, naming what is right.

    Each may be read and set as an attribute or an item, by its lower-case name or by Celery's old upper-case one. What
    was set in a program wins over `config_from_object`, and that over `add_defaults`. Settings of Celery that have no
    meaning here are kept, do nothing, and are named once in the log.
    """

    broker_url: str | None = None
    result_backend: str | None = None
    broker_read_url: str | None = None  # Celery's; the same as broker_url
    broker_write_url: str | None = None
    broker_use_ssl: Any = None  # True, or a dict: see `endpoints.tls_options`
    broker_transport_options: dict[str, Any] = field(default_factory=dict)  # `TRANSPORT_OPTIONS` have a meaning
    broker_connection_timeout: float | None = None  # seconds until a server that doesn't answer is away; 5 if None
    broker_failover_strategy: Any = None  # which node of a list is next: "round-robin", "shuffle", or what orders URLs
    broker_connection_retry_on_startup: bool = True  # False: a worker that doesn't reach its server at once fails
    broker_connection_retry: bool = True  # False: a worker that loses its server ends, with exit code 1
    broker_connection_max_retries: int = 0  # tries to reach a server again before it ends; 0: no limit
    broker_transport: str | None = None  # with the next five what broker_url says at once
    broker_host: str | None = None
    broker_port: int | None = None
    broker_user: str | None = None
    broker_password: str | None = None
    broker_vhost: str | None = None
    redis_backend_use_ssl: Any = None  # as broker_use_ssl
    result_backend_transport_options: dict[str, Any] = field(default_factory=dict)
    redis_socket_connect_timeout: float | None = None
    redis_socket_keepalive: bool | None = None
    redis_host: str | None = None  # with the next four what result_backend says at once, where that is "redis"
    redis_port: int | None = None
    redis_db: int | None = None
    redis_username: str | None = None
    redis_password: str | None = None
    key_file: str | None = None
    connection_file: str | None = None
    task_default_queue: str = "nbqueue"
    task_allow_error_cb_on_chord_header: bool = False  # True: its members tell a chord's errbacks too
    task_inherit_parent_priority: bool = False  # True: calls that a task makes have its priority
    task_default_priority: int = 0  # 0 to 9, which is the soonest
    task_routes: Any = None  # as `routing.routers` takes it
    task_queues: tuple[str, ...] = ()  # what workers listen to by default; the default queue if empty
    task_default_exchange: str | None = None  # of queues and calls that name none; the default queue's name if None
    task_default_exchange_type: str = "direct"  # of that
    task_default_routing_key: str | None = None  # likewise; the default queue's name if None
    worker_direct: bool = False  # each worker also listens to a queue of its own, NAME.dq
    task_create_missing_queues: bool = True  # False: a queue that isn't in task_queues is an error
    task_annotations: Any = None  # options of tasks, over what they say themselves; see `nbqueue.annotations`
    task_ignore_result: bool = False
    task_always_eager: bool = False  # calls run in the process that makes them
    task_eager_propagates: bool = False  # such a call raises what it fails with
    task_store_eager_result: bool = False  # and is kept in the backend
    task_serializer: str = "cloudpickle"  # of arguments; the first that accept_content names, if that hasn't this
    result_serializer: str = "cloudpickle"  # of values; likewise
    accept_content: tuple[str, ...] = ("cloudpickle", "json")  # what workers, and those who ask for results, load
    result_accept_content: tuple[str, ...] = ()  # what those who ask for results load; as accept_content if empty
    task_compression: str = ""  # of arguments: one of `contents.COMPRESSIONS`
    result_compression: str = ""  # of values
    task_publish_retry: bool = True
    task_publish_retry_policy: dict[str, float] = field(
        default_factory=lambda: {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 2.0}
    )
    task_time_limit: float = 0.0  # seconds a task may run; 0: as long as it takes
    task_soft_time_limit: float = 0.0  # seconds after which SoftTimeLimitExceeded is raised in it; 0: never
    task_memory_limit: int = 0  # bytes, or a text such as "2 GB", that a task's child may use; 0: what there is
    task_acks_late: bool = True  # False: a message counts as acknowledged from its claim on, and never runs again
    task_acks_on_failure: bool | None = None  # with the next in place of what the one after says of both
    task_acks_on_timeout: bool | None = None
    task_acks_on_failure_or_timeout: bool = True  # False: what fails is kept, and what runs out of time runs again
    task_reject_on_worker_lost: bool = True  # False: a task fails when it has lost one child
    task_retry_on_worker_lost: bool = False  # True: that is one of its retries
    worker_enable_remote_control: bool = True  # False: workers answer no commands, neither ours nor Celery's
    worker_send_task_events: bool = False  # True: workers send Celery's events, for monitors
    task_send_sent_event: bool = False  # True: clients send an event for each call
    event_exchange: str = "celeryev"  # where events go
    event_queue_prefix: str = "celeryev"  # of the queues of those who read them
    control_exchange: str = "celery"  # what Celery's programs call the place of their commands
    worker_serve_celery: bool = False  # True: workers follow also those commands of Celery's that change something
    task_default_rate_limit: str | float | None = None  # of tasks that say nothing: "10/m", or a number a second
    worker_disable_rate_limits: bool = False  # a worker that keeps none
    worker_max_tasks_per_child: int = 0  # a child that has run so many is replaced; 0: never
    worker_max_memory_per_child: int = 0  # KiB; a child that uses more after a task is replaced; 0: never
    result_extended: bool = False  # True: results have args and kwargs too, if these are short
    result_expires: float = 7 * 86_400.0
    result_failure_expires: float | None = None  # of tasks that failed, and their messages; as the others if None
    blobs_max_bytes: float = 20e9  # of large data, on each machine and on the server; what is of no use goes first
    worker_pool: str = "prefork"  # or "threads", or "solo"
    worker_concurrency: int = 0  # 0: as many as cores; "auto": as many of them as this process may use
    worker_soft_shutdown_timeout: float = 0.0  # how long a cold stop waits for running tasks
    worker_lease: float = 10.0  # how long a claim holds without renewal
    worker_renewal: float = 3.0  # between renewals, and between two looks at lapsed claims
    worker_max_child_deaths: int = 3  # a task that ended its child this often is given up
    worker_max_losses: int = 10  # a task that lost its worker this often gets one more run, alone, and is given up then
    worker_log_format: str | None = None  # of a worker's log lines; as `log.FORMAT` if None
    worker_log_datefmt: str | None = None  # of their times
    worker_task_log_format: str | None = None  # of what tasks log, with %(task_name)s and %(task_id)s
    worker_task_log_datefmt: str | None = None  # of its times
    beat_schedule: Any = field(default_factory=dict)  # entries by name, as `periodic.configured` takes them
    beat_cron_starting_deadline: float | None = None  # how long a cron entry may be due and still be sent
    backend_timeout: float = 60.0  # how long a wait bears a backend that does not answer
    include: tuple[str, ...] = ()  # modules with tasks, imported by workers
    imports: tuple[str, ...] = ()  # the same, under its other name
    timezone: Any = None  # of what is said without one: schedules; a name such as "Europe/Oslo"
    enable_utc: bool = True  # where timezone isn't set: UTC, or this machine's zone

    def __init__(self, **values: Any) -> None:
        for name in _DEFAULTS.keys() - vars(Settings).keys():  # those that may be changed in place
            object.__setattr__(self, name, copy.copy(_DEFAULTS[name]))
        object.__setattr__(self, "_layers", tuple({} for _ in Layer))
        object.__setattr__(self, "_idle", {})
        object.__setattr__(self, "_listeners", {})
        self.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        self.put({name: value}, Layer.CHANGES)

    def __setitem__(self, name: str, value: Any) -> None:
        self.put({name: value}, Layer.CHANGES)

    def __getitem__(self, name: str) -> Any:
        setting = self._named(name)
        if setting is None:
            raise KeyError(unknown_setting(name))
        return getattr(self, setting) if setting in _DEFAULTS else self._idle.get(setting)

    if not TYPE_CHECKING:  # a name that doesn't exist is an error to type checkers

        def __getattr__(self, name: str) -> Any:
            """Return a setting by its old name, or one that has no meaning here; only others come this way."""
            if name.startswith("_"):
                raise AttributeError(name)
            try:
                return self[name]
            except KeyError as exc:
                raise AttributeError(exc.args[0]) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._named(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(_DEFAULTS)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting; `default` if there is none of that name, or it has no value."""
        setting = self._named(name)
        value = None if setting is None else self[setting]
        return default if value is None else value

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return a setting; one that has no value is set to `default` before."""
        if self.get(name) is None:
            self[name] = default
        return self[name]

    def update(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set several settings at once; all are checked before any is taken."""
        self.put({**(values or {}), **more}, Layer.CHANGES)

    def put(self, values: Mapping[str, Any], layer: Layer) -> None:
        """Set settings where they belong: what a layer above has set stays.

        Raises:
            ImproperlyConfigured: a name or value is wrong. Nothing is taken then.
        """
        checked: dict[str, Any] = {}
        idle: dict[str, Any] = {}
        for name, value in values.items():
            setting = name if name in _DEFAULTS else self._named(name)
            if setting is None:
                raise ImproperlyConfigured(unknown_setting(name))
            if setting in _DEFAULTS:
                checked[setting] = _checked(setting, value, _DEFAULTS[setting])
            else:
                idle[setting] = value
        self._layers[layer].update(checked)
        for name in checked:
            self._settle(name)
        for name in checked.keys() & self._listeners.keys():
            self._listeners[name]()
        if new := [name for name, value in idle.items() if name not in self._idle and value]:
            logger.warning("without meaning here, and doing nothing: %s", ", ".join(sorted(new)))
        self._idle.update(idle)

    def when_set(self, name: str, listener: Callable[[], None]) -> None:
        """Call a function each time a setting is set."""
        self._listeners[name] = listener

    def replace(self, values: Mapping[str, Any], layer: Layer) -> None:
        """Set settings in place of all that a layer has.

        Raises:
            ImproperlyConfigured: a name or value is wrong. Nothing is taken then.
        """
        before = dict(self._layers[layer])
        self._layers[layer].clear()
        try:
            self.put(values, layer)
        except BaseException:
            self._layers[layer].update(before)
            raise
        for name in before:
            self._settle(name)

    @property
    def changes(self) -> dict[str, Any]:
        """Return what was set, by lower-case names."""
        set_here = {name: getattr(self, name) for layer in self._layers for name in layer}
        return {**self._idle, **set_here, **self.changed()}

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """Return what was set, by lower-case names, without secrets.

        Args:
            with_defaults: all settings.
            censored: put stars in place of passwords, tokens and the like, however deep they are.
        """
        found = {**(dict(self.items()) if with_defaults else {}), **self.changes}
        return {name: masked(value, name) if censored else value for name, value in sorted(found.items())}

    def humanize(self, with_defaults: bool = False, censored: bool = True) -> str:
        """Return what was set as lines of text; arguments as `table`."""
        return "\n".join(
            f"{name}: {value!r}" for name, value in self.table(with_defaults=with_defaults, censored=censored).items()
        )

    def __repr__(self) -> str:
        """Return what differs from the defaults, without passwords: notebooks keep what they show."""
        shown = ((name, masked(value, name)) for name, value in self.changed().items())
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown)})"

    def changed(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        return {name: value for name, value in self.items() if value != _DEFAULTS[name]}

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield each name with its value."""
        for name in _DEFAULTS:
            yield name, getattr(self, name)

    def keys(self) -> Iterator[str]:
        """Yield each name."""
        yield from _DEFAULTS

    def values(self) -> Iterator[Any]:
        """Yield each value."""
        for name in _DEFAULTS:
            yield getattr(self, name)

    def _named(self, name: str) -> str | None:
        if name in _DEFAULTS:
            return name
        from nbqueue.celery_settings import new_name  # Celery's names, which a program of our own doesn't need

        return new_name(name, _DEFAULTS)

    def _settle(self, name: str) -> None:
        """Let a setting have its value of the highest layer that has one."""
        value = copy.copy(_DEFAULTS[name])
        for layer in self._layers:
            value = layer.get(name, value)
        object.__setattr__(self, name, value)
        object.__setattr__(self, "version", self.version + 1)
        if name in _OF_CONTENT:
            self._settle_content()

    def _settle_content(self) -> None:
        """Let what is sent be what is accepted, where nothing else was said."""
        for name, accepted in (
            ("task_serializer", self.accept_content),
            ("result_serializer", self.result_accept_content or self.accept_content),
        ):
            if not any(name in layer for layer in self._layers):
                value = _DEFAULTS[name] if _DEFAULTS[name] in contents.accepts(accepted) else accepted[0]
                object.__setattr__(self, name, value)


class Layer(enum.IntEnum):
    """Where a setting comes from; the last wins."""

    DEFAULTS = 0
    SOURCE = 1
    CHANGES = 2


def unknown_setting(name: str) -> str:
    """Return the text that says a setting doesn't exist, and which one may have been meant."""
    from nbqueue.celery_settings import nearest  # see `Settings`

    near = nearest(name, _DEFAULTS)
    return f"there is no setting {name!r}" + (f"; did you mean {near!r}?" if near else "")


def _checked(name: str, value: Any, default: Any) -> Any:
    if name in _OWN_CHECKS:
        return _OWN_CHECKS[name](value)
    if value is None:
        return copy.copy(default)  # Celery's way to say that nothing was set
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
    elif not isinstance(value, str):
        raise ImproperlyConfigured(f"{name} must be a string, not {value!r}")
    return value


def _number(name: str, value: Any, default: float) -> float:
    if isinstance(value, timedelta) and isinstance(default, float):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ImproperlyConfigured(f"{name} must be a number of at least 0, not {value!r}")
    return type(default)(value)


def _concurrency(value: Any) -> int:
    """Return how many children; what may be used of this machine for `auto`."""
    if value == "auto":
        from nbqueue.cores import usable_cores  # few ask

        return usable_cores()
    return int(_number("worker_concurrency", value or 0, 0))


def _routes(value: Any) -> Any:
    routers(value)
    return value


def _expiry(value: Any, name: str = "result_expires") -> float:
    """Return seconds; Celery's ways to say never are None and 0."""
    return NEVER_S if not value and not isinstance(value, bool) else _number(name, value, 0.0)


def _time_zone(value: Any) -> Any:
    """Return a name of a zone, or one that has no name; None for none.

    Raises:
        ImproperlyConfigured: there is no such zone.
    """
    import zoneinfo  # costs 3 ms, and few ask

    if value is None or isinstance(value, tzinfo):
        return getattr(value, "key", None) or value
    try:
        zoneinfo.ZoneInfo(value)
    except (TypeError, ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        near = difflib.get_close_matches(str(value), zoneinfo.available_timezones(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ImproperlyConfigured(f"timezone must be a name such as 'Europe/Oslo', not {value!r}{hint}") from None
    return value


def checked_broker_url(value: Any) -> str | None:
    """Return a URL, several of one RabbitMQ cluster, or the name of a transport whose server the other settings name.

    Raises:
        ImproperlyConfigured: it is nothing of these.
    """
    urls = _urls(value)
    if len(urls) > 1 and isinstance(urls[0], str) and urls[0].startswith(_AMQP):
        return _cluster_url([str(url) for url in urls])
    url = _one_url("broker_url", value)
    if url is None or url in _TRANSPORTS:
        return url
    if url.startswith("pyamqp://"):
        url = url.removeprefix("py")
    scheme_of(url)
    return url


def _cluster_url(urls: Sequence[str]) -> str:
    """Return one text of the URLs of a cluster's nodes.

    Raises:
        ImproperlyConfigured: they can't be nodes of one cluster.
    """
    nodes = list(dict.fromkeys(url.removeprefix("py") if url.startswith("pyamqp://") else url for url in urls))
    for node in nodes:
        if scheme_of(node) != scheme_of(nodes[0]):
            raise ImproperlyConfigured(
                f"broker_url: {mask(node)} is no node of a cluster beside {mask(nodes[0])}; begin each URL with "
                f"{scheme_of(nodes[0])}://"
            )
    hosts = {unquote(urlsplit(node).path.removeprefix("/")) or "/" for node in nodes}
    if len(hosts) > 1:
        shown = ", ".join(sorted(hosts))
        raise ImproperlyConfigured(
            f"broker_url: nodes of one cluster have one virtual host, not {shown}; end each URL with the same"
        )
    return ";".join(nodes)


def _failover_strategy(value: Any) -> Any:
    if value is None or callable(value) or value in FAILOVER_STRATEGIES:
        return value
    near = difflib.get_close_matches(str(value), FAILOVER_STRATEGIES, n=1)
    raise ImproperlyConfigured(
        f"broker_failover_strategy must be 'round-robin', 'shuffle' or a callable, not {value!r}"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def _result_backend(value: Any) -> str | None:
    """Return a URL, or `redis` if the other settings name its server."""
    url = _one_url("result_backend", value)
    if url is None or url == "redis":
        return url
    kind = url.partition(":")[0].lower()
    if kind in ("amqp", "amqps", "pyamqp", "rpc"):
        raise ImproperlyConfigured(
            f"result_backend {mask(url)!r}: results over RabbitMQ (rpc://) come with a later version; set it to a "
            "Redis, such as redis://localhost, or set task_ignore_result where nobody asks for results"
        )
    if kind not in SCHEMES and kind.partition("+")[0] in _ELSEWHERE:
        raise ImproperlyConfigured(
            f"result_backend {mask(url)!r}: nbqueue keeps results in Redis only; set it to one, such as redis://localhost"
        )
    scheme_of(url)
    return url


def _one_url(name: str, value: Any) -> str | None:
    """Return the one URL in a setting that may be a list, or a text with semicolons."""
    urls = _urls(value)
    if not urls:
        return None
    if isinstance(urls[0], str) and urls[0].startswith("sentinel://"):
        return sentinel_url(str(url) for url in urls)
    if not isinstance(urls[0], str):
        raise ImproperlyConfigured(f"{name} must be a URL such as 'redis://localhost', not {urls[0]!r}")
    if len(urls) > 1:
        raise ImproperlyConfigured(
            f"{name} names {len(urls)} servers, which don't share their data, so none can take over for another: name "
            "one, which is waited for while it is away, or the sentinels that know which it is: "
            "sentinel://host:26379;other:26379?master_name=NAME"
        )
    return urls[0]


def _urls(value: Any) -> list[Any]:
    """Return what a setting has that may be a list, or a text with semicolons."""
    parts = value if isinstance(value, list | tuple) else [value]
    return [url for part in parts for url in (part.split(";") if isinstance(part, str) else [part]) if url]


def _optional(name: str, kind: type, word: str) -> Callable[[Any], Any]:
    """Return what checks a setting that may be None, and else is of a type."""

    def check(value: Any) -> Any:
        if kind is int and isinstance(value, str) and value.isdecimal():
            value = int(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value is not None and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
            raise ImproperlyConfigured(f"{name} must be {word}, not {value!r}")
        return value

    return check


def _exchange_type(value: Any) -> str:
    if value not in (None, *KINDS):
        raise ImproperlyConfigured(f"task_default_exchange_type must be one of {', '.join(KINDS)}, not {value!r}")
    return value or "direct"


def _tls(name: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        from nbqueue.tls import tls_options  # few need it

        tls_options(name, value)
        return value or None

    return check


def _transport_options(name: str) -> Callable[[Any], dict[str, Any]]:
    def check(value: Any) -> dict[str, Any]:
        if value is not None and not isinstance(value, Mapping):
            raise ImproperlyConfigured(f"{name} must be a dict, not {value!r}")
        if idle := [str(key) for key in value or () if key not in TRANSPORT_OPTIONS]:
            logger.warning("%s: without meaning here, and doing nothing: %s", name, ", ".join(sorted(idle)))
        return dict(value or {})

    return check


_OF_CONTENT: Final = frozenset({"accept_content", "result_accept_content", "task_serializer", "result_serializer"})
_OWN_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "broker_url": checked_broker_url,
    "broker_read_url": checked_broker_url,
    "broker_write_url": checked_broker_url,
    "broker_failover_strategy": _failover_strategy,
    "result_backend": _result_backend,
    **{name: _tls(name) for name in ("broker_use_ssl", "redis_backend_use_ssl")},
    **{name: _transport_options(name) for name in ("broker_transport_options", "result_backend_transport_options")},
    **{name: _optional(name, int, "a number") for name in ("broker_port", "redis_port", "redis_db")},
    **{
        name: _optional(name, float, "a number of seconds")
        for name in ("broker_connection_timeout", "redis_socket_connect_timeout", "beat_cron_starting_deadline")
    },
    **{name: _optional(name, bool, "True or False") for name in ("task_acks_on_failure", "task_acks_on_timeout")},
    "redis_socket_keepalive": _optional("redis_socket_keepalive", bool, "True or False"),
    "result_expires": _expiry,
    "result_failure_expires": lambda value: None if value is None else _expiry(value, "result_failure_expires"),
    "task_serializer": lambda value: contents.serializer(value or contents.DEFAULT),
    "result_serializer": lambda value: contents.serializer(value or contents.DEFAULT),
    "accept_content": lambda value: contents.accepted(value or Settings.accept_content),
    "result_accept_content": lambda value: contents.accepted(value) if value else (),
    "task_compression": contents.compression,
    "result_compression": contents.compression,
    "timezone": _time_zone,
    "worker_pool": pool_kind,
    "worker_concurrency": _concurrency,
    "task_default_rate_limit": lambda value: value if per_second(value) else None,
    "task_memory_limit": lambda value: size_bytes("task_memory_limit", value or None),
    "task_default_priority": lambda value: priority(value) or 0,
    "task_annotations": task_annotations,
    "task_routes": _routes,
    "task_default_exchange": _optional("task_default_exchange", str, "a string"),
    "task_default_exchange_type": _exchange_type,
    "task_queues": bound_queues,
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
    remap_sigterm: bool = False  # TERM stops a worker as QUIT does
    autoscale_keep_s: float = 30.0  # children that were not needed for so long end

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
            found.get("REMAP_SIGTERM") == "SIGQUIT",  # Celery's names, this and the next
            _seconds(found.get("AUTOSCALE_KEEPALIVE"), 30.0),
        )


def _seconds(text: str | None, otherwise: float) -> float:
    try:
        return float(text) if text else otherwise
    except ValueError:
        raise ImproperlyConfigured(f"AUTOSCALE_KEEPALIVE must be a number of seconds, not {text!r}") from None


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


def nodes_of(url: str) -> list[str]:
    """Return the URLs of the nodes that a URL names: of RabbitMQ it may be several, one after the other.

    >>> nodes_of("amqp://a//;amqp://b//"), nodes_of("sentinel://a;b/0?master_name=m")
    (['amqp://a//', 'amqp://b//'], ['sentinel://a;b/0?master_name=m'])
    """
    return url.split(";") if scheme_of(url) in AMQP_SCHEMES else [url]


def redis_url(url: str) -> str:
    """Return a URL in redis-py's form; `redis+socket:///path?virtual_host=1` is Celery's for a unix socket."""
    if scheme_of(url) != "redis+socket":
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{unquote(parts.path)}?db={database}"


def sentinel_url(urls: Iterable[str]) -> str:
    """Return one URL of several sentinels, as Celery writes them one after the other.

    >>> sentinel_url(["sentinel://:pw@a:26379", "sentinel://b:26379/1"])
    'sentinel://:pw@a:26379;b:26379/1'
    """
    logins, hosts, path, query = "", [], "", ""
    for url in urls:
        rest, _, given = url.removeprefix("sentinel://").partition("?")
        where, _, database = rest.partition("/")
        login, at, host = where.rpartition("@")
        logins, path, query = f"{login}{at}" or logins, database or path, given or query
        hosts.append(host)
    return f"sentinel://{logins}{';'.join(hosts)}" + (f"/{path}" if path else "") + (f"?{query}" if query else "")


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
    if len(nodes := nodes_of(url)) > 1:
        return any(in_the_open(node) for node in nodes)
    if scheme_of(url) not in ("redis", "amqp", "sentinel") or "ssl=True" in url:
        return False
    parts = urlsplit(url)
    hosts = [text.partition(":")[0] for text in parts.netloc.rpartition("@")[2].split(";")] if ";" in url else []
    return any(
        not (host in ("localhost", "::1") or host.startswith("127."))
        for host in hosts or [parts.hostname or "localhost"]
    )


def encrypted_way(url: str) -> str:
    """Return what would encrypt the way to a server, for people."""
    scheme = scheme_of(url)
    return "broker_use_ssl" if scheme == "sentinel" else f"{scheme}s://"


def mask(url: str) -> str:
    """Return a URL, or several one after the other, without passwords, for logs, errors and pages.

    >>> mask("amqp://me:secret@a//;amqp://me:secret@b//")
    'amqp://me:***@a//;amqp://me:***@b//'
    """
    if len(urls := _NEXT_URL.split(url)) > 1:
        return ";".join(mask(one) for one in urls)
    url = _QUERY_SECRET.sub(r"\1***", url)
    head, sep, rest = url.partition("://")
    if not sep or "@" not in rest:
        return url
    login, _, host = rest.rpartition("@")
    user = login.partition(":")[0]
    return f"{head}://{user}:***@{host}" if ":" in login else f"{head}://***@{host}"


def masked(value: Any, name: str = "") -> Any:
    """Return a value without secrets: of the names that such have, and passwords in URLs, however deep they are.

    >>> masked({"redis://:pw@host": [{"api_key": "1234", "queue": "a"}]})
    {'redis://:***@host': [{'api_key': '***', 'queue': 'a'}]}
    """
    if _SECRET.search(name) and not _NO_SECRET.search(name) and value not in (None, "", (), {}):
        return "***"
    if isinstance(value, str):
        return " ".join(mask(word) if "://" in word else word for word in value.split(" "))
    if isinstance(value, Mapping):
        return {masked(key): masked(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        parts = [masked(part, name) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if value is None or isinstance(value, bool | int | float | timedelta):
        return value
    return masked(repr(value))


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
