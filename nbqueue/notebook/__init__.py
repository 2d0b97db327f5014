"""nbqueue in IPython and Jupyter: magics and views. Loaded by `%load_ext nbqueue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbqueue.current import current_app
from nbqueue.exceptions import NBQueueError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register the magics and join the embedded server, or whatever is configured."""
    try:
        _ = current_app().link  # first: a server and a worker that have to be started do so while the rest is loaded
    except NBQueueError as exc:
        # Said now, in one line; and again when something is sent.
        print(f"nbqueue: {exc}")  # noqa: T201 - a cell's output
    from nbqueue.notebook import beat, workers  # noqa: PLC0415 - only where IPython is
    from nbqueue.notebook.magics import TaskMagics  # noqa: PLC0415

    TaskMagics.register(ipython)
    workers.register(ipython)
    beat.register(ipython)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Remove the magics."""
    from nbqueue.notebook import beat, workers  # noqa: PLC0415 - only where IPython is
    from nbqueue.notebook.magics import TaskMagics  # noqa: PLC0415

    TaskMagics.unregister(ipython)
    workers.unregister(ipython)
    beat.unregister(ipython)
