"""The module that a worker is given with `-A`: its tasks travel as names."""

from __future__ import annotations

from nbqueue import App
from tests.benchmarks import work

app = App()  # its URL and key come from the environment
tasks = {name: app.task(fn, name=name) for name, fn in work.TASKS.items()}
