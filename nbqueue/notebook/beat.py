"""`%beat`, for a shell. What it does is in `beatline.py`, which is loaded when it is first used."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell

from nbqueue.current import current_app


def register(shell: InteractiveShell) -> None:
    """Make `%beat` known to a shell."""
    shell.magics_manager.register_function(beat, "line", "beat")


def unregister(shell: InteractiveShell) -> None:
    """Remove `%beat`."""
    shell.magics_manager.magics["line"].pop("beat", None)


def beat(line: str) -> None:
    """%beat [list | start | pause NAME | resume NAME | run NAME | delete NAME | undelete NAME].

    Without a word, a panel of all that runs by the clock. `start` starts a beat on this machine, where the server has
    none by itself. `run` runs one now, beside its times. What was deleted within the last hour can be undeleted.
    """
    from nbqueue.notebook.beatline import obey  # noqa: PLC0415 - spares who schedules nothing its loading

    obey(current_app(), line)
