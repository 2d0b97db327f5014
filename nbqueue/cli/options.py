"""What every command shares: the global options, errors in one line, and the app that the options name.

Global options (`-A`, `-b`, `--result-backend`, `--connect`, `--workdir`) may stand before or after the command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nbqueue.exceptions import NBQueueError

if TYPE_CHECKING:
    from nbqueue.app import App

F = TypeVar("F", bound=Callable[..., Any])


def global_options(command: F) -> F:
    """Add the options that every command and the group itself take."""
    for option in (
        click.option("--workdir", metavar="DIR", help="Change to this directory first."),
        click.option("--connect", "connection_file", metavar="FILE", help="A connection file: URLs and signing key."),
        click.option("--result-backend", metavar="URL", help="Where results are kept."),
        click.option("-b", "--broker", metavar="URL", help="The broker's URL."),
        click.option("-A", "--app", "app_name", metavar="MODULE[:NAME]", help="The module with your App and tasks."),
    ):
        command = option(command)
    return command


class Command(click.Command):
    """A command whose own errors are one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except NBQueueError as exc:
            raise click.ClickException(str(exc)) from exc


class Group(Command, click.Group):
    """A command with commands of its own."""


def merged(ctx: click.Context, /, own: dict[str, Any]) -> dict[str, Any]:
    """Return global options: those after the command, else those before it."""
    before = ctx.obj or {}
    return {name: value if value is not None else before.get(name) for name, value in own.items()}


def app_of(ctx: click.Context, /, **own: Any) -> App:
    """Return the app that the options name, or one that finds its broker by itself."""
    options = merged(ctx, own)
    if options["workdir"]:
        os.chdir(options["workdir"])
    from nbqueue.app import App  # `nbqueue --help` needs none

    if options["app_name"]:
        from nbqueue.execute import find_app

        sys.path.insert(0, str(Path.cwd()))
        app: App = find_app(options["app_name"])
    else:
        app = App(by_value=True)
    app.work_follows = False
    for setting, name in (("broker_url", "broker"), ("result_backend", "result_backend"), ("connection_file",) * 2):
        if options[name]:
            setattr(app.conf, setting, options[name])
    return app


def names(text: str | None) -> list[str]:
    """Return the names in a text such as `a,b`."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def printable(text: str) -> str:
    """Return a text from elsewhere without what would steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
