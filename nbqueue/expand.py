"""A canvas as one flat plan, however deeply nested: calls, who follows whom, and where the members of a header meet.

All here is pure. `plans.py` packs a plan for sending.

Source: Celery 5.7, "Canvas: Designing Work-flows" of its user guide.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from nbqueue.canvas import (
    TIMES,
    Series,
    Signature,
    chain,
    chord,
    chunks,
    group,
    listed,
    maybe_signature,
    unrolled,
    with_one_end,
)
from nbqueue.exceptions import ImproperlyConfigured


@dataclass(slots=True)
class Place:
    """One call of a plan: what is sent, and what follows it; the numbers are those of calls and joins of the plan."""

    signature: Signature
    follow: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    join: int = -1
    place: int = -1
    parent: int = -1
    scope: int = -1  # of an errback: that of a whole chain or group, of which it is told once


@dataclass(slots=True)
class Meeting:
    """Where the members of a header come together."""

    members: list[int]
    follow: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Shape:
    """The handle that a canvas has: of one call, or of a group of handles.

    Args:
        call: number of the call; -1 for a group.
        members: of a group.
        id: of a group.
        parent: of the handle.
    """

    call: int = -1
    members: list[Shape] = field(default_factory=list)
    id: str = ""
    parent: Shape | None = None

    @property
    def calls(self) -> list[int]:
        """Return the calls whose end is its end, in order."""
        if self.call >= 0:
            return [self.call]
        return [call for member in self.members for call in member.calls]

    @property
    def first(self) -> Shape:
        """Return the handle that all begins with."""
        shape = self
        while shape.parent is not None:
            shape = shape.parent
        return shape


@dataclass(slots=True)
class Plan:
    """A canvas as a flat graph. `heads` are the calls that are sent at once, and `shape` is the handle of it all."""

    calls: list[Place] = field(default_factory=list)
    joins: list[Meeting] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    shape: Shape = field(default_factory=Shape)
    scopes: int = 0


class _Errback(NamedTuple):
    """An errback that calls have from the chain or group they are in."""

    signature: Signature
    scope: int


@dataclass(frozen=True, slots=True)
class _Before:
    """What comes before a part of a canvas: a call, its failure, a join, or nothing."""

    call: int = -1
    join: int = -1
    failed: bool = False
    scope: int = -1  # of the errback that this is before


@dataclass(frozen=True, slots=True)
class _Extra:
    """What the first calls of a part get besides, and what all of its calls do."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    immutable: bool = False

    def without(self, *names: str) -> _Extra:
        options = {name: value for name, value in self.options.items() if name not in names}
        return _Extra(self.args, self.kwargs, options, self.immutable)


_NOTHING: Final = _Before()
_NO_MORE: Final = _Extra()


