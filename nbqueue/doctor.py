"""Finds out what is wrong with an installation, and says what to do: servers, keys, workers, what is open or unsafe.

The embedded server isn't started for that: where it doesn't run, what it would need is looked at.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import redis

from nbqueue import embedded, endpoints, server
from nbqueue.broker import ServerBroker
from nbqueue.config import (
    AMQP_SCHEMES,
    REDIS_SCHEMES,
    Environment,
    encrypted_way,
    in_the_open,
    mask,
    nodes_of,
    scheme_of,
)
from nbqueue.exceptions import NBQueueError
from nbqueue.limits import shown_size
from nbqueue.messages import python_version
from nbqueue.signing import read_key_file
from nbqueue.watcher import live_offers
from nbqueue.wire import connect

if TYPE_CHECKING:
    from nbqueue.app import App

Level = Literal["ok", "note", "broken"]

NAME: Final = "nbq-doctor"  # what servers show of its connections; the keeper doesn't count them
SKEW_NOTED_S: Final = 2.0
SKEW_BROKEN_S: Final = 60.0  # orders to workers are fresh for so long
DISK_NOTED_BYTES: Final = 1_000_000_000
DISK_BROKEN_BYTES: Final = 50_000_000
FULL: Final = 0.9  # of the memory that a server may use
_OLDEST_RABBITMQ: Final = (3, 10)
_PINGS: Final = 5
_AWAY: Final = "{} can't be used"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: `broken` is what keeps tasks from running or being safe; `note` what may.
        text: what was found.
        advice: what to do; empty where nothing is to be done.
    """

    level: Level
    text: str
    advice: str = ""


