"""What a worker says of itself each few seconds: its queues, its children and what they are at. Signed."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

import msgspec

from nbqueue import states
from nbqueue.dispatch import Dispatcher
from nbqueue.ledger import Ledger
from nbqueue.listening import Listening
from nbqueue.messages import python_version
from nbqueue.signing import Signer
from nbqueue.usage import Usage
from nbqueue.watcher import Offer, Shift

MAX_SHIFTS: Final = 64  # children that are told of


class Adverts:
    """Writes the adverts of one worker.

    Args:
        name: of the worker.
        signer: of its key.
        work: who runs what.
        ledger: counts what has ended.
    """

    def __init__(self, name: str, signer: Signer, work: Dispatcher, ledger: Ledger) -> None:
        self.name = name
        self.signer = signer
        self.work = work
        self.ledger = ledger
        self.started_at = time.time()
        self._usage = Usage()

    def text(self, listening: Listening, concurrency: int, *, stopping: bool) -> str:
        """Return the JSON text of an advert, signed.

        Args:
            listening: to which queues.
            concurrency: how many children it is to have.
            stopping: it takes nothing more.
        """
        shifts = self._shifts()
        offer = Offer(
            self.name,
            socket.gethostname(),
            os.getpid(),
            self.signer.key_id,
            tuple(listening.names),
            listening.every and not listening.exclude,
            concurrency,
            sum(bool(child.jobs) for child in self.work.pool.children.values()),
            self.started_at,
            python_version(),
            self.ledger.ended[states.SUCCESS],
            self.ledger.ended[states.FAILURE],
            sum({shift.pid: shift.memory for shift in shifts}.values()) + self._usage.of(os.getpid())[1],
            stopping,
            shifts[:MAX_SHIFTS],
        )
        return msgspec.json.encode({"nbq": self.signer.sign("worker", msgspec.json.encode(offer))}).decode()

    def _shifts(self) -> tuple[Shift, ...]:
        now, found = time.time() - time.monotonic(), []
        self._usage.forget_but({child.pid for child in self.work.pool.children.values()} | {os.getpid()})
        for number, child in sorted(self.work.pool.children.items()):
            cpu, memory = self._usage.of(child.pid)
            held = self.work.running(number)
            task = (
                (held.steering.id, held.steering.shown_name, now + self.work.since(number)) if held else ("", "", 0.0)
            )
            found.append(Shift(number, child.pid, cpu, memory, *task, child.ready))
        return tuple(found)
