"""The schedule as programs and notebooks use it: `app.beat` lists entries, adds, changes, pauses and removes them.

Whatever is changed here, beats that run take at once. Entries that an app's settings have are put there by `Beat`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from nbqueue import signals, states
from nbqueue.backends.base import Backend, Label
from nbqueue.canvas import Signature, maybe_signature
from nbqueue.config import REDIS_SCHEMES, Settings, scheme_of
from nbqueue.configuration import zone as zone_of_settings
from nbqueue.deliveries import KEEPER_WAKE, LIVE_S, Outgoing
from nbqueue.entries import (
    Call,
    Entry,
    Run,
    Sent,
    Stand,
    after_firing,
    check,
    digest_of,
    encode_call,
    known_of,
    next_due,
    open_call,
    open_entry,
    sent_by,
    sign_entry,
    sign_stand,
    stand_of,
)
from nbqueue.exceptions import BadMessage, ImproperlyConfigured, SendFailed, SendUncertain, UnknownTask
from nbqueue.expand import expand
from nbqueue.messages import Steering, encode_steering, new_id, new_nonce, pack_body
from nbqueue.payloads import Packer
from nbqueue.plans import pack
from nbqueue.schedules import Rule, maybe_schedule
from nbqueue.signing import Signer
from nbqueue.spread import copies_of
from nbqueue.timetable import FIRED, Row, Timetable
from nbqueue.watcher import listened_queues

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.emitter import Emitter
    from nbqueue.publishing import Publications
    from nbqueue.tasks import Task

BLOBS_KEPT_S: Final = 60 * 86_400.0  # large data that an entry names; beats that lead say so again each day
_TRIES: Final = 20
# What an entry of a schedule may say of its calls that means nothing at a time that isn't known yet.
_TIMES: Final = frozenset({"countdown", "eta", "task_id"})

RuleLike = Rule | timedelta | float | str


@dataclass(frozen=True, slots=True)
class ShownRun:
    """One firing, or those that were missed (`missed` of them, without an `id`). Instants are aware."""

    due_at: datetime
    id: str
    state: str
    started_at: datetime | None
    ended_at: datetime | None
    missed: int
    by_hand: bool


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """An entry as people see it. `problem` says why it can't fire; then the rest may be missing."""

    name: str
    rule: str
    zone: str
    task: str
    queue: str
    enabled: bool
    policy: str
    origin: str
    next_at: datetime | None
    last_at: datetime | None
    count: int
    runs: tuple[ShownRun, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Leader:
    """The beat that leads, since when, and how many stand by."""

    name: str
    since: datetime
    standby: int


class Packed(NamedTuple):
    """A call ready for an entry."""

    call: Call
    task: str
    queue: str
    packer: Packer


@dataclass(frozen=True, slots=True)
class Configured:
    """An entry that settings have."""

    name: str
    rule: Rule
    signature: Signature
    policy: str = "coalesce"
    expires: float = 0.0
    said: Any = field(default=None, compare=False)


class Schedule:
    """The schedule of one backend. Any number of processes may change it.

    Args:
        app: whose backend has it.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self._timetable: Timetable | None = None

    @property
    def timetable(self) -> Timetable:
        """Return what keeps it, connected at first use.

        Raises:
            ImproperlyConfigured: the backend is no Redis.
        """
        if self._timetable is None:
            self._timetable = open_timetable(self.app, "nbq-client")
        return self._timetable

    def close(self) -> None:
        """Give up connections."""
        if self._timetable is not None:
            self._timetable.close()
            self._timetable = None

    # ---- looking

    def list(self) -> list[ShownEntry]:
        """Return all entries, in the order of their names, with their last runs."""
        rows = self.timetable.rows()
        known = {name: _read(name, row, self.app) for name, row in rows.items()}
        ids = [id_ for found in known.values() if not isinstance(found, str) for id_ in _open_runs(found[1])]
        records = dict(zip(ids, self.app.backend.load(ids), strict=True)) if ids else {}
        return [self._shown(name, known[name], records) for name in sorted(known)]

    def get(self, name: str) -> ShownEntry:
        """Return one entry.

        Raises:
            UnknownTask: there is none of this name.
        """
        row = self._row(name)
        found = _read(name, row, self.app)
        ids = _open_runs(found[1]) if not isinstance(found, str) else []
        return self._shown(name, found, dict(zip(ids, self.app.backend.load(ids), strict=True)))

    def leader(self) -> Leader | None:
        """Return which beat leads; None if none does, and nothing fires."""
        found = self.timetable.leader()
        return None if found is None else Leader(found[0], datetime.fromtimestamp(found[1], UTC), found[2])

    def _row(self, name: str) -> Row:
        row = self.timetable.row(name)
        if row is None:
            raise UnknownTask(f"the schedule has no entry {name!r}")
        return row

    def _shown(self, name: str, found: tuple[Entry, Stand] | str, records: Mapping[str, bytes | None]) -> ShownEntry:
        if isinstance(found, str):
            return ShownEntry(name, "", "", "", "", False, "", "", None, None, 0, (), found)
        entry, stand = found
        try:
            due, problem = next_due(entry, stand), ""
        except ImproperlyConfigured as exc:
            due, problem = 0.0, str(exc)
        fired = [run.due for run in stand.runs if run.id]
        return ShownEntry(
            name,
            entry.rule,
            entry.zone,
            entry.task,
            entry.queue,
            entry.enabled,
            entry.policy,
            entry.origin.removeprefix("conf:"),
            _instant(due) if entry.enabled else None,
            _instant(fired[-1]) if fired else None,
            stand.count,
            tuple(self._shown_run(run, records.get(run.id)) for run in stand.runs),
            problem,
        )

    def _shown_run(self, run: Run, record: bytes | None) -> ShownRun:
        known = known_of(record, run, self.app.signer)
        state = known.state or (states.UNKNOWN if run.id else "MISSED")
        due, started, ended = datetime.fromtimestamp(run.due, UTC), _instant(known.started), _instant(known.ended)
        return ShownRun(due, run.id, state, started, ended, run.missed, run.by_hand)

    # ---- changing

    def add(
        self,
        name: str,
        rule: RuleLike,
        signature: Signature | Task | Mapping[str, Any] | str,
        *,
        zone: str = "",
        policy: str = "coalesce",
        expires: float | None = None,
        replace: bool = False,
        enabled: bool = True,
    ) -> ShownEntry:
        """Add an entry; it fires from now on, whatever becomes of this process.

        Args:
            name: unique in the schedule.
            rule: an interval (seconds, a `timedelta`, `"10m"`) or a crontab (`crontab(…)`, `"0 7 * * mon-fri"`).
            signature: what is sent, with its arguments and options; a task without arguments; or a task's name.
            zone: of a crontab's fields; the app's if empty.
            policy: of firings that nobody was there for: `coalesce` sends one for all, `skip` none, `all` each.
            expires: seconds after which a run that has not started is dropped.
            replace: take the place of an entry of this name.
            enabled: False adds it paused.

        Raises:
            ImproperlyConfigured: the rule, zone or policy names nothing, or there is an entry of this name.
            NotPicklable: code or arguments can't travel.
        """
        packed = self.packed(maybe_signature(signature, app=self.app))
        return self.add_packed(
            name, rule, packed, zone=zone, policy=policy, expires=expires, replace=replace, enabled=enabled
        )

    def add_packed(
        self,
        name: str,
        rule: RuleLike,
        packed: Packed,
        *,
        zone: str = "",
        policy: str = "coalesce",
        expires: float | None = None,
        replace: bool = False,
        enabled: bool = True,
        origin: str = "",
        digest: str = "",
    ) -> ShownEntry:
        """Add an entry whose call is packed; see `add`."""
        call, seconds = encode_call(packed.call), float(expires or 0.0)
        more: dict[str, Any] = {"enabled": enabled, "origin": origin, "digest": digest, "expires": seconds}
        entry = self._entry(name, self._times(rule, zone), packed, call, None, policy=policy, **more)
        self._save(packed)

        def write(was: Row | None) -> bool:
            if was is not None and not replace:
                raise ImproperlyConfigured(f"the schedule has an entry {name!r} already; delete it, or replace it")
            text = sign_entry(entry, self.app.signer)
            return self.timetable.write(name, was, text, call=call, enabled=enabled)

        self._again(lambda: write(self.timetable.row(name)), name)
        return self.get(name)

    def put_packed(
        self, name: str, rule: RuleLike, packed: Packed, *, zone: str = "", policy: str = "coalesce", digest: str
    ) -> tuple[ShownEntry, str]:
        """Add an entry, or let one that was added before become this; return it, and what was done.

        One that is there keeps its runs, its count and its pause, and its times if they are the same.

        Args:
            name: unique in the schedule.
            rule: as `add` takes it.
            packed: what is sent.
            zone: of a crontab's fields; the app's if empty.
            policy: of firings that nobody was there for.
            digest: of what is sent, the same in every process.

        Returns:
            The entry, and `added`, `changed` or `same`.

        Raises:
            ImproperlyConfigured: the rule, zone or policy names nothing, or an app's settings have the entry.
        """
        times, call, done = self._times(rule, zone), encode_call(packed.call), ""
        self._save(packed)

        def write() -> bool:
            nonlocal done
            row = self.timetable.row(name)
            read = None if row is None else _read(name, row, self.app)
            known = None if read is None or isinstance(read, str) else read[0]
            if known is not None and known.origin:
                raise ImproperlyConfigured(
                    f"the settings of {known.origin.removeprefix('conf:')} have an entry {name!r}; take another name"
                )
            if known is not None and (known.rule, known.zone, known.digest, known.policy) == (*times, digest, policy):
                done = "same"
                return True
            done = "added" if known is None else "changed"
            entry = self._entry(name, times, packed, call, known, policy=policy, digest=digest)
            return self._write(entry, row, known, call)

        self._again(write, name)
        return self.get(name), done

    def change(
        self,
        name: str,
        *,
        rule: RuleLike | None = None,
        zone: str | None = None,
        policy: str | None = None,
        expires: float | None = None,
        enabled: bool | None = None,
        signature: Signature | Task | Mapping[str, Any] | str | None = None,
    ) -> ShownEntry:
        """Change an entry; what is None stays. Its runs and its count stay too.

        Raises:
            UnknownTask: there is none of this name.
            ImproperlyConfigured: the rule, zone or policy names nothing.
        """
        packed = None if signature is None else self.packed(maybe_signature(signature, app=self.app))
        call = b"" if packed is None else encode_call(packed.call)
        if packed is not None:
            self._save(packed)
        now = self.app.backend.now()
        found = None if rule is None else maybe_schedule(rule)

        def changed(entry: Entry) -> Entry:
            fields: dict[str, Any] = {"policy": policy, "expires": expires, "enabled": enabled, "zone": zone}
            fields = {field: value for field, value in fields.items() if value is not None}
            if found is not None:
                fields["rule"] = found.text
                fields.setdefault("zone", found.zone or entry.zone)
            if packed is not None:
                fields |= {"call": digest_of(call), "task": packed.task, "queue": packed.queue}
            # What was due before isn't made good: another rule has missed nothing, and a pause is no failure.
            if found is not None or zone is not None or (enabled and not entry.enabled):
                fields["since"] = now
            return check(msgspec.structs.replace(entry, **fields), now)

        def write() -> bool:
            row = self._row(name)
            entry = changed(open_entry(row.entry, name, self.app.signer))
            text = sign_entry(entry, self.app.signer)
            return self.timetable.write(name, row, text, stand=row.stand, call=call, enabled=entry.enabled)

        self._again(write, name)
        return self.get(name)

    def pause(self, name: str) -> ShownEntry:
        """Let an entry not fire until it is resumed."""
        return self.change(name, enabled=False)

    def resume(self, name: str) -> ShownEntry:
        """Let an entry fire again, from now on: what was due in its pause is not made good."""
        return self.change(name, enabled=True)

    def delete(self, name: str) -> None:
        """Remove an entry; tasks that it sent go on.

        Raises:
            UnknownTask: there is none of this name.
        """
        self._again(lambda: self.timetable.write(name, self._row(name), b"", enabled=False), name)

    def undelete(self, name: str) -> ShownEntry:
        """Bring back an entry that was removed within the last hour.

        Raises:
            UnknownTask: none of this name was.
        """
        found = self.timetable.deleted(name)
        if found is None:
            raise UnknownTask(f"no entry {name!r} was deleted within the last hour")
        row, call = found
        entry = open_entry(row.entry, name, self.app.signer)
        if entry.enabled:
            entry = msgspec.structs.replace(entry, since=self.app.backend.now())
        text = sign_entry(entry, self.app.signer)
        if not self.timetable.write(name, None, text, stand=row.stand, call=call, enabled=entry.enabled):
            raise ImproperlyConfigured(f"the schedule has an entry {name!r} again")
        return self.get(name)

    def run_now(self, name: str) -> str:
        """Send what an entry sends, now, beside its times; return the task's id.

        Raises:
            UnknownTask: there is none of this name.
            SendFailed: it goes to a broadcast, and no worker listens.
            SendUncertain: the broker can't be reached. It runs once that is there again: it needs no second call.
        """
        app = self.app
        id_, nonce, now = new_id(), new_nonce(), app.backend.now()
        sent: list[tuple[Sent, Publications | None]] = []

        def fire() -> bool:
            row = self._row(name)
            entry = open_entry(row.entry, name, app.signer)
            stand = stand_of(row.stand, entry, app.signer)
            call = open_call(self.timetable.call(name) or b"", entry)
            queues = queues_of(call, app.backend, app.signer, entry.queue)
            told = publications(app.conf, lambda: app.emitter)
            made = sent_by(entry, call, id_, nonce, now, app.signer, queues, None if told is None else told.begin)
            store_graph(made, app.backend, app.conf.result_expires)
            after = after_firing(stand, entry, Run(now, made.id, by_hand=True), by_hand=True)
            sent[:] = [(made, told)]
            return self.timetable.fire(0, name, row, sign_stand(after, app.signer), made.messages) == FIRED

        self._again(fire, name)
        ((made, told),) = sent
        label(made, app.backend, now)
        if not self.timetable.joined:
            try:
                send_outbox(self.timetable, app.broker.publish)
            except (SendFailed, SendUncertain) as exc:
                kept = (
                    f"task {made.id} of entry {name!r} is kept, and is sent by the beat that leads as soon as it can be"
                )
                raise SendUncertain(f"{kept}: {exc}") from exc
        if told is not None:
            told.end()
        return made.id

    def _again(self, action: Callable[[], bool], name: str) -> None:
        """Do something that fails where somebody else was faster."""
        for _ in range(_TRIES):
            if action():
                return
        raise ImproperlyConfigured(f"entry {name!r} is changed by others all the time; try again")

    # ---- what is sent

    def packed(self, found: Signature) -> Packed:
        """Return the call of a signature, or the canvas."""
        packer = Packer(spill=self.app.spill)
        plan = expand(found)
        if not plan.calls:
            raise ImproperlyConfigured("an entry of the schedule sends something; this canvas is empty")
        if len(plan.calls) == 1 and plan.shape.call == 0:
            call = plan.calls[0].signature
            task = call.type
            options = {name: value for name, value in call.options.items() if name not in _TIMES and name != "expires"}
            ignore = options.pop("ignore_result", None)
            steering, code = task.steering_of(packer, (call.args, call.kwargs), options)
            ignore = task.ignore_result if ignore is None else ignore
            steering = msgspec.structs.replace(
                steering, ignore_result=bool(self.app.conf.task_ignore_result if ignore is None else ignore)
            )
            args = task.dumps_args(call.args, call.kwargs, steering.serializer, packer, options.get("compression"))
            return self.packed_message(steering, pack_body(code, args), packer)
        graph = pack(plan, self.app, packer, sent_now=False)
        result = plan.shape.calls[-1] if plan.shape.calls else plan.heads[0]
        call_ = Call(graph=msgspec.msgpack.encode(graph), heads=tuple(plan.heads), result=result)
        first = plan.calls[plan.heads[0]].signature
        queue = self.app.destination(first.task, queue=first.options.get("queue"))[0]
        return Packed(call_, repr(found)[:200], queue, packer)

    def packed_message(self, steering: Steering, body: bytes, packer: Packer) -> Packed:
        """Return the call of a message that is sent again and again."""
        parts = self.app.spread.parts(self.app.conf, steering.queue)
        call = Call(encode_steering(msgspec.structs.replace(steering, session="")), body, parts=parts)
        return Packed(call, steering.shown_name, steering.queue, packer)

    def sync(self, configured: Iterable[Configured], origin: str) -> None:
        """Let the schedule have what an app's settings have: new entries come, changed ones change, others go.

        What was paused stays so.

        Args:
            configured: the entries.
            origin: the app's name.
        """
        mark = f"conf:{origin}"
        wanted = {one.name: one for one in configured}
        for name, row in self.timetable.rows().items():
            found = _read(name, row, self.app)
            if not isinstance(found, str) and found[0].origin == mark and name not in wanted:
                self._again(lambda name=name, row=row: self._drop(name, row, mark), name)  # type: ignore[misc]
        for one in wanted.values():
            self._again(lambda one=one: self._put(one, mark), one.name)  # type: ignore[misc]

    def _drop(self, name: str, row: Row, mark: str) -> bool:
        now = self.timetable.row(name)
        if now is None:
            return True
        found = _read(name, now, self.app)
        if isinstance(found, str) or found[0].origin != mark:
            return True
        return self.timetable.write(name, now, b"", enabled=False)

    def _put(self, one: Configured, mark: str) -> bool:
        row = self.timetable.row(one.name)
        found = None if row is None else _read(one.name, row, self.app)
        times = self._times(one.rule)
        digest = hashlib.sha256(json.dumps([*times, one.policy, one.expires, repr(one.said)]).encode()).hexdigest()
        known = found[0] if found is not None and not isinstance(found, str) else None
        if known is not None and known.origin == mark and known.digest == digest:
            return True
        packed = self.packed(one.signature)
        call = encode_call(packed.call)
        more: dict[str, Any] = {"policy": one.policy, "origin": mark, "digest": digest, "expires": one.expires}
        entry = self._entry(one.name, times, packed, call, known, **more)
        self._save(packed)
        return self._write(entry, row, known, call)

    # ---- entries

    def _times(self, rule: RuleLike, zone: str = "") -> tuple[str, str]:
        """Return a rule's text, and the zone in which it is meant."""
        found = maybe_schedule(rule)
        return found.text, zone or found.zone or str(zone_of_settings(self.app.conf))

    def _entry(
        self, name: str, times: tuple[str, str], packed: Packed, call: bytes, known: Entry | None, **more: Any
    ) -> Entry:
        """Return an entry; of one whose place it takes stay the pause and, with the same times, since when it fires."""
        now = self.app.backend.now()
        kept: dict[str, Any] = {"made": new_nonce(), "since": now}
        if known is not None:
            same = (known.rule, known.zone) == times
            kept = {"made": known.made, "since": known.since if same else now, "enabled": known.enabled}
        rule, zone = times
        found = Entry(name=name, rule=rule, zone=zone, task=packed.task, call=digest_of(call), queue=packed.queue)
        return check(msgspec.structs.replace(found, **kept, **more), now)

    def _write(self, entry: Entry, row: Row | None, known: Entry | None, call: bytes) -> bool:
        """Write an entry in the place of `row`, with how that stands if it could be believed."""
        stand = row.stand if row is not None and known is not None else b""
        text = sign_entry(entry, self.app.signer)
        return self.timetable.write(entry.name, row, text, stand=stand, call=call, enabled=entry.enabled)

    def _save(self, packed: Packed) -> None:
        """Keep the large data of what is sent for as long as an entry may name it."""
        if packed.packer.blobs:
            self.app.blobs.save(packed.packer.blobs, time.time() + BLOBS_KEPT_S, packed.packer.spilled)


def open_timetable(app: App, name: str) -> Timetable:
    """Return a new connection to an app's schedule.

    Raises:
        ImproperlyConfigured: its backend is no Redis.
    """
    link = app.link
    url = link.backend_url
    if url is None or scheme_of(url) not in REDIS_SCHEMES:
        raise ImproperlyConfigured("a schedule is kept on a Redis backend; set result_backend to one")
    return Timetable(
        url,
        name=name,
        joined=app.joined,
        record_ttl_s=app.conf.result_expires,
        wake_key=KEEPER_WAKE if link.embedded else "",
    )


def store_graph(sent: Sent, backend: Backend, result_expires_s: float) -> None:
    """Store the graph of a canvas that is about to be fired, for as long as what has not ended is known at least."""
    if sent.graph is not None:
        backend.store_graph(*sent.graph, max(result_expires_s, LIVE_S))


def label(sent: Sent, backend: Backend, now: float) -> None:
    """Let what was fired be found by its label; before it is sent, as the broker may be away just then."""
    steering = sent.steering
    if steering.label or steering.identity:
        backend.label(Label(sent.id, steering.label, steering.identity, now))


def queues_of(call: Call, backend: Backend, signer: Signer, name: str) -> list[str]:
    """Return the queues that each get a copy of what is about to be fired, as they are listened to now; none for one.

    Raises:
        SendFailed: it goes to a broadcast, and no worker listens.
    """
    return copies_of(call.parts, listened_queues(backend, signer), name) if call.parts else []


def publications(conf: Settings, emitter: Callable[[], Emitter]) -> Publications | None:
    """Return what tells of what is about to be fired; None where nobody wants to hear of it.

    Args:
        conf: says whether events are sent.
        emitter: returns what sends them.
    """
    if not conf.task_send_sent_event and not signals.anybody(signals.OF_CLIENT):
        return None
    from nbqueue.publishing import Publications  # noqa: PLC0415 - few tell anything

    return Publications(emitter() if conf.task_send_sent_event else None)


def send_outbox(timetable: Timetable, publish: Callable[[list[Outgoing]], Any]) -> int:
    """Send what was fired and is not on its queue yet; return how many messages that were.

    What was sent and not noted is sent again, and known by its id.
    """
    waiting = timetable.outbox()
    if waiting:
        publish(waiting)
        timetable.sent([message.id for message in waiting])
    return len(waiting)


def configured(app: App) -> list[Configured]:
    """Return the entries that an app's settings have: `beat_schedule`, and what `add_periodic_task` added.

    Raises:
        ImproperlyConfigured: one of them can't be understood; names it.
    """
    app.finalize()
    found = []
    for name, said in dict(app.conf.beat_schedule).items():
        if not isinstance(said, Mapping):
            raise ImproperlyConfigured(f"beat_schedule[{name!r}] must be a dict with task and schedule, not {said!r}")
        if wrong := sorted(said.keys() - {"task", "schedule", "args", "kwargs", "options", "relative", "policy"}):
            raise ImproperlyConfigured(
                f"beat_schedule[{name!r}] has no {', '.join(wrong)}; "
                "it has task, schedule, args, kwargs, options, relative and policy"
            )
        for needed in ("task", "schedule"):
            if needed not in said:
                raise ImproperlyConfigured(f"beat_schedule[{name!r}] says no {needed}")
        for what, kind, shown in (("args", (list, tuple), "list or tuple"), ("kwargs", Mapping, "dict")):
            if not isinstance(given := said.get(what) or (), kind) and given:
                raise ImproperlyConfigured(f"beat_schedule[{name!r}]: {what} must be a {shown}, not {given!r}")
        options = dict(said.get("options") or {})
        expires = options.pop("expires", None)
        task = app.task_for(said["task"]) if isinstance(said["task"], str) else said["task"]
        call = Signature(task, said.get("args"), said.get("kwargs"), options, app=app)
        found.append(
            _configured(str(name), said["schedule"], call, said.get("policy", "coalesce"), expires, dict(said))
        )
    return [*found, *app.periodic]


def periodic(
    app: App,
    schedule: Any,
    sig: Any,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
    **options: Any,
) -> Configured:
    """Return the entry that `add_periodic_task` adds."""
    call = maybe_signature(sig, app=app).clone(tuple(args), kwargs)
    policy = options.pop("policy", "coalesce")
    expires = options.pop("expires", call.options.get("expires"))
    call.options.update(options)
    shown = name or repr(call)
    return _configured(shown, schedule, call, policy, expires, (repr(schedule), repr(call), sorted(options.items())))


def _configured(name: str, schedule: Any, call: Signature, policy: str, expires: Any, said: Any) -> Configured:
    try:
        rule = maybe_schedule(schedule() if callable(schedule) and not hasattr(schedule, "next_after") else schedule)
    except ImproperlyConfigured as exc:
        raise ImproperlyConfigured(f"entry {name!r} of the schedule: {exc}") from exc
    if expires is not None and (isinstance(expires, bool) or not isinstance(expires, int | float | timedelta)):
        raise ImproperlyConfigured(f"entry {name!r} of the schedule: expires is a number of seconds, not {expires!r}")
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires or 0.0)
    return Configured(name, rule, call, policy, seconds, said)


def _read(name: str, row: Row, app: App) -> tuple[Entry, Stand] | str:
    """Return an entry and how it stands, or why it can't be believed."""
    try:
        entry = open_entry(row.entry, name, app.signer)
        stand = stand_of(row.stand, entry, app.signer)
    except BadMessage as exc:
        return f"It can't be believed: {exc}"
    return entry, stand


def _open_runs(stand: Stand) -> list[str]:
    """Return ids of runs that may come to another end than is noted, as a failure does that is run again."""
    return [run.id for run in stand.runs if run.id and run.state != states.SUCCESS]


def _instant(at: float) -> datetime | None:
    return datetime.fromtimestamp(at, UTC) if at else None
