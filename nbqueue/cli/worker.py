"""`nbqueue worker`."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nbqueue import signals
from nbqueue.cli import daemon
from nbqueue.cli.options import (
    Command,
    chosen_app,
    global_options,
    idle_option,
    importing,
    names,
    opened,
    prepare,
    seconds,
    seconds_above_0,
)
from nbqueue.cli.placed import importable, words_again
from nbqueue.config import Environment, child_environment
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.forkserver import ChildSettings, start_fork_server
from nbqueue.limits import size_bytes
from nbqueue.link import told
from nbqueue.log import LEVELS, setup, tell_receivers
from nbqueue.poolkinds import PREFORK, THREADS, pool_kind, processes

if TYPE_CHECKING:
    from nbqueue.app import App

F = TypeVar("F", bound=Callable[..., Any])
logger = logging.getLogger(__name__)


def idle_options(command: F) -> F:
    """Accept what Celery's worker takes that has no meaning here."""
    for option in (
        idle_option("-O", "--optimization", metavar="NAME"),
        idle_option("--prefetch-multiplier", metavar="N"),
        idle_option("--disable-prefetch", is_flag=True),
        idle_option("--pool-start-method", metavar="METHOD"),
        idle_option("--without-gossip", is_flag=True),
        idle_option("--without-mingle", is_flag=True),
        idle_option("--without-heartbeat", is_flag=True),
        idle_option("--heartbeat-interval", metavar="S"),
        idle_option("-S", "--statedb", metavar="FILE"),
        idle_option("-s", "--schedule-filename", "--schedule", metavar="FILE"),
        idle_option("--scheduler", metavar="CLASS"),
    ):
        command = option(command)
    return command


def process_options(command: F) -> F:
    """Add the options about the process; they come among the global ones."""
    for option in (
        click.option("--ready-fd", type=int, hidden=True),
        daemon.detach_options,
        click.option("--pidfile", metavar="FILE", help="Write the process's number here; no second worker takes it."),
        click.option("-f", "--logfile", metavar="FILE", help="Write the log here instead of to stderr."),
        click.option("-D", "--detach", is_flag=True, help="Go on in the background."),
        click.option("--purge", "--discard", is_flag=True, help="First drop what waits in its queues."),
        click.option("-I", "--include", metavar="A,B", help="Import these modules with tasks too."),
    ):
        command = option(command)
    return command


def level(text: str) -> str:
    """Return a level of logging, in lower case; `fatal` is Celery's other word for `critical`.

    Raises:
        BadParameter: there is no such level.
    """
    found = "critical" if text.lower() == "fatal" else text.lower()
    if found not in LEVELS:
        raise click.BadParameter(f"{text!r} is none of {', '.join(LEVELS)}.")
    return found


def cores(text: str) -> int:
    """Return a number of children; for `auto` as many as cores that may be used.

    Raises:
        BadParameter: it is no number above 0.
    """
    if text == "auto":
        from nbqueue.cores import usable_cores  # few ask

        return usable_cores()
    if not text.isdecimal() or not int(text):
        raise click.BadParameter(f"{text!r} is neither a number above 0 nor 'auto'.")
    return int(text)


def kind(text: str) -> str:
    """Return the name of a pool.

    Raises:
        BadParameter: there is none of this name.
    """
    try:
        return pool_kind(text)
    except ImproperlyConfigured as exc:
        raise click.BadParameter(str(exc)) from None


def size(text: str) -> int:
    """Return a number of bytes.

    Raises:
        BadParameter: it is none.
    """
    try:
        return size_bytes("it", text)
    except ImproperlyConfigured as exc:
        raise click.BadParameter(str(exc)) from None


def bounds(text: str) -> tuple[int, int]:
    """Return the most and the fewest children.

    Raises:
        BadParameter: they are none.
    """
    most, _, fewest = text.partition(",")
    if not most.isdecimal() or not (fewest or "0").isdecimal() or not int(fewest or 0) <= int(most) or not int(most):
        raise click.BadParameter(f"{text!r} is no MAX,MIN such as '10,3'.")
    return int(most), int(fewest or 0)


