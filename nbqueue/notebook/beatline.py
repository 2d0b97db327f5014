"""What `%beat` does with its line: text, a panel, or one of its words."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping
from typing import Final

from IPython.core.error import UsageError

from nbqueue.app import App
from nbqueue.exceptions import NBQueueError
from nbqueue.notebook.beatpanel import Panel, start
from nbqueue.notebook.entries import as_text, when, words
from nbqueue.notebook.views import in_kernel

USAGE: Final = "%beat [list | start | pause NAME | resume NAME | run NAME | delete NAME | undelete NAME]"


def obey(app: App, line: str) -> None:
    """Do what the line of `%beat` says.

    Args:
        app: whose schedule it is.
        line: as `beat` describes it.

    Raises:
        UsageError: it says nothing that can be done; names what can.
    """
    try:
        word, *rest = shlex.split(line) or [""]
    except ValueError as exc:
        raise UsageError(f"%beat: {exc}; {USAGE}") from exc
    if word not in ("", "list", "start", *_ACTS) or len(rest) != (word in _ACTS):
        near = difflib.get_close_matches(word, ["list", "start", *_ACTS], n=1) if word not in _ACTS else []
        raise UsageError(f"%beat: {line!r} is nothing it can do; {f'did you mean {near[0]}? ' if near else ''}{USAGE}")
    try:
        if word in _ACTS:
            _say(_ACTS[word](app, _known(app, word, rest[0])))
        elif word == "start":
            _say(start(app))
        elif word == "list" or not in_kernel():
            _say(as_text(app.beat.list(), app.beat.leader(), embedded=app.link.embedded))
        else:
            Panel(app).show()
    except NBQueueError as exc:
        raise UsageError(str(exc)) from exc


def _known(app: App, word: str, name: str) -> str:
    """Return a name that the schedule has.

    Raises:
        UsageError: it has none such; names what it has.
    """
    if word == "undelete":
        return name
    names = [entry.name for entry in app.beat.list()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names[:20]) or 'nothing'}"
        raise UsageError(f"%beat: the schedule has no {name}; {hint}")
    return name


def _pause(app: App, name: str) -> str:
    app.beat.pause(name)
    return f"{name} is paused. %beat resume {shlex.quote(name)} lets it go on."


def _resume(app: App, name: str) -> str:
    entry = app.beat.resume(name)
    return f"{name} goes on: {words(entry)}, next {when(entry)}."


def _run(app: App, name: str) -> str:
    return f"{name} was sent, beside its times, as {app.beat.run_now(name)}."


def _delete(app: App, name: str) -> str:
    app.beat.delete(name)
    return f"{name} is deleted. %beat undelete {shlex.quote(name)} brings it back, within an hour."


def _undelete(app: App, name: str) -> str:
    entry = app.beat.undelete(name)
    return f"{name} is back: {words(entry)}, {f'next {when(entry)}' if entry.enabled else 'paused'}."


_ACTS: Final[Mapping[str, Callable[[App, str], str]]] = {
    "pause": _pause,
    "resume": _resume,
    "run": _run,
    "delete": _delete,
    "undelete": _undelete,
}


def _say(text: str) -> None:
    print(text)  # noqa: T201 - a cell's output
