"""JupyterLab with one notebook open in Chromium, and what a person does with it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import nbformat
from playwright.sync_api import Browser, Dialog, Locator, Page, sync_playwright

from tests.helpers import wait_until

ROOT: Final = Path(__file__).parent.parent.parent
START_S: Final = 60.0
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
# The notebook of the page, as JupyterLab's own objects.
_PANEL: Final = """(() => { for (const w of window.jupyterapp.shell.widgets('main'))
  if (w.content && w.content.widgets && w.sessionContext) return w; return null })()"""


class Lab:
    """A JupyterLab server with an embedded nbqueue of its own, and a browser. Used as a context manager.

    Args:
        chromium: the browser's path.
    """

    def __init__(self, chromium: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nbq-"))
        self.token = secrets.token_hex(16)
        self._chromium = chromium
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NBQUEUE_HOME": str(self.folder / "home"),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "IPYTHONDIR": str(self.folder / "ipython"),
        }
        self._server: subprocess.Popen[bytes] | None = None
        self._playwright: Any = None
        self._browser: Browser | None = None

    def __enter__(self) -> Self:
        (self.folder / "work").mkdir()
        with (self.folder / "server.log").open("w") as log:
            self._server = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
                    *(f"--port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}"),
                    *(f"--ServerApp.root_dir={self.folder / 'work'}", "--LabApp.news_url="),
                    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                    "--LabApp.expose_app_in_browser=True",
                ],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, START_S, "JupyterLab to answer", interval_s=0.1)
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=self._chromium, args=list(FLAGS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._browser is not None:
            self._browser.close()
        if self._playwright is not None:
            self._playwright.stop()
        if self._server is not None:
            self._server.terminate()
            self._server.wait(20)
        down = [sys.executable, "-m", "nbqueue", "down", "--grace", "1"]
        subprocess.run(down, env=self.environment, cwd=ROOT, check=True, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(self, name: str, *cells: str, width: int = 1200) -> Notebook:
        """Write a notebook of these cells and open it."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = self.folder / "work" / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return self.open_file(path, width=width)

    def open_file(self, path: Path, *, width: int = 1200) -> Notebook:
        """Open a notebook; one from elsewhere is copied first."""
        target = self.folder / "work" / path.name
        if path != target:
            shutil.copy(path, target)
        assert self._browser is not None
        page = self._browser.new_page(viewport={"width": width, "height": 1400})
        page.goto(
            f"http://127.0.0.1:{self.port}/lab/workspaces/{secrets.token_hex(4)}/tree/{path.name}?token={self.token}"
        )
        return Notebook(page)

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, (self.folder / "server.log").read_text()
        with suppress(OSError):
            url = f"http://127.0.0.1:{self.port}/api/status?token={self.token}"
            return bool(urllib.request.urlopen(url, timeout=2).status == 200)
        return False


class Notebook:
    """An open notebook. Cells count from 0; waits are in seconds."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._dialog)
        self.wait_for_kernel()
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")  # the list of files takes half a narrow page

    def _dialog(self, dialog: Dialog) -> None:
        self.errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def wait_for_kernel(self) -> None:
        """Wait until the kernel is there and idle."""
        self.page.wait_for_function(f"window.jupyterapp && {_PANEL}", timeout=START_S * 1000)
        idle = f"(() => {{ const k = {_PANEL}.sessionContext.session?.kernel; return k && k.status === 'idle' }})()"
        self.page.wait_for_function(idle, timeout=START_S * 1000)

    def start(self, cell: int) -> None:
        """Run a cell, without waiting for it."""
        self.page.evaluate(
            f"""n => {{ const panel = {_PANEL}; panel.content.activeCellIndex = n; panel.content.deselectAll();
                const runs = (window.nbqRuns ??= {{}}); runs[n] = 'runs';
                window.jupyterapp.commands.execute('notebook:run-cell').then(() => {{ runs[n] = 'done' }}) }}""",
            cell,
        )

    def run(self, *cells: int, timeout_s: float = 60.0) -> None:
        """Run cells one after another, each to its end."""
        for cell in cells:
            self.start(cell)
            self.page.wait_for_function("n => window.nbqRuns[n] === 'done'", arg=cell, timeout=timeout_s * 1000)

    def output(self, cell: int) -> Locator:
        """Return where a cell's outputs are."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputArea")

    def view(self, cell: int) -> Locator:
        """Return the live view under a cell."""
        return self.output(cell).locator(".nbq")

    def see(self, cell: int, text: str, timeout_s: float = 20.0) -> None:
        """Wait until a cell's outputs show a text."""
        self.output(cell).get_by_text(text).first.wait_for(timeout=timeout_s * 1000)

    def restart(self) -> None:
        """Restart the kernel, as the menu does once it has asked."""
        self.page.evaluate(f"async () => {{ await {_PANEL}.sessionContext.restartKernel() }}")
        self.wait_for_kernel()

    def interrupt(self) -> None:
        """Interrupt the kernel."""
        self.page.evaluate(f"async () => {{ await {_PANEL}.sessionContext.session.kernel.interrupt() }}")

    def save(self) -> None:
        """Save the notebook."""
        self.page.evaluate(f"async () => {{ await {_PANEL}.context.save() }}")

    def close(self) -> None:
        """Close the page."""
        self.page.close()
