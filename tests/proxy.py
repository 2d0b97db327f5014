"""A network that fails on purpose: between a site's servers and whoever connects through it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from nbqueue.deliveries import stream_key
from nbqueue.streams import script
from tests.workers import Site

Direction = Literal["up", "down"]  # to the server, and from it
Point = Literal["publish", "claim", "judge", "settle", "acknowledge"]
Action = Literal["hold", "hold answer", "cut", "cut answer"]
_PIECE: Final = 1 << 16
# AMQP's numbers of class and method, as they stand in a frame.
_PUBLISH: Final = b"\0\x3c\0\x28"
_ACKNOWLEDGE: Final = b"\0\x3c\0\x50"


class Network:
    """The ways to a site's servers: one proxy, or two where the broker is RabbitMQ. What is done is done to both.

    Args:
        site: whose servers they lead to.
        delay_s: how long each piece takes, in either direction.
    """

    def __init__(self, site: Site, *, delay_s: float = 0.0) -> None:
        self.triggered = threading.Event()
        self._stream = stream_key(site.queue, "n").encode()
        self._redis = Proxy(site.server.socket, self.triggered, delay_s=delay_s)
        self._rabbitmq: Proxy | None = None
        if site.on_rabbitmq:
            parts = urlsplit(site.broker_url)
            assert parts.hostname is not None
            assert parts.port is not None
            self._rabbitmq = Proxy((parts.hostname, parts.port), self.triggered, delay_s=delay_s)
            self._rabbitmq_url = parts
        self._proxies = [proxy for proxy in (self._redis, self._rabbitmq) if proxy is not None]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for proxy in self._proxies:
                stack.enter_context(proxy)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def urls(self) -> tuple[str, str]:
        """The URLs of broker and backend."""
        backend = f"redis://127.0.0.1:{self._redis.port}"
        if self._rabbitmq is None:
            return backend, backend
        return self._rabbitmq_url._replace(netloc=f"guest:guest@127.0.0.1:{self._rabbitmq.port}").geturl(), backend

    @property
    def cuts(self) -> int:
        """How often connections were cut."""
        return sum(proxy.cuts for proxy in self._proxies)

    def at(self, point: Point, action: Action) -> None:
        """Do this once, when the servers are told of something: before it arrives, or before its answer does.

        On Redis a point is a script, but for `judge`, where a worker reads what the calls of a map share, and a call
        that is published alone, with plain commands. On RabbitMQ messages are published and acknowledged there, and
        what is known of claims and ends is on Redis.
        """
        if point == "judge":
            self._redis.at(action, b"nbq:group:")
        elif self._rabbitmq is None:
            alone = [b"XADD\r\n$%d\r\n%b" % (len(self._stream), self._stream)] if point == "publish" else []
            self._redis.at(action, script(point)[1].encode(), *alone)
        elif point in ("publish", "acknowledge"):
            self._rabbitmq.at(action, _PUBLISH if point == "publish" else _ACKNOWLEDGE)
        else:
            self._redis.at(action, script(f"amqp_{point}")[1].encode())

    def hold(self) -> None:
        """Pass nothing on any more, in either direction; connections stay open."""
        for proxy in self._proxies:
            proxy.hold("up", "down")

    def release(self) -> None:
        """Pass on what was held."""
        for proxy in self._proxies:
            proxy.release()

    def cut(self) -> None:
        """Close all connections, dropping what is held; new ones may be made."""
        for proxy in self._proxies:
            proxy.cut()

    def cut_somewhere(self, chance: random.Random, within_bytes: int) -> None:
        """Cut all connections of a server once, in the middle of something that passes from now on."""
        proxy = chance.choice(self._proxies)
        proxy.cut_after(chance.choice(["up", "down"]), chance.randrange(within_bytes))

    def cut_no_more(self) -> None:
        """Forget cuts that were yet to come."""
        for proxy in self._proxies:
            proxy.cut_after("up", 1 << 40)
            proxy.cut_after("down", 1 << 40)


class Proxy:
    """Passes bytes on between TCP connections on loopback and a server, until told otherwise.

    Methods may be called from the test's thread; they take effect before they return.

    Args:
        server: where it leads to: a socket's path, or host and port.
        triggered: is set when what `at` says has happened.
        delay_s: how long each piece takes, in either direction.
        tls: how connections to it are encrypted, as by a server that knows TLS; not at all if None.
    """

    def __init__(
        self,
        server: Path | tuple[str, int],
        triggered: threading.Event | None = None,
        *,
        delay_s: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.server = server
        self.tls = tls
        self.triggered = triggered or threading.Event()
        self.delay_s = delay_s
        self.port = 0  # to connect to
        self.passed: Counter[Direction] = Counter()
        self.cuts = 0
        self._budget: dict[Direction, int] = {}  # bytes until the connection is cut that brings more
        self._gates: dict[Direction, asyncio.Event] = {}
        self._triggers: dict[tuple[bytes, ...], str] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def refuse(self) -> None:
        """Close all connections, and take no new ones."""

        def close() -> None:
            self._listener.close()
            self._cut()

        self._soon(close)

    def accept(self) -> None:
        """Take connections, again on the same port."""
        self._listener = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)
        self.port = int(self._listener.sockets[0].getsockname()[1])

    def hold(self, *directions: Direction) -> None:
        """Pass nothing on any more; connections stay open."""

        def shut() -> None:
            for direction in directions:
                self._gates[direction].clear()

        self._soon(shut)

    def release(self) -> None:
        """Pass on what was held."""

        def open_all() -> None:
            self._triggers.clear()
            for gate in self._gates.values():
                gate.set()

        self._soon(open_all)

    def at(self, action: Action, *texts: bytes) -> None:
        """Do this once, when the server is sent one of these texts: before it arrives, or before its answer does."""
        self._soon(lambda: self._triggers.update({texts: action}))

    def cut(self) -> None:
        """Close all connections, dropping what is held; new ones may be made."""
        self._soon(self._cut)

    def cut_after(self, direction: Direction, size_bytes: int) -> None:
        """Cut all connections once, in the middle of whatever exceeds so many bytes from now."""
        self._soon(lambda: self._budget.update({direction: size_bytes}))

    def _soon(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(5)

    def _look(self, data: bytes) -> None:
        for texts in [texts for texts in self._triggers if any(text in data for text in texts)]:
            match self._triggers.pop(texts):
                case "hold":
                    self._gates["up"].clear()
                case "hold answer":
                    self._gates["down"].clear()
                case "cut":
                    self._budget["up"] = 0
                case "cut answer":
                    self._budget["down"] = 0
            self.triggered.set()

    def _cut(self) -> None:
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    async def _listen(self) -> asyncio.Server:
        if not self._gates:
            self._gates = {"up": asyncio.Event(), "down": asyncio.Event()}
            for gate in self._gates.values():
                gate.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)

    async def _close(self) -> None:
        self._listener.close()
        self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self.server, Path):
                back, out = await asyncio.open_unix_connection(str(self.server))
            else:
                back, out = await asyncio.open_connection(*self.server)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, out}
        try:
            await asyncio.gather(self._pump("up", reader, out), self._pump("down", back, writer))
        except asyncio.CancelledError:
            return  # asyncio's streams would report it as an error
        finally:
            self._writers -= {writer, out}
            writer.transport.abort()
            out.transport.abort()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if direction == "up" and self._triggers:
                    self._look(data)
                await self._gates[direction].wait()
                left = self._budget.get(direction, len(data))
                writer.write(data[:left])
                self.passed[direction] += len(data[:left])
                if left < len(data):
                    await writer.drain()
                    del self._budget[direction]
                    self._cut()
                elif direction in self._budget:
                    self._budget[direction] -= len(data)
                await writer.drain()
        writer.transport.abort()
