"""`nbqueue shell`: a Python prompt with the app and its tasks at hand."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import click

from nbqueue._version import __version__
from nbqueue.cli.options import Command, app_of, global_options, idle_option

if TYPE_CHECKING:
    from nbqueue.app import App

_WORDS = ("chain", "chord", "chunks", "group", "signature", "xmap", "xstarmap", "Task", "AsyncResult", "GroupResult")


@click.command(cls=Command)
@global_options
@click.option("-I", "--ipython", "kind", flag_value="ipython", help="IPython; the default where it is installed.")
@click.option("-B", "--bpython", "kind", flag_value="bpython", help="bpython.")
@click.option("--python", "kind", flag_value="python", help="Python's own.")
@click.option("-T", "--without-tasks", is_flag=True, help="Without the tasks' names.")
@idle_option("--eventlet", is_flag=True)
@idle_option("--gevent", is_flag=True)
@click.pass_context
def shell(ctx: click.Context, /, kind: str | None, without_tasks: bool, **options: Any) -> None:
    """Start a Python prompt with `app` (also `celery`), its tasks, and the words of a canvas."""
    app = app_of(ctx, **options)
    app.work_follows = True
    kind = kind or next(name for name in ("ipython", "bpython", "python") if _is_there(name))
    if not _is_there(kind):
        raise click.ClickException(f"{kind} is not installed here; run: pip install {kind}")
    scope = names_in(app, tasks=not without_tasks)
    banner = (
        f"nbqueue {__version__}, {app!r}: app, {', '.join(name for name in scope if name not in ('app', 'celery'))}"
    )
    if kind == "ipython":
        importlib.import_module("IPython").start_ipython(argv=["--no-banner", "--no-confirm-exit"], user_ns=scope)
    elif kind == "bpython":
        importlib.import_module("bpython").embed(scope, args=[], banner=banner)
    else:
        importlib.import_module("code").interact(banner=banner, local=scope, exitmsg="")


def names_in(app: App, *, tasks: bool) -> dict[str, Any]:
    """Return what the prompt knows by name; of two tasks with one name the last."""
    import nbqueue

    for module in (*app.conf.imports, *app.conf.include):
        importlib.import_module(module)
    scope: dict[str, Any] = {name: getattr(nbqueue, name) for name in _WORDS}
    if tasks:
        scope |= {name.rpartition(".")[2]: task for name, task in app.tasks.items() if _is_name(name)}
    return {**scope, "app": app, "celery": app}


def _is_name(name: str) -> bool:
    return name.rpartition(".")[2].isidentifier() and not name.startswith(("celery.", "nbqueue."))


def _is_there(kind: str) -> bool:
    module = {"ipython": "IPython"}.get(kind, kind)
    return kind == "python" or importlib.util.find_spec(module) is not None
