"""What every command shares: the global options, errors in one line, and the app that the options name.

Global options may stand before or after the command. What Celery's command line takes and has no meaning here is
accepted, and said once.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nbqueue import signals
from nbqueue.exceptions import NBQueueError

if TYPE_CHECKING:
    from types import TracebackType

    from nbqueue.app import App

F = TypeVar("F", bound=Callable[..., Any])
_IDLE = "nbqueue.idle"
_USERS = "nbqueue.users"


def idle_option(*flags: str, **attributes: Any) -> Callable[[F], F]:
    """Accept an option of Celery's that has no meaning here; `say_idle` says so if it was given."""

    def note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value not in (None, False):
            ctx.meta.setdefault(_IDLE, []).append(max(param.opts, key=len))

    return click.option(*flags, expose_value=False, callback=note, hidden=True, **attributes)


def say_idle(ctx: click.Context) -> None:
    """Say once which options were given that have no meaning here."""
    if given := ctx.meta.pop(_IDLE, None):
        click.echo(f"nbqueue: without meaning here, and doing nothing: {', '.join(given)}", err=True)


def global_options(command: F) -> F:
    """Add the options that every command and the group itself take."""
    for option in (
        idle_option("--skip-checks", is_flag=True),
        idle_option("--loader", metavar="CLASS"),
        click.option("-C", "--no-color", is_flag=True, default=None, help="Print no colours."),
        click.option("-q", "--quiet", is_flag=True, default=None, help="Print results only."),
        click.option("--workdir", metavar="DIR", help="Change to this directory first."),
        click.option("--config", metavar="MODULE", help="Settings, for an app that names none itself."),
        click.option("--connect", "connection_file", metavar="FILE", help="A connection file: URLs and signing key."),
        click.option("--result-backend", type=some, metavar="URL", help="Where results are kept."),
        click.option("-b", "--broker", type=some, metavar="URL", help="The broker's URL."),
        click.option(
            "-A", "--app", "app_name", type=some, metavar="MODULE[:NAME]", help="The module with your App and tasks."
        ),
    ):
        command = option(command)
    return command


_GLOBAL = frozenset(
    {"app_name", "broker", "result_backend", "connection_file", "config", "workdir", "quiet", "no_color"}
)


