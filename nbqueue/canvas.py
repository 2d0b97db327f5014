"""Signatures of calls, and what they compose into: chains, groups, chords, chunks and maps. Names are Celery's.

`expand.py` makes a flat plan of them. `App.send_canvas` packs and sends that, and workers go from call to call by
themselves.

Source: Celery 5.7, "Canvas: Designing Work-flows" of its user guide, and `celery.canvas`.
"""
# ruff: noqa: SLF001 - signatures are made of one another

from __future__ import annotations

import itertools
import operator
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, Self

from nbqueue.current import current_app

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.handles import AsyncResult
    from nbqueue.tasks import Task

__all__ = [
    "Signature",
    "chain",
    "chord",
    "chunks",
    "group",
    "maybe_signature",
    "signature",
    "subtask",
    "xmap",
    "xstarmap",
]

XMAP: Final = "nbqueue.xmap"
XSTARMAP: Final = "nbqueue.xstarmap"
ACCUMULATE: Final = "nbqueue.accumulate"  # returns what comes before it, as a group that takes a task's place does
TIMES: Final = ("countdown", "eta")  # of a canvas: when its first calls may start


class Signature(dict[str, Any]):
    """One call of a task, not sent yet: its arguments and options. A dict, as in Celery.

    Args:
        task: a task, or the name of one that workers have, or another signature.
        args: positional arguments; those that come from a call before it go in front of them.
        kwargs: keyword arguments.
        options: of `Task.apply_async`.
        immutable: take nothing from calls before it.
        app: sends it; the task's, or the current one, if None.
        more: other options.
    """

    kind = ""

    def __init__(
        self,
        task: Task | str | Mapping[str, Any] | None = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        app: App | None = None,
        **more: Any,
    ) -> None:
        self._type: Any = None
        self._app = app
        if isinstance(task, Mapping):
            super().__init__(deepcopy_signature(task))
            if isinstance(task, Signature):
                self._type, self._app = task._type, app or task._app
            return
        if task is not None and not isinstance(task, str):
            self._type, self._app = task, app or task.app
        super().__init__(
            task=task if isinstance(task, str) or task is None else task.name,
            args=tuple(args or ()),
            kwargs=dict(kwargs or {}),
            options={**(options or {}), **more},
            subtask_type=self.kind or None,
            immutable=immutable,
            chord_size=None,
        )

    def __reduce__(self) -> Any:
        return _restored, (dict(self), self._type)

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature:
        return self.clone()

    def __repr__(self) -> str:
        shown = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{self.task}({', '.join(shown)})"

    def AsyncResult(self, task_id: str) -> AsyncResult:  # noqa: N802 - Celery's name
        """Return the handle on a call of it that was sent before."""
        return self.app.AsyncResult(task_id)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], app: App | None = None) -> Signature:
        """Return the signature in a dict, such as one that was JSON."""
        kind = _KINDS.get(str(found.get("subtask_type") or ""))
        if kind is None or kind is cls:
            return Signature(found, app=app)
        return kind._of(found, app)

    @classmethod
    def _of(cls, found: Mapping[str, Any], app: App | None) -> Signature:
        raise NotImplementedError

    # ---- what it holds

    @property
    def task(self) -> str:
        """Return the task's name."""
        return str(self["task"])

    name = task

    @property
    def args(self) -> tuple[Any, ...]:
        """Return the positional arguments."""
        return tuple(self["args"])

    @args.setter
    def args(self, value: Iterable[Any]) -> None:
        self["args"] = tuple(value)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments."""
        found: dict[str, Any] = self["kwargs"]
        return found

    @kwargs.setter
    def kwargs(self, value: Mapping[str, Any]) -> None:
        self["kwargs"] = dict(value)

    @property
    def options(self) -> dict[str, Any]:
        """Return the options."""
        found: dict[str, Any] = self["options"]
        return found

    @options.setter
    def options(self, value: Mapping[str, Any]) -> None:
        self["options"] = dict(value)

    @property
    def immutable(self) -> bool:
        """Tell whether it takes nothing from calls before it."""
        return bool(self["immutable"])

    @immutable.setter
    def immutable(self, value: bool) -> None:
        self["immutable"] = value

    @property
    def subtask_type(self) -> str | None:
        """Return `chain`, `group` …; None for a plain call."""
        return self["subtask_type"] or None

    @property
    def id(self) -> str | None:
        """Return the id that it will have, if that is settled."""
        found: str | None = self.options.get("task_id")
        return found

    @property
    def app(self) -> App:
        """Return the app that sends it."""
        if self._app is None:
            self._app = self._app_within() or current_app()
        return self._app

    def _app_within(self) -> App | None:
        """Return the app of the first signature in it, however deep, that has one."""
        return self._app or next((found for part in self.parts() if (found := part._app_within()) is not None), None)

    @property
    def type(self) -> Task:
        """Return the task."""
        if self._type is None or not hasattr(self._type, "apply_async"):
            self._type = self.app.task_for(self.task, self._type)
        found: Task = self._type
        return found

    def parts(self) -> Iterator[Signature]:
        """Yield the signatures that it is made of."""
        return iter(())

    # ---- changing it

    def _merged(
        self, args: Iterable[Any] | None, kwargs: Mapping[str, Any] | None, options: Mapping[str, Any] | None
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        merged = {**self.options, **(options or {})}
        if self.immutable:
            return self.args, dict(self.kwargs), merged
        return (*(args or ()), *self.args), {**self.kwargs, **(kwargs or {})}, merged

    def clone(self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Return a copy; arguments go in front of its own, options beside them."""
        copied = type(self).__new__(type(self))
        dict.__init__(copied, deepcopy_signature(self))
        copied._type, copied._app = self._type, self._app
        if args or kwargs or options:
            new_args, new_kwargs, new_options = copied._merged(args, kwargs, options)
            copied["args"], copied["kwargs"], copied["options"] = new_args, new_kwargs, new_options
        return copied

    partial = clone

    def replace(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a copy with other arguments or options; None leaves them."""
        copied = self.clone()
        if args is not None:
            copied.args = args
        if kwargs is not None:
            copied.kwargs = kwargs
        if options is not None:
            copied.options = options
        return copied

    def set(self, immutable: bool | None = None, **options: Any) -> Self:
        """Set options; return the signature itself."""
        if immutable is not None:
            self.set_immutable(immutable)
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Let it take what comes before it, or not."""
        self.immutable = immutable

    def link(self, callback: Mapping[str, Any]) -> Signature:
        """Call something with the value once it is there; return that."""
        return self._listed("link", callback)

    def link_error(self, errback: Mapping[str, Any]) -> Signature:
        """Call something once it has failed: with (request, exc, traceback), or the id if it takes one argument."""
        return self._listed("link_error", errback)

    def on_error(self, errback: Mapping[str, Any]) -> Self:
        """Link an errback; return the signature itself."""
        self.link_error(errback)
        return self

    def _listed(self, option: str, callback: Mapping[str, Any]) -> Signature:
        found = maybe_signature(callback, app=self._app)
        callbacks = listed(self.options.get(option))
        if found not in callbacks:
            callbacks.append(found)
        self.options[option] = callbacks
        return found

    def flatten_links(self) -> list[Signature]:
        """Return it and all that is linked to it, and to that."""
        linked = [maybe_signature(link) for link in listed(self.options.get("link"))]
        return [self, *itertools.chain.from_iterable(link.flatten_links() for link in linked)]

    def __or__(self, other: Any) -> Any:
        if isinstance(other, chain):
            return _chained([self, *other.unchain_tasks()], self._app)
        if isinstance(other, group):
            return _chained([self, unrolled(other)], self._app)
        if isinstance(other, Signature):
            return _chained([self, other], self._app)
        return NotImplemented

    __ior__ = __or__

    # ---- running it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it here and now."""
        new_args, new_kwargs, _ = self._merged(args, kwargs, None)
        return self.type(*new_args, **new_kwargs)

    def __invert__(self) -> Any:
        """Send it, and return its value once it has ended: `~add.s(2, 2)`."""
        return self.apply_async().get()

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send it, with arguments in front of its own."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        throw: bool | None = None,
        **options: Any,
    ) -> Any:
        """Send it; return its handle. Arguments go in front of its own; options are those of `Task.apply_async`."""
        return self.app.send_canvas(self, tuple(args or ()), dict(kwargs or {}), options, throw)

    def apply(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        throw: bool | None = None,
        **options: Any,
    ) -> Any:
        """Run it here and now; return a handle on it. Arguments go in front of its own."""
        return self.app.run_canvas(self, tuple(args or ()), dict(kwargs or {}), options, throw)

    def freeze(self, _id: str | None = None, **_: Any) -> Any:
        """Settle its id; return the handle that it will have."""
        self.options["task_id"] = _id or self.options.get("task_id") or str(uuid.uuid4())
        return self.app.AsyncResult(self.options["task_id"])


