"""`Pipeline`: calls that are sent while the caller makes the next ones, and confirmed together at the end of a block.

A call alone waits for the broker's answer. In a pipeline it is handed to a thread that sends whatever has gathered, so
a loop of calls costs what making them costs. The promise is one for all: when the block has ended the broker has them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from nbqueue.deliveries import LIVE, Outgoing
from nbqueue.exceptions import SendFailed, SendUncertain, UnknownTask
from nbqueue.watched import WatchedTask

AT_ONCE: Final = 500  # messages in one command
GATHER_S: Final = 0.002  # so long the first of them may wait for others: each sending interrupts whoever makes calls
MOST: Final = 5_000  # that wait to be sent; then the caller waits
MOST_BYTES: Final = 64_000_000

Publish = Callable[[Sequence[Outgoing]], list[int]]
_Item = tuple[Outgoing, WatchedTask]


class Pipeline:
    """Gathers messages of one thread. Used as a context manager; made by `App.pipeline`.

    Args:
        publish: sends messages, again and again where that helps; returns when the broker has them.
        unwatch: called with what was not sent.
    """

    def __init__(self, publish: Publish, unwatch: Callable[[WatchedTask], None]) -> None:
        self._publish = publish
        self._unwatch = unwatch
        self._changed = threading.Condition()
        self._waiting: deque[_Item] = deque()
        self._bytes = 0
        self._ended = False
        self._flushing = False
        self._thread: threading.Thread | None = None
        self._failures: list[tuple[str, Exception]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
        if not self._failures:
            return
        id_, first = self._failures[0]
        said = f"{len(self._failures):,} of the block's calls were not confirmed, the first of them {id_}: {first}"
        if error is not None:
            error.add_note(said)  # what the block raised comes first
            return
        uncertain = any(isinstance(failure, SendUncertain) for _, failure in self._failures)
        raise (SendUncertain if uncertain else SendFailed)(said) from first

    def add(self, message: Outgoing, watched: WatchedTask) -> None:
        """Take a message; waits while very many have gathered."""
        with self._changed:
            if self._ended:
                raise SendFailed("this pipeline's block has ended")
            while len(self._waiting) >= MOST or self._bytes > MOST_BYTES:
                self._changed.wait()
            self._waiting.append((message, watched))
            self._bytes += len(message.body)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nbqueue pipeline", daemon=True)
                self._thread.start()
            if len(self._waiting) in (1, AT_ONCE):
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until the broker has everything gathered so far, or it is known that it hasn't."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            while self._waiting:
                self._changed.wait()
            self._flushing = False

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._ended:
                        return
                    self._changed.wait()
                self._changed.wait_for(self._enough, GATHER_S)
                part = [item for item, _ in zip(self._waiting, range(AT_ONCE), strict=False)]
            self._send(part)
            with self._changed:
                for message, _ in part:
                    self._waiting.popleft()
                    self._bytes -= len(message.body)
                self._changed.notify_all()

    def _enough(self) -> bool:
        return self._flushing or self._ended or len(self._waiting) >= AT_ONCE or self._bytes > MOST_BYTES

    def _send(self, part: Sequence[_Item]) -> None:
        try:
            verdicts = self._publish([message for message, _ in part])
        except Exception as exc:  # noqa: BLE001 - told at the end of the block
            for message, watched in part:
                self._fail(message, watched, exc)
            return
        for (message, watched), verdict in zip(part, verdicts, strict=True):
            if verdict == LIVE:
                self._fail(message, watched, SendFailed(f"a task {message.id} is queued or running already"))

    def _fail(self, message: Outgoing, watched: WatchedTask, error: Exception) -> None:
        self._failures.append((message.id, error))
        self._unwatch(watched)
        watched.fail(UnknownTask(f"task {message.id} was not confirmed by the broker: {error}"))
