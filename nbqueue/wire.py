"""Connections to a Redis server: how they are made, and two ways of using one that cost little.

redis-py makes and authenticates them. Each command through a `redis.Redis` passes a pool, retries and callbacks, which
cost more than the round trip itself; who sends one or more a task keeps a connection instead.
"""

from __future__ import annotations

import importlib
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import redis
from redis._parsers.base import BaseParser
from redis.backoff import NoBackoff
from redis.retry import Retry

from nbqueue.config import redis_url, scheme_of

try:
    _hiredis: Any = importlib.import_module("hiredis")
except ImportError:  # an extra
    _hiredis = None

Command = tuple[str | int | bytes, ...]

# Of each connection redis-py tells the server its own version: two round trips, and 5 ms to read it from the disk.
_ANONYMOUS: Final = {"driver_info": None} if hasattr(redis, "DriverInfo") else {"lib_name": None, "lib_version": None}
SPIN_S: Final = 150e-6
_MISSES: Final = 3  # in a row, after which looking is left out for a while
_READ_BYTES: Final = 1 << 16
_STRAY: Final = "the server has closed the connection, or says what nobody has asked for"
_FRESH_S: Final = 1.0  # a connection that was used so lately isn't looked at again before it is used


def connect(url: str, *, name: str, timeout_s: float = 5.0) -> redis.Redis:
    """Return a client that fails at once where nothing answers; whoever uses it decides about trying again.

    Args:
        url: a broker's or backend's URL.
        name: shown by CLIENT LIST; the keeper looks for it.
        timeout_s: how long an answer may take; longer for connections that block.
    """
    scheme = scheme_of(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "protocol": 2,  # one shape of reply, whatever the server
        "client_name": name,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        **_ANONYMOUS,
    }
    if scheme in ("redis", "rediss", "sentinel"):
        options |= {"socket_connect_timeout": 5.0, "socket_keepalive": True}
    if scheme == "sentinel":
        from nbqueue.sentinels import connect_by_sentinels  # noqa: PLC0415 - few have any

        return connect_by_sentinels(url, options)
    return redis.Redis.from_url(redis_url(url), **options)


