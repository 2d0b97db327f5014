"""Apps for tests: one that needs no server, and one on a server of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

from nbqueue.app import App
from nbqueue.current import replace_current_app, set_current_app
from nbqueue.testing.servers import PrivateServer

# Settings that say where a server is, in both generations.
_PLACES: Final = frozenset({"broker_url", "result_backend", "celery_result_backend"})


def memory_app(main: str = "tests", **settings: Any) -> App:
    """Return an app whose calls run at once where they are made; it needs neither server nor worker.

    Args:
        main: the name that stands for `__main__` in task names.
        settings: arguments of `App`, which win.

    >>> app = memory_app()
    >>> @app.task
    ... def add(x, y):
    ...     return x + y
    >>> add.delay(2, 2).get()
    4
    """
    given = {"task_always_eager": True, "set_as_current": False, **settings}
    return App(main, "memory://", "memory://", **given)


@contextmanager
def connected_app(
    server: PrivateServer,
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    trap: bool = False,
) -> Iterator[App]:
    """Yield an app on a database of its own of a server; it is the current one while the block runs.

    Args:
        server: that is used unless the settings name a broker that others can reach.
        settings: of the app.
        arguments: of `App`.
        trap: let every use of the current app be an error.
    """
    given = dict(settings)
    private = _is_private(given.get("broker_url") or given.get("BROKER_URL"))
    if private:
        given = {name: value for name, value in given.items() if name.lower() not in _PLACES}
    app = App(**{"main": "tests", **arguments, "set_as_current": False})
    app.conf.update(given)
    before = replace_current_app(None)
    try:
        if private:
            app.adopt(server.new_link())
        set_current_app(cast("App", _Trap()) if trap else app)
        yield app
    finally:
        app.close()
        replace_current_app(before)


class _Trap:
    """Stands for the current app where none is to be used."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"the current app was asked for {name}, and this test is to use none (use_celery_app_trap)")


def _is_private(url: object) -> bool:
    """Tell whether a URL names nothing that a worker in another process could reach."""
    return not url or str(url).startswith("memory")
