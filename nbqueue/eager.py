"""Calls that run here and now, in this process: `apply`, and everything where `task_always_eager` is set.

A canvas runs by the same plan that workers go by, one call after the other. Nothing is serialized.

Source: Celery 5.7, `Task.apply` and "Testing with Celery" of its user guide.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from nbqueue import callbacks, retries, serialization, stated, states, tracing
from nbqueue.canvas import ACCUMULATE, XMAP, XSTARMAP, Signature, in_series
from nbqueue.capture import Flushed, Flusher, Recorder
from nbqueue.exceptions import ChordError, Ignore, ImproperlyConfigured, NotRegistered, Reject
from nbqueue.execute import OWN_FILES, Loaded, Request, perform, takes_several, while_it_runs
from nbqueue.expand import Meeting, Plan, Shape, expand, expand_as_one
from nbqueue.extras import EXTRAS, Extras
from nbqueue.groups import GroupResult
from nbqueue.handles import EagerResult
from nbqueue.messages import (
    REPLACED,
    Changes,
    ChildTask,
    Facts,
    Failure,
    Steering,
    encode_failure,
    encode_steering,
    new_nonce,
    sign_record,
)
from nbqueue.request import FailedRequest, current_request

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.tasks import Task

_FILES: Final = (*OWN_FILES, "nbqueue/eager.py")


class _Unwatched(Flusher):
    """Flushes nothing: nobody follows a call that runs here."""

    def soon(self, recorder: Flushed) -> None:
        """Do nothing."""


def _nobody(kind: str, data: bytes) -> None:
    """Take how far a call has come."""


def run(
    app: App,
    task: Task,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    retried: int = 0,
    parent: Any = None,
    replaced: int = 0,
) -> EagerResult:
    """Run one call, and again at once as often as it asks for a retry.

    Args:
        app: whose task it is.
        task: a task of this process.
        args: of the call.
        kwargs: of the call.
        options: of `apply_async`, of which `task_id`, `queue`, `ignore_result` and those of `Extras` mean something.
        retried: how often it was retried before.
        parent: the handle of what came before it.
        replaced: how often something took a task's place, until this call was made.
    """
    id_ = str(options.get("task_id") or uuid.uuid4())
    loaded = task.loaded
    changes: Changes | None = None  # of the retries so far
    while True:
        queue = str(options.get("queue") or task.queue or app.conf.task_default_queue)
        priority = options.get("priority") or task.priority or 0
        steering = Steering(
            id=id_, nonce=new_nonce(), task=task.name, queue=queue, sent_at=time.time(), priority=priority
        )
        steering = Extras.of({name: value for name, value in options.items() if name in EXTRAS}).on(steering)
        if (outer := current_request()) is not None:
            steering = outer.on(steering)
        if changes is not None:
            steering = changes.on(steering)
        call = ChildTask(
            0, 1, id_, task.name, "", -1, encode_steering(steering), b"", retries=retried, replaced=replaced
        )
        request = Request(call, Recorder(_nobody), _Unwatched())
        request.is_eager = True
        started = time.time()
        with while_it_runs(request):
            state, value, trace = _outcome(loaded, request, args, dict(kwargs))
        if state == REPLACED:
            state, value, trace = _in_place(app, request.replacement, replaced + 1)
        if state != states.RETRY:
            break
        retried += 1
        if (again := request.again) is not None:
            args, kwargs = again.call or (args, kwargs)
            changes = again.changes.after(changes) if again.changes is not None else changes
    result = EagerResult(id_, value, state, trace, task.name, app=app, parent=parent, call=(args, dict(kwargs)))
    ignored = options.get("ignore_result") or task.ignore_result
    if changes is not None and changes.ignore_result is not None:
        ignored = changes.ignore_result
    if app.conf.task_store_eager_result and not ignored:
        _store(app, result, steering, started)
    return result


def _in_place(app: App, found: Signature, replaced: int) -> tuple[str, Any, str | None]:
    """Return how what takes a task's place has ended."""
    try:
        end = _Here(app, expand_as_one(found), replaced).run()
    except ImproperlyConfigured as exc:
        return states.FAILURE, exc, None
    return end.state, end.result, end.traceback


