"""nbqueue in IPython and Jupyter: magics and views. Loaded by `%load_ext nbqueue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register the magics and join the embedded server, or whatever is configured."""
    from nbqueue.notebook import workers  # noqa: PLC0415 - only where IPython is
    from nbqueue.notebook.magics import TaskMagics  # noqa: PLC0415

    TaskMagics.register(ipython)
    workers.register(ipython)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Remove the magics."""
    from nbqueue.notebook import workers  # noqa: PLC0415 - only where IPython is
    from nbqueue.notebook.magics import TaskMagics  # noqa: PLC0415

    TaskMagics.unregister(ipython)
    workers.unregister(ipython)
