"""RabbitMQ through kombu's own transport: connections that are read without waiting, queues, and confirmed sends.

A queue of ours is a durable quorum queue for each priority that is in use. One that exists already is used as it is.

Source: RabbitMQ's guides "Quorum Queues" and "Consumer Acknowledgements and Publisher Confirms".
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import amqp
import kombu
from amqp import method_framing, spec
from kombu.transport import pyamqp

from nbqueue.config import mask, nodes_of
from nbqueue.deliveries import Outgoing, lane_of, stream_key
from nbqueue.exceptions import ImproperlyConfigured, SendFailed, SendUncertain

# py-amqp says in many ways that a connection has ended.
ERRORS: Final = (amqp.exceptions.AMQPError, OSError, AttributeError, struct.error)
ANSWER_S: Final = 5.0
_READ_BYTES: Final = 1 << 18
_FRESH_S: Final = 0.1  # a connection that was in order so long ago is not looked at before it is used
_PUBLISHES: Final = 64  # between two looks at what the server says
_METHOD_FRAME, _CONTENT_HEADER, _BODY = 1, 2, 3  # kinds of frames
_NO_PROPERTIES: Final = 12  # bytes of it that come before a message's properties
_NAME_BYTES: Final = 255
_MANY_RETURNS: Final = (4, 0)  # the first version whose quorum queues drop what came back 20 times
_FRAME: Final = struct.Struct(">BHI")
_METHOD: Final = struct.Struct(">HH")
_CONTENT: Final = struct.Struct(">HHQH")
_INTEGER: Final = struct.Struct(">B1s1si")
_PROPERTIES: Final = 0x8000 | 0x2000 | 0x1000  # content type, headers, delivery mode
_CONTENT_TYPE: Final = b"\x15application/x-nbqueue"

logger = logging.getLogger(__name__)


class Channel(pyamqp.Channel):
    """A channel that keeps what comes until somebody looks."""

    def _setup_listeners(self) -> None:
        super()._setup_listeners()
        self.arrived: list[tuple[int, str, Any]] = []  # delivery tag, consumer tag, message
        self.counts: list[int] = []
        self._callbacks[spec.Queue.DeclareOk] = lambda _name, messages, _consumers: self.counts.append(messages)

    def _on_basic_deliver(
        self, consumer_tag: str, delivery_tag: int, _redelivered: bool, _exchange: str, _key: str, message: Any
    ) -> None:
        self.arrived.append((delivery_tag, consumer_tag, message))


def _frame_handler(connection: Any, callback: Any) -> Callable[[tuple[int, int, bytes]], bool]:
    """Return py-amqp's reader of frames, but for properties that can't be read: it would raise at each delivery."""
    read = method_framing.frame_handler(connection, callback)

    def on_frame(frame: tuple[int, int, bytes]) -> bool:
        kind, channel, text = frame
        try:
            return bool(read(frame))
        except (ValueError, struct.error, IndexError, amqp.exceptions.FrameSyntaxError):
            if kind != _CONTENT_HEADER:
                raise
            return bool(read((kind, channel, text[:_NO_PROPERTIES] + b"\0\0")))

    return on_frame


class Connection(pyamqp.Connection):
    """A connection that can be read without waiting."""

    Channel = Channel

    def pump(self, wait_s: float = 0.0) -> bool:
        """Handle all that has come, waiting for something up to `wait_s`; tell whether there was anything.

        py-amqp's own way to read takes nine system calls a message.
        """
        if not self.connected:
            raise ConnectionResetError("the connection was closed")
        transport = self.transport
        waits = [] if wait_s <= 0 else select.select([transport.sock], [], [], wait_s)[0]
        if wait_s > 0 and not waits:
            return False
        # Where py-amqp's waiting calls will look for the rest.
        transport._read_buffer = b"".join((transport._read_buffer, *_read(transport.sock)))  # noqa: SLF001
        return self._handle_frames()

    def write(self, frames: bytes) -> None:
        """Send finished frames."""
        if not self.connected:
            raise ConnectionResetError("the connection was closed")
        self.transport.write(frames)
        self.bytes_sent += 1  # by which heartbeats know that something was sent

    def _handle_frames(self) -> bool:
        transport = self.transport
        text = transport._read_buffer  # noqa: SLF001
        at, frames = 0, []
        while len(text) - at >= _FRAME.size:
            kind, channel, size = _FRAME.unpack_from(text, at)
            end = at + _FRAME.size + size
            if len(text) <= end:
                break
            frames.append((kind, channel, text[at + _FRAME.size : end]))
            at = end + 1
        transport._read_buffer = text[at:]  # noqa: SLF001
        for frame in frames:
            self.on_inbound_frame(frame)
        return bool(frames)


class Transport(pyamqp.Transport):
    """kombu's transport with connections of this kind."""

    Connection = Connection


