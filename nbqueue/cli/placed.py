"""Where an app that is at hand can be imported from, for the children of its worker: what `-A` would say."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nbqueue.config import Environment
from nbqueue.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from nbqueue.app import App


def words_again(ctx: click.Context) -> list[str]:
    """Return the words of a command line, for another process: with `-A` where a program runs it for its own app."""
    words = list(ctx.obj["words"])
    return words if ctx.obj["app"] is None else ["-A", importable(ctx.obj["app"]), *words]


def importable(app: App) -> str:
    """Return what `-A` would say of an app; processes started from now on find its script by their path."""
    named, directory = place_of(app)
    if directory is not None:
        before = Environment.read().variables.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{directory}{os.pathsep}{before}" if before else str(directory)
    return named


def place_of(app: App) -> tuple[str, Path | None]:
    """Return the `module:name` of an app, and the directory from which that is imported if it is a script's.

    Raises:
        ImproperlyConfigured: no module holds it by a name, so that nobody else can import it.
    """
    in_script = None
    for name, module in list(sys.modules.items()):
        attributes = vars(module) if hasattr(module, "__dict__") else {}
        held = next((attribute for attribute, value in list(attributes.items()) if value is app), None)
        if held is None or attributes.get("__name__") != name or name.startswith("nbqueue."):
            continue
        if name != "__main__":
            return f"{name}:{held}", None
        in_script = held
    main = sys.modules["__main__"]
    if in_script is not None:
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        if spec is not None:
            return f"{spec.name.removesuffix('.__main__')}:{in_script}", None
        if file is not None:
            return f"{Path(file).stem}:{in_script}", Path(file).resolve().parent
    raise ImproperlyConfigured(
        "the children of a worker import its app, and no module holds this one by a name; write it to a module"
    )
