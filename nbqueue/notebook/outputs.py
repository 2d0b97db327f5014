"""What a task displayed, for the cell: one object as it is, several as one piece of HTML in their order.

A cell can only be given what was announced while it ran, so all of it stands in one place, which stays in the saved
notebook.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Final

from nbqueue.messages import Output
from nbqueue.notebook.shown import visible_block

# What can stand in HTML, best first; anything else is shown as its text.
_AS_HTML: Final = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "image/gif", "text/latex", "text/markdown")
MAX_TEXT: Final = 100_000


def combined(outputs: Sequence[Output]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was displayed as one MIME bundle, and its metadata."""
    if not outputs:
        return {"text/html": "", "text/plain": ""}, {}
    if len(outputs) == 1:
        return outputs[0].data, outputs[0].metadata
    parts = "".join(f'<div style="margin:2px 0;overflow-x:auto">{_as_html(output)}</div>' for output in outputs)
    text = "\n".join(str(output.data.get("text/plain", "")) for output in outputs)
    return {"text/html": parts, "text/plain": text[:MAX_TEXT]}, {}


def _as_html(output: Output) -> str:
    data = output.data
    mime = next((mime for mime in _AS_HTML if mime in data), "text/plain")
    part = data.get(mime, "")
    if mime in ("text/html", "image/svg+xml"):
        return str(part)
    if mime.startswith("image/"):
        size = output.metadata.get(mime, output.metadata)
        sides = "".join(f' {side}="{int(size[side])}"' for side in ("width", "height") if _is_number(size, side))
        about = html.escape(str(data.get("text/plain", ""))[:200], quote=True)
        return f'<img src="data:{mime};base64,{html.escape(str(part), quote=True)}" alt="{about}"{sides}>'
    text = html.escape(visible_block(str(part)[:MAX_TEXT]))
    if mime == "text/latex":
        return f"<div>{text}</div>"  # notebooks typeset what stands between dollars in HTML too
    if mime == "text/markdown" and (markdown := _markdown_as_html(visible_block(str(part)[:MAX_TEXT]))):
        return markdown
    return f'<pre style="margin:0;white-space:pre-wrap">{text}</pre>'


def _markdown_as_html(text: str) -> str:
    """Return Markdown as HTML, by what Jupyter brings for that; empty where it isn't there."""
    try:
        import mistune  # noqa: PLC0415 - few tasks display any
    except ImportError:
        return ""
    return str(mistune.create_markdown(escape=True, plugins=["table"])(text))


def _is_number(values: Any, name: str) -> bool:
    return isinstance(values, dict) and isinstance(values.get(name), int | float)
