"""A network that fails on purpose: between a private server and whoever connects through it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

from nbqueue.streams import script
from tests.helpers import RedisServer

Direction = Literal["up", "down"]  # to the server, and from it
_PIECE: Final = 1 << 16


class Proxy:
    """Passes bytes on between TCP connections on loopback and a server's socket, until told otherwise.

    Methods may be called from the test's thread; they take effect before they return.

    Args:
        server: whose socket it leads to.
        delay_s: how long each piece takes, in either direction.
    """

    def __init__(self, server: RedisServer, *, delay_s: float = 0.0) -> None:
        self.server = server
        self.delay_s = delay_s
        self.passed: Counter[Direction] = Counter()
        self.cuts = 0
        self._budget: dict[Direction, int] = {}  # bytes until the connection is cut that brings more
        self._gates: dict[Direction, asyncio.Event] = {}
        self._triggers: dict[bytes, str] = {}
        self.triggered = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

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

    def at(self, script_name: str, action: Literal["hold", "hold answer", "cut", "cut answer"]) -> None:
        """Do this once, when one of the server's scripts is called: before it arrives, or before its answer does."""
        digest = script(script_name)[1].encode()
        self._soon(lambda: self._triggers.update({digest: action}))

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

    def _look_for_scripts(self, data: bytes) -> None:
        for digest in [digest for digest in self._triggers if digest in data]:
            match self._triggers.pop(digest):
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
        self._gates = {"up": asyncio.Event(), "down": asyncio.Event()}
        for gate in self._gates.values():
            gate.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._listener.close()
        self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, out = await asyncio.open_unix_connection(str(self.server.socket))
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
                    self._look_for_scripts(data)
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
