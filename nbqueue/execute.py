"""Run one message in this process: load its arguments, call it, pack what comes of it.

Also what a task may use while it runs: `progress`, `track`, `current_request`. Outside a task they do nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from nbqueue import callbacks, contents, modules, retries, serialization, signals, stated, states, tracing
from nbqueue.bars import Bars
from nbqueue.blobs import BlobStore, described
from nbqueue.capture import Flusher, Interrupts, Recorder, Stream, summarize
from nbqueue.cellrun import run_cell
from nbqueue.descriptors import Descriptors
from nbqueue.display import Displayer, close_figures
from nbqueue.exceptions import (
    BlobMissing,
    Ignore,
    ImproperlyConfigured,
    NotRegistered,
    Reject,
)
from nbqueue.hooks import AfterImport
from nbqueue.messages import (
    CELL_TASK,
    MAX_MESSAGE_BYTES,
    REPLACED,
    Again,
    ChildTask,
    Failure,
    Graft,
    Outcome,
    Progress,
    decode_failure,
    decode_fed,
    encode_again,
    encode_failure,
    encode_graft,
)
from nbqueue.models import Modelled
from nbqueue.modules import Importer, Module
from nbqueue.paced import Send
from nbqueue.payloads import Packer, Ref, modules_of
from nbqueue.request import (
    BoundTask,
    FailedRequest,
    Loaded,
    Request,
    begin,
    current_request,
    end,
    leave_task,
    while_it_runs,
)

__all__ = [
    "BoundTask",
    "Executor",
    "Loaded",
    "Request",
    "current_request",
    "find_app",
    "leave_task",
    "progress",
    "track",
    "while_it_runs",
]

T = TypeVar("T")
# Files whose frames are machinery, not the task's.
MODULES_KEPT: Final = 64
CODES_KEPT: Final = 256  # the supervisor reckons with it: it sends code anew only when that was dropped here
MEMBERS_SHARE: Final = 0.1  # of what a task may put out is what a member of a map may: there may be very many
_ACCUMULATE: Final = "nbqueue.accumulate"  # as in `canvas`
_SERIES: Final = ("nbqueue.xmap", "nbqueue.xstarmap")
OWN_FILES: Final = tuple(
    f"nbqueue/{name}.py"
    for name in (
        "execute",
        "child",
        "serialization",
        "cellrun",
        "retries",
        "models",
        "modules",
        "request",
        "callbacks",
        "tasks",
        "prepared",
    )
)


def progress(done: float, total: float | None = None, message: str = "") -> None:
    """Say how far the running task has come; shown as a bar. Outside a task it does nothing.

    Args:
        done: how much is done, in any unit.
        total: how much there is; None if that isn't known.
        message: what is being done.
    """
    request = current_request()
    if request is not None:
        finished = total is not None and done >= total
        request.tell_progress(Progress(0, float(done), _number(total), str(message), closed=finished), last=finished)


def track(iterable: Iterable[T], total: float | None = None, message: str = "") -> Iterator[T]:
    """Yield from `iterable` and say how far it has come; nested calls show as nested bars.

    Args:
        iterable: what to go through.
        total: how many elements there are; asked of `iterable` if None.
        message: what is being done.
    """
    request = current_request()
    if total is None:
        with contextlib.suppress(TypeError):
            total = len(iterable)  # type: ignore[arg-type]
    if request is None:
        yield from iterable
        return
    bar, parent = request.recorder.open_bar()
    done = 0

    def say(*, closed: bool = False) -> None:
        event = Progress(bar, float(done), _number(total), message, closed=closed, parent=parent)
        request.tell_progress(event, last=closed or not done)

    try:
        say()
        for element in iterable:
            yield element
            done += 1
            say()
    finally:
        request.recorder.close_bar(bar)
        say(closed=True)


class Registry(Protocol):
    """Is where tasks by name are looked up: an `App`."""

    tasks: Mapping[str, Any]


def find_app(spec: str) -> Any:
    """Return the App that `-A` names: `module`, `module:attribute` or `module.attribute`.

    Raises:
        ImproperlyConfigured: there is no such module, or it holds no App.
        Exception: what the module raised, as where it imports what isn't there.
    """
    name, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        parent, _, last = name.rpartition(".")
        if not f"{name}.".startswith(f"{exc.name}."):
            raise  # the module is there
        if exc.name != name or not parent:
            raise ImproperlyConfigured(
                f"-A {spec}: {exc}; run from the directory that holds it, or use --workdir"
            ) from exc
        module, attribute = importlib.import_module(parent), last
    if attribute:
        found = getattr(module, attribute, None)
        if found is None:
            raise ImproperlyConfigured(f"-A {spec}: {module.__name__} has no {attribute!r}")
        return find_app(found.__name__) if inspect.ismodule(found) else found
    for candidate in ("app", "celery", *vars(module)):
        found = getattr(module, candidate, None)
        if hasattr(found, "tasks") and hasattr(found, "send_task") and not isinstance(found, type):
            return found
    if hasattr(module, "__path__") and importlib.util.find_spec(f"{name}.celery"):
        return find_app(f"{name}.celery")
    raise ImproperlyConfigured(f"-A {spec}: {module.__name__} holds no App; write {spec}:NAME")


@dataclass
class Executor:
    """Runs tasks one after another in this process.

    Args:
        send: takes (seq, kind, data) of events.
        registries: where tasks by name are looked up.
        interrupts: armed by whoever has signals to pass on to tasks.
        store: where large data is.
        keep_s: how long that of results is kept.
        accept: serializers whose content is loaded; all if None.
        worker: name of the worker it is of.
    """

    send: Callable[[int, str, bytes], None]
    registries: list[Registry] = field(default_factory=list)
    interrupts: Interrupts = field(default_factory=Interrupts)
    flusher: Flusher = field(default_factory=Flusher)
    recorder: Recorder | None = None
    store: BlobStore | None = None
    keep_s: float = 7 * 86_400.0
    accept: frozenset[str] | None = None
    worker: str = ""
    codes: dict[str, bytes] = field(default_factory=dict)
    functions: dict[str, Loaded] = field(default_factory=dict)
    modules: dict[Ref, dict[str, Module]] = field(default_factory=dict)
    importer: Importer = field(default_factory=Importer)
    graft: Callable[[Any, Packer], tuple[Graft, Any]] | None = None  # packs canvases that tasks hand over

    def __post_init__(self) -> None:
        self.displayer = Displayer(self._looked, self.flusher)
        self.descriptors = Descriptors(self._recorder, self.flusher, self.interrupts)

    def _recorder(self) -> Recorder | None:
        return self.recorder

    def _looked(self) -> Recorder | None:
        """Return the recorder once it has what subprocesses and C code wrote before."""
        self.descriptors.look()
        return self.recorder

    def install_streams(self, errors: int = -1) -> None:
        """Let what is printed, displayed and drawn in this process go to whatever task runs.

        Args:
            errors: the file for what is written to descriptor 2; -1 for one of its own.
        """
        self.descriptors.install(errors)
        out, err = io.FileIO(1, "w", closefd=False), io.FileIO(2, "w", closefd=False)
        sys.stdout = Stream("stdout", self._recorder, self.flusher, self.interrupts, out, self.descriptors.look)
        sys.stderr = Stream("stderr", self._recorder, self.flusher, self.interrupts, err, self.descriptors.look)
        self.install_hooks()

    def install_hooks(self) -> None:
        """Take the place of what displays, draws and asks, now or once it is imported."""
        builtins.input = _no_input
        builtins.display = self.displayer.display  # type: ignore[attr-defined] # as in IPython
        bars = Bars(self._recorder, self.flusher)
        AfterImport(
            {
                "tqdm.std": bars.hook_std,
                "IPython.core.display_functions": self.displayer.hook_ipython,
                "matplotlib.pyplot": self.displayer.hook_pyplot,
                "getpass": lambda module: setattr(module, "getpass", _no_input),
            },
            instead={"tqdm.notebook": bars.hook_notebook},
        ).install()

    def keep_code(self, digest: str, code: bytes) -> None:
        """Take code that tasks will name by its digest; the oldest goes when there is too much."""
        self.codes.pop(digest, None)  # the supervisor counts it as the newest
        self.codes[digest] = code
        if len(self.codes) > CODES_KEPT:
            oldest = next(iter(self.codes))
            del self.codes[oldest]
            self.functions.pop(oldest, None)

    def has_code(self, digest: str) -> bool:
        """Tell whether code is here."""
        return digest in self.codes

    def execute(self, task: ChildTask) -> Outcome:
        """Run one task; raises KeyboardInterrupt only when one comes after the task has ended."""
        seq = task.seq
        started = time.time()
        self.descriptors.begin()
        send = _sender(self.send, seq) if task.wants_output else _nobody
        share = 1.0 if task.index < 0 else MEMBERS_SHARE
        recorder = self.recorder = Recorder(send, self.interrupts, share)
        request = Request(task, recorder, self.flusher)
        request.send, request.graft, request.worker = self.send, self._graft, self.worker
        token = begin(request)
        try:
            value, summary = self._call(task, request)
            if request.again is not None:
                return self._retried(task, request, request.again, started)
            body = self._pack(value, task, request)
            if request.loaded is not None and request.loaded.hooks:
                callbacks.succeeded(request, value)
            if signals.task_success.receivers or signals.task_postrun.receivers:
                tracing.succeeded(request, value, time.time() - started)
        except KeyboardInterrupt:
            close_figures()
            return Outcome(seq, states.REVOKED, b"", started, time.time(), "interrupted")
        except BaseException as exc:  # noqa: BLE001 - SystemExit of a task must not end the child
            with contextlib.suppress(Exception):  # what it raised is what is told
                self._show_what_is_left(task)
            return self._raised(task, request, exc, started)
        else:
            return Outcome(
                seq, states.SUCCESS, body, started, time.time(), "", summary, tuple(request.made), request.also
            )
        finally:
            with self.interrupts:  # one that comes now waits until all is told and the next task can begin
                self.descriptors.look()
                recorder.close()
                if request.pace is not None:
                    request.pace.close()
                self.recorder = None
                end(token)

    def _call(self, task: ChildTask, request: Request) -> tuple[Any, str]:
        serializer = "cloudpickle" if b'"serializer"' not in task.steering else request.steering.serializer
        self._offer_modules(task)
        args, kwargs = serialization.loads_args(task.args, serializer, self._read, self.accept)
        if task.fed and task.task not in _SERIES:
            args = (*self._fed(task, args, kwargs), *args)
        if task.task == CELL_TASK:
            if b'"max_retries"' in task.steering:
                request.retry_options = retries.of_cell(request.steering.max_retries)
            request.begun = True
            if signals.task_prerun.receivers:
                tracing.begins(request)
            return run_cell(args[0], request.recorder, self.displayer)
        found = self._loaded(task.code) if task.code else self._registered(task.task)
        if not found.bind and b'"bind":true' in task.steering and request.steering.bind:
            found = found._replace(bind=True)
        value = perform(found, request, args, kwargs)
        self._show_what_is_left(task, value)
        return value, summarize(value)

    def _fed(self, task: ChildTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return what came before a call of a canvas, for one with these arguments of its own."""
        fed = decode_fed(task.fed)
        if fed.how == "error":
            found = self._loaded(task.code) if task.code else self._registered(task.task)
            if takes_several(found.run, args, kwargs, bind=found.bind):
                exc = serialization.load_exception(decode_failure(fed.payloads[0]), self.accept)
                load = functools.partial(serialization.loads_args, fed.args, fed.serializer, self._read, self.accept)
                request = FailedRequest(fed.id, fed.task, fed.root, fed.parent, load if fed.args else None)
                return request, exc, decode_failure(fed.payloads[0]).traceback
            return (fed.id,)
        values = [serialization.loads(one, self._read, self.accept) if one else None for one in fed.payloads]
        return (values,) if fed.how == "gather" else tuple(values)

    def _show_what_is_left(self, task: ChildTask, value: Any = None) -> None:
        """Show the figures that a task has left open, and close them; also of one that failed, as a notebook does."""
        if task.wants_output:
            self.displayer.figures(shown=value)
        else:
            close_figures()

    def _raised(self, task: ChildTask, request: Request, exc: BaseException, started: float) -> Outcome:
        """Return the end of a task that raised: one of the words it has for its end, a retry, or a failure."""
        try:
            if request.replacement is not None:
                body, _ = self._graft(request.replacement)
                return Outcome(task.seq, REPLACED, body, started, time.time(), also=request.also)
            again = request.again or retries.planned_for(request, exc)
            if again is not None:
                return self._retried(task, request, again, started)
        except KeyboardInterrupt:
            raise
        except BaseException as last:  # noqa: BLE001 - no retries are left, or what is to be retried can't travel
            exc = last
        if isinstance(exc, Ignore) and request.said_end is not None:
            return self._said(task, request, *request.said_end, started)
        if isinstance(exc, Ignore | Reject):
            state = states.IGNORED if isinstance(exc, Ignore) else states.REJECTED
            body = b"requeue" if isinstance(exc, Reject) and exc.requeue else b""
            if signals.task_postrun.receivers:
                tracing.left(request, state, exc)
            return Outcome(task.seq, state, body, started, time.time(), " ".join(str(exc).split())[:500])
        if request.hooks:
            callbacks.failed(request, exc)
        if signals.anybody(signals.OF_TASK):
            tracing.failed(request, exc)
        return failed(task.seq, exc, started, request)

    def _said(self, task: ChildTask, request: Request, state: str, meta: Any, started: float) -> Outcome:
        """Return the end that a task has given itself by `update_state`, before it raised `Ignore`."""
        if state == states.FAILURE:
            return failed(task.seq, stated.error_of(meta), started, request)
        body, summary = self._pack(meta, task, request), summarize(meta)
        return Outcome(task.seq, state, body, started, time.time(), "", summary, tuple(request.made))

    def _retried(self, task: ChildTask, request: Request, plan: retries.Plan, started: float) -> Outcome:
        """Return the end of a task that is to run again."""
        args = None
        if plan.call is not None:
            packer = Packer(modules_of(task.args))  # what came with the arguments goes on with them
            args = _packed_again(request, plan, plan.call, packer)
            self._keep(packer)
        if request.hooks:
            callbacks.retried(request, plan)
        if signals.anybody(signals.OF_TASK):
            tracing.retried(request, plan)
        why = failed(task.seq, plan.retry.exc or plan.retry, started, request)
        limit = -1 if plan.max_retries is None else plan.max_retries
        body = encode_again(Again(why.body, plan.due, limit, args, plan.changes))
        return Outcome(task.seq, states.RETRY, body, started, time.time(), why.error)

    def _pack(self, value: Any, task: ChildTask, request: Request) -> bytes:
        """Return the value as it is stored; what is large is written to the store before the task has ended."""
        packer = Packer(spill=self.store.spill if self.store else None)
        form = request.loaded.form if request.loaded is not None else ()
        try:
            body = serialization.dumps_value(value, packer if self.store else None, *form)
        except ImproperlyConfigured:
            raise
        except Exception as exc:
            how = form[0] if form and form[0] not in contents.PICKLES else ""
            said = f"be said in {how}" if how else "be pickled"
            raise TypeError(f"the result of {task.task}, a {type(value).__name__}, can't {said}: {exc}") from exc
        self._keep(packer)
        return body

    def _graft(self, sig: Any) -> tuple[bytes, Any]:
        """Return a canvas that a task hands to its supervisor, packed, and its handle."""
        if self.graft is None:
            raise RuntimeError("there is no worker here that could send a canvas")
        packer = Packer(spill=self.store.spill if self.store else None)
        graft, handle = self.graft(sig, packer)
        self._keep(packer)
        return encode_graft(graft), handle

    def _keep(self, packer: Packer) -> None:
        if self.store is not None:
            self.store.save(packer.blobs, time.time() + self.keep_s, packer.spilled)

    def _offer_modules(self, task: ChildTask) -> None:
        """Let the task import the users' modules that came with its code and arguments, and no others."""
        found = (modules_of(task.args), modules_of(self.codes[task.code]) if task.code else None)
        refs = {ref for ref in found if ref is not None}
        if not refs and not self.importer.active:
            return
        offered: dict[str, Module] = {}
        for ref in refs:
            if ref not in self.modules:
                if len(self.modules) >= MODULES_KEPT:
                    del self.modules[next(iter(self.modules))]
                self.modules[ref] = {module.name: module for module in modules.unpack(self._read(ref))}
            offered |= self.modules[ref]
        if self.importer.use(offered):
            self.functions.clear()  # they hold what was imported before

    def _read(self, ref: Ref) -> memoryview:
        if self.store is None:
            raise BlobMissing(f"{described(ref)} can't be had here")
        return self.store.read(ref)

    def _in_series(self, *, starred: bool) -> Callable[[str, list[Any]], list[Any]]:
        def run_all(name: str, elements: list[Any]) -> list[Any]:
            found = self._registered(name)
            run = found.task or found.run
            return [run(*element) if starred else run(element) for element in elements]

        return run_all

    def _loaded(self, digest: str) -> Loaded:
        loaded = self.functions.get(digest)
        if loaded is None:
            contents.check(contents.DEFAULT, self.accept)
            function, beside = serialization.loads_code_and_beside(self.codes[digest], self._read)
            loaded = self.functions[digest] = _brought(function, beside)
        return loaded

    def _registered(self, name: str) -> Loaded:
        if name == _ACCUMULATE:
            return Loaded(_accumulate, retries.DEFAULTS)
        if name in _SERIES:
            return Loaded(self._in_series(starred=name == _SERIES[1]), retries.DEFAULTS)
        for registry in self.registries:
            if name in registry.tasks:
                found: Loaded = registry.tasks[name].loaded
                return found
        known = sorted({task for registry in self.registries for task in registry.tasks})
        hint = f"it knows {', '.join(known[:20])}" if known else "it was started without -A"
        raise NotRegistered(f"the worker on {socket.gethostname()} has no task {name!r}; {hint}")