def examine(app: App) -> Iterator[Finding]:
    """Yield what is found about where an app is connected to, one after the other."""
    environment = Environment.read()
    places = embedded.Places.find(environment.variables)
    try:
        conf = app.conf
        configured = endpoints.broker_url(conf, environment) or conf.connection_file or environment.connection_file
        own_key = conf.key_file or environment.key_file
    except NBQueueError as exc:
        yield Finding("broken", f"settings: {exc}", "correct them")
        return
    key = Path(own_key) if own_key else places.key_file
    if own_key or key.exists():
        yield from _guarded(lambda: _key(key))
    yield from _directory(places)
    if not configured and not _runs(places):
        yield from _guarded(lambda: _not_running(places, environment))
        return
    try:
        link = app.link
    except NBQueueError as exc:
        yield Finding("broken", f"connection: {exc}", "correct what it names")
        return
    if link.file is not None:
        yield from _file("connection file", link.file)
    reached = True
    for url in dict.fromkeys(filter(None, (link.broker_url, link.backend_url))):
        nodes = nodes_of(url)
        for node in nodes:
            yield from encryption(node)
        for finding in _server(url) if len(nodes) == 1 else _cluster(nodes):
            reached = reached and not finding.text.startswith(_AWAY.format(mask(url)))
            yield finding
    if reached and link.backend_url is not None and scheme_of(link.backend_url) in REDIS_SCHEMES:
        yield from _guarded(lambda: _fleet(app))


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; an error of a server ends it, and is what it found."""
    try:
        yield from check()
    except (NBQueueError, redis.RedisError, OSError) as exc:
        yield Finding("broken", str(exc), "see that the server runs, and that this machine may use it")


# ---- this machine


def _key(path: Path) -> Iterator[Finding]:
    read_key_file(path)
    yield Finding("ok", f"key file {path} is readable by you only")


def _file(what: str, path: Path) -> Iterator[Finding]:
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield Finding("broken", f"{what} {path} can be read by others", f"run: chmod 600 {path}")
        else:
            yield Finding("ok", f"{what} {path} is readable by you only")


def _directory(places: embedded.Places) -> Iterator[Finding]:
    """Look at where data of this user lies; what has not been made yet is looked at where it would be."""
    if places.note:
        yield Finding("note", places.note, "set NBQUEUE_HOME to a directory that lasts")
    there = next(folder for folder in (places.data, *places.data.parents) if folder.exists())
    if there == places.data and stat.S_IMODE(there.stat().st_mode) & 0o077:
        yield Finding("broken", f"data directory {there} is open to others", f"run: chmod 700 {there}")
    if not os.access(there, os.W_OK):
        yield Finding("broken", f"{there} can't be written", "set NBQUEUE_HOME to a directory of yours")
    yield disk(shutil.disk_usage(there).free, places.data)


def disk(free_bytes: int, where: Path) -> Finding:
    """Judge how much room there is."""
    text = f"disk: {shown_size(free_bytes)} free for {where}"
    if free_bytes >= DISK_NOTED_BYTES:
        return Finding("ok", text)
    return Finding(
        "broken" if free_bytes < DISK_BROKEN_BYTES else "note", text, "make room, for instance with: nbqueue clean"
    )


def _runs(places: embedded.Places) -> bool:
    found = embedded.known(places) if places.data.exists() else None
    return found is not None and places.server.held()


def _not_running(places: embedded.Places, environment: Environment) -> Iterator[Finding]:
    places.check_format()
    binary = server.find_binary(environment.variables.get("PATH"))
    yield Finding("ok", f"no server is configured; the embedded one is not running, and starts when needed ({binary})")


# ---- servers


def encryption(url: str) -> Iterator[Finding]:
    """Yield what of a URL is open or unsafe."""
    scheme = scheme_of(url)
    if in_the_open(url):
        yield Finding(
            "note", f"what goes to {mask(url)} can be read and changed on the way", f"use {encrypted_way(url)}"
        )
    if parse_qs(urlsplit(url).query).get("ssl_cert_reqs", ["required"])[0] != "required":
        yield Finding("note", f"the certificate of {mask(url)} is not verified", "remove ssl_cert_reqs")
    if scheme in ("redis", "rediss", "sentinel") and _elsewhere(url) and not urlsplit(url).password:
        yield Finding("note", f"{mask(url)} is used without a password", "set requirepass or an ACL there")


def _elsewhere(url: str) -> bool:
    return in_the_open(url.replace("rediss://", "redis://", 1))


def _server(url: str) -> Iterator[Finding]:
    if scheme_of(url) in AMQP_SCHEMES:
        yield from _rabbitmq(url)
    elif scheme_of(url) in REDIS_SCHEMES:
        yield from _redis(url)


def _cluster(nodes: Sequence[str]) -> Iterator[Finding]:
    """Look at each node: one that is away is no more than a note, but that all share their queues is not known then."""
    clusters: dict[str, str] = {}
    away: list[Finding] = []
    for node in nodes:
        for finding in _rabbitmq(node, clusters):
            if finding.text.startswith(_AWAY.format(mask(node))):
                away.append(finding)
            else:
                yield finding
    if len(away) == len(nodes):
        text = _AWAY.format(mask(";".join(nodes)))
        said = f"{text}: none of {len(nodes)} nodes answers"
        yield Finding("broken", said, "see that they run, and user and vhost are right")
        return
    for finding in away:
        yield Finding("note", f"{finding.text}; another node takes its place", finding.advice)
    if len(set(clusters.values())) > 1:
        shown = ", ".join(f"{mask(node)} in {name}" for node, name in clusters.items())
        yield Finding(
            "broken",
            f"broker_url names servers of different clusters, which don't share their queues: {shown}",
            "name nodes of one cluster",
        )


def _redis(url: str) -> Iterator[Finding]:
    client = connect(url, name=NAME)
    try:
        times = []
        for _ in range(_PINGS):
            began = time.perf_counter()
            client.ping()
            times.append(time.perf_counter() - began)
        info: dict[str, Any] = client.info()
        is_valkey = "valkey_version" in info
        product = "Valkey" if is_valkey else "Redis"
        text = str(info.get("valkey_version") or info.get("redis_version") or "?")
        known = f"{mask(url)} answers in {1000 * sorted(times)[_PINGS // 2]:.2f} ms ({product} {text})"
        if _version(text) < server.FLOORS[product]:
            floor = ".".join(map(str, server.FLOORS[product][:2]))
            yield Finding("broken", known, f"{product} {floor} or later is needed")
        else:
            yield Finding("ok", known)
        yield from _risks(url, info)
        seconds, microseconds = client.time()
        yield skew(float(seconds) + float(microseconds) / 1e6 - time.time())
    except redis.AuthenticationError as exc:
        yield Finding("broken", f"{_AWAY.format(mask(url))}: {exc}", "correct user and password in the URL")
    except redis.RedisError as exc:
        yield Finding("broken", f"{_AWAY.format(mask(url))}: {exc}", "see that it runs, and may be reached from here")
    finally:
        client.close()


def _risks(url: str, info: dict[str, Any]) -> Iterator[Finding]:
    """Look at what may cost tasks and results."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding(
            "broken",
            f"{mask(url)} drops tasks and results when its memory is full (maxmemory-policy {policy})",
            "run there: CONFIG SET maxmemory-policy noeviction",
        )
    if not info.get("aof_enabled", 1):
        yield Finding(
            "note", f"{mask(url)} loses what it has not yet saved if it ends (appendonly no)", "set appendonly to yes"
        )
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if most and used > FULL * most:
        yield Finding("note", f"{mask(url)} uses {shown_size(used)} of {shown_size(most)} of memory", "raise maxmemory")
    if info.get("role") == "slave":
        yield Finding("broken", f"{mask(url)} is a replica, and takes no writes", "name the primary")
    if info.get("redis_mode") == "cluster":
        yield Finding("broken", f"{mask(url)} is a cluster, which nbqueue can't use", "name a single server")


