"""Single tasks: `nbqueue call`, `result`, `revoke`."""

from __future__ import annotations

import json
import time
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any

import click

from nbqueue import states
from nbqueue.cli.options import Command, app_of, global_options, idle_option, seconds, some
from nbqueue.exceptions import TaskError, TimeoutError  # noqa: A004 - Celery's name

if TYPE_CHECKING:
    from nbqueue.result import AsyncResult


@click.command(cls=Command)
@global_options
@click.argument("name", type=some)
@click.option("-a", "--args", "args", metavar="JSON", help="Positional arguments: a JSON array.")
@click.option("-k", "--kwargs", "kwargs", metavar="JSON", help="Arguments with names: a JSON object.")
@click.option("--eta", metavar="TIME", help="Not before this instant, as 2026-07-03T07:00.")
@click.option("--countdown", type=float, metavar="S", help="Not before so many seconds have passed.")
@click.option("--expires", metavar="S|TIME", help="Drop it if it has not started after so many seconds, or by then.")
@click.option("--serializer", metavar="NAME", help="Of the arguments.")
@click.option("--queue", type=some, metavar="NAME", help="Where it waits. Default: as its routes say.")
@click.option("--exchange", metavar="NAME", help="Instead of a queue: what task_queues binds to this exchange …")
@click.option("--routing-key", metavar="KEY", help="… for this key.")
@click.pass_context
def call(ctx: click.Context, /, name: str, args: str | None, kwargs: str | None, **options: Any) -> None:
    """Send a call of a task by its name, and print its id.

    \b
    Examples:
      nbqueue -A proj call proj.add -a '[2, 2]' --countdown 10
      nbqueue result --timeout 60 $(nbqueue call proj.add -k '{"x": 2, "y": 2}')

    A time without a zone is in the app's.
    """  # noqa: D301 - click's sign for lines to leave as they are
    own = ("eta", "countdown", "expires", "serializer", "queue", "exchange", "routing_key")
    given = {option: value for option in own if (value := options.pop(option)) is not None}
    positional, named = _parsed("--args", args, list, "array"), _parsed("--kwargs", kwargs, dict, "object")
    app = app_of(ctx, **options)
    app.work_follows = True
    for option in ("eta", "expires"):
        if option in given:
            given[option] = instant(option, given[option], app.timezone)
    try:
        sent = app.send_task(name, positional, named, **given)
    except (TypeError, ValueError) as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(sent.id)


def _parsed(option: str, text: str | None, kind: type, word: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        BadParameter: it is no JSON, or holds something else.
    """
    if text is None:
        return kind()
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is no JSON: {exc}", param_hint=option) from exc
    if not isinstance(found, kind):
        raise click.BadParameter(f"{text!r} is no JSON {word}.", param_hint=option)
    return found


def instant(option: str, text: str, tz: tzinfo) -> datetime | float:
    """Return an instant; for `expires` a number of seconds too.

    Raises:
        BadParameter: it is neither.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            if option == "expires":
                return float(text)
        except ValueError:
            pass
        hint = " or seconds" if option == "expires" else ""
        raise click.BadParameter(
            f"{text!r} is no time{hint}; write 2026-07-03T07:00.", param_hint=f"--{option}"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=tz)


@click.command(cls=Command)
@global_options
@click.argument("id")
@click.option("--timeout", type=seconds, metavar="S", help="How long to wait. Default: as long as it takes.")
@idle_option("-t", "--task", metavar="NAME")
@click.option("--traceback", is_flag=True, help="Show the remote traceback of a failure.")
@click.pass_context
def result(ctx: click.Context, /, id: str, timeout: float | None, traceback: bool, **options: Any) -> None:
    """Show what came of a task, waiting for it: its output, then its value or error. Exit code 1 if it failed."""
    from nbqueue.result import AsyncResult

    app = app_of(ctx, **options)
    handle = app.attach(id)
    try:
        value = handle.get(timeout=timeout)
    except TimeoutError as exc:
        raise click.ClickException(str(exc)) from exc
    except Exception as exc:
        if isinstance(handle, AsyncResult):
            _print_output(handle)
        text = getattr(handle, "traceback", None)
        if traceback and text:
            click.echo(text, err=True)
        if isinstance(exc, TaskError):
            raise click.ClickException(str(exc)) from exc
        raise click.ClickException(f"{type(exc).__name__}: {exc}") from exc
    if isinstance(handle, AsyncResult):
        _print_output(handle)
    click.echo(repr(value))


def _print_output(handle: AsyncResult) -> None:
    """Print what a task wrote: its own streams, each to ours."""
    for _, stream, text in handle.watched.status.log.chunks:
        click.echo(text, nl=False, err=stream == "stderr")


@click.command(cls=Command)
@global_options
@click.argument("ids", nargs=-1, required=True)
@click.option("--terminate", is_flag=True, help="Stop it even if it runs already.")
@click.pass_context
def revoke(ctx: click.Context, /, ids: tuple[str, ...], terminate: bool, **options: Any) -> None:
    """Cancel tasks or maps by id or label. A running one goes on unless --terminate."""
    app = app_of(ctx, **options)
    for one in ids:
        handle = app.attach(one)
        handle.revoke(terminate=terminate)
        deadline = time.monotonic() + (10.0 if terminate else 1.0)
        while not handle.ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        state = getattr(handle, "state", states.REVOKED if handle.ready() else states.STARTED)
        click.echo(f"{one}: {state}")
