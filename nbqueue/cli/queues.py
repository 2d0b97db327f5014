"""Workers and queues: `nbqueue status`, `purge`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nbqueue.cli.options import Command, app_of, global_options, merged, names

if TYPE_CHECKING:
    from nbqueue.broker import Broker
    from nbqueue.watcher import Offer


@click.command(cls=Command)
@global_options
@click.option("-j", "--json", "as_json", is_flag=True, help="Write JSON.")
@click.pass_context
def status(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Show workers and queues."""
    from nbqueue.broker import ServerBroker
    from nbqueue.watcher import live_offers

    app = app_of(ctx, **options)
    backend = app.backend
    now = backend.now()
    offers = sorted(live_offers(backend, app.signer, now), key=lambda offer: offer.name)
    if as_json:
        click.echo(_as_json(offers, app.broker))
        return
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


def _as_json(offers: Sequence[Offer], broker: Broker) -> str:
    """Return all of it for programs."""
    import msgspec

    from nbqueue.broker import ServerBroker

    found: dict[str, Any] = {"workers": [msgspec.structs.asdict(offer) for offer in offers]}
    if isinstance(broker, ServerBroker):
        found["queues"] = {queue: broker.size(queue) for queue in sorted(broker.queues())}
        found["counters"] = broker.counters()
        found["dead_letters"] = broker.count_dead()
    return msgspec.json.encode(found).decode()


@click.command(cls=Command)
@global_options
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.option("-Q", "--queues", metavar="A,B", help="These queues. Default: the app's.")
@click.option("-X", "--exclude-queues", metavar="A,B", help="Not these.")
@click.option("--all-queues", is_flag=True, help="Every queue that anything was sent to.")
@click.pass_context
def purge(
    ctx: click.Context,
    /,
    force: bool,
    queues: str | None,
    exclude_queues: str | None,
    all_queues: bool,
    **options: Any,
) -> None:
    """Drop what waits in queues, delayed tasks too. What runs goes on; nothing brings back what was dropped."""
    from nbqueue.broker import ServerBroker

    if queues and all_queues:
        raise click.UsageError("give --queues or --all-queues, not both")
    app = app_of(ctx, **options)
    broker = app.broker
    chosen = names(queues) or list(app.conf.task_queues) or [app.conf.task_default_queue]
    if all_queues and isinstance(broker, ServerBroker):
        chosen = sorted(broker.queues())
    chosen = [queue for queue in chosen if queue not in names(exclude_queues)]
    if not chosen:
        click.echo("No queues.")
        return
    if not force:
        click.confirm(f"Drop everything that waits in {', '.join(chosen)}?", abort=True, err=True)
    dropped = {queue: broker.purge(queue) for queue in chosen}
    for queue, number in dropped.items():
        if number or not merged(ctx, options)["quiet"]:
            click.echo(f"queue {queue}: {number} dropped")