class Command(click.Command):
    """A command whose own errors are one line, without a traceback; help lists its own options before the global."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words after the command; an option that isn't known may be one of the app's `user_options`."""
        try:
            return super().parse_args(ctx, list(args))
        except click.NoSuchOption:
            ctx.meta[_USERS] = _user_options(ctx, args)
            if not ctx.meta[_USERS]:
                raise
            return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return what it takes."""
        return [*super().get_params(ctx), *ctx.meta.get(_USERS, ())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in two sections, and the commands of a group."""
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):  # the line of usage names them
                continue
            row = param.get_help_record(ctx)
            if row is not None:
                (shared if param.name in _GLOBAL else own).append(row)
        for title, rows in (("Options", own), ("Global options, before or after the command", shared)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except NBQueueError as exc:
            raise click.ClickException(str(exc)) from exc


class Group(Command, click.Group):
    """A command with commands of its own, each of which help says whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in found if command])


def merged(ctx: click.Context, /, own: dict[str, Any]) -> dict[str, Any]:
    """Return global options: those after the command, else those before it."""
    before = ctx.obj or {}
    return {name: value if value is not None else before.get(name) for name, value in own.items()}


def prepare(ctx: click.Context, /, own: dict[str, Any]) -> dict[str, Any]:
    """Do what global options say before there is an app; return them merged.

    Raises:
        UsageError: the directory can't be used.
    """
    options = merged(ctx, own)
    say_idle(ctx)
    if options["no_color"]:
        ctx.color = False
    if options["workdir"]:
        try:
            os.chdir(options["workdir"])
        except OSError as exc:
            raise click.UsageError(f"--workdir {options['workdir']}: {exc.strerror}") from exc
    if options["config"]:
        os.environ["CELERY_CONFIG_MODULE"] = options["config"]  # children read it too
    if options["app_name"] or options["config"]:
        sys.path.insert(0, str(Path.cwd()))
    return options


def app_of(ctx: click.Context, /, **own: Any) -> App:
    """Return the app that the options name, or one that finds its broker by itself."""
    return chosen_app(ctx, prepare(ctx, own))


def chosen_app(ctx: click.Context, options: dict[str, Any]) -> App:
    """Return the app that prepared options name."""
    from nbqueue.app import App  # `nbqueue --help` needs none

    app: App
    if (ctx.obj or {}).get("app") is not None:
        app = ctx.obj["app"]
    elif options["app_name"]:
        from nbqueue.execute import find_app

        with importing(f"-A {options['app_name']}"):
            app = find_app(options["app_name"])
    else:
        app = App(by_value=True)
    if options["config"]:
        with importing(f"--config {options['config']}"):
            _ = app.conf.broker_url  # reads the module
    app.work_follows = False
    for setting, name in (("broker_url", "broker"), ("result_backend", "result_backend"), ("connection_file",) * 2):
        if options[name]:
            setattr(app.conf, setting, options[name])
    for option in app.user_options["preload"] | app.user_options[str(ctx.info_name)]:
        options.setdefault(option.name, option.get_default(ctx))
    signals.user_preload_options.send(app, app=app, options=options)
    return app


@contextlib.contextmanager
def importing(what: str) -> Iterator[None]:
    """Show where a user's module failed, without the frames that lead to it, and say in the last line what named it.

    Raises:
        ClickException: the module raised something.
    """
    try:
        yield
    except (NBQueueError, click.ClickException):
        raise
    except Exception as exc:
        at = exc.__traceback__
        while at is not None and not _imports(at):
            at = at.tb_next
        while at is not None and _imports(at):
            at = at.tb_next
        if at is not None or isinstance(exc, SyntaxError):
            click.echo("".join(traceback.format_exception(exc.with_traceback(at))), nl=False, err=True)
        raise click.ClickException(f"{what}: {type(exc).__name__}: {exc}") from exc


def _imports(at: TracebackType) -> bool:
    return str(at.tb_frame.f_globals.get("__name__")).startswith("importlib")


def opened(option: str, path: Path | None) -> Path | None:
    """Return the path of a log, of which it is known that it can be written.

    Raises:
        ClickException: it can't.
    """
    if path is not None:
        try:
            path.open("a").close()
        except OSError as exc:
            raise click.ClickException(f"{option} {path}: {exc.strerror}") from exc
    return path


def seconds(text: str) -> float:
    """Return a length of time.

    Raises:
        BadParameter: it is no number, or below 0, or endless.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise click.BadParameter(f"{text!r} is no number of seconds.")
    return found


def seconds_above_0(text: str) -> float:
    """Return a length of time that isn't nothing.

    Raises:
        BadParameter: it is none.
    """
    if not (found := seconds(text)):
        raise click.BadParameter(f"{text!r} is no number of seconds above 0.")
    return found


def some(text: str) -> str:
    """Return a text that isn't empty, as one is that a script takes from a variable that isn't set.

    Raises:
        BadParameter: it is.
    """
    if not text:
        raise click.BadParameter("it is empty.")
    return text


def _user_options(ctx: click.Context, args: list[str]) -> list[click.Parameter]:
    """Return the options that the app has beside ours, for this command and for all, by their names."""
    app = (ctx.obj or {}).get("app")
    named = [after for word, after in itertools.pairwise(args) if word in ("-A", "--app")]
    named += [word.removeprefix("--app=") for word in args if word.startswith("--app=")]
    spec = named[-1] if named else (ctx.obj or {}).get("app_name")
    if app is None and spec:
        from nbqueue.execute import find_app  # as in `chosen_app`

        sys.path.insert(0, str(Path.cwd()))
        with importing(f"-A {spec}"):
            app = find_app(spec)
    if app is None:
        return []
    return sorted(app.user_options["preload"] | app.user_options[str(ctx.info_name)], key=lambda one: str(one.name))


def names(text: str | None) -> list[str]:
    """Return the names in a text such as `a,b`."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def printable(text: str) -> str:
    """Return a text from elsewhere without what would steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