class Wire:
    """One connection for one command after the other, from any thread. Opened when first used, and again when lost.

    Args:
        client: whose pool it comes from.
        spins: look for the answer some times before sleeping until it comes. To put a process to sleep and wake it
            costs more than a short command takes.
    """

    def __init__(self, client: redis.Redis, *, spins: bool = True) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._connection: Any = None
        self._exchange: Exchange | None = None
        self._patience = Patience(SPIN_S if spins else 0.0)
        self._pid = 0
        self._used_at = 0.0

    def call(self, *command: str | int | bytes) -> Any:
        """Return the server's answer as it is, undecoded.

        Raises:
            redis.ResponseError: the server refuses.
            redis.ConnectionError: it can't be reached, or went away.
            redis.TimeoutError: it doesn't answer.
        """
        answer = self.call_all((command,))[0]
        if isinstance(answer, redis.RedisError):
            raise answer
        return answer

    def call_all(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands together; return the answer to each, for one that the server refuses the exception.

        Raises:
            redis.ConnectionError: the server can't be reached, or went away.
            redis.TimeoutError: it doesn't answer.
        """
        with self._lock:
            connection = self._ready()
            try:
                if self._exchange is not None:
                    answers = self._exchange.ask(commands, self._patience)
                else:
                    if _is_stale(connection):
                        raise redis.ConnectionError(_STRAY)
                    connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                    answers = [_read(connection) for _ in commands]
            except BaseException:
                self.close()  # an answer may be on its way, which is none to the next command
                raise
            self._used_at = time.monotonic()
            return answers

    def close(self) -> None:
        """Give up the connection; a call that waits for an answer fails."""
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            connection.disconnect()
            self._client.connection_pool.release(connection)  # a pool makes so many of them, and then no more

    def _ready(self) -> Any:
        if self._connection is not None and self._pid != os.getpid():
            self._connection = None  # the parent's
        idle = self._connection is not None and time.monotonic() - self._used_at > _FRESH_S
        if idle and _is_stale(self._connection):
            self.close()
        if self._connection is None:
            connection = self._client.connection_pool.get_connection()
            self._connection, self._pid = connection, os.getpid()
            self._exchange = Exchange.over(connection)
        return self._connection


class Patience:
    """How long to look for an answer before sleeping until it comes: not at all where that was in vain of late.

    Args:
        longest_s: 0.0 for never.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._misses = 0
        self._skip = 0

    def begin(self) -> float:
        """Return until when to look, on the performance counter; 0.0 for not at all."""
        if self._skip:
            self._skip -= 1
            return 0.0
        return time.perf_counter() + self._longest_s if self._longest_s else 0.0

    def came(self) -> None:
        """Learn that it was worth it."""
        self._misses = 0

    def missed(self) -> None:
        """Learn that it was in vain."""
        self._misses = min(self._misses + 1, 8)
        if self._misses > _MISSES:
            self._skip = 1 << self._misses


class Exchange:
    """Commands and answers straight over the socket of a connection that redis-py has opened.

    Args:
        connection: of redis-py.
        sock: its plain socket, which has a time-out.
        reader: hiredis' parser.
    """

    def __init__(self, connection: Any, sock: socket.socket, reader: Any) -> None:
        self._connection = connection
        self._sock = sock
        self._descriptor = sock.fileno()
        self._reader = reader
        self._arrived = select.poll()
        self._arrived.register(sock, select.POLLIN)

    @classmethod
    def over(cls, connection: Any) -> Exchange | None:
        """Return one for a connection; None without hiredis, over TLS, and for sockets that wait without end."""
        # redis-py offers no public way to a connection's socket, nor to the exceptions that stand for refusals.
        sock = connection._sock  # noqa: SLF001
        if _hiredis is None or type(sock) is not socket.socket or not sock.gettimeout():
            return None
        return cls(connection, sock, _hiredis.Reader(replyError=BaseParser.parse_error))

    def ask(self, commands: Sequence[Command], patience: Patience) -> list[Any]:
        """Send commands; return their answers, or the exceptions that stand for refusals.

        Raises:
            redis.RedisError: as `Wire.call_all`.
        """
        self.send(commands)
        return self.receive(len(commands), patience)

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands.

        Raises:
            redis.ConnectionError: something is there to be read: it would pass for the answer to these.
        """
        if self._reader.has_data() or self._arrived.poll(0):
            raise redis.ConnectionError(_STRAY)
        data = b"".join(map(_hiredis.pack_command, commands))
        with _translated():
            try:
                sent = os.write(self._descriptor, data)  # as in `_look`
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._sock.sendall(memoryview(data)[sent:])

    def receive(self, count: int, patience: Patience | None = None) -> list[Any]:
        """Return so many answers, or the exceptions that stand for refusals."""
        reader, answers = self._reader, []
        with _translated():
            if patience is not None and (until := patience.begin()):
                self._look(until, patience)
            for _ in range(count):
                while (answer := reader.gets()) is False:
                    reader.feed(self._received(self._sock.recv(_READ_BYTES)))
                answers.append(answer)
        return answers

    def _look(self, until: float, patience: Patience) -> None:
        """Read the beginning of an answer if it comes soon."""
        while True:
            try:
                # A socket with a time-out never blocks by itself; Python's own `recv` would wait first.
                data = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                if time.perf_counter() < until:
                    os.sched_yield()  # whoever answers may wait for this very processor
                    continue
                patience.missed()
                return
            patience.came()
            self._reader.feed(self._received(data))
            return

    @staticmethod
    def _received(data: bytes) -> bytes:
        if not data:
            raise ConnectionResetError("the server closed it")
        return data


class _translated:  # noqa: N801 - read as a function; a generator would cost more than the command
    """Turns what sockets raise into what redis-py does."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: object) -> None:
        if isinstance(exc, TimeoutError):
            raise redis.TimeoutError("no answer in time") from exc
        if isinstance(exc, OSError):
            raise redis.ConnectionError(f"the connection was lost: {exc}") from exc


def _read(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as exc:
        return exc


def _is_stale(connection: Any) -> bool:
    """Tell whether the server has closed a connection, or says something that nobody asked for."""
    try:
        return bool(connection.can_read(timeout=0))
    except (redis.ConnectionError, OSError):
        return True


class BlockingRead:
    """One connection that waits for news while its owner goes on: send, select on it, then read.

    Args:
        client: its time-out is how long the rest of an answer may take.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._connection = client.connection_pool.get_connection()
        self._exchange = Exchange.over(self._connection)
        # redis-py offers no public way to wait on a connection together with other things. Kept, because a selector
        # asks for it again to forget it, and by then the connection may be closed.
        self._descriptor = int(self._connection._sock.fileno())  # noqa: SLF001
        self.pending = False
        self.start(("CLIENT", "ID"))
        self._id = int(self.finish())

    def fileno(self) -> int:
        """Return the socket to select on."""
        return self._descriptor

    def start(self, command: tuple[str | int | bytes, ...]) -> None:
        """Send a blocking command."""
        if self._exchange is not None:
            self._exchange.send((command,))
        else:
            self._connection.send_command(*command, check_health=False)
        self.pending = True

    def finish(self) -> Any:
        """Return the reply, once the socket is readable."""
        self.pending = False
        if self._exchange is None:
            return self._connection.read_response()
        answer = self._exchange.receive(1)[0]
        if isinstance(answer, redis.RedisError):
            raise answer
        return answer

    def cancel(self, client: redis.Redis) -> Any:
        """End the wait through another connection; return the reply, which may have come just before."""
        if not self.pending:
            return None
        client.execute_command("CLIENT", "UNBLOCK", self._id)
        return self.finish()

    def close(self) -> None:
        """Give up the connection."""
        self.pending = False
        self._connection.disconnect()
        self._client.close()