class _Alternating(kombu.Connection):
    """kombu's connection, which by itself takes every node's certificate to be in the name of the first."""

    ssl: Any

    def switch(self, conn_str: str) -> None:
        """Go on with another node."""
        super().switch(conn_str)
        if isinstance(self.ssl, dict) and self.ssl.get("server_hostname"):
            self.ssl = {**self.ssl, "server_hostname": self.hostname}


def kombu_connection(url: str, **options: Any) -> kombu.Connection:
    """Return kombu's own connection, for what isn't ours; nothing is connected yet.

    Args:
        url: as of `connect`; of several nodes it goes on with the next by itself.
        options: of kombu's connection.
    """
    urls = []
    for node in nodes_of(url):
        parts = urlsplit(node)
        port = "" if parts.port else f":{5671 if parts.scheme == 'amqps' else 5672}"
        plain = parts._replace(scheme="pyamqp", netloc=f"{parts.netloc.removesuffix(':')}{port}", query="")
        urls.append(plain.geturl())
    return _Alternating(urls if len(urls) > 1 else urls[0], ssl=tls_of(nodes_of(url)[0]), **options)


class Nodes:
    """The ways to a server: one, or the nodes of a cluster, any of which will do.

    A connection is to the next that answers. The first is tried first, and after one that failed the one behind it.

    Args:
        url: as of `connect`.
    """

    def __init__(self, url: str) -> None:
        self._urls = nodes_of(url)
        self._at = 0
        self._used = ""
        self._cluster = ""

    def connect(
        self, *, name: str, heartbeat_s: float = 0.0, answer_s: float = ANSWER_S, longest_s: float = math.inf
    ) -> Connection:
        """Return an open connection.

        Args:
            name: what the server shows of it.
            heartbeat_s: after so long without a sign of life each side gives the other up; 0: never.
            answer_s: how long to wait for any one answer.
            longest_s: after so long no further node is tried; the next call does.
        """
        began = time.monotonic()
        for left in reversed(range(len(self._urls))):
            url = self._urls[self._at]
            try:
                return self._of_cluster(url, _connect(url, name, heartbeat_s, answer_s))
            except ERRORS as exc:
                self.failed()
                if not left or time.monotonic() - began >= longest_s:
                    raise
                logger.info("%s can't be used, the next node is tried: %s", mask(url), exc)
        raise AssertionError("unreachable")

    def failed(self) -> None:
        """Begin with the next node next time."""
        self._at = (self._at + 1) % len(self._urls)

    def _of_cluster(self, url: str, connection: Connection) -> Connection:
        """Refuse a server that shares no queues with the one that was used before."""
        cluster = cluster_of(connection)
        if self._cluster and cluster and cluster != self._cluster:
            connection.collect()
            raise ConnectionError(
                f"{mask(url)} is in the cluster {cluster}, and what was used before in {self._cluster}"
            )
        if self._used not in ("", url):
            logger.info("%s is used from now on", mask(url))
        self._used, self._cluster = url, self._cluster or cluster
        return connection