class _Many(Signature):
    """What is made of other signatures."""

    def __init__(self, *tasks: Any, app: App | None = None, **options: Any) -> None:
        given = list(tasks[0]) if len(tasks) == 1 and _is_series(tasks[0]) else list(tasks)
        found = [maybe_signature(task, app=app) for task in given]
        super().__init__(f"celery.{self.kind}", (), {"tasks": found}, options, app=app)

    @classmethod
    def _of(cls, found: Mapping[str, Any], app: App | None) -> Signature:
        made = cls(found["kwargs"]["tasks"], app=app)
        made["args"], made["options"] = tuple(found["args"]), dict(found["options"])
        made["immutable"] = found.get("immutable", False)
        return made

    @property
    def tasks(self) -> list[Signature]:
        """Return what it is made of."""
        found: list[Signature] = self.kwargs["tasks"]
        return found

    @tasks.setter
    def tasks(self, value: Iterable[Signature]) -> None:
        self.kwargs["tasks"] = list(value)

    def parts(self) -> Iterator[Signature]:
        """Yield the signatures that it is made of."""
        return iter(self.tasks)


class chain(_Many):  # noqa: N801 - Celery's name
    """Calls one after the other, each with the value of the one before it; `chain(a, b)`, or `a | b`."""

    kind = "chain"

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.tasks)) or "<chain@empty>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send it, if there is anything to send."""
        return self.apply_async(args, kwargs) if self.tasks else None

    def unchain_tasks(self) -> list[Signature]:
        """Return copies of its tasks, with what was linked to the chain linked to them."""
        tasks = [task.clone() for task in self.tasks]
        for link in listed(self.options.get("link")):
            tasks[-1].link(link)
        for errback in listed(self.options.get("link_error")):
            for task in tasks:
                task.link_error(errback)
        return tasks

    def __or__(self, other: Any) -> Any:  # noqa: PLR0911 - one for each thing that may follow
        if isinstance(other, group) and not other.tasks:
            return self
        if isinstance(other, chain):
            return reduce(operator.or_, other.unchain_tasks(), self)
        if isinstance(other, group) and len(other.tasks) == 1:
            return self | unrolled(other)
        if not isinstance(other, Signature):
            return NotImplemented
        tasks = self.unchain_tasks()
        last = tasks[-1] if tasks else None
        if last is None:
            return other
        if isinstance(last, chord) and not isinstance(other, chord):
            last.body = last.body | other
            return _chained(tasks, self._app)
        if isinstance(last, group) and not isinstance(other, group):
            return _chained([*tasks[:-1], chord(last, other, app=self._app)], self._app)
        return _chained([*tasks, other], self._app)

    __ior__ = __or__


