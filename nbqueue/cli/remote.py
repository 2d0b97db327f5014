"""What workers are asked and told: `nbqueue inspect`, `nbqueue control`, `nbqueue list`."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from nbqueue.cli.options import Command, app_of, global_options, names, printable, seconds_above_0

F = TypeVar("F", bound=Callable[..., Any])


def _remote_options(command: F) -> F:
    for option in (
        click.option("-j", "--json", "as_json", is_flag=True, help="Write JSON."),
        click.option("-d", "--destination", metavar="A@HOST,B@HOST", help="Only these workers."),
        click.option("-t", "--timeout", type=seconds_above_0, metavar="S", help="How long to wait for answers."),
        click.option("-l", "--list", "lists", is_flag=True, help="List the commands."),
    ):
        command = option(command)
    return command


@click.command(cls=Command)
@global_options
@_remote_options
@click.argument("words", nargs=-1, metavar="COMMAND [ARGS]...")
@click.pass_context
def inspect(ctx: click.Context, /, **options: Any) -> None:
    """Ask workers how they are: active, ping, registered, stats and more (--list). Exit code 69 if none answers."""
    _run(ctx, "inspect", **options)


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@global_options
@_remote_options
@click.argument("words", nargs=-1, metavar="COMMAND [ARGS]...")
@click.pass_context
def control(ctx: click.Context, /, **options: Any) -> None:
    """Tell workers what to do: pool_grow, add_consumer, shutdown and more (--list). Exit code 69 if none answers."""
    _run(ctx, "control", **options)


@click.command(cls=Command, name="list")
@global_options
@click.argument("what", type=click.Choice(["bindings", "queues"]))
@click.option("-j", "--json", "as_json", is_flag=True, help="Write JSON.")
@click.pass_context
def list(ctx: click.Context, /, what: str, as_json: bool, **options: Any) -> None:  # noqa: A001 - Celery's name
    """List queues with what waits in them, or bindings: which queue a routing key leads to."""
    from nbqueue.broker import ServerBroker
    from nbqueue.spread import bindings_of

    app = app_of(ctx, **options)
    broker = app.broker
    queues = sorted(broker.queues()) if isinstance(broker, ServerBroker) else []
    if what == "bindings":
        found: Any = [
            {"queue": queue, "exchange": exchange, "type": kind, "routing_key": key}
            for queue in dict.fromkeys([*queues, *map(str, app.conf.task_queues)])
            for exchange, kind, key in bindings_of(app.conf, queue)
        ]
    else:
        sizes = {queue: broker.size(queue) for queue in queues}
        found = [
            {"queue": queue, "queued": size.queued, "claimed": size.claimed, "delayed": size.delayed}
            for queue, size in sizes.items()
        ]
    if as_json:
        click.echo(json.dumps(found))
    else:
        for row in found:
            click.echo("  ".join(f"{name} {printable(str(value)) or '(default)'}" for name, value in row.items()))


def _run(
    ctx: click.Context,
    kind: str,
    *,
    words: tuple[str, ...],
    destination: str | None,
    timeout: float | None,
    as_json: bool,
    lists: bool,
    **options: Any,
) -> None:
    app = app_of(ctx, **options)
    from nbqueue import control as remote

    known = remote.commands(kind)
    if lists or not words:
        formatter = ctx.make_formatter()
        rows = [(f"{name} {command.signature}".strip(), command.help) for name, command in sorted(known.items())]
        formatter.write_dl(rows)
        click.echo(formatter.getvalue(), nl=False)
        if not lists:
            raise click.UsageError(f"name one of these commands: nbqueue {kind} COMMAND")
        return
    name = remote.ALIASES.get(words[0], words[0])
    if name not in known:
        other = "control" if kind == "inspect" else "inspect"
        hint = f"; it is one of `nbqueue {other}`" if name in remote.commands() else f"; see nbqueue {kind} --list"
        raise click.UsageError(f"there is no command {name!r}{hint}")
    command = known[name]
    try:
        arguments = command.arguments(words[1:])
    except ValueError as exc:
        raise click.UsageError(f"{' '.join(filter(None, (name, command.signature)))}: {exc}") from None
    asked: dict[str, Any] = {
        "destination": names(destination) or None,
        "timeout": timeout or max(1.0, command.default_timeout),
    }
    if name in ("revoke", "terminate"):
        # The mark that outlives this moment, not only the word to those who listen now.
        method = getattr(app.control, name)
        try:
            answers = method(arguments.pop("task_id"), reply=True, **arguments, **asked)
        except ValueError as exc:
            raise click.UsageError(f"{name}: {exc}") from None
    else:
        answers = app.control.broadcast(name, arguments, reply=True, **asked)
    _print(ctx, answers or [], as_json=as_json)


def _print(ctx: click.Context, answers: builtins.list[dict[str, Any]], *, as_json: bool) -> None:
    from nbqueue.control import flatten_reply

    found = flatten_reply(answers)
    if as_json:
        click.echo(json.dumps(found))
    for name, answer in sorted(found.items()):
        if not as_json:
            click.echo(f"-> {printable(name)}: {_shown(answer)}")
    if not found:
        click.echo("Error: No nodes replied within time constraint", err=True)
        ctx.exit(69)
    if not as_json:
        click.echo(f"\n{len(found)} node{'s' if len(found) != 1 else ''} online.")
    if any(isinstance(answer, dict) and set(answer) == {"error"} for answer in found.values()):
        ctx.exit(1)


def _shown(answer: Any) -> str:
    """Return an answer as people read it, without what would steer a terminal."""
    if isinstance(answer, dict) and set(answer) in ({"ok"}, {"error"}):
        ((word, said),) = answer.items()
        lines = [printable(line) for line in str(said).splitlines()] or [""]
        return "\n        ".join([f"{word.upper()} {lines[0]}".strip(), *lines[1:]])
    if not answer:
        return "- empty -"
    if isinstance(answer, builtins.list):
        return "".join(f"\n    * {_line(one)}" for one in answer)
    if isinstance(answer, dict):
        return "".join(f"\n    {printable(str(name))}: {_line(one)}" for name, one in answer.items())
    return "\n        ".join(printable(line) for line in str(answer).splitlines())


def _line(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value))
