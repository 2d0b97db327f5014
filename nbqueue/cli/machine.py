"""What this machine is connected to, and the embedded server on it: `nbqueue connect`, `down`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nbqueue.cli.options import Command, app_of, global_options


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
@click.option("--grace", type=float, default=10.0, show_default=True, metavar="S", help="How long workers may finish.")
def down(grace: float, **_: Any) -> None:
    """Stop the embedded server, its keeper and its worker. Queued tasks and results stay on disk."""
    from nbqueue import embedded
    from nbqueue.config import Environment

    for line in embedded.down(embedded.Places.find(Environment.read().variables), grace) or ["Nothing was running."]:
        click.echo(line)
