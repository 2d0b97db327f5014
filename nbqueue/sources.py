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
    values = dict(source) if is_dict else _attributes(source)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if namespace and not name.startswith(f"{namespace}_"):
            continue
        if (setting := new_name(name, fields, namespace)) is not None:
            found[setting] = value
        elif (is_dict and not namespace) or is_meant(name, namespace) or nearest(name, fields, namespace, cutoff=0.85):
            near = nearest(name, fields, namespace)
            where = "" if is_dict else f"{_name_of(source)}: "
            raise ImproperlyConfigured(
                f"{where}there is no setting {name!r}" + (f"; did you mean {near!r}?" if near else "")
            )
    return found


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


def _attributes(source: Any) -> dict[str, Any]:
    """Return what may be settings among an object's attributes: not what it imports or defines to make them."""
    values = {}
    for name in dir(source):
        if name.startswith("_"):
            continue
        value = getattr(source, name, None)
        if not isinstance(value, ModuleType | type) and (not isinstance(value, FunctionType) or _is_known(name)):
            values[name] = value
    return values


def _is_known(name: str) -> bool:
    return new_name(name, ()) is not None


def _name_of(source: Any) -> str:
    return str(getattr(source, "__name__", None) or type(source).__name__)
