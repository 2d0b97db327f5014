"""The calls of an executor with a worker of its own: they go straight to it, and what came of them comes straight back.

A worker that ends, however that happens, is replaced when there is something to do, and what it took along is sent
again. What has been sent is kept here until it has ended, so no server needs to know of it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, Final

import msgspec

from nbqueue import states
from nbqueue.app import App
from nbqueue.calls import Call, CallFuture, Calls, Sending, print_here
from nbqueue.duplex import Cancel, Cancelled, Duplex, Ended, Refused, Said, SentCalls, keep_code
from nbqueue.exceptions import BadMessage
from nbqueue.launchers.owned import OwnedWorker, Terms, start_owned
from nbqueue.messages import Fact, Facts, Ids, Steering, encode_steering, member_id, open_fact
from nbqueue.payloads import Packer

RESTARTS: Final = 3  # of a worker that ends again and again before it has lived for so long:
LIVED_S: Final = 10.0
STOP_S: Final = 10.0  # for calls that run, when the executor is closed
ANSWER_S: Final = 2.0  # for a worker to say what it has cancelled
_SUCCEEDED: Final = Facts(kind="record", id="", state=states.SUCCESS)

logger = logging.getLogger(__name__)


class OwnSending(Sending):
    """Calls that are being sent, or were.

    Args:
        id_: of the map that they are to their worker.
        calls: in order.
    """

    def __init__(self, id_: str, calls: Sequence[Call]) -> None:
        super().__init__(calls)
        self.id = id_
        self.calls: list[Call | None] = list(calls)
        self.number = len(calls)  # that have not ended


class Line:
    """A worker, the socket to it, and what is known of what it was told.

    Args:
        worker: the process.
        sock: to it.
    """

    def __init__(self, worker: OwnedWorker, sock: socket.socket) -> None:
        self.worker = worker
        self.duplex = Duplex(sock, owner=True)
        self.ended = False  # what it took along is to be sent again
        self.codes: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def send(self, message: SentCalls | Cancel) -> None:
        """Send a message; one that is lost on the way is missed by whoever reads the answers."""
        with self._lock, contextlib.suppress(OSError):
            self.duplex.send(message)

    def send_calls(self, steering: Steering, code: bytes, rows: list[bytes], losses: int) -> None:
        """Send calls, with their code if the worker doesn't have it."""
        with self._lock, contextlib.suppress(OSError):
            new = steering.code not in self.codes
            if new and steering.code:
                keep_code(self.codes, steering.code, b"")
            self.duplex.send(SentCalls(encode_steering(steering), code if new else b"", rows, losses))


