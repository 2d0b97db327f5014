"""What a person writes in the panel of the schedule: a call, and when it runs; and what is said while it is written."""

from __future__ import annotations

import ast
import contextlib
import difflib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nbqueue.app import App
from nbqueue.canvas import Signature
from nbqueue.entries import POLICIES
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.notebook.rules import preview
from nbqueue.notebook.shown import visible
from nbqueue.notebook.text import short_name
from nbqueue.schedules import zone_of


def call_of(text: str, app: App, variables: Mapping[str, Any]) -> Signature:
    """Return the call that a person has written: a task's name, or a call of it with plain values.

    Args:
        text: `report`, `proj.tasks.report`, or `report(3, region="north")`.
        app: whose task it is.
        variables: of the notebook; one of them may be the task.

    Raises:
        ImproperlyConfigured: it is neither, or names no task.
    """
    name, args, kwargs = _parsed(text)
    found = variables.get(name)
    if found is not None and hasattr(found, "apply_async") and hasattr(found, "run"):
        task = found
    elif name in app.tasks or "." in name:
        task = app.task_for(name)
    else:
        short = [one for one in app.tasks if short_name(one) == name]
        if len(short) != 1:
            near = difflib.get_close_matches(name, [short_name(one) for one in app.tasks], n=1)
            hint = (
                f"did you mean {near[0]}?" if near else "one that workers have needs its whole name, as proj.tasks.add"
            )
            raise ImproperlyConfigured(f"{visible(name, 60)} is no task of this notebook; {hint}")
        task = app.tasks[short[0]]
    return app.signature(task, args=tuple(args), kwargs=kwargs)


def _parsed(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    if not text.strip():
        raise ImproperlyConfigured("say what is to run: a task's name")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.Call):
            return _name(tree), [], {}
        kwargs = {word.arg: ast.literal_eval(word.value) for word in tree.keywords if word.arg}
        if len(kwargs) != len(tree.keywords):
            raise ValueError("**")
        return _name(tree.func), [ast.literal_eval(arg) for arg in tree.args], kwargs
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as exc:
        raise ImproperlyConfigured(
            f"{visible(text, 60)!r} is no call of a task with plain values; write report, or report(3, region='north')"
        ) from exc


def _name(tree: ast.expr) -> str:
    if isinstance(tree, ast.Attribute):
        return f"{_name(tree.value)}.{tree.attr}"
    if not isinstance(tree, ast.Name):
        raise ValueError("no name")  # noqa: TRY004 - caught above
    return tree.id


def written(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return rule and zone of what the form says; of an interval there is no zone to say."""
    text = str(content.get("text", "")).strip()
    if content.get("kind") == "cron":
        return f"cron {text}", str(content.get("zone", "")).strip() or "UTC"
    return f"every {text.removeprefix('every ')}", "UTC"


def policy_of(content: Mapping[str, Any]) -> str:
    """Return what the form says of missed firings."""
    policy = str(content.get("policy", "coalesce"))
    if policy not in POLICIES:
        raise ImproperlyConfigured(f"{visible(policy, 20)} is none of {', '.join(POLICIES)}")
    return policy


def shown_preview(content: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return what the form shows beside a rule: its meaning, and the next five firings in its zone."""
    rule, zone = written(content)
    found = preview(rule, zone, now)
    if found.mistake:
        return {"mistake": visible(found.mistake, 300)}
    tz = zone_of(zone)
    if content.get("kind") != "cron":
        with contextlib.suppress(ImproperlyConfigured):
            tz = zone_of(str(content.get("zone", "")))
    today = now.astimezone(tz)
    seconds = any(one.at.second or one.at.microsecond for one in found.firings)
    rows = []
    for one in found.firings:
        local = one.at.astimezone(tz)
        rows.append(
            {
                "day": f"{local:%a} {local.day} {local:%b}{f' {local.year}' if local.year != today.year else ''}",
                "time": f"{local:%H:%M:%S}" if seconds else f"{local:%H:%M}",
                "at": one.at.timestamp(),
                "note": one.note,
            }
        )
    return {"words": found.words[:1].upper() + found.words[1:], "zone": str(tz), "firings": rows}
