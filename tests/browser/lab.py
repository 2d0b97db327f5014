"""JupyterLab in Chromium, and what a person does with a notebook in it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import nbformat
from playwright.sync_api import ConsoleMessage, Dialog, Error, Locator, Page, sync_playwright

from tests.helpers import wait_until

ROOT: Final = Path(__file__).parent.parent.parent
START_S: Final = 60.0
STOP_S: Final = 20.0
WIDE: Final = (1200, 1400)
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
# What every notebook starts with. A task held at a gate goes on when the test opens it, so no test waits for a clock.
PRELUDE: Final = """%load_ext nbqueue
import time
from pathlib import Path

GATES = Path({gates!r})

def hold(gate):
    while not ((GATES / gate).exists() or (GATES / "all").exists()):
        time.sleep(0.02)"""
# What failed stays live for a while; a cell with this makes it what a kernel leaves that ends.
SETTLE: Final = "from nbqueue.notebook.views import settle_all; settle_all()"
# The open notebook, as JupyterLab's own object.
_PANELS: Final = "[...window.jupyterapp.shell.widgets('main')].filter(w => w.content?.widgets && w.sessionContext)"
_PANEL: Final = f"{_PANELS}[0]"


class Lab:
    """A JupyterLab server with an embedded nbqueue of its own, and one page. Used as a context manager.

    Args:
        chromium: the browser's path.
    """

    def __init__(self, chromium: str) -> None:
        # short: the embedded server's socket lies below it
        self.folder = Path(tempfile.mkdtemp(prefix="nbq-"))
        self.files = self.folder / "work"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NBQUEUE_HOME": str(self.folder / "home"),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "IPYTHONDIR": str(self.folder / "ipython"),
        }
        self._chromium = chromium
        self._token = secrets.token_hex(16)
        self._port = _free_port()
        self._page: Page | None = None
        self._loads = 0
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        self.files.mkdir()
        self._write_settings()
        with self._ends:
            self._ends.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._ends.callback(self._down)
            server = self._start_server()
            playwright = self._ends.enter_context(sync_playwright())
            browser = playwright.chromium.launch(executable_path=self._chromium, args=list(FLAGS))
            self._ends.callback(browser.close)
            wait_until(lambda: self._answers(server), START_S, "JupyterLab to answer", interval_s=0.05)
            width, height = WIDE
            self._page = browser.new_page(viewport={"width": width, "height": height})
            self._page.goto(self._address("lab"))
            self._page.wait_for_function("window.jupyterapp?.shell", timeout=START_S * 1000)
            self._page.evaluate("async () => { await jupyterapp.restored; jupyterapp.shell.collapseLeft() }")
            self._ends = self._ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    @property
    def page(self) -> Page:
        """The page."""
        assert self._page is not None
        return self._page

    def open(self, name: str, *cells: str) -> Notebook:
        """Write a notebook of these cells, with the prelude as its first, and open it."""
        gates = self.folder / "gates" / name
        gates.mkdir(parents=True)
        sources = (PRELUDE.format(gates=str(gates)), *cells)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.files / f"{name}.ipynb")
        return Notebook(self, f"{name}.ipynb", gates)

    def open_copy(self, path: Path) -> Notebook:
        """Open a copy of a notebook."""
        shutil.copy(path, self.files / path.name)
        return Notebook(self, path.name, self.folder)

    def load(self, name: str) -> None:
        """Load the page anew, with the notebook of this name.

        Each time in a workspace that remembers nothing: one that opens its notebooks again may do so late, after the
        test has closed the one it asked for.
        """
        self._loads += 1
        self.page.goto(self._address(f"lab/workspaces/load{self._loads}/tree/{name}"))
        self.page.wait_for_function(f"window.jupyterapp?.shell && {_PANEL}", timeout=START_S * 1000)
        self.page.evaluate("async () => { await jupyterapp.restored; jupyterapp.shell.collapseLeft() }")

    def log(self) -> str:
        """Return the end of what the worker logged."""
        log = self.folder / "home" / "data" / "logs" / "worker.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-30:]) if log.exists() else "no worker ran"

    def _address(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}/{path}?token={self._token}"

    def _write_settings(self) -> None:
        # else the first visit asks about news, on top of the page
        settings = self.folder / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')

    def _start_server(self) -> subprocess.Popen[bytes]:
        with (self.folder / "server.log").open("w") as log:
            server = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
                    *(f"--port={self._port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self._token}"),
                    *(f"--ServerApp.root_dir={self.files}", "--LabApp.expose_app_in_browser=True"),
                    *("--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
                ],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # an interrupt meant for the tests doesn't reach it
                start_new_session=True,
            )
        self._ends.callback(_stop, server)
        return server

    def _answers(self, server: subprocess.Popen[bytes]) -> bool:
        assert server.poll() is None, (self.folder / "server.log").read_text()
        with suppress(OSError), urllib.request.urlopen(self._address("api/status"), timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    def _down(self) -> None:
        down = [sys.executable, "-m", "nbqueue", "down", "--grace", "1"]
        subprocess.run(down, env=self.environment, cwd=ROOT, check=True, capture_output=True)


class Notebook:
    """A notebook open in the page. Used as a context manager, which closes it and ends its kernel.

    Cells count from 0, the prelude; waits are in seconds. Uncaught errors and dialogs are kept in `errors`, what the
    page logs as an error in `console`. `gates` is the directory that the prelude calls so.
    """

    def __init__(self, lab: Lab, name: str, gates: Path) -> None:
        self.page = lab.page
        self.errors: list[str] = []
        self.console: list[str] = []
        self._lab = lab
        self._name = name
        self.gates = gates

    def __enter__(self) -> Self:
        self.page.on("pageerror", self._page_error)
        self.page.on("console", self._console)
        self.page.on("dialog", self._dialog)
        self.page.evaluate(
            "async path => { await jupyterapp.commands.execute('docmanager:open', { path }) }", self._name
        )
        self.wait_for_kernel()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with suppress(Error):
                shown = self.page.locator("body").inner_text()
                errors = self.errors + self.console
                error.add_note(f"The page:\n{shown}\nIts errors: {errors}\nThe worker's log:\n{self._lab.log()}")
        # a task that is held for ever would keep a child from the tests that follow
        self.open_gate("all")
        # disposed of, not closed: that would ask whether to save
        self.page.evaluate(
            f"""async () => {{ for (const panel of {_PANELS}) {{
                await panel.sessionContext.shutdown(); panel.dispose() }} }}"""
        )
        self.resize(*WIDE)
        self.page.remove_listener("pageerror", self._page_error)
        self.page.remove_listener("console", self._console)
        self.page.remove_listener("dialog", self._dialog)

    def wait_for_kernel(self) -> None:
        """Wait until the kernel is idle and the page listens to its widgets; one made sooner is never shown."""
        kernel = f"{_PANEL}?.sessionContext.session?.kernel"
        idle = f"{kernel}?.status === 'idle' && 'jupyter.widget' in ({kernel}._targetRegistry ?? {{}})"
        self.page.wait_for_function(idle, timeout=START_S * 1000)

    def wait_until_busy(self) -> None:
        """Wait until the kernel runs a cell."""
        self.page.wait_for_function(f"{_PANEL}.sessionContext.session.kernel.status === 'busy'")

    def start(self, cell: int) -> None:
        """Run a cell, without waiting for it."""
        self.page.evaluate(
            f"""n => {{ const panel = {_PANEL}, runs = (panel.runs ??= {{}});
                panel.content.activeCellIndex = n; panel.content.deselectAll(); runs[n] = 'runs';
                jupyterapp.commands.execute('notebook:run-cell').then(() => {{ runs[n] = 'done' }}) }}""",
            cell,
        )

    def run(self, *cells: int, timeout_s: float = 30.0) -> None:
        """Run cells one after another, each to its end."""
        for cell in cells:
            self.start(cell)
            self.page.wait_for_function(f"n => {_PANEL}.runs[n] === 'done'", arg=cell, timeout=timeout_s * 1000)

    def run_all(self) -> None:
        """Run all cells, without waiting for them."""
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")

    def open_gate(self, gate: str) -> None:
        """Let a task go on that is held at a gate."""
        (self.gates / gate).touch()

    def output(self, cell: int) -> Locator:
        """Return where a cell's outputs are."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputArea")

    def view(self, cell: int) -> Locator:
        """Return the live view under a cell."""
        return self.output(cell).locator(".nbq")

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

    def leave(self) -> None:
        """Close the page, as far as JupyterLab can tell; `reload` opens it again."""
        self.page.goto("about:blank")

    def reload(self) -> None:
        """Load the page anew."""
        self._lab.load(self._name)
        self.wait_for_kernel()

    def set_theme(self, name: str) -> None:
        """Choose a theme of JupyterLab's."""
        self.page.evaluate(
            "async theme => { await jupyterapp.commands.execute('apputils:change-theme', { theme }) }", name
        )

    def resize(self, width: int, height: int) -> None:
        """Give the window a size, in pixels."""
        self.page.set_viewport_size({"width": width, "height": height})

    def _page_error(self, error: Error) -> None:
        self.errors.append(f"not caught: {error}")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.console.append(message.text)

    def _dialog(self, dialog: Dialog) -> None:
        self.errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
