"""Where settings may come from besides code: modules, objects and dicts, named or given."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

from nbqueue.celery_settings import is_meant, nearest, new_name
from nbqueue.exceptions import ImproperlyConfigured


def read(source: Any, fields: Mapping[str, Any], *, namespace: str = "", silent: bool = False) -> dict[str, Any]:
    """Return the settings of a source, by their lower-case names.

    Args:
        source: a module, an object or class with attributes, a dict, or the name of one: `module`, `module:attribute`.
        fields: settings that Celery doesn't have.
        namespace: names count that begin with it and an underscore, as `CELERY_TASK_SERIALIZER`; all if empty.
        silent: a module that can't be found has no settings.

    Raises:
        ImproperlyConfigured: it can't be imported; or a name in it is to be a setting, and there is none of that name.
    """
    if isinstance(source, str):
        try:
            source = imported(source)
        except ImproperlyConfigured as exc:
            if silent and isinstance(exc.__cause__, ModuleNotFoundError):
                return {}
            raise
    is_dict = isinstance(source, Mapping)
    found: dict[str, Any] = {}
    for name in source if is_dict else dir(source):
        if not isinstance(name, str) or (namespace and not name.startswith(f"{namespace}_")):
            continue
        setting = new_name(name, fields, namespace)
        if setting is None and not _is_wrong(name, fields, namespace, is_dict=is_dict):
            continue
        # Only now: settings such as Django's may warn when they are looked at.
        value = source[name] if is_dict else getattr(source, name, None)
        if setting is not None:
            if is_dict or not isinstance(value, ModuleType | type):
                found[setting] = value
        elif not isinstance(value, ModuleType | type | FunctionType):
            near = nearest(name, fields, namespace)
            where = "" if is_dict else f"{_name_of(source)}: "
            raise ImproperlyConfigured(
                f"{where}there is no setting {name!r}" + (f"; did you mean {near!r}?" if near else "")
            )
    return found


def _is_wrong(name: str, fields: Mapping[str, Any], namespace: str, *, is_dict: bool) -> bool:
    """Tell whether a name that is no setting was to be one: a module or object may have names of its own."""
    if is_dict:
        return True
    return not name.startswith("_") and (
        is_meant(name, namespace) or nearest(name, fields, namespace, cutoff=0.85) is not None
    )


def imported(name: str) -> Any:
    """Return what `module`, `module:attribute` or `module.attribute` names.

    Raises:
        ImproperlyConfigured: there is no such thing.
    """
    path, _, attribute = name.partition(":")
    try:
        try:
            found: Any = importlib.import_module(path)
        except ModuleNotFoundError as exc:
            parent, _, last = path.rpartition(".")
            if exc.name != path or not parent or attribute:
                raise
            found, attribute = importlib.import_module(parent), last
    except ImportError as exc:
        raise ImproperlyConfigured(f"settings are to come from {name!r}: {exc}") from exc
    for part in attribute.split(".") if attribute else ():
        if not hasattr(found, part):
            raise ImproperlyConfigured(f"settings are to come from {name!r}, and {_name_of(found)} has no {part!r}")
        found = getattr(found, part)
    return found


def _name_of(source: Any) -> str:
    return str(getattr(source, "__name__", None) or type(source).__name__)