class group(_Many):  # noqa: N801 - Celery's name
    """Calls side by side; `group(a, b)` or `group(add.s(i, i) for i in range(10))`."""

    kind = "group"

    def __init__(self, *tasks: Any, app: App | None = None, **options: Any) -> None:
        if len(tasks) == 1 and isinstance(tasks[0], group):
            tasks = (list(tasks[0].tasks),)
        elif len(tasks) == 1 and isinstance(tasks[0], Signature):
            tasks = (tasks[0].clone(),)
        super().__init__(*tasks, app=app, **options)

    def __repr__(self) -> str:
        return f"group({self.tasks!r})"

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Send it, with arguments in front of those of each task."""
        return self.apply_async(args, **options)

    def __or__(self, other: Any) -> Any:
        if isinstance(other, group) and not other.tasks:
            return self
        return chord(self, other, app=self._app) if isinstance(other, Signature) else NotImplemented

    __ior__ = __or__

    def apply_async(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send it; return a `GroupResult`."""
        if options.pop("link", None) is not None or options.pop("link_error", None) is not None:
            raise TypeError("a group can't be linked to: link to its tasks, or make it a chord")
        return super().apply_async(args, kwargs, **options)

    def set_immutable(self, immutable: bool) -> None:
        """Let its tasks take what comes before them, or not."""
        for task in self.tasks:
            task.set_immutable(immutable)

    def link(self, callback: Mapping[str, Any]) -> Signature:
        """Call something once the first task has ended, without its value: Celery's way; a chord waits for all."""
        return self.tasks[0].link(maybe_signature(callback).clone().set(immutable=True))

    def link_error(self, errback: Mapping[str, Any]) -> Signature:
        """Call something for each task that fails."""
        found = maybe_signature(errback)
        for task in self.tasks:
            task.link_error(found)
        return found

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Self:
        """Let its tasks start one after the other, seconds apart; return the group itself."""
        countdown = start
        for task in self.tasks:
            task.set(countdown=countdown)
            if stop is None or countdown + step <= stop:
                countdown += step
        return self

    def freeze(self, _id: str | None = None, **_: Any) -> Any:
        """Settle the ids of its tasks; return the handle that it will have."""
        self.options["task_id"] = _id or self.options.get("task_id") or str(uuid.uuid4())
        results = [task.freeze() for task in self.tasks]
        return self.app.group_result(self.options["task_id"], results)


