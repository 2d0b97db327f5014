"""`Beat`: sends what is due. Any number may run; one leads, and each due time fires once, whoever leads.

A firing is one step at the server: it sends what is due and writes that it was, provided that this beat still leads and
that nobody has changed the entry since it was read. So a beat that was frozen and believes that it leads fires nothing.
Times are of the server's clock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from nbqueue import signals
from nbqueue.backends.base import Backend
from nbqueue.entries import (
    Call,
    Entry,
    Firing,
    Run,
    Sent,
    Stand,
    after_firing,
    blobs_of,
    firings,
    ids_of,
    next_due,
    open_call,
    open_entry,
    sent_by,
    sign_stand,
    stand_of,
    with_ends,
)
from nbqueue.exceptions import BadMessage, ImproperlyConfigured, NBQueueError, SendFailed, SendUncertain
from nbqueue.periodic import (
    BLOBS_KEPT_S,
    Schedule,
    configured,
    label,
    open_timetable,
    publications,
    queues_of,
    send_outbox,
    store_graph,
)
from nbqueue.timetable import CHANGED, FIRED, LEADS_NO_MORE, Lead, Row

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.emitter import Emitter
    from nbqueue.publishing import Publications

__all__ = ["Beat"]

LEASE_S: Final = 4.0
RENEWAL_S: Final = 1.0
PAUSE_S: Final = 2.0  # at most between two tries; a beat that can't send leads on, as no other could
IDLE_S: Final = 5.0  # between two looks at a schedule that has no entries
ASIDE_S: Final = 60.0  # an entry that can't be fired is tried again after so long
BLOBS_AGAIN_S: Final = 86_400.0
NOTED_S: Final = 20.0  # between two looks at how runs ended
NOTED_AT_ONCE: Final = 1_000

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """An entry as this beat knows it."""

    row: Row
    entry: Entry
    stand: Stand
    due: float  # Unix seconds
    call: Call | None = None
    aside_until: float = 0.0  # on the monotonic clock


class Beat:
    """Sends what an app's schedule has, for as long as `run` runs.

    Args:
        app: whose broker and backend it uses.
        name: what people are shown; of host and process if empty.
        sync: put what the app's settings have into the schedule first.
        lazy: as long as the schedule is empty, ask for nothing but that.
    """

    def __init__(self, app: App, *, name: str = "", sync: bool = True, lazy: bool = False) -> None:
        self.app = app
        self.name = name or f"beat-{os.getpid()}@{socket.gethostname()}"
        self.me = uuid.uuid4().hex
        self.sync = sync
        self.lazy = lazy
        self.leads = False
        self.fired = 0
        self._timetable = open_timetable(app, "nbq-beat")
        self._backend: Backend | None = None
        self._emitter: Emitter | None = None
        self._known: dict[str, _Known] = {}
        self._cursor = ""
        self._ahead_s = 0.0  # of the server's clock over this machine's monotonic one
        self._stopped = threading.Event()
        self._pause_s = 0.0
        self._blobs_kept_at = 0.0
        self._noted_at = 0.0
        self._synced = False
        self._doubted: set[bytes] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self) -> None:
        """Send what is due until stopped."""
        logger.info("%s begins", self.name)
        signals.beat_init.send(self)
        while not self._stopped.is_set():
            try:
                self.turn()
                self._pause_s = 0.0
            except (NBQueueError, OSError) as exc:
                self._pause_s = min(PAUSE_S, max(0.1, 2 * self._pause_s))
                logger.warning("nothing can be sent for now: %s", exc)
                if not isinstance(exc, SendFailed | SendUncertain):
                    self._forget()
                self._stopped.wait(self._pause_s)
        with contextlib.suppress(NBQueueError):
            self._timetable.lead(self.me, self.name, LEASE_S, resign=True)
        logger.info("%s has stopped", self.name)

    def stop(self) -> None:
        """Let `run` return within a second. Safe in signal handlers and from any thread."""
        self._stopped.set()

    def close(self) -> None:
        """Give up connections."""
        self._timetable.close()
        if self._emitter is not None:
            self._emitter.close()
        if self._backend is not None:
            self._backend.close()

    @property
    def backend(self) -> Backend:
        """Return a connection of its own, so that a keeper doesn't take it for a client and stay for its sake."""
        if self._backend is None:
            self._backend = self.app.open_backend("nbq-beat")
        return self._backend

    @property
    def emitter(self) -> Emitter:
        """Return what sends events, made when the first one is sent."""
        if self._emitter is None:
            from nbqueue.emitter import Emitter  # noqa: PLC0415 - few beats send any

            self._emitter = Emitter(self.app.link.broker_url, self.name, "nbq-beat", self.app.conf.event_exchange)
        return self._emitter

    def turn(self, *, wait: bool = True) -> None:
        """Ask to lead, and if this one does, send what is due; then wait until there may be something to do.

        Raises:
            BackendUnavailable: the server can't be reached.
            SendFailed: the broker can't.
        """
        if self.sync and not self._synced:
            self._sync()
        cursor, wait_s = "$", RENEWAL_S
        if self.lazy and self._timetable.is_empty():
            self._forget()
            wait_s = IDLE_S
        elif (token := self._ask_to_lead()) != 0:
            if not self._timetable.joined:
                send_outbox(self._timetable, self.app.broker.publish)
            self._fire_due(token)
            self._note_ends(token)
            self._keep_blobs()
            if self.leads:
                cursor, wait_s = self._cursor or "0", self._until_next()
        if wait:
            self._timetable.changed_since(cursor, wait_s)

    def _ask_to_lead(self) -> int:
        """Ask, and know the schedule if the answer is yes; return the token, 0 where another leads."""
        lead = self._timetable.lead(self.me, self.name, LEASE_S)
        self._ahead_s = lead.now - time.monotonic()
        if not lead.token:
            if self.leads:
                logger.warning("%s leads now", lead.leader)
            self._forget()
        elif not self.leads or lead.cursor != self._cursor:
            if not self.leads:
                logger.info("%s leads", self.name)
            self.leads = True
            self._load(lead)
        return lead.token

    def _sync(self) -> None:
        """Put what settings have into the schedule."""
        found = configured(self.app)
        if found or self.app.main:
            schedule = Schedule(self.app)
            try:
                schedule.sync(found, self.app.main or "")
            finally:
                schedule.close()
        self._synced = True

    def _forget(self) -> None:
        self.leads = False
        self._known.clear()

    def _now(self) -> float:
        return time.monotonic() + self._ahead_s

    def _until_next(self) -> float:
        """Return how long nothing is due, seconds; no longer than until the lease is to be renewed."""
        now = self._now()
        due = [known.due for known in self._known.values() if known.aside_until <= time.monotonic()]
        return max(0.001, min([RENEWAL_S, *(at - now for at in due)]))

    def _load(self, lead: Lead) -> None:
        """Read the schedule; what hasn't changed stays as it is known."""
        self._cursor = lead.cursor
        rows = self._timetable.rows()
        for name in self._known.keys() - rows.keys():
            del self._known[name]
        for name, row in rows.items():
            known = self._known.get(name)
            if known is None or known.row != row:
                self._learn(name, row)

    def _learn(self, name: str, row: Row) -> None:
        """Take in one entry as it is stored now."""
        before = self._known.pop(name, None)
        try:
            entry = open_entry(row.entry, name, self.app.signer)
            stand = stand_of(row.stand, entry, self.app.signer)
            if entry.enabled:
                call = before.call if before is not None and before.entry.call == entry.call else None
                self._known[name] = _Known(row, entry, stand, next_due(entry, stand), call)
        except (BadMessage, ImproperlyConfigured) as exc:
            if row.entry not in self._doubted:
                self._doubted.add(row.entry)
                logger.warning("entry %r is left out: %s", name[:80], exc)

    def _fire_due(self, token: int) -> None:
        """Fire what is due, the oldest first."""
        now = self._now()
        due = [known for known in self._known.values() if known.due <= now and known.aside_until <= time.monotonic()]
        for known in sorted(due, key=lambda known: known.due):
            try:
                if not self._fire(known, token):
                    self._forget()
                    return
            except (BadMessage, ImproperlyConfigured) as exc:
                known.aside_until = time.monotonic() + ASIDE_S
                logger.warning("entry %r can't be fired: %s", known.entry.name[:80], exc)

    def _fire(self, known: _Known, token: int) -> bool:
        """Fire one entry as often as it is due; tell whether this beat still leads."""
        for firing in firings(known.entry, known.stand, self._now(), self.app.conf.beat_cron_starting_deadline):
            said = self._fire_once(known, firing, token)
            if said == LEADS_NO_MORE:
                logger.warning("%s leads no more: somebody else has taken over", self.name)
                return False
            if said == CHANGED:
                self._cursor = ""  # to be read again
                row = self._timetable.row(known.entry.name)
                if row is not None:
                    self._learn(known.entry.name, row)
                else:
                    self._known.pop(known.entry.name, None)
                return True
        known.due = next_due(known.entry, known.stand)
        return True

    def _fire_once(self, known: _Known, firing: Firing, token: int) -> int:
        entry, app = known.entry, self.app
        told = publications(app.conf, lambda: self.emitter) if firing.send else None
        sent = self._sent_by(known, firing, told) if firing.send else None
        if sent is not None:
            run = Run(firing.due, sent.id, firing.missed)
            store_graph(sent, self.backend, app.conf.result_expires)
        else:
            run = Run(firing.due, "", firing.missed + firing.send)
        stand = after_firing(known.stand, entry, run)
        text = sign_stand(stand, app.signer)
        said = self._timetable.fire(token, entry.name, known.row, text, () if sent is None else sent.messages)
        if said != FIRED:
            return said
        known.stand, known.row = stand, Row(known.row.entry, text)
        if sent is not None:
            self.fired += 1
            logger.info("%s: %s was sent as %s", entry.name, entry.task, sent.id)
            label(sent, self.backend, self._now())
            if not self._timetable.joined:
                send_outbox(self._timetable, app.broker.publish)
            if told is not None:
                told.end()
        return said

    def _sent_by(self, known: _Known, firing: Firing, told: Publications | None) -> Sent | None:
        """Return what a firing sends; None where it is for workers that listen, and none does."""
        entry, signer, call = known.entry, self.app.signer, self._call_of(known)
        try:
            queues = queues_of(call, self.backend, signer, entry.queue)
        except SendFailed as exc:
            logger.warning("%s: %s", entry.name, exc)
            return None
        tell = None if told is None else told.begin
        return sent_by(entry, call, *ids_of(entry, firing.due), self._now(), signer, queues, tell)

    def _note_ends(self, token: int) -> None:
        """Write how runs ended beside when they were due: their records go after a while."""
        if not self.leads or time.monotonic() - self._noted_at < NOTED_S:
            return
        self._noted_at = time.monotonic()
        kept_since = self._now() - self.app.conf.result_expires
        runs = [run for known in self._known.values() for run in known.stand.runs if run.id and not run.ended]
        newest = sorted((run for run in runs if run.due > kept_since), key=lambda run: -run.due)[:NOTED_AT_ONCE]
        if not newest:
            return
        ids = [run.id for run in newest]
        records = dict(zip(ids, self.backend.load(ids), strict=True))
        for known in self._known.values():
            stand = with_ends(known.stand, records, self.app.signer)
            if stand is known.stand:
                continue
            text = sign_stand(stand, self.app.signer)
            if self._timetable.fire(token, known.entry.name, known.row, text, ()) != FIRED:
                self._cursor = ""  # somebody else was faster, or leads: to be read again
                return
            known.stand, known.row = stand, Row(known.row.entry, text)

    def _call_of(self, known: _Known) -> Call:
        if known.call is None:
            data = self._timetable.call(known.entry.name)
            if data is None:
                raise BadMessage("place", f"what entry {known.entry.name[:80]} sends is gone")
            known.call = open_call(data, known.entry)
        return known.call

    def _keep_blobs(self) -> None:
        """Let large data that entries name stay for as long as they do."""
        if time.monotonic() - self._blobs_kept_at < BLOBS_AGAIN_S and self._blobs_kept_at:
            return
        self._blobs_kept_at = time.monotonic()
        for known in list(self._known.values()):
            with contextlib.suppress(BadMessage):
                if refs := blobs_of(self._call_of(known)):
                    self.app.blobs.keep(refs, time.time() + BLOBS_KEPT_S)
