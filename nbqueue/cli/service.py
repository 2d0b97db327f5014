"""A worker as a service of this user: `nbqueue service install`, `uninstall`, `status`."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import click

from nbqueue.cli.options import Command, Group, global_options, merged, say_idle


@click.group(cls=Group)
@global_options
@click.pass_context
def service(ctx: click.Context, /, **options: Any) -> None:
    """Keep a worker running as a service of yours: systemd's on Linux, launchd's on macOS."""
    ctx.obj = {**(ctx.obj or {}), **merged(ctx, options)}


def _shared(command: Any) -> Any:
    command = click.option("--dry-run", is_flag=True, help="Show what would be written and run, and do nothing.")(
        command
    )
    return click.option("--name", default="worker", show_default=True, metavar="NAME", help="Of one of several.")(
        command
    )


@service.command(cls=Command, context_settings={"ignore_unknown_options": True})
@global_options
@_shared
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER-OPTIONS...]")
@click.pass_context
def install(ctx: click.Context, /, name: str, dry_run: bool, words: tuple[str, ...], **options: Any) -> None:
    """Write the service's file and start it, now and at each login.

    \b
    Example, with options of `nbqueue worker` after --:
      nbqueue service install -A proj -- -c 4 -Q gpu

    It gets the variables NBQUEUE_*, CELERY_*, PATH and PYTHONPATH of now; its file is readable by you only.
    """  # noqa: D301 - click's sign for lines to leave as they are
    from nbqueue.cli.worker import worker
    from nbqueue.config import Environment
    from nbqueue.service import Service, manager, run, write

    worker.make_context("nbqueue worker", [*words], parent=ctx.find_root())  # it would be started again and again
    say_idle(ctx)
    given = merged(ctx, options)
    variables = Environment.read().variables
    directory = Path(given["workdir"] or Path.cwd()).absolute()
    made = Service(name, (*_spelled(given), *words), directory, variables)
    found = manager(variables)
    path, text, commands = found.file(made), found.text(made), found.start(made)
    click.echo(f"{path}:\n{_indented(text)}")
    for command in commands:
        click.echo(f"$ {shlex.join(command)}")
    if not dry_run:
        write(path, text)
        run(commands, variables.get("PATH"))
        click.echo(f"service nbqueue-{name} runs")
    if found.hint:
        click.echo(found.hint)


@service.command(cls=Command)
@global_options
@_shared
def uninstall(name: str, dry_run: bool, **_: Any) -> None:
    """Stop the service once its tasks have ended, and remove its file."""
    from nbqueue.config import Environment
    from nbqueue.service import Service, manager, run

    variables = Environment.read().variables
    made = Service(name)
    found = manager(variables)
    path, commands = found.file(made), found.stop(made)
    if not path.exists():
        raise click.ClickException(f"there is no service nbqueue-{name}: no {path}")
    for command in commands:
        click.echo(f"$ {shlex.join(command)}")
    click.echo(f"$ rm {shlex.quote(str(path))}")
    if not dry_run:
        run(commands[:1], variables.get("PATH"))
        path.unlink(missing_ok=True)
        run(commands[1:], variables.get("PATH"))


@service.command("status", cls=Command)
@global_options
@_shared
@click.pass_context
def status(ctx: click.Context, /, name: str, dry_run: bool, **_: Any) -> None:
    """Show how the service does. Exit code 1 if it doesn't run."""
    from nbqueue.config import Environment
    from nbqueue.service import Service, manager

    variables = Environment.read().variables
    made = Service(name)
    found = manager(variables)
    if not found.file(made).exists():
        raise click.ClickException(f"there is no service nbqueue-{name}: no {found.file(made)}")
    command = found.status(made)
    if dry_run:
        click.echo(f"$ {shlex.join(command)}")
        return
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as exc:
        raise click.ClickException(f"there is no {command[0]} here") from exc
    click.echo(done.stdout + done.stderr, nl=False)
    ctx.exit(int(bool(done.returncode)))


def _spelled(options: dict[str, Any]) -> list[str]:
    """Return global options as words again."""
    flags = {"app_name": "-A", "broker": "-b", "result_backend": "--result-backend", "config": "--config"}
    words = [word for name, flag in flags.items() if options[name] for word in (flag, options[name])]
    if options["connection_file"]:
        words += ["--connect", str(Path(options["connection_file"]).absolute())]
    return words


def _indented(text: str) -> str:
    """Return a file's text for people: without passwords, as a terminal is looked at by others too."""
    from nbqueue.config import mask

    lines = [" ".join(mask(word) if "://" in word else word for word in line.split(" ")) for line in text.splitlines()]
    return "\n".join(f"    {line}" for line in lines)