class chord(Signature):  # noqa: N801 - Celery's name
    """Calls side by side, the header, and one, the body, with the list of their values: `chord(header)(body)`."""

    kind = "chord"

    def __init__(self, header: Any, body: Any = None, *, app: App | None = None, **options: Any) -> None:
        tasks = header.tasks if isinstance(header, group) else header
        if isinstance(tasks, Signature):
            tasks = [tasks]
        kwargs: dict[str, Any] = {
            "header": group(list(tasks), app=app),
            "body": None if body is None else maybe_signature(body, app=app),
            "kwargs": {},
        }
        super().__init__("celery.chord", (), kwargs, options, app=app)

    @classmethod
    def _of(cls, found: Mapping[str, Any], app: App | None) -> Signature:
        made = cls(signature(found["kwargs"]["header"]), found["kwargs"]["body"], app=app)
        made["args"], made["options"] = tuple(found["args"]), dict(found["options"])
        return made

    def __repr__(self) -> str:
        return f"chord({self.tasks!r}, {self.body!r})"

    @property
    def tasks(self) -> list[Signature]:
        """Return the header."""
        found: list[Signature] = self.kwargs["header"].tasks
        return found

    @property
    def header(self) -> group:
        """Return the header."""
        found: group = self.kwargs["header"]
        return found

    @property
    def body(self) -> Any:
        """Return the body, a signature; None while there is none."""
        found: Signature | None = self.kwargs["body"]
        return found

    @body.setter
    def body(self, value: Signature) -> None:
        self.kwargs["body"] = value

    def parts(self) -> Iterator[Signature]:
        """Yield the signatures that it is made of."""
        return iter([*self.tasks, *([] if self.body is None else [self.body])])

    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Send it, with this body if one is given."""
        if body is None:
            return self.apply_async(**options)
        found = chord([], body, app=self._app)
        # The header isn't copied: it may be very long, and nobody changes what is only sent.
        found.update({**self, "kwargs": {**self.kwargs, "body": found.body}})
        return found.apply_async(**options)

    def __or__(self, other: Any) -> Any:
        if isinstance(other, group) and len(other.tasks) == 1:
            other = unrolled(other)
        if isinstance(other, Signature) and not isinstance(other, group | chain):
            copied = self.clone()
            copied.body = copied.body | other
            return copied
        return super().__or__(other)

    __ior__ = __or__

    def link(self, callback: Mapping[str, Any]) -> Signature:
        """Call something with the value of the body."""
        found: Signature = self.body.link(callback)
        return found

    def link_error(self, errback: Mapping[str, Any]) -> Signature:
        """Call something once the body has failed, or can't run as a member of the header has failed.

        With `task_allow_error_cb_on_chord_header` it is called for each such member too, with its own arguments alone.
        """
        if self.app.conf.task_allow_error_cb_on_chord_header:
            for task in self.tasks:
                task.link_error(maybe_signature(errback).clone().set(immutable=True))
        linked: Signature = self.body.link_error(errback)
        return linked

    def set_immutable(self, immutable: bool) -> None:
        """Let the header take what comes before it, or not."""
        for task in self.tasks:
            task.set_immutable(immutable)


class Series(Signature):
    """Elements of one task, in one message."""

    def __init__(self, task: Any, it: Iterable[Any], *, app: App | None = None, **options: Any) -> None:
        found = maybe_signature(task, app=app)
        kwargs = {"task": found, "it": list(it)}
        super().__init__(f"celery.{self.kind[1:]}", (), kwargs, options, immutable=True, app=app or found._app)

    @classmethod
    def _of(cls, found: Mapping[str, Any], app: App | None) -> Signature:
        return cls(found["kwargs"]["task"], found["kwargs"]["it"], app=app, **found["options"])

    def __repr__(self) -> str:
        return f"[{self.kwargs['task'].task}(x) for x in {self.kwargs['it']!r}]"

    def parts(self) -> Iterator[Signature]:
        """Yield the signature of its task."""
        return iter([self.kwargs["task"]])

    @property
    def type(self) -> Task:
        """Return a task that runs the other for each element."""
        return self.app.series(self.kwargs["task"].type, starred=self.kind == "xstarmap")

    def call(self) -> Signature:
        """Return the plain call that it is."""
        task = self.type
        given = (self.kwargs["it"],) if task.by_value else (self.kwargs["task"].task, self.kwargs["it"])
        return Signature(task, given, {}, self.options, immutable=True, app=self.app)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it here and now."""
        task, starred = self.kwargs["task"], self.kind == "xstarmap"
        return [task.type(*element) if starred else task.type(element) for element in self.kwargs["it"]]


