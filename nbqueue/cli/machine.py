"""What this machine is connected to, and the embedded server on it: `nbqueue connect`, `clean`, `down`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from nbqueue.cli.options import Command, app_of, global_options, merged, seconds


@click.command(cls=Command)
@global_options
@click.option("--export", metavar="FILE", help="Write the connection file for workers and clients elsewhere.")
@click.pass_context
def connect(ctx: click.Context, /, export: str | None, **options: Any) -> None:
    """Show where this machine is connected to, or write it to a file that another one can use."""
    from nbqueue import connection, embedded
    from nbqueue.config import mask

    app = app_of(ctx, **options)
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


@click.command(cls=Command)
@global_options
@click.option(
    "--grace", type=seconds, default=10.0, show_default=True, metavar="S", help="How long workers may finish."
)
def down(grace: float, **_: Any) -> None:
    """Stop the embedded server, its keeper and its worker. Queued tasks and results stay on disk."""
    from nbqueue import embedded
    from nbqueue.config import Environment

    for line in embedded.down(embedded.Places.find(Environment.read().variables), grace) or ["Nothing was running."]:
        click.echo(line)


@click.command(cls=Command)
@global_options
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.pass_context
def clean(ctx: click.Context, /, dry_run: bool, **options: Any) -> None:
    """Remove what nobody needs any more from your data directory: large data beyond its limit, old logs and the like.

    Workers remove large data by themselves, once an hour; this does it now, and where none runs.
    """
    from nbqueue import embedded
    from nbqueue.cleaning import leftovers, remove
    from nbqueue.config import Environment
    from nbqueue.limits import shown_size

    app = app_of(ctx, **options)
    places = embedded.Places.find(Environment.read().variables)
    totals: dict[str, tuple[int, int]] = {}
    for found in leftovers(places, time.time(), int(app.conf.blobs_max_bytes)):
        if dry_run or remove(found):
            files, size = totals.get(found.why, (0, 0))
            totals[found.why] = (files + 1, size + found.size)
            if not merged(ctx, options)["quiet"]:
                click.echo(f"{shown_size(found.size):>8}  {found.path}")
    word = "would be removed" if dry_run else "removed"
    for why, (files, size) in totals.items():
        click.echo(f"{word}: {files} files, {shown_size(size)}: {why}")
    if not totals:
        click.echo(f"Nothing to remove in {places.data}.")
