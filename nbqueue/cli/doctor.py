"""What is installed, and what is wrong with it: `nbqueue report`, `doctor`."""

from __future__ import annotations

from typing import Any

import click

from nbqueue.cli.options import Command, app_of, global_options, merged, printable

_COLOURS = {"ok": "green", "note": "yellow", "broken": "red"}


@click.command(cls=Command)
@global_options
@click.pass_context
def report(ctx: click.Context, /, **options: Any) -> None:
    """Print versions, machine, servers and settings, for a report of a defect. Secrets are masked."""
    from nbqueue.installed import report as made

    click.echo(made(app_of(ctx, **options)))


@click.command(cls=Command)
@global_options
@click.pass_context
def doctor(ctx: click.Context, /, **options: Any) -> None:
    """Look at servers, keys, workers, clocks and disks, and say what to do. Exit code 1 if something is broken."""
    from nbqueue.doctor import examine

    app = app_of(ctx, **options)
    counts = dict.fromkeys(_COLOURS, 0)
    for finding in examine(app):
        counts[finding.level] += 1
        if finding.level == "ok" and merged(ctx, options)["quiet"]:
            continue
        advice = f"\n        -> {printable(finding.advice)}" if finding.advice else ""
        click.echo(
            f"{click.style(f'{finding.level:<6}', fg=_COLOURS[finding.level])}  {printable(finding.text)}{advice}"
        )
    click.echo(f"{counts['broken']} broken, {counts['note']} to note, {counts['ok']} in order")
    ctx.exit(int(bool(counts["broken"])))