def _outcome(
    loaded: Loaded, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, Any, str | None]:
    """Return state, value or exception, and traceback of one run."""
    try:
        value = perform(loaded, request, args, kwargs)
        if request.again is not None:
            return _retried(request, request.again)
    except Exception as exc:  # noqa: BLE001 - whatever a task raises is its outcome
        return _raised(request, exc)
    if request.hooks:
        callbacks.succeeded(request, value)
    tracing.succeeded(request, value)
    return states.SUCCESS, value, None


def _raised(request: Request, exc: Exception) -> tuple[str, Any, str | None]:
    """Return state, exception and traceback of a run that raised."""
    found = exc
    if request.replacement is not None:
        return REPLACED, None, None
    try:
        request.again = request.again or retries.planned_for(request, exc)
    except Exception as last:  # noqa: BLE001 - no retries are left
        found = last
    else:
        if request.again is not None:
            return _retried(request, request.again)
    if isinstance(found, Ignore) and request.said_end is not None:
        state, value = request.said_end
        return (state, value, None) if state == states.SUCCESS else (state, stated.error_of(value), "")
    if isinstance(found, Ignore | Reject):
        state = states.IGNORED if isinstance(found, Ignore) else states.REJECTED
        tracing.left(request, state, found)
        return state, found, None
    if request.hooks:
        callbacks.failed(request, found)
    tracing.failed(request, found)
    return states.FAILURE, found, serialization.format_traceback(found, _FILES)


def _retried(request: Request, plan: retries.Plan) -> tuple[str, Any, str | None]:
    if request.hooks:
        callbacks.retried(request, plan)
    tracing.retried(request, plan)
    return states.RETRY, None, None


def _store(app: App, result: EagerResult, steering: Steering, started: float) -> None:
    """Keep a result as a worker would."""
    value = result.result
    error = ""
    if result.state == states.SUCCESS:
        body = serialization.dumps_value(value)
    else:
        failure: Failure = serialization.dumps_exception(value, result.traceback or "")
        body, error = encode_failure(failure), f"{failure.type}: {failure.message}"[:500]
    facts = Facts(
        kind="record",
        id=result.id,
        at=time.time(),
        state=result.state,
        attempt=1,
        nonce=steering.nonce,
        task=steering.task,
        queue=steering.queue,
        sent_at=steering.sent_at,
        started_at=started,
        error=error,
    )
    kept_s = app.conf.result_failure_expires if result.state == states.FAILURE else None
    kept_s = app.conf.result_expires if kept_s is None else kept_s
    app.backend.store({result.id: sign_record(facts, body, app.signer)}, kept_s)


def run_canvas(
    app: App,
    found: Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    throw: bool | None = None,
) -> Any:
    """Run a canvas; return the handle it has.

    Args:
        app: whose tasks it is made of.
        found: any signature.
        args: for its first calls.
        kwargs: for its first calls.
        options: of `apply_async`, for its first calls.
        throw: raise what it fails with; as `task_eager_propagates` says if None.
    """
    plan = expand(found, args, kwargs, options)
    sent = _Here(app, plan).run()
    if app.conf.task_eager_propagates if throw is None else throw:
        sent.get()
    return sent