def connect(url: str, *, name: str) -> Connection:
    """Return an open connection; fails at once where nothing answers.

    Args:
        url: `amqp://` or `amqps://`; certificates are verified, `?ssl_ca_certs=FILE` names who signs them. Its other
            parameters: ssl_certfile, ssl_keyfile, ssl_cert_reqs, ssl_check_hostname, connect_timeout. Several, with
            semicolons between them, are the nodes of one cluster.
        name: what the server shows of it.
    """
    return Nodes(url).connect(name=name)


def _connect(url: str, name: str, heartbeat_s: float, answer_s: float) -> Connection:
    """Return an open connection to one node."""
    given = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    client = kombu_connection(
        url,
        heartbeat=heartbeat_s,
        connect_timeout=float(given.get("connect_timeout", answer_s)),
        transport_options={
            "client_properties": {"connection_name": name},
            "read_timeout": answer_s,
            "write_timeout": answer_s,
            "frame_handler": _frame_handler,
        },
    )
    connection: Connection = Transport(client).establish_connection()
    return connection


def tls_of(url: str) -> dict[str, object] | None:
    """Return what py-amqp wants to know of an encrypted connection to a URL; None for a plain one."""
    parts = urlsplit(url)
    if parts.scheme != "amqps":
        return None
    return _tls_of(parts.hostname, {name: values[0] for name, values in parse_qs(parts.query).items()})


def _tls_of(host: str | None, given: Mapping[str, str]) -> dict[str, object]:
    """Return what py-amqp wants to know of an encrypted connection, from the parameters of a URL."""
    wanted = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL}.get(
        given.get("ssl_cert_reqs", ""), ssl.CERT_REQUIRED
    )
    found: dict[str, object] = {"cert_reqs": wanted, "ca_certs": given.get("ssl_ca_certs")}
    found |= {name: given[f"ssl_{name}"] for name in ("certfile", "keyfile") if f"ssl_{name}" in given}
    if wanted is not ssl.CERT_NONE and given.get("ssl_check_hostname", "True").lower() not in ("false", "0", "no"):
        found["server_hostname"] = host
    return found


def version_of(connection: Connection) -> tuple[int, int]:
    """Return the first two numbers of the server's version; 0, 0 if it doesn't say."""
    major, minor, *_ = [*str(connection.server_properties.get("version", "")).split("."), "", ""]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def cluster_of(connection: Connection) -> str:
    """Return the name of the cluster that the server is in, or that it is by itself; empty if it doesn't say."""
    return str(connection.server_properties.get("cluster_name", ""))


def check_name(queue: str) -> None:
    """Raise `ImproperlyConfigured` if no queue on RabbitMQ can have this name."""
    if len(queue.encode()) > _NAME_BYTES:
        raise ImproperlyConfigured(f"RabbitMQ takes no queue of so long a name: {queue[:80]}…")