def _packed_again(
    request: Request, plan: retries.Plan, call: tuple[tuple[Any, ...], dict[str, Any]], packer: Packer
) -> bytes:
    """Return the arguments of a call that runs again with others, or in another form."""
    found = request.loaded
    serializer = (plan.changes and plan.changes.serializer) or request.steering.serializer
    if found is not None and isinstance(found.run, Modelled) and serializer not in contents.PICKLES:
        call = found.run.dump(*call, bind=found.bind)
    return serialization.dumps_args(*call, serializer, packer, compression=plan.compression)


def _brought(function: Callable[..., Any], beside: Any) -> Loaded:
    """Return a function that travelled with what came beside it: nothing, how it is retried, or more."""
    if isinstance(beside, tuple):
        return Loaded(function, *beside)
    return Loaded(function, beside or retries.DEFAULTS)


def perform(found: Loaded, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a task's function; return its value."""
    request.args, request.kwargs, request.retry_options = args, kwargs, found.retry_options
    request.loaded, request.begun = found, True
    if signals.task_prerun.receivers:
        tracing.begins(request)
    if found.hooks:
        callbacks.before(request)
    if found.calls:
        value = found.task(*args, **kwargs)
    elif found.bind:
        value = found.run(request.callee(), *args, **kwargs)
    else:
        value = found.run(*args, **kwargs)
    if inspect.iscoroutine(value):
        import asyncio  # noqa: PLC0415 - costs a fork server 12 ms at its start, and most tasks are plain functions

        value = asyncio.run(value)
    return value


def _accumulate(values: Any = None) -> Any:
    """Return what came before."""
    return values


def takes_several(
    run: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, bind: bool = False
) -> bool:
    """Tell whether an errback takes (request, exc, traceback), and not the id alone.

    Args:
        run: its function.
        args: arguments of its own, which come last: what they fill isn't free for the error.
        kwargs: the same, by name.
        bind: its function's first parameter is the task.
    """
    parameters = list(inspect.signature(run).parameters.values())[bind:]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return True
    free = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return sum(one.name not in (kwargs or ()) for one in free) - len(args) > 1


def _no_input(prompt: object = "", *_: object) -> str:
    """Stand for `input` and `getpass`, which would wait for ever."""
    raise RuntimeError(f"a task can't ask for input ({prompt!s}): nobody sits at the worker; pass it as a variable")


def failed(seq: int, exc: BaseException, started: float, request: Request | None = None) -> Outcome:
    """Return the end of a task that raised."""
    form = request.loaded.form if request is not None and request.loaded is not None else ()
    failure = failure_of(exc, pickled=not form or form[0] in contents.PICKLES)
    line = " ".join(f"{failure.type}: {failure.message}".split())
    made = tuple(request.made) if request is not None else ()
    expected = bool(request is not None and request.loaded is not None and isinstance(exc, request.loaded.throws))
    body = _pack_failure(failure)
    return Outcome(seq, states.FAILURE, body, started, time.time(), line[:500], "", made, expected=expected)


def failure_of(exc: BaseException, *, pickled: bool = True) -> Failure:
    """Return an exception as the failure of a task, without the machinery's frames; as text alone if not `pickled`."""
    trace = serialization.format_traceback(exc, OWN_FILES)
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        package = exc.name.partition(".")[0]
        exc = ModuleNotFoundError(
            f"No module named {exc.name!r} on worker {socket.gethostname()}; install it there: pip install {package}",
            name=exc.name,
        )
        trace = trace.rstrip() + f"\n(on worker {socket.gethostname()}; install it there: pip install {package})\n"
    return serialization.dumps_exception(exc, trace, pickled=pickled)


def _pack_failure(failure: Failure) -> bytes:
    body = encode_failure(failure)
    if len(body) > MAX_MESSAGE_BYTES:
        kept = 100_000  # characters: an error that carries data along is told without it
        text = failure.traceback[:kept]
        body = encode_failure(Failure(failure.type, failure.message[:kept], text))
    return body


def _sender(send: Callable[[int, str, bytes], None], seq: int) -> Send:
    return lambda kind, data: send(seq, kind, data)


def _nobody(kind: str, data: bytes) -> None:
    """Take what a task says when nobody watches."""


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