class _Here:
    """One run of a plan."""

    def __init__(self, app: App, plan: Plan, replaced: int = 0) -> None:
        self.app = app
        self.plan = plan
        self.replaced = replaced
        self.results: dict[int, EagerResult] = {}
        self._queue: deque[tuple[int, str, list[EagerResult]]] = deque((head, "nothing", []) for head in plan.heads)

    def run(self) -> Any:
        while self._queue:
            number, how, before = self._queue.popleft()
            self.results[number] = result = self._call(number, how, before)
            self._go_on(number, result, propagated=how == "failed")
        return self._handle(self.plan.shape)

    def _call(self, number: int, how: str, before: list[EagerResult]) -> EagerResult:
        """Run one call, with what came before it."""
        call = self.plan.calls[number].signature
        id_ = call.options.get("task_id") or str(uuid.uuid4())
        parent = self.results.get(self.plan.calls[number].parent)
        if how == "failed":
            lost = before[0]
            return EagerResult(id_, lost.result, lost.state, lost.traceback, call.task, app=self.app, parent=parent)
        if how == "gather" and (bad := next((one for one in before if not one.successful()), None)) is not None:
            error = ChordError(f"Dependency {bad.id} raised {type(bad.result).__name__}: {bad.result}")
            return EagerResult(id_, error, states.FAILURE, None, call.task, app=self.app, parent=parent)
        task = self._task_of(call)
        first = () if call.immutable else self._fed(number, how, before, task)
        if call.task == ACCUMULATE:
            return EagerResult(id_, first[0], states.SUCCESS, None, call.task, app=self.app, parent=parent)
        if call.task in (XMAP, XSTARMAP):
            name, elements = call.args
            value = in_series(self._registered(name).run, starred=call.task == XSTARMAP)(elements)
            return EagerResult(id_, value, states.SUCCESS, None, call.task, app=self.app, parent=parent)
        given = {**call.options, "task_id": id_}
        return run(self.app, task, (*first, *call.args), call.kwargs, given, parent=parent, replaced=self.replaced)

    def _fed(self, number: int, how: str, before: list[EagerResult], task: Task) -> tuple[Any, ...]:
        """Return what a call gets of what came before it."""
        match how:
            case "nothing":
                return ()
            case "error":
                return self._told(number, before[0], task)
            case "gather":
                return ([one.result for one in before],)
        return (before[0].result,)

    def _told(self, number: int, lost: EagerResult, task: Task) -> tuple[Any, ...]:
        """Return what an errback is told."""
        own = self.plan.calls[number].signature
        if not takes_several(task.function, own.args, own.kwargs, bind=task.bind):
            return (lost.id,)
        failed = self.plan.calls[self.plan.calls[number].parent]
        call = failed.signature
        whole = call.immutable or failed.parent < 0
        request = FailedRequest(lost.id, call.task, load=(lambda: (call.args, call.kwargs)) if whole else None)
        return request, lost.result, lost.traceback

    def _task_of(self, call: Signature) -> Task:
        task = call.type
        if call.task not in (XMAP, XSTARMAP, ACCUMULATE) and task.is_elsewhere:
            return self._registered(call.task)
        return task

    def _registered(self, name: str) -> Task:
        try:
            return self.app.tasks[name]
        except KeyError:
            raise NotRegistered(f"there is no task {name!r} in this process; it could only be sent") from None

    def _go_on(self, number: int, result: EagerResult, *, propagated: bool) -> None:
        """Let what follows a call have its turn."""
        place = self.plan.calls[number]
        how = "value" if result.successful() else "failed"
        self._queue.extend((follower, how, [result]) for follower in place.follow)
        if result.failed() and not propagated:
            told = self._scopes_told(place.parent) if isinstance(result.result, ChordError) else ()
            errors = [errback for errback in place.errors if self.plan.calls[errback].scope not in told]
            self._queue.extend((errback, "error", [result]) for errback in errors)
        if place.join >= 0:
            meeting: Meeting = self.plan.joins[place.join]
            if all(member in self.results for member in meeting.members):
                gathered = [self.results[member] for member in meeting.members]
                self._queue.extend((follower, "gather", gathered) for follower in meeting.follow)
        before = self.results.get(place.parent)
        if before is not None:
            before.followers.append(result)

    def _scopes_told(self, last: int) -> set[int]:
        """Return the scopes whose errbacks know why a body can't run; `last` is the last member of its header."""
        join = self.plan.calls[last].join
        members = self.plan.joins[join].members if join >= 0 else [last]
        one = next((member for member in members if not self.results[member].successful()), -1)
        told: set[int] = set()
        while one >= 0 and not self.results[one].successful():
            told.update(self.plan.calls[errback].scope for errback in self.plan.calls[one].errors)
            one = self.plan.calls[one].parent
        return told - {-1}

    def _handle(self, shape: Shape) -> Any:
        """Return the handle of a part, with that of what came before it."""
        steps = []  # not by recursion: chains are long
        one: Shape | None = shape
        while one is not None:
            steps.append(one)
            one = one.parent
        found: Any = None
        for step in reversed(steps):
            if step.call >= 0:
                result = self.results[step.call]
                result.parent, found = found, result
            else:
                members = [self._handle(member) for member in step.members]
                found = GroupResult(step.id or str(uuid.uuid4()), members, found, app=self.app)
        return found