class Queues:
    """Makes queues that are missing, on one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._known: set[str] = set()

    def declare(self, queue: str, level: int) -> str:
        """Return the name of the queue of a priority, which exists from now on."""
        name = stream_key(queue, lane_of(level))
        if name not in self._known:
            self._declare(name)
            self._known.add(name)
        return name

    def forget(self) -> None:
        """Look again before the next use: somebody may have deleted queues."""
        self._known.clear()

    def _declare(self, name: str) -> None:
        check_name(name)
        channel = self.connection.channel()
        try:
            channel.queue_declare(name, passive=True)
        except amqp.exceptions.NotFound:
            channel = self.connection.channel()
            arguments: dict[str, object] = {"x-queue-type": "quorum"}
            if version_of(self.connection) >= _MANY_RETURNS:
                arguments["x-delivery-limit"] = -1  # the backend counts, and says what became of the task
            # another may have made it meanwhile, in another way
            with contextlib.suppress(amqp.exceptions.PreconditionFailed):
                channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
        if channel.is_open:
            channel.close()


class Publisher:
    """Sends, with one wait for the confirms of many messages. Connects at first use, and anew after an outage.

    Args:
        url: of the server.
        name: what it shows of the connection.
        longest_s: after so long without a connection no further node is tried, until the next call.
    """

    def __init__(self, url: str, name: str, *, longest_s: float = math.inf) -> None:
        self.url = url
        self._nodes = Nodes(url)
        self._name = name
        self._longest_s = longest_s
        self._connection: Connection | None = None
        self._channel: Any = None
        self._queues: Queues | None = None
        self._tag = 0  # of the newest message on this channel
        self._waits: set[int] = set()
        self._refused = ""
        self._used_at = 0.0  # when the server last confirmed something

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Send messages; when it returns, the server has confirmed them all.

        Raises:
            SendFailed: the server can't be reached, or refuses one of them.
            SendUncertain: it went away before it answered.
        """
        if not messages:
            return
        try:
            self.open()
            names = [self.declare(message.queue, message.priority) for message in messages]
        except ERRORS as exc:
            self.drop()
            raise SendFailed(f"{mask(self.url)} can't be used: {exc}") from exc
        try:
            self._send(messages, names)
        except ERRORS as exc:
            self.drop()
            raise SendUncertain(f"no answer from {mask(self.url)}; the same id may be sent again: {exc}") from exc
        if self._refused:
            assert self._queues is not None
            self._queues.forget()
            raise SendFailed(f"{mask(self.url)} refuses a message: {self._refused}")

    def declare(self, queue: str, level: int) -> str:
        """Return the name of the queue of a priority, which exists from now on."""
        assert self._queues is not None, "open comes first"
        return self._queues.declare(queue, level)

    def count(self, queue: str, levels: Iterable[int]) -> int:
        """Return how many messages wait, not counting those on their way to a worker."""
        return sum(self._ask(queue, level, purge=False) for level in levels)

    def purge(self, queue: str, levels: Iterable[int]) -> int:
        """Drop the messages that wait; return how many."""
        return sum(self._ask(queue, level, purge=True) for level in levels)

    def delete(self, queue: str, levels: Iterable[int]) -> None:
        """Remove the queues of these priorities, with what waits in them."""
        self.open()
        assert self._connection is not None
        with self._connection.channel() as channel:
            for level in levels:
                channel.queue_delete(stream_key(queue, lane_of(level)))
        assert self._queues is not None
        self._queues.forget()

    def open(self) -> None:
        """Connect, unless the connection stands."""
        if self._connection is not None:
            if time.monotonic() - self._used_at < _FRESH_S:
                return
            try:
                self._connection.pump()  # a server that went away meanwhile has said so
                return  # noqa: TRY300 - what is below belongs to the other case
            except ERRORS:
                self.drop()
        self._connection = self._nodes.connect(name=self._name, longest_s=self._longest_s)
        self._queues = Queues(self._connection)
        self._channel = self._connection.channel()
        self._channel.events["basic_ack"].add(self._confirmed)
        self._channel.events["basic_nack"].add(self._nacked)
        self._channel.events["basic_return"].add(self._returned)
        self._channel.confirm_select()
        self._tag = 0

    def close(self) -> None:
        """Give up the connection."""
        if self._connection is not None:
            with contextlib.suppress(*ERRORS):
                self._connection.close()
        self.drop()

    def drop(self) -> None:
        """Give up a connection that is broken, without a word to the server; the next is to the next node."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            self._nodes.failed()
            with contextlib.suppress(*ERRORS):
                connection.collect()

    def _ask(self, queue: str, level: int, *, purge: bool) -> int:
        assert self._connection is not None, "open comes first"
        name = self.declare(queue, level)
        with self._connection.channel() as channel:
            if purge:
                return int(channel.queue_purge(name))
            return int(channel.queue_declare(name, passive=True).message_count)

    def _send(self, messages: Sequence[Outgoing], names: Sequence[str]) -> None:
        assert self._connection is not None
        self._refused = ""
        self._waits.clear()
        channel, frame_max = self._channel.channel_id, self._connection.frame_max
        for start in range(0, len(messages), _PUBLISHES):
            part = messages[start : start + _PUBLISHES]
            self._waits.update(range(self._tag + 1, self._tag + 1 + len(part)))
            self._tag += len(part)
            of_part = zip(part, names[start : start + _PUBLISHES], strict=True)
            self._connection.write(
                b"".join(publish_frames(message, name, channel, frame_max) for message, name in of_part)
            )
            if start:
                self._connection.pump()
        deadline = time.monotonic() + ANSWER_S
        while self._waits:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{len(self._waits)} messages were not confirmed within {ANSWER_S:g} s")
            if self._connection.pump(left):
                deadline = time.monotonic() + ANSWER_S
        self._used_at = time.monotonic()

    def _confirmed(self, tag: int, multiple: bool) -> None:
        if multiple:
            self._waits = {waits for waits in self._waits if waits > tag}
        else:
            self._waits.discard(tag)

    def _nacked(self, tag: int, multiple: bool) -> None:
        self._refused = self._refused or "it could not be stored"
        self._confirmed(tag, multiple)

    def _returned(self, exc: Exception, _exchange: str, key: str, _message: object) -> None:
        self._refused = f"there is no queue {key} ({exc})"


def publish_frames(message: Outgoing, queue: str, channel: int, frame_max: int) -> bytes:
    """Return a message as the frames of a mandatory and persistent publish.

    py-amqp takes three times as long to make them, and a system call for each message. Counters are signed by nobody,
    here as in a stream's entry.
    """
    key = queue.encode()
    headers = _text(b"id", message.id.encode("utf-8", "surrogatepass")) + _text(b"nbq", message.header.encode())
    if message.attempt > 1 or message.child_deaths or message.worker_losses:
        for name, number in ((b"a", message.attempt), (b"c", message.child_deaths), (b"w", message.worker_losses)):
            headers += _INTEGER.pack(1, name, b"I", number)
    method = _METHOD.pack(*spec.Basic.Publish) + b"\0\0\0" + bytes([len(key)]) + key + b"\1"  # mandatory
    header = _CONTENT.pack(spec.Basic.Publish[0], 0, len(message.body), _PROPERTIES) + _CONTENT_TYPE
    header += len(headers).to_bytes(4) + headers + b"\2"  # persistent
    frames = [_frame(_METHOD_FRAME, channel, method), _frame(_CONTENT_HEADER, channel, header)]
    size = frame_max - _FRAME.size - 1
    frames += [
        _frame(_BODY, channel, message.body[start : start + size]) for start in range(0, len(message.body), size)
    ]
    return b"".join(frames)


def ack_frames(tags: Iterable[int], channel: int) -> bytes:
    """Return the acknowledgements of deliveries as frames."""
    method = _METHOD.pack(*spec.Basic.Ack)
    return b"".join(_frame(_METHOD_FRAME, channel, method + tag.to_bytes(8) + b"\0") for tag in tags)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _FRAME.pack(kind, channel, len(payload)) + payload + b"\xce"


def _text(name: bytes, value: bytes) -> bytes:
    """Return a field of a table of headers."""
    return bytes([len(name)]) + name + b"S" + len(value).to_bytes(4) + value


def _read(sock: socket.socket) -> list[bytes]:
    """Return what has come over a socket, without waiting.

    Raises:
        ConnectionResetError: the other side has closed it.
    """
    data: list[bytes] = []
    tls = isinstance(sock, ssl.SSLSocket)
    if tls:
        sock.settimeout(0)
    try:
        # With less than was asked for it was all; over TLS there may be another record.
        while not data or tls or len(data[-1]) == _READ_BYTES:
            part = sock.recv(_READ_BYTES, 0 if tls else socket.MSG_DONTWAIT)
            if not part:
                if data:
                    break  # it may say why; the next to look finds the end
                raise ConnectionResetError("the server closed the connection")
            data.append(part)
    except (BlockingIOError, ssl.SSLWantReadError):
        pass
    finally:
        if tls:
            sock.settimeout(None)
    return data
