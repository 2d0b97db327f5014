"""Tasks that were given up: `nbqueue dead`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from nbqueue.cli.options import Command, Group, app_of, global_options, merged, printable

if TYPE_CHECKING:
    from nbqueue.deadletters import DeadLetters


@click.group(cls=Group, invoke_without_command=True)
@global_options
@click.pass_context
def dead(ctx: click.Context, /, **options: Any) -> None:
    """Show the tasks that were given up or rejected; `requeue` sends them again, `drop` forgets them."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = {**(ctx.obj or {}), **merged(ctx, options)}
        return
    letters = _dead_letters(ctx, options).list()
    for letter in letters:
        ended = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.at))
        click.echo(f"{letter.id}  {ended}  {printable(letter.name) or '?'}  {printable(letter.error)}")
    if not letters:
        click.echo("No dead letters.")


@dead.command(cls=Command)
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


@dead.command(cls=Command)
@global_options
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.pass_context
def drop(ctx: click.Context, /, ids: tuple[str, ...], every: bool, **options: Any) -> None:
    """Forget tasks that were given up; their records stay."""
    letters = _dead_letters(ctx, options)
    click.echo(f"{letters.drop(_chosen(letters, ids, every))} dropped")


def _dead_letters(ctx: click.Context, options: dict[str, Any]) -> DeadLetters:
    app = app_of(ctx, **options)
    from nbqueue.deadletters import DeadLetters  # needs the client of a server

    return DeadLetters(app)


def _chosen(letters: DeadLetters, ids: tuple[str, ...], every: bool) -> list[str]:
    if every == bool(ids):
        raise click.UsageError("name the tasks, or give --all")
    return [letter.id for letter in letters.list()] if every else list(ids)
