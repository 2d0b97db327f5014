"""The module that a worker is given with `-A`: its tasks travel as names."""

from __future__ import annotations

from nbqueue import App

app = App()  # its URL and key come from the environment


@app.task
def noop(x: int) -> int:
    return x