class xmap(Series):  # noqa: N801 - Celery's name
    """One message that runs a task for each element, one after the other: Celery's `map`."""

    kind = "xmap"


class xstarmap(Series):  # noqa: N801 - Celery's name
    """One message that runs a task for each tuple of arguments, one after the other: Celery's `starmap`."""

    kind = "xstarmap"


class chunks(Signature):  # noqa: N801 - Celery's name
    """Calls of one task in messages of `n` of them each."""

    kind = "chunks"

    def __init__(self, task: Any, it: Iterable[Any], n: int, *, app: App | None = None, **options: Any) -> None:
        if n < 1:
            raise ValueError(f"chunks have at least one call each, not {n}")
        found = maybe_signature(task, app=app)
        kwargs = {"task": found, "it": list(it), "n": n}
        super().__init__("celery.chunks", (), kwargs, options, immutable=True, app=app or found._app)

    @classmethod
    def _of(cls, found: Mapping[str, Any], app: App | None) -> Signature:
        given = found["kwargs"]
        return cls(given["task"], given["it"], given["n"], app=app, **found["options"])

    def parts(self) -> Iterator[Signature]:
        """Yield the signature of its task."""
        return iter([self.kwargs["task"]])

    def __call__(self, **options: Any) -> Any:
        """Send it."""
        return self.apply_async(**options)

    def group(self) -> group:
        """Return the group that it is."""
        task, elements, n = self.kwargs["task"], self.kwargs["it"], self.kwargs["n"]
        parts = [elements[start : start + n] for start in range(0, len(elements), n)]
        return group([xstarmap(task, part, app=self._app) for part in parts], app=self._app, **self.options)


