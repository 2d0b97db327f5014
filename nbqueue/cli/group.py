"""The group of all commands. A command's module is loaded when it is run, or when help lists it."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from nbqueue._version import __version__
from nbqueue.cli.options import Group, global_options

if TYPE_CHECKING:
    from nbqueue.app import App

# Where help lists each command, and the module of nbqueue/cli that has a function of its name.
SECTIONS: Final[dict[str, dict[str, str]]] = {
    "Workers": {
        "worker": "worker",
        "beat": "beat",
        "status": "queues",
        "inspect": "remote",
        "control": "remote",
        "events": "watching",
    },
    "Tasks and queues": {
        "call": "tasks",
        "result": "tasks",
        "revoke": "tasks",
        "list": "remote",
        "purge": "queues",
        "dead": "dead",
    },
    "Set-up": {
        "connect": "machine",
        "report": "doctor",
        "doctor": "doctor",
        "shell": "shell",
        "service": "service",
        "clean": "machine",
        "down": "machine",
    },
}
# Commands of Celery's that aren't here, and what is to be done instead.
ELSEWHERE: Final = {
    "amqp": "use RabbitMQ's own tools, such as rabbitmqadmin; 'nbqueue status' shows queues",
    "flower": "Flower sees workers that run with -E: celery -b URL flower",
    "graph": "'nbqueue status' shows workers and queues",
    "logtool": "worker logs have a line each; see --logfile of 'nbqueue worker'",
    "migrate": "let workers finish what is queued on the old broker before clients use the new one",
    "multi": "start each worker with 'nbqueue worker -n NAME --detach --pidfile FILE'",
    "upgrade": "settings may keep their old names",
}
_PLACES: Final = {name: module for section in SECTIONS.values() for name, module in section.items()}


class Commands(Group):
    """Finds commands by name, and lists them in sections."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order of help."""
        return list(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, loading its module; None if there is none of this name."""
        if cmd_name not in _PLACES:
            return None
        module = importlib.import_module(f"nbqueue.cli.{_PLACES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the words name.

        Raises:
            UsageError: there is none; names the nearest.
        """
        if args and args[0] in ELSEWHERE and args[0] not in _PLACES:
            ctx.fail(f"There is no command {args[0]!r} here: {ELSEWHERE[args[0]]}.")
        if args and args[0] not in _PLACES and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _PLACES, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, section by section."""
        for title, commands in SECTIONS.items():
            found = [(name, self.get_command(ctx, name)) for name in commands]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in found if command])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@global_options
@click.version_option(__version__, "--version", prog_name="nbqueue")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Run tasks of notebooks and programs on pooled workers.

    \b
    Examples:
      nbqueue worker -A proj -l info -Q hipri,lopri
      nbqueue call proj.add -a '[2, 2]'
      nbqueue -b redis://localhost status
      nbqueue COMMAND --help

    Exit codes: 0 it went well, 1 it failed, 2 the command line is wrong, 69 no worker has answered.
    """  # noqa: D301 - click's sign for lines to leave as they are
    ctx.obj = {**(ctx.obj or {}), **options}


def main(arguments: Sequence[str] | None = None, *, app: App | None = None) -> None:
    """Run the command line; it ends with SystemExit.

    Args:
        arguments: without the program; this process's if None.
        app: the one that commands use, in place of what `-A` would name.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    cli.main(words, prog_name="nbqueue", obj={"app": app, "words": tuple(words)})
