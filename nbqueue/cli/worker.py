"""`nbqueue worker`."""

from __future__ import annotations

import gc
import importlib
import os
from typing import Any

import click

from nbqueue.cli.options import Command, app_of, global_options, merged, names
from nbqueue.config import Environment, child_environment
from nbqueue.forkserver import ChildSettings, start_fork_server
from nbqueue.link import told
from nbqueue.log import LEVELS, setup


@click.command(cls=Command)
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
    started = start_fork_server(environment, merged(ctx, options)["workdir"])
    try:
        gc.disable()  # as in the fork server
        setup(loglevel)
        app = app_of(ctx, **options)
        app_name = merged(ctx, options)["app_name"]
        modules = dict.fromkeys((*app.conf.imports, *app.conf.include))
        preload = ([app_name] if app_name else []) + list(modules)
        for module in modules:
            importlib.import_module(module)
        client = told(app.link, app.conf)
        own = (preload, max_tasks_per_child, max_memory_per_child)
        started.tell(ChildSettings.of(app.conf, app.link.blobs, *own, client))
        from nbqueue.worker import Worker  # redis costs 0.1 s, in which the fork server gets ready

        made = Worker(
            app,
            queues=names(queues),
            all_queues=all_queues,
            exclude=names(exclude_queues),
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