@click.command(cls=Command)
@global_options
@process_options
@idle_options
@click.option(
    "-l",
    "--loglevel",
    default="warning",
    type=level,
    metavar="LEVEL",
    help="debug, info, warning (the default), error or critical.",
)
@click.option("-Q", "--queues", metavar="A,B", help="Listen to these queues, the first first. Default: the app's.")
@click.option("-X", "--exclude-queues", metavar="A,B", help="Don't listen to these queues.")
@click.option("--all-queues", is_flag=True, help="Listen to every queue that anything was sent to.")
@click.option("-c", "--concurrency", type=cores, metavar="N", help="How many children, or auto. Default: one a core.")
@click.option("-P", "--pool", type=kind, metavar="POOL", help="prefork (the default), threads or solo.")
@click.option("--autoscale", type=bounds, metavar="MAX[,MIN]", help="As many children as there is work for.")
@click.option("-n", "--hostname", "name", metavar="NAME", help="Its name, as w1@%h; @host is added if it has none.")
@click.option("--grace", type=seconds, metavar="S", help="How long a warm stop waits for running tasks.")
@click.option(
    "--time-limit", type=seconds_above_0, metavar="S", help="End a task that runs longer, if it has no own limit."
)
@click.option(
    "--soft-time-limit", type=seconds_above_0, metavar="S", help="Raise SoftTimeLimitExceeded in one that does."
)
@click.option(
    "--memory-limit", type=size, metavar="SIZE", help='End a task that uses more than, say, "2 GB", likewise.'
)
@click.option("--max-tasks-per-child", type=click.IntRange(min=1), metavar="N", help="Replace a child after N tasks.")
@click.option(
    "--max-memory-per-child", type=click.IntRange(min=1), metavar="KIB", help="Replace one that uses more after a task."
)
@click.option("-E", "--task-events", "--events", is_flag=True, help="Send Celery's events, for monitors.")
@click.option("--serve-celery", is_flag=True, help="Follow Celery's commands too, which nobody signs.")
@click.option("-B", "--beat", is_flag=True, help="Send what is due too, as nbqueue beat does.")
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
    pool: str | None,
    autoscale: tuple[int, int] | None,
    name: str | None,
    grace: float | None,
    time_limit: float | None,
    soft_time_limit: float | None,
    memory_limit: int | None,
    max_tasks_per_child: int | None,
    max_memory_per_child: int | None,
    beat: bool,
    keeper: bool,
    **options: Any,
) -> None:
    """Start a worker. TERM or Ctrl-C stops it once its tasks have ended; QUIT or a second Ctrl-C at once.

    HUP has it end its tasks and begin anew with new code; USR1 logs where it and its children are at.

    \b
    Examples:
      nbqueue worker                        the embedded server's tasks
      nbqueue worker -A proj -l info        those of an app in a module
      nbqueue worker -A proj -Q hi,lo -c 4  from two queues, the first first
      nbqueue worker -A proj -D --pidfile /run/nbq/%n.pid -f /var/log/nbq/%n.log -n w1

    In names of files %n is the worker's name, %h its host.
    """  # noqa: D301 - click's sign for lines to leave as they are
    directory = Path.cwd()
    options = prepare(ctx, options)
    name = daemon.expanded(name or "")
    log, numbered = (_path(options[option], name) for option in ("logfile", "pidfile"))
    if options["detach"]:
        _detach(ctx, options, name, log)
        return
    daemon.refuse_without_detach(options)
    with contextlib.ExitStack() as stack:
        if numbered is not None:
            stack.enter_context(daemon.pid_file(numbered))
        opened("--logfile", log)
        if (ctx.obj or {}).get("app") is not None:
            options["app_name"] = importable(ctx.obj["app"])
        # Its interpreter starts while this one loads what a supervisor needs.
        environment = child_environment(
            Environment.read().variables,
            processes(pool or PREFORK, autoscale[0] if autoscale else concurrency or os.cpu_count() or 1),
        )
        started = start_fork_server(environment)
        try:
            gc.disable()  # as in the fork server
            setup(loglevel, file=log)
            app = chosen_app(ctx, options)
            if app.conf.worker_log_format or app.conf.worker_log_datefmt:
                setup(loglevel, file=log, line=app.conf.worker_log_format, date=app.conf.worker_log_datefmt)
            _set(app, options)
            modules = _import(app, options)
            preload = ([options["app_name"]] if options["app_name"] else []) + modules
            tell_receivers(loglevel, log, app.conf.worker_log_format)
            client = told(app.link, app.conf)
            own = (preload, max_tasks_per_child, max_memory_per_child)
            threads = (pool or app.conf.worker_pool) == THREADS
            started.tell(ChildSettings.of(app.conf, app.link.blobs, *own, client, threads=threads))
            from nbqueue.stopping import begin_anew
            from nbqueue.worker import Worker  # redis costs 0.1 s, in which the fork server gets ready

            made = Worker(
                app,
                queues=names(queues),
                all_queues=all_queues,
                exclude=names(exclude_queues),
                concurrency=concurrency or 0,
                pool=pool,
                autoscale=autoscale,
                name=name,
                preload=preload,
                grace_s=grace,
                time_limit=time_limit,
                soft_time_limit=soft_time_limit,
                memory_limit=memory_limit,
                max_tasks_per_child=max_tasks_per_child,
                max_memory_per_child=max_memory_per_child,
                started=started,
            )
            if options["purge"]:
                dropped = sum(made.broker.purge(queue) for queue in made.queues)
                logger.warning("%d messages were dropped from %s", dropped, ", ".join(made.queues))
            gc.freeze()  # nor is it looked at ever after
        except BaseException:
            started.close()
            raise
        finally:
            gc.enable()
        daemon.tell_ready(options["ready_fd"])
        stack.enter_context(_beside(app, made.name, wanted=beat, keeper=keeper))
        code = made.run()
    if made.new_code.due:
        begin_anew(str(directory))
    ctx.exit(code)


