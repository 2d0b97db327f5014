"""Workers and queues: `nbqueue status`."""

from __future__ import annotations

from typing import Any

import click

from nbqueue.cli.options import Command, app_of, global_options


@click.command(cls=Command)
@global_options
@click.pass_context
def status(ctx: click.Context, /, **options: Any) -> None:
    """Show workers and queues."""
    from nbqueue.broker import ServerBroker
    from nbqueue.watcher import live_offers

    app = app_of(ctx, **options)
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