class Owner:
    """The way of calls to a worker of the executor's own.

    Args:
        app: whose settings and place that has.
        terms: how it works.
    """

    calls: Calls

    def __init__(self, app: App, terms: Terms) -> None:
        self.app = app
        self.terms = terms
        self._ids = Ids()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._line: Line | None = None
        self._lost: Line | None = None  # whose calls are about to be sent again
        self._sent: dict[str, OwnSending] = {}
        self._answers: dict[int, list[str] | None] = {}  # to cancellations that somebody waits for
        self._answered = threading.Condition()
        self._number = 0
        self._inbox: deque[Any] = deque()  # read, and not looked at yet
        self._reader: threading.Thread | None = None
        self._short_lives = 0
        self._closed = False

    @property
    def worker(self) -> OwnedWorker | None:
        """Return the worker there is now."""
        return None if self._line is None else self._line.worker

    def open(self) -> None:
        """Start the worker; it comes up while this process loads what connects."""
        with self._lock:
            self._start()
        self.app.backend.now()

    def begin(self, calls: Sequence[Call]) -> OwnSending:
        """Return what calls of one function are sent as."""
        return OwnSending(self._ids.draw()[0], calls)

    def send(self, sending: Sending, steering: Steering, calls: Sequence[Call], packer: Packer) -> None:
        """Send calls."""
        assert isinstance(sending, OwnSending), "as it began"
        steering = msgspec.structs.replace(steering, id=sending.id, size=len(calls))
        self.app.sender.save(packer, steering)
        with self._lock:
            line = self._start()
            self._sent[sending.id] = sending
        line.send_calls(steering, calls[0].code, [call.args for call in calls], calls[0].losses)

    def cancel(self, futures: Sequence[CallFuture], *, insist: bool) -> list[CallFuture]:
        """Cancel calls that the worker has not begun."""
        del insist  # it is sure, and at once
        by_id: dict[str, CallFuture] = {}
        for future in futures:
            sending = future.sending
            if isinstance(sending, OwnSending):  # else its worker was lost just now
                sending.settled.wait()
                by_id[member_id(sending.id, future.index)] = future
        with self._lock:
            line = self._line or self._lost
            self._number += 1
            number = self._number
            self._answers[number] = None
        try:
            if line is not None:
                line.send(Cancel(number, list(by_id)))
                self._await_answer(number, line)
        finally:
            with self._answered:
                cancelled = self._answers.pop(number)
        if cancelled is None:
            # Of a worker that is lost. Whoever reads is the one who would have them sent again.
            mine = threading.current_thread() is self._reader and line is not None and line.duplex.closed
            return [future for future in by_id.values() if mine and not future.taken]
        for id_ in cancelled:
            self._call_of(id_)
        return [by_id[id_] for id_ in cancelled]

    def _await_answer(self, number: int, line: Line) -> None:
        """Wait for an answer; whoever reads for all others reads on."""
        if threading.current_thread() is self._reader:
            while self._answers[number] is None and not line.duplex.closed:
                self._receive(line)
        else:  # not for ever: who reads may be at a callback that waits for what this thread holds
            with self._answered:
                known = lambda: self._answers[number] is not None or line.ended  # noqa: E731
                if not self._answered.wait_for(known, ANSWER_S) and line.duplex.closed:
                    self._answered.wait_for(known, STOP_S)

    def _receive(self, line: Line) -> None:
        """Read what has come: answers for those who wait for them, and the rest for this thread, later."""
        try:
            messages = line.duplex.receive()
        except msgspec.DecodeError:
            logger.exception("the worker of this executor says what can't be read; it is ended")
            line.worker.process.kill()
            return
        for message in messages:
            if isinstance(message, Cancelled):
                with self._answered:
                    if message.number in self._answers:
                        self._answers[message.number] = message.ids
                        self._answered.notify_all()
                        continue
            self._inbox.append(message)

    def left(self) -> list[CallFuture]:
        """Return the futures of what was sent and has not ended."""
        with self._lock:
            return [call.future for sending in self._sent.values() for call in sending.calls if call is not None]

    def fail_all(self, error: BaseException) -> None:
        """Let everything fail that was sent and has not ended."""
        for future in self.left():
            self.calls.fail(future, error)

    def look(self, *, idle: bool) -> bool:
        """Do nothing: whoever reads sees to the worker."""
        del idle
        return False

    def close(self) -> None:
        """End the worker."""
        with self._changed:
            self._closed = True
            line, self._line = self._line, None
            self._changed.notify_all()
        if line is not None:  # who reads sees its end
            line.worker.stop(0.0 if self.calls.broken is not None else STOP_S)
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join()
        if line is not None:
            line.duplex.close()
        self.app.close()

    # ---- the worker

    def _start(self) -> Line:
        """Return a line to a worker, which is started if there is none."""
        if self._line is None:
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    self._line = Line(start_owned(self.app, self.terms, calls=theirs), ours)
            except BaseException:
                ours.close()
                raise
            if self._reader is None:  # one for all workers: none can be started once the program ends
                reader = threading.Thread(target=self._read, name="nbqueue owner", daemon=True)
                reader.start()
                self._reader = reader
            self._changed.notify_all()
        return self._line

    def _read(self) -> None:
        """Read what workers say, one after the other, and send again what one that has ended took along."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line is not None or self._closed)
                line = self._line
            if line is None:
                return
            while not line.duplex.closed:
                self._receive(line)
                while self._inbox:
                    try:
                        self._handle(self._inbox.popleft())
                    except Exception:  # the calls that come after it are still to be told
                        logger.exception("what the worker of this executor says could not be used")
            line.worker.wait(STOP_S)  # a signal that comes while it ends would make its end look like a loss
            line.worker.stop()
            line.duplex.close()
            if not self._closed:
                self._replace(line)
            with self._answered:
                self._lost, line.ended = None, True
                self._answered.notify_all()

    def _replace(self, line: Line) -> None:
        """Have what a worker took along sent again, to another one."""
        code = line.worker.exit_code
        lived = time.monotonic() - line.worker.started_at >= LIVED_S
        self._short_lives = 1 if lived else self._short_lives + 1
        with self._lock:
            self._line, self._lost = None, line
            sent, self._sent = list(self._sent.values()), {}
        left = [call for sending in sent for call in sending.calls if call is not None and not call.future.taken]
        how = f"the worker of this executor has ended, exit code {code}"
        if self._short_lives >= RESTARTS:
            error = BrokenExecutor(f"{how}, {RESTARTS} times in a row; what it said is on stderr")
            self.calls.break_off(error)
            for call in left:
                self.calls.fail(call.future, error)
            return
        logger.log(logging.WARNING if left or code else logging.INFO, "%s; another one is started", how)
        if code:  # it may have been one of these that was its end
            for call in left:
                call.losses += 1
        self.calls.put_back(left)

    # ---- what it says

    def _handle(self, message: Any) -> None:
        match message:
            case Ended(group=group, indexes=indexes, values=values):
                if (sending := self._sent.get(group)) is not None:
                    ended = zip(self._taken(sending, indexes), values, strict=True)
                    self.calls.end([(call.future, Fact(_SUCCEEDED, value)) for call, value in ended if call])
            case Said(facts=facts):
                for text in facts:
                    self._take_in(open_fact(text, self.app.signer))
            case Cancelled(ids=ids):  # whoever asked for it waits no more
                self.calls.end_cancelled([call.future for id_ in ids if (call := self._call_of(id_))])
            case Refused(id=id_, why=why):
                if call := self._call_of(id_):
                    self.calls.fail(call.future, BadMessage("place", f"its worker has refused it: {why}"))

    def _take_in(self, fact: Fact) -> None:
        """Take in what a call has said, or how it has ended if that was not well."""
        facts = fact.facts
        if facts.kind == "output":
            print_here(fact)
        elif fact.ready:
            if call := self._call_of(facts.id):
                self.calls.end([(call.future, fact)])
        elif facts.state == states.STARTED:
            sending = self._sent.get(facts.group)
            running = sending.calls[facts.index] if sending is not None else None
            if running is not None:
                running.future.set_running()

    def _call_of(self, id_: str) -> Call | None:
        """Return a call that has ended, if that is news."""
        group, _, index = id_.rpartition("-")
        sending = self._sent.get(group)
        return None if sending is None else self._taken(sending, (int(index),))[0]

    def _taken(self, sending: OwnSending, indexes: Iterable[int]) -> list[Call | None]:
        """Return calls that have ended, None for those of which it was known."""
        taken = []
        with self._lock:
            for index in indexes:
                call, sending.calls[index] = sending.calls[index], None
                taken.append(call)
            sending.number -= sum(call is not None for call in taken)
            if not sending.number:
                self._sent.pop(sending.id, None)
        return taken