def expand(
    canvas: Signature,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Return a canvas as one flat plan.

    Args:
        canvas: nested in any way.
        args: for its first calls, in front of their own.
        kwargs: for its first calls.
        options: of `apply_async`.
    """
    plan = Plan()
    plan.shape = _expand(plan, canvas, _NOTHING, _Extra(args, kwargs or {}, options or {}), ())
    return plan


def expand_as_one(canvas: Signature) -> Plan:
    """Return the plan of a canvas that is to take a task's place: it has one end, of a group the list of its values.

    Raises:
        ImproperlyConfigured: it is empty.
    """
    plan = expand(with_one_end(canvas))
    if plan.shape.call < 0:
        raise ImproperlyConfigured(f"{canvas!r} can't take a task's place: there is nothing in it that could run")
    return plan


def _expand(plan: Plan, canvas: Signature, before: _Before, extra: _Extra, errbacks: tuple[_Errback, ...]) -> Shape:
    match canvas:
        case chain():
            return _expand_chain(plan, canvas, before, extra, errbacks)
        case group():
            return _expand_group(plan, canvas, canvas.tasks, before, extra, errbacks)
        case chord():
            return _expand_chord(plan, canvas, before, extra, errbacks)
        case chunks():
            parts = canvas.group()
            return _expand_group(plan, parts, parts.tasks, before, extra, errbacks)
        case Series():
            return _expand_call(plan, canvas.call(), before, extra, errbacks)
    return _expand_call(plan, canvas, before, extra, errbacks)


def _expand_call(plan: Plan, call: Signature, before: _Before, extra: _Extra, errbacks: tuple[_Errback, ...]) -> Shape:
    made = call.clone(extra.args, extra.kwargs, **extra.options)
    if extra.immutable:
        made.immutable = True
    links = [maybe_signature(link) for link in listed(made.options.pop("link", None))]
    errors = [maybe_signature(link) for link in listed(made.options.pop("link_error", None))]
    number = len(plan.calls)
    plan.calls.append(Place(made, parent=before.call, scope=before.scope))
    if before.failed:
        plan.calls[before.call].errors.append(number)
    elif before.call >= 0:
        plan.calls[before.call].follow.append(number)
    elif before.join >= 0:
        plan.joins[before.join].follow.append(number)
        plan.calls[number].parent = plan.joins[before.join].members[-1]
    else:
        plan.heads.append(number)
    for link in links:
        _expand(plan, link, _Before(number), _NO_MORE, ())
    for errback in [*errors, *(one.signature for one in errbacks if one.signature not in errors)]:
        scope = next((one.scope for one in errbacks if one.signature == errback), -1)
        _expand(plan, errback, _Before(number, failed=True, scope=scope), _NO_MORE, ())
    return Shape(number)


def _own_errbacks(plan: Plan, options: dict[str, Any]) -> tuple[_Errback, ...]:
    """Take the errbacks out of the options of a chain or group; each call in it has them."""
    plan.scopes += 1
    return tuple(_Errback(maybe_signature(one), plan.scopes) for one in listed(options.pop("link_error", None)))


def _expand_chain(plan: Plan, found: chain, before: _Before, extra: _Extra, errbacks: tuple[_Errback, ...]) -> Shape:
    steps = [unrolled(step) if isinstance(step, group) else step for step in _steps_of(found)]
    if len(steps) > 1:
        steps = [step for step in steps if not (isinstance(step, group) and not step.tasks)] or steps[-1:]
    options = {**found.options, **extra.options}
    links = [maybe_signature(link) for link in listed(options.pop("link", None))]
    errbacks += _own_errbacks(plan, options)
    last_id = options.pop("task_id", None)
    shape: Shape | None = None
    for number, step in enumerate(steps):
        more = _Extra((*extra.args, *found.args), extra.kwargs, options, extra.immutable) if not number else _NO_MORE
        if number == len(steps) - 1:
            if last_id is not None:
                more = _Extra(more.args, more.kwargs, {**more.options, "task_id": last_id}, more.immutable)
            if links:
                step = step.clone()  # noqa: PLW2901 - the caller's is not to be linked
                for link in links:
                    step.link(link)
        after = before if shape is None else _after(plan, shape)
        # A group that something follows is a header: what follows it tells of its members' failures.
        followed = isinstance(step, group | chunks) and number < len(steps) - 1
        next_one = _expand(plan, step, after, more, _of_header(found, errbacks) if followed else errbacks)
        next_one.first.parent = shape
        shape = next_one
    return shape or Shape(id=str(uuid.uuid4()))


def _steps_of(found: chain) -> list[Signature]:
    """Return the steps of a chain, those of chains in it among them."""
    steps: list[Signature] = []
    for step in found.tasks:
        steps += _steps_of(step) if isinstance(step, chain) and not step.options else [step]
    return steps


def _after(plan: Plan, shape: Shape) -> _Before:
    """Return what follows a part: its call, or a join of the calls of its group."""
    if shape.call >= 0:
        return _Before(shape.call)
    return _Before(join=_join(plan, shape.calls))


def _join(plan: Plan, members: list[int]) -> int:
    number = len(plan.joins)
    plan.joins.append(Meeting(members))
    for place, member in enumerate(members):
        plan.calls[member].join, plan.calls[member].place = number, place
    return number


def _expand_group(
    plan: Plan,
    found: group,
    tasks: Iterable[Signature],
    before: _Before,
    extra: _Extra,
    errbacks: tuple[_Errback, ...],
) -> Shape:
    """Expand a group, with these in place of its tasks."""
    options = {**found.options, **extra.options}
    errbacks += _own_errbacks(plan, options)
    options.pop("link", None)
    group_id = options.pop("task_id", None) or str(uuid.uuid4())
    more = _Extra((*extra.args, *found.args), extra.kwargs, options, extra.immutable)
    members = [_expand(plan, task, before, more, errbacks) for task in _members_of(tasks)]
    if len(members) == 1 and members[0].call < 0:
        return members[0]
    return Shape(members=members, id=group_id)


def _of_header(found: Signature, errbacks: tuple[_Errback, ...]) -> tuple[_Errback, ...]:
    """Return what a header has of the errbacks around it: nothing, unless settings say that each member tells too."""
    if not errbacks or not found.app.conf.task_allow_error_cb_on_chord_header:
        return ()
    return tuple(_Errback(errback.signature.clone().set(immutable=True), -1) for errback in errbacks)


def _members_of(tasks: Iterable[Signature]) -> Iterator[Signature]:
    """Yield the tasks of a group, those of groups in it among them, and chains of nothing left out."""
    for task in tasks:
        if isinstance(task, group):
            yield from _members_of(task.tasks)
        elif not isinstance(task, chain) or task.tasks:
            yield task


def _expand_chord(plan: Plan, found: chord, before: _Before, extra: _Extra, errbacks: tuple[_Errback, ...]) -> Shape:
    if found.body is None:
        raise TypeError("a chord has a body: chord(header, body), or chord(header)(body)")
    options = {**found.options, **extra.options}
    body = found.body.clone()
    for link in listed(options.pop("link", None)):
        body.link(link)
    own = _own_errbacks(plan, options)
    for errback in own:
        body.link_error(errback.signature)
    task_id = options.pop("task_id", None)
    body_options = {name: value for name, value in options.items() if name not in TIMES}
    if task_id is not None:
        body_options["task_id"] = task_id
    tasks = [task if isinstance(task, group) else with_one_end(task) for task in found.tasks]
    more = _Extra((*extra.args, *found.args), extra.kwargs, options, extra.immutable)
    shape = _expand_group(plan, found.header, tasks, before, more, _of_header(found, errbacks + own))
    if shape.call < 0 and not shape.calls:
        return _expand(plan, body, before, _Extra(([],), {}, body_options, immutable=True), errbacks)
    result = _expand(plan, body, _Before(join=_join(plan, shape.calls)), _Extra(options=body_options), errbacks)
    result.first.parent = shape
    return result