_KINDS: Final[dict[str, type[Signature]]] = {kind.kind: kind for kind in (chain, group, chord, xmap, xstarmap, chunks)}


def signature(
    task: Any, args: Iterable[Any] | None = None, *rest: Any, app: App | None = None, **more: Any
) -> Signature:
    """Return the signature of a call: `signature("tasks.add", args=(2, 2), countdown=10)`; one in a dict as it is."""
    if isinstance(task, Signature):
        return task.clone()
    if isinstance(task, Mapping):
        return Signature.from_dict(task, app)
    return Signature(task, args, *rest, app=app, **more)


subtask = signature


def with_one_end(found: Signature) -> Signature:
    """Return what can take a task's place: of what ends with a group, the list of its values."""
    return found | Signature(ACCUMULATE, app=found._app) if _ends_with_many(found) else found


def _ends_with_many(found: Any) -> bool:
    while isinstance(found, chain | chord):
        found = found.body if isinstance(found, chord) else found.tasks[-1] if found.tasks else None
    return isinstance(found, group | chunks)


def maybe_signature(task: Any, app: App | None = None) -> Signature:
    """Return what is a signature as it is, and what is a dict or a task as one.

    Raises:
        TypeError: it is nothing of these.
    """
    if isinstance(task, Signature):
        return task
    if isinstance(task, Mapping):
        return Signature.from_dict(task, app)
    if isinstance(task, str) or hasattr(task, "apply_async"):
        return Signature(task, app=app)
    raise TypeError(f"a canvas is made of signatures, such as task.s(…), not of {task!r}")


def deepcopy_signature(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a signature that shares its arguments with it, and nothing else."""
    copied = dict(found)
    copied["options"] = {
        name: [maybe_signature(link).clone() for link in listed(value)] if name.startswith("link") else value
        for name, value in found["options"].items()
    }
    kwargs = dict(found["kwargs"])
    if found.get("subtask_type"):
        for name, value in kwargs.items():
            if isinstance(value, Signature):
                kwargs[name] = value.clone()
            elif name == "tasks":
                kwargs[name] = [maybe_signature(task).clone() for task in value]
    copied["kwargs"] = kwargs
    return copied


def _restored(found: dict[str, Any], task: Any) -> Signature:
    """Return a signature that has travelled; over there its task may be a plain function."""
    made = Signature.from_dict(found)
    made._type = task
    return made


def _chained(tasks: Iterable[Signature], app: App | None) -> chain:
    made: chain = chain(list(tasks), app=app)
    return made


def unrolled(found: group) -> Signature:
    """Return the task of a group of one, any other group as it is."""
    return found.tasks[0] if len(found.tasks) == 1 else found


def listed(found: Any) -> list[Any]:
    if not found:
        return []
    return [found] if isinstance(found, Mapping) else list(found)


def _is_series(found: object) -> bool:
    return not isinstance(found, Mapping | str) and isinstance(found, Iterable)


def in_series(run: Callable[..., Any], *, starred: bool) -> Callable[[list[Any]], list[Any]]:
    """Return a function that calls another for each element, one after the other."""

    def run_all(elements: list[Any]) -> list[Any]:
        return [run(*element) if starred else run(element) for element in elements]

    return run_all
