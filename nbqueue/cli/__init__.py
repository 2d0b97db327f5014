"""The command line: `nbqueue worker`, `status`, `result` and so on, each in the module that `group.SECTIONS` names."""

from nbqueue.cli.group import cli, main

__all__ = ["cli", "main"]
