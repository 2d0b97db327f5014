"""What workers and tasks tell: `nbqueue events`."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from nbqueue.cli.options import Command, app_of, global_options, importing, printable, seconds
from nbqueue.config import mask

if TYPE_CHECKING:
    from nbqueue.app import App

_FIRST: Final = frozenset({"type", "uuid", "name", "hostname", "timestamp"})
_QUIET: Final = frozenset({"local_received", "utcoffset", "clock", "pid"})


@click.command(cls=Command)
@global_options
@click.option("-d", "--dump", is_flag=True, help="Print events as they come; the default.")
@click.option("-c", "--camera", metavar="CLASS", help="Take pictures with a class derived from Polaroid instead.")
@click.option("-F", "--freq", "--frequency", type=seconds, default=1.0, metavar="S", help="Between two pictures.")
@click.option("-r", "--maxrate", metavar="RATE", help='No more pictures than, say, "10/m".')
@click.option("-j", "--json", "as_json", is_flag=True, help="Write each as a line of JSON.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after so many events.")
@click.option("--timeout", type=seconds, metavar="S", help="Stop when nothing has come for so long.")
@click.pass_context
def events(
    ctx: click.Context,
    /,
    dump: bool,
    as_json: bool,
    limit: int | None,
    timeout: float | None,
    camera: str | None,
    freq: float,
    maxrate: str | None,
    **options: Any,
) -> None:
    """Print Celery's events as they come, of workers that send some: nbqueue worker -E, or control enable_events."""
    del dump
    app = app_of(ctx, **options)
    shown = 0
    if camera is not None:
        _take_pictures(app, _class_of(camera), freq, maxrate, timeout)
        return
    with app.connection() as connection, _answering(app.link.broker_url, connection):

        def show(event: dict[str, Any]) -> None:
            nonlocal shown
            if limit is not None and shown >= limit:
                return
            shown += 1
            receiver.should_stop = shown == limit
            click.echo(json.dumps(event, default=repr) if as_json else _line(event))

        receiver = app.events.Receiver(connection, handlers={"*": show})
        try:
            receiver.capture(timeout=timeout)
        except (TimeoutError, KeyboardInterrupt):
            return


def _class_of(place: str) -> Callable[..., Any]:
    """Return the class of cameras that is at a place such as `proj.DumpCam`.

    Raises:
        BadParameter: there is none.
    """
    module, _, name = place.replace(":", ".").rpartition(".")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    with importing(f"--camera {place}"):
        found = getattr(importlib.import_module(module), name, None) if module else None
    if not callable(found):
        raise click.BadParameter(f"{place} is no class; name one as proj.DumpCam", param_hint="--camera")
    return cast("Callable[..., Any]", found)


def _take_pictures(
    app: App, camera: Callable[..., Any], freq: float, maxrate: str | None, timeout: float | None
) -> None:
    state = app.events.State()
    with (
        app.connection() as connection,
        _answering(app.link.broker_url, connection),
        camera(state, freq=freq, maxrate=maxrate, app=app),
        contextlib.suppress(TimeoutError, KeyboardInterrupt),
    ):
        app.events.Receiver(connection, handlers={"*": state.event}).capture(timeout=timeout)


@contextlib.contextmanager
def _answering(url: str, connection: Any) -> Iterator[None]:
    """Connect, and say in one line that a server doesn't answer, now or later.

    Raises:
        ClickException: it doesn't.
    """
    from kombu.exceptions import OperationalError  # loaded for the connection already

    try:
        connection.ensure_connection(max_retries=1, interval_start=0)
        yield
    except (OperationalError, *connection.connection_errors) as exc:
        raise click.ClickException(f"no answer from {mask(url)}: {exc}") from exc


def _line(event: dict[str, Any]) -> str:
    at = event.get("timestamp")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else "?"
    task = f" {event.get('name') or ''}({event['uuid']})" if "uuid" in event else ""
    more = [f"{name}={value!r}" for name, value in event.items() if name not in _FIRST | _QUIET and value is not None]
    return printable(f"{event.get('hostname', '?')} [{when}] {event.get('type')}:{task} {', '.join(more)}".rstrip())
