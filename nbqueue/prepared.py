"""What an executor sends around a user's function: here it runs in a worker's child, which loads no more than this."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from typing import Any


class InitializerFailed(BrokenExecutor):
    """Says how the initializer of an executor failed. The executor can't be used any more."""


def call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call what is no plain function: a method, a class, an object. It travels as an argument."""
    return fn(*args, **kwargs)


def in_rows(fn: Callable[..., Any]) -> Callable[[Iterable[Any]], list[Any]]:
    """Return what calls a function for each tuple of arguments of several; one message carries them."""

    def run_rows(rows: Iterable[Any]) -> list[Any]:
        return [fn(*row) for row in rows]

    return run_rows


def prepared(
    fn: Callable[..., Any], initializer: Callable[..., Any], initargs: tuple[Any, ...], key: str
) -> Callable[..., Any]:
    """Return a function that has its process prepared before its first call there.

    Args:
        fn: the function.
        initializer: run once in each process.
        initargs: its arguments.
        key: of the executor.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        if key not in _keys():
            prepare(key, initializer, initargs)
        return fn(*args, **kwargs)

    return run


def prepare(key: str, initializer: Callable[..., Any], initargs: tuple[Any, ...]) -> None:
    """Run an initializer in this process.

    Raises:
        InitializerFailed: it raised.
    """
    try:
        initializer(*initargs)
    except BaseException as exc:
        raise InitializerFailed(f"the initializer failed: {type(exc).__name__}: {exc}") from exc
    _keys().add(key)


@functools.cache
def _keys() -> set[str]:
    """Return what this process has been prepared for."""
    return set()


def pong() -> str:
    """Answer, to show that calls are run."""
    return "pong"
