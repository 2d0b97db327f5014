"""`nbqueue beat`."""

from __future__ import annotations

import contextlib
import importlib
import signal
from pathlib import Path
from typing import Any

import click

from nbqueue.cli import daemon
from nbqueue.cli.options import Command, chosen_app, global_options, idle_option, importing, opened, prepare
from nbqueue.cli.placed import words_again
from nbqueue.cli.worker import level
from nbqueue.config import Environment
from nbqueue.log import setup, tell_receivers


@click.command(cls=Command)
@global_options
@idle_option("-s", "--schedule", metavar="FILE")
@idle_option("-S", "--scheduler", metavar="CLASS")
@idle_option("--max-interval", metavar="S")
@idle_option("--enable-remote-control/--no-enable-remote-control")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("-n", "--hostname", "name", default="", metavar="NAME", help="What people are shown.")
@click.option("--pidfile", metavar="FILE", help="Write the process's number here; no second one takes it.")
@click.option("-f", "--logfile", metavar="FILE", help="Write the log here instead of to stderr.")
@click.option("-D", "--detach", is_flag=True, help="Go on in the background.")
@daemon.detach_options
@click.option(
    *("-l", "--loglevel"),
    default="info",
    type=level,
    metavar="LEVEL",
    help="debug, info (the default), warning, error or critical.",
)
@click.pass_context
def beat(
    ctx: click.Context,
    /,
    name: str,
    pidfile: str | None,
    logfile: str | None,
    detach: bool,
    loglevel: str,
    ready_fd: int | None,
    **options: Any,
) -> None:
    """Send what is due: beat_schedule of -A, and what notebooks have added. TERM or Ctrl-C stops it.

    Run as many as you like: one leads, the others stand by, and each due time fires once.

    \b
    Examples:
      nbqueue beat -A proj                       in the foreground
      nbqueue beat -A proj -D --pidfile beat.pid in the background
      nbqueue worker -A proj -B                  beside a worker, in one process
    """  # noqa: D301 - click's sign for lines to leave as they are
    options = prepare(ctx, options)
    log = Path(daemon.expanded(logfile, name or "beat")).absolute() if logfile else None
    if detach:
        from nbqueue import embedded  # one in the foreground may need none

        variables = Environment.read().variables
        log = log or embedded.Places.find(variables).logs / "beat.log"
        pid = daemon.Detached.of(log, options).start(daemon.without_detach(words_again(ctx)), variables)
        if not options["quiet"]:
            click.echo(f"beat started, process {pid}; its log is {log}")
        return
    daemon.refuse_without_detach(options)
    with contextlib.ExitStack() as stack:
        if pidfile:
            stack.enter_context(daemon.pid_file(Path(daemon.expanded(pidfile, name or "beat")).absolute()))
        setup(loglevel, file=opened("--logfile", log))
        app = chosen_app(ctx, options)
        for module in dict.fromkeys((*app.conf.imports, *app.conf.include)):
            with importing(f"tasks of {module}"):
                importlib.import_module(module)
        tell_receivers(loglevel, log)
        from nbqueue.beat import Beat  # loads the client of a server

        made = stack.enter_context(Beat(app, name=name))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: made.stop())
        daemon.tell_ready(ready_fd)
        made.run()
