"""The command line: `nbqueue worker`, `connect`, `status`, `result`, `revoke`, `dead`, `down`.

Global options (`-A`, `-b`, `--result-backend`, `--connect`, `--workdir`) may stand before or after the command.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nbqueue import states
from nbqueue._version import __version__
from nbqueue.config import Environment, child_environment
from nbqueue.exceptions import NBQueueError, TaskError, TimeoutError  # noqa: A004 - Celery's name
from nbqueue.forkserver import ChildSettings, start_fork_server
from nbqueue.log import LEVELS, setup

if TYPE_CHECKING:
    from nbqueue.app import App
    from nbqueue.deadletters import DeadLetters
    from nbqueue.result import AsyncResult

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


class _Command(click.Command):
    """A command whose own errors are one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NBQueueError as exc:
            raise click.ClickException(str(exc)) from exc


class _Group(_Command, click.Group):
    """A command with commands of its own."""


def _merged(ctx: click.Context, /, own: dict[str, Any]) -> dict[str, Any]:
    before = ctx.obj or {}
    return {name: value if value is not None else before.get(name) for name, value in own.items()}


def _app(ctx: click.Context, /, **own: Any) -> App:
    """Return the app that the options name, or one that finds its broker by itself."""
    options = _merged(ctx, own)
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@global_options
@click.version_option(__version__, "--version", prog_name="nbqueue")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Run tasks of notebooks and programs on pooled workers."""
    ctx.obj = options


@cli.command(cls=_Command)
@global_options
@click.option("-l", "--loglevel", default="warning", type=click.Choice(LEVELS, case_sensitive=False), show_default=True)
@click.option("-Q", "--queues", metavar="A,B", help="Listen to these queues, the first first. Default: the app's.")
@click.option("-X", "--exclude-queues", metavar="A,B", help="Don't listen to these queues.")
@click.option("--all-queues", is_flag=True, help="Listen to every queue that anything was sent to.")
@click.option("-c", "--concurrency", type=click.IntRange(min=1), help="How many children. Default: one a core.")
@click.option("-n", "--hostname", "name", metavar="NAME", help="The worker's name; @host is added if it has none.")
@click.option("--grace", type=float, metavar="S", help="How long a warm stop waits for running tasks.")
@click.option("--time-limit", type=float, metavar="S", help="End a task that runs longer, if it has no own limit.")
@click.option("--soft-time-limit", type=float, metavar="S", help="Raise SoftTimeLimitExceeded in one that does.")
@click.option("--memory-limit", metavar="SIZE", help='End a task that uses more than, say, "2 GB", likewise.')
@click.option("--max-tasks-per-child", type=click.IntRange(min=1), metavar="N", help="Replace a child after N tasks.")
@click.option(
    "--max-memory-per-child", type=click.IntRange(min=1), metavar="KIB", help="Replace one that uses more after a task."
)
@click.option("--keeper", is_flag=True, hidden=True)
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    loglevel: str,
    queues: str | None,
    exclude_queues: str | None,
    all_queues: bool,
    concurrency: int | None,
    name: str | None,
    grace: float | None,
    time_limit: float | None,
    soft_time_limit: float | None,
    memory_limit: str | None,
    max_tasks_per_child: int | None,
    max_memory_per_child: int | None,
    keeper: bool,
    **options: Any,
) -> None:
    """Start a worker. TERM or Ctrl-C stops it once its tasks have ended; QUIT or a second Ctrl-C at once."""
    del keeper  # says in a process list who started it
    # Its interpreter starts while this one loads what a supervisor needs.
    environment = child_environment(Environment.read().variables, concurrency or os.cpu_count() or 1)
    started = start_fork_server(environment, _merged(ctx, options)["workdir"])
    try:
        gc.disable()  # as in the fork server
        setup(loglevel)
        app = _app(ctx, **options)
        app_name = _merged(ctx, options)["app_name"]
        preload = ([app_name] if app_name else []) + list(app.conf.include)
        for module in app.conf.include:
            importlib.import_module(module)
        started.tell(ChildSettings.of(app.conf, app.link.blobs, preload, max_tasks_per_child, max_memory_per_child))
        from nbqueue.worker import Worker  # redis costs 0.1 s, in which the fork server gets ready

        made = Worker(
            app,
            queues=_names(queues),
            all_queues=all_queues,
            exclude=_names(exclude_queues),
            concurrency=concurrency or 0,
            name=name or "",
            preload=preload,
            grace_s=grace,
            time_limit=time_limit,
            soft_time_limit=soft_time_limit,
            memory_limit=memory_limit,
            max_tasks_per_child=max_tasks_per_child,
            max_memory_per_child=max_memory_per_child,
            started=started,
        )
        gc.freeze()  # nor is it looked at ever after
    except BaseException:
        started.close()
        raise
    finally:
        gc.enable()
    ctx.exit(made.run())


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


@cli.command(cls=_Command)
@global_options
@click.option("--export", metavar="FILE", help="Write the connection file for workers and clients elsewhere.")
@click.pass_context
def connect(ctx: click.Context, /, export: str | None, **options: Any) -> None:
    """Show where this machine is connected to, or write it to a file that another one can use."""
    from nbqueue import connection, embedded
    from nbqueue.config import mask

    app = _app(ctx, **options)
    link = app.link
    click.echo(f"broker   {mask(link.broker_url)}" + ("  (embedded, this host only)" if link.embedded else ""))
    click.echo(f"backend  {mask(link.backend_url or '-')}")
    click.echo(f"key      {app.signer.key_id}")
    if export:
        machine = embedded.machine_id() if link.embedded else ""
        directory = str(link.directory) if link.embedded else ""
        known = connection.Connection(link.broker_url, link.backend_url, link.key, link.embedded, machine, directory)
        connection.write(Path(export), known)
        click.echo(f"written  {export}  (readable by you only: it holds the signing key)")
        if link.embedded:
            click.echo("It serves this host only. To add a machine, set a Redis or RabbitMQ URL: NBQUEUE_BROKER_URL.")


@cli.command(cls=_Command)
@global_options
@click.pass_context
def status(ctx: click.Context, /, **options: Any) -> None:
    """Show workers and queues."""
    from nbqueue.broker import ServerBroker
    from nbqueue.watcher import live_offers

    app = _app(ctx, **options)
    backend = app.backend
    now = backend.now()
    offers = sorted(live_offers(backend, app.signer, now), key=lambda offer: offer.name)
    for offer in offers:
        queues = "all queues" if offer.all_queues else ", ".join(offer.queues)
        click.echo(f"{offer.name}  {offer.busy} of {offer.children} children busy  {queues}")
    if not offers:
        click.echo("No workers.")
    broker = app.broker
    if not isinstance(broker, ServerBroker):
        return
    for queue in sorted(broker.queues()):
        size = broker.size(queue)
        click.echo(f"queue {queue}: {size.queued} queued, {size.claimed} claimed, {size.delayed} delayed")
    for reason, number in sorted(broker.counters().items()):
        click.echo(f"{reason}: {number}")
    if dead_letters := broker.count_dead():
        click.echo(f"dead letters: {dead_letters} (nbqueue dead)")


@cli.command(cls=_Command)
@global_options
@click.argument("id")
@click.option("--timeout", type=float, metavar="S", help="How long to wait. Default: as long as it takes.")
@click.option("--traceback", is_flag=True, help="Show the remote traceback of a failure.")
@click.pass_context
def result(ctx: click.Context, /, id: str, timeout: float | None, traceback: bool, **options: Any) -> None:
    """Show what came of a task, waiting for it: its output, then its value or error. Exit code 1 if it failed."""
    from nbqueue.result import AsyncResult

    app = _app(ctx, **options)
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


@cli.command(cls=_Command)
@global_options
@click.argument("ids", nargs=-1, required=True)
@click.option("--terminate", is_flag=True, help="Stop it even if it runs already.")
@click.pass_context
def revoke(ctx: click.Context, /, ids: tuple[str, ...], terminate: bool, **options: Any) -> None:
    """Cancel tasks or maps by id or label. A running one goes on unless --terminate."""
    app = _app(ctx, **options)
    for one in ids:
        handle = app.attach(one)
        handle.revoke(terminate=terminate)
        deadline = time.monotonic() + (10.0 if terminate else 1.0)
        while not handle.ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        state = getattr(handle, "state", states.REVOKED if handle.ready() else states.STARTED)
        click.echo(f"{one}: {state}")


@cli.group(cls=_Group, invoke_without_command=True)
@global_options
@click.pass_context
def dead(ctx: click.Context, /, **options: Any) -> None:
    """Show the tasks that were given up or rejected; `requeue` sends them again, `drop` forgets them."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = _merged(ctx, options)
        return
    letters = _dead_letters(ctx, options).list()
    for letter in letters:
        ended = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.at))
        click.echo(f"{letter.id}  {ended}  {_printable(letter.name) or '?'}  {_printable(letter.error)}")
    if not letters:
        click.echo("No dead letters.")