def skew(ahead_s: float) -> Finding:
    """Judge how far a server's clock is ahead of this machine's."""
    if abs(ahead_s) < SKEW_NOTED_S:
        return Finding("ok", "clock: as the server's")
    text = f"clock: the server's is {abs(ahead_s):.0f} s {'ahead' if ahead_s > 0 else 'behind'}"
    return Finding("broken" if abs(ahead_s) > SKEW_BROKEN_S else "note", text, "set both by NTP")


def _rabbitmq(url: str, clusters: dict[str, str] | None = None) -> Iterator[Finding]:
    """Look at one node; note in `clusters` which cluster it is in."""
    from nbqueue import amqp  # noqa: PLC0415 - loads kombu

    try:
        connection = amqp.connect(url, name=NAME)
    except amqp.ERRORS as exc:
        yield Finding("broken", f"{_AWAY.format(mask(url))}: {exc}", "see that it runs, and user and vhost are right")
        return
    with contextlib.closing(connection):
        began = time.perf_counter()
        connection.channel()
        took = time.perf_counter() - began
        version = amqp.version_of(connection)
        if clusters is not None:
            clusters[url] = amqp.cluster_of(connection)
        shown = f"{mask(url)} answers in {1000 * took:.2f} ms (RabbitMQ {version[0]}.{version[1]})"
        if version < _OLDEST_RABBITMQ:
            yield Finding("broken", shown, "RabbitMQ 3.10 or later is needed")
        else:
            yield Finding("ok", shown)
        if version < (3, 12):
            yield Finding(
                "note",
                f"{mask(url)} takes back what isn't acknowledged within its consumer_timeout",
                "raise consumer_timeout there if tasks are longer than 30 minutes; copies are set aside meanwhile",
            )
    if (urlsplit(url).username or "guest") == "guest" and in_the_open(url.replace("amqps://", "amqp://", 1)):
        yield Finding("note", f"{mask(url)} is used as guest", "make a user with a password of its own")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdecimal())


# ---- workers and queues


def _fleet(app: App) -> Iterator[Finding]:
    backend = app.open_backend(NAME)
    broker = app.open_broker(NAME)
    try:
        offers = live_offers(backend, app.signer, backend.now())
        others = [offer.name for offer in offers if offer.key_id != app.signer.key_id]
        ours = [offer for offer in offers if offer.key_id == app.signer.key_id]
        if others:
            yield Finding(
                "note",
                f"workers with another key, which run none of your tasks: {', '.join(sorted(others))}",
                "start them with your connection file: nbqueue connect --export FILE",
            )
        here = python_version()
        for offer in ours:
            if offer.python and offer.python != here:
                yield Finding(
                    "note",
                    f"worker {offer.name} runs Python {offer.python}, and this is {here}",
                    "code that is sent along needs the same; tasks of modules run",
                )
        if ours:
            children = sum(offer.children for offer in ours)
            yield Finding("ok", f"{len(ours)} workers with your key, {children} children")
        elif app.link.embedded:
            yield Finding("ok", "no worker runs; the keeper starts one when something waits")
        else:
            yield Finding("note", "no worker has your key", "start one: nbqueue worker")
        if isinstance(broker, ServerBroker):
            yield from _queues(broker, {queue for offer in ours for queue in offer.queues}, ours)
    finally:
        broker.close()
        backend.close()


def _queues(broker: ServerBroker, heard: set[str], ours: list[Any]) -> Iterator[Finding]:
    if not any(offer.all_queues for offer in ours):
        for queue in sorted(broker.queues() - heard):
            if waiting := broker.size(queue).queued:
                yield Finding(
                    "note", f"{waiting} tasks wait in queue {queue}, and nobody listens", f"nbqueue worker -Q {queue}"
                )
    if dead := broker.count_dead():
        yield Finding("note", f"{dead} tasks were given up or rejected", "see: nbqueue dead")