def _beside(app: App, name: str, *, wanted: bool, keeper: bool) -> contextlib.AbstractContextManager[object]:
    """Return the beat of a worker, to be entered."""
    if not wanted:
        return contextlib.nullcontext()
    from nbqueue.beside import BeatThread  # most workers have none

    # The keeper's worker has one for whatever is scheduled later, and most of them never need it.
    return BeatThread(app, name=name, sync=not keeper, lazy=keeper)


def _import(app: App, options: dict[str, Any]) -> list[str]:
    """Import the modules with tasks that settings and options name; return their names."""
    for _, answer in signals.import_modules.send(app):
        if isinstance(answer, Exception):
            raise answer
    modules = list(dict.fromkeys((*app.conf.imports, *app.conf.include, *names(options["include"]))))
    for module in modules:
        with importing(f"tasks of {module}"):
            importlib.import_module(module)
    app.import_modules()
    app.finalize()
    return modules


def _set(app: App, options: dict[str, Any]) -> None:
    """Set what options say that there are settings for."""
    for option, setting in (("task_events", "worker_send_task_events"), ("serve_celery", "worker_serve_celery")):
        if options[option]:
            setattr(app.conf, setting, True)


def _path(given: str | None, name: str) -> Path | None:
    return Path(daemon.expanded(given, name or "worker")).absolute() if given else None


def _detach(ctx: click.Context, options: dict[str, Any], name: str, log: Path | None) -> None:
    """Start the same worker in the background."""
    from nbqueue import embedded  # a worker in the foreground may need none

    words = words_again(ctx)
    variables = Environment.read().variables
    if log is None:
        short = name.partition("@")[0] or "worker"
        log = embedded.Places.find(variables).logs / f"{short}.log"
    pid = daemon.Detached.of(log, options).start(daemon.without_detach(words), variables)
    if not options["quiet"]:
        click.echo(f"worker started, process {pid}; its log is {log}")
