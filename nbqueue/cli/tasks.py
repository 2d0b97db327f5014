"""Single tasks: `nbqueue result`, `revoke`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from nbqueue import states
from nbqueue.cli.options import Command, app_of, global_options
from nbqueue.exceptions import TaskError, TimeoutError  # noqa: A004 - Celery's name

if TYPE_CHECKING:
    from nbqueue.result import AsyncResult


@click.command(cls=Command)
@global_options
@click.argument("id")
@click.option("--timeout", type=float, metavar="S", help="How long to wait. Default: as long as it takes.")
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
