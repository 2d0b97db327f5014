"""What a task displays: MIME bundles as a notebook makes them, without loading IPython unless the task does.

Source: IPython's display protocol (`_repr_*_`, `_repr_mimebundle_`, `_ipython_display_`) and Jupyter's messages
display_data, update_display_data and clear_output.
"""

from __future__ import annotations

import base64
import io
import sys
import uuid
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, Final

from nbqueue.capture import Flusher, Recorder

MAX_REPR: Final = 200_000  # characters of an object's text
_METHODS: Final = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
}
# A widget lives in the process that made it, and no page is connected to a worker.
_LEFT_OUT: Final = "application/vnd.jupyter.widget-view+json"

Bundle = tuple[dict[str, Any], dict[str, Any]]


class Displayer:
    """Displays for whatever task runs in this process.

    Args:
        recorder: returns the recorder of the running task, or None between tasks.
        flusher: flushes later; without one what is held is sent when something else is, or at the task's end.
    """

    def __init__(self, recorder: Callable[[], Recorder | None], flusher: Flusher | None = None) -> None:
        self._recorder = recorder
        self._flusher = flusher

    # ---- IPython's functions of the same names

    def display(
        self,
        *objects: Any,
        include: Collection[str] | None = None,
        exclude: Collection[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        transient: Mapping[str, Any] | None = None,
        display_id: str | bool | None = None,
        raw: bool = False,
        clear: bool = False,
        update: bool = False,
        **_: Any,
    ) -> Handle | None:
        """Display objects, as IPython's `display` does; with a `display_id`, return what updates them."""
        name = str((transient or {}).get("display_id") or "")
        if display_id:
            name = uuid.uuid4().hex if display_id is True else str(display_id)
        if clear:
            self.clear_output(wait=True)
        for value in objects:
            if raw:
                self.publish_display_data(value, metadata, transient={"display_id": name}, update=update)
                continue
            if _displays_itself(value):
                continue
            data, more = bundle(value)
            if include:
                data = {mime: part for mime, part in data.items() if mime in include or mime == "text/plain"}
            data = {mime: part for mime, part in data.items() if mime not in (exclude or ())}
            self._send(_kind(update), data, {**more, **(metadata or {})}, name)
        return Handle(self, name) if display_id else None

    def update_display(self, value: Any, *, display_id: str, **options: Any) -> None:
        """Display an object in the place of another."""
        self.display(value, display_id=display_id, update=True, **options)

    def clear_output(self, wait: bool = False) -> None:
        """Take away what was displayed, now or when something new is."""
        recorder = self._recorder()
        if recorder is not None:
            recorder.clear(wait=wait)

    def publish_display_data(
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        *_: Any,
        transient: Mapping[str, Any] | None = None,
        update: bool = False,
        **__: Any,
    ) -> None:
        """Display a finished MIME bundle."""
        name = str((transient or {}).get("display_id") or "")
        clean = {mime: _text(part) for mime, part in data.items()}
        self._send(_kind(update), clean, dict(metadata or {}), name)

    # ---- what a notebook does by itself

    def result(self, value: Any) -> None:
        """Display the value of a cell's last expression."""
        if not _displays_itself(value):
            self._send("execute_result", *bundle(value), "")

    def figures(self, *, shown: Any = None) -> None:
        """Display matplotlib's open figures and close them, as a notebook does at the end of a cell.

        Args:
            shown: one that was displayed already.
        """
        helpers = sys.modules.get("matplotlib._pylab_helpers")
        if helpers is None:
            return
        for manager in helpers.Gcf.get_all_fig_managers():
            figure = manager.canvas.figure
            if figure is not shown and figure.get_axes():
                self.display(figure)
        close_figures()

    def hook_ipython(self, module: ModuleType) -> None:
        """Let IPython's functions display here: there is no kernel behind them."""
        for name in ("display", "update_display", "clear_output", "publish_display_data"):
            setattr(module, name, getattr(self, name))

    def hook_pyplot(self, module: ModuleType) -> None:
        """Let `plt.show()` display here."""
        module.show = lambda *_, **__: self.figures()  # type: ignore[attr-defined]

    def _send(self, kind: str, data: dict[str, Any], metadata: dict[str, Any], name: str) -> None:
        recorder = self._recorder()
        data.pop(_LEFT_OUT, None)
        if recorder is not None and data and recorder.display(kind, data, metadata, name) and self._flusher is not None:
            self._flusher.soon(recorder)


class Handle:
    """What updates something that was displayed."""

    def __init__(self, displayer: Displayer, display_id: str) -> None:
        self._displayer = displayer
        self.display_id = display_id

    def __repr__(self) -> str:
        return f"<Handle display_id={self.display_id}>"

    def __reduce__(self) -> tuple[type[Handle], tuple[Displayer, str]]:
        """Pickle, as the last value of a cell may be one; what it displayed can't be updated from elsewhere."""
        return Handle, (Displayer(_nobody), self.display_id)

    def display(self, value: Any, **options: Any) -> None:
        """Display an object, with the same id."""
        self._displayer.display(value, display_id=self.display_id, **options)

    def update(self, value: Any, **options: Any) -> None:
        """Display an object in the place of what is displayed under this id."""
        self._displayer.update_display(value, display_id=self.display_id, **options)


def _kind(update: bool) -> str:
    return "update_display_data" if update else "display_data"


def _nobody() -> None:
    """Stand for the recorder of a handle that has left its task."""


def close_figures() -> None:
    """Close what a task has left open in matplotlib; the next would find it."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")


def bundle(value: Any) -> Bundle:
    """Return an object as a MIME bundle, and its metadata. Errors of reprs are shown as text."""
    try:
        text = repr(value)
    except Exception as exc:  # noqa: BLE001 - users' reprs may raise anything
        text = f"<{type(value).__name__}; its repr raised {type(exc).__name__}>"
    if len(text) > MAX_REPR:
        text = f"{text[:MAX_REPR]}\n[\u2026 {len(text) - MAX_REPR:,} characters left out \u2026]"
    data: dict[str, Any] = {"text/plain": text}
    metadata: dict[str, Any] = {}
    if isinstance(value, type | ModuleType):
        return data, metadata
    if _is_figure(value):
        try:
            data["image/png"] = _png(value)
        except Exception as exc:  # noqa: BLE001 - matplotlib may raise anything, of a formula for instance
            data["text/plain"] += f"\n[it can't be drawn: {type(exc).__name__}: {exc}]"
        return data, metadata
    for name, mime in _METHODS.items():
        part, more = _called(value, name)
        if part is not None:
            data[mime] = _text(part)
            if more:
                metadata[mime] = more
    found, more = _called(value, "_repr_mimebundle_", include=None, exclude=None)
    if isinstance(found, Mapping):
        data |= {str(mime): _text(part) for mime, part in found.items()}
        metadata |= more if isinstance(more, Mapping) else {}
    return data, metadata


def _called(value: Any, name: str, **options: Any) -> tuple[Any, Any]:
    """Return what a repr method gives, and its metadata; nothing if there is none, or it fails."""
    try:
        method = getattr(value, name, None)
        # An object that has every name, as mocks and proxies do, means none of them.
        if method is None or getattr(value, "_no_such_repr_", None) is not None:
            return None, None
        found = method(**options)
    except Exception:  # noqa: BLE001 - users' reprs may raise anything; the text is there
        return None, None
    return found if isinstance(found, tuple) and len(found) == 2 else (found, None)


def _displays_itself(value: Any) -> bool:
    method = None if isinstance(value, type) else getattr(value, "_ipython_display_", None)
    if not callable(method) or getattr(value, "_no_such_repr_", None) is not None:
        return False
    try:
        method()
    except Exception:  # noqa: BLE001 - then its other reprs are used
        return False
    return True


def _text(part: Any) -> Any:
    return base64.b64encode(part).decode() if isinstance(part, bytes | bytearray) else part


def _is_figure(value: Any) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def _png(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", facecolor=figure.get_facecolor(), dpi=figure.dpi)
    return base64.b64encode(file.getvalue()).decode()