def _printable(text: str) -> str:
    """Return a text from elsewhere without what would steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dead.command(cls=_Command)
@global_options
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.pass_context
def requeue(ctx: click.Context, /, ids: tuple[str, ...], every: bool, **options: Any) -> None:
    """Send tasks again, as new as when they were first sent. Exit code 1 if one of them was not sent."""
    letters = _dead_letters(ctx, options)
    said = letters.requeue(_chosen(letters, ids, every))
    for id_, word in said.items():
        click.echo(f"{id_}: {word}")
    ctx.exit(int(any(word != "sent" for word in said.values())))


@dead.command(cls=_Command)
@global_options
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.pass_context
def drop(ctx: click.Context, /, ids: tuple[str, ...], every: bool, **options: Any) -> None:
    """Forget tasks that were given up; their records stay."""
    letters = _dead_letters(ctx, options)
    click.echo(f"{letters.drop(_chosen(letters, ids, every))} dropped")


def _dead_letters(ctx: click.Context, options: dict[str, Any]) -> DeadLetters:
    app = _app(ctx, **options)
    from nbqueue.deadletters import DeadLetters  # needs the client of a server

    return DeadLetters(app)


def _chosen(letters: DeadLetters, ids: tuple[str, ...], every: bool) -> list[str]:
    if every == bool(ids):
        raise click.UsageError("name the tasks, or give --all")
    return [letter.id for letter in letters.list()] if every else list(ids)


@cli.command(cls=_Command)
@global_options
@click.option("--grace", type=float, default=10.0, show_default=True, metavar="S", help="How long workers may finish.")
def down(grace: float, **_: Any) -> None:
    """Stop the embedded server, its keeper and its worker. Queued tasks and results stay on disk."""
    from nbqueue import embedded
    from nbqueue.config import Environment

    for line in embedded.down(embedded.Places.find(Environment.read().variables), grace) or ["Nothing was running."]:
        click.echo(line)


def main() -> None:
    """Run the command line."""
    cli(prog_name="nbqueue")
