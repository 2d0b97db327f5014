"""What a live view of a map of 10,000 costs its kernel: `python -m tests.benchmarks.view SECONDS`.

A real kernel runs the map with the real view under its cell; this process stands for the page: it opens the view, as
the page's script does, and counts what it is told. The server and key come from the environment. Prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from typing import Any, Final

from jupyter_client.manager import start_new_kernel

from tests.benchmarks.peers import CHILDREN

MEMBERS: Final = 10_000
WAIT_S: Final = 120.0
DEFINE: Final = """
%load_ext nbqueue
import json, resource, threading, time
from nbqueue import task
from nbqueue.notebook.views import watch

@task
def step(n):
    time.sleep({nap_s})
    return n

def used():
    own = resource.getrusage(resource.RUSAGE_SELF)
    clocks = {{t.name: time.clock_gettime(time.pthread_getcpuclockid(t.ident)) for t in threading.enumerate()}}
    return {{"all": own.ru_utime + own.ru_stime, "clocks": clocks, "names": list(clocks)}}

assert step.delay(1).get(timeout=60) == 1
"""
RUN: Final = """
runs = step.map(range({members}))
"""
WAIT: Final = """
before, began = used(), time.perf_counter()
assert runs.get(timeout=100) == list(range({members}))
took, after = time.perf_counter() - began, used()
print("FIGURES", json.dumps([took, before, after]))
"""


def main(seconds: float) -> dict[str, float]:
    """Return the figures of one map; a tenth of it where seconds are short."""
    members, nap_s = (MEMBERS, 0.002) if seconds >= 1.0 else (MEMBERS // 10, 0.002)
    worker = subprocess.Popen(
        [sys.executable, "-m", "nbqueue", "worker", "-c", str(CHILDREN)], stdin=subprocess.DEVNULL
    )
    manager, client = start_new_kernel(kernel_name="python3")
    page = Page(client)
    try:
        page.run(DEFINE.format(nap_s=nap_s))
        page.run(RUN.format(members=members))
        if not page.views:
            raise RuntimeError("no view was opened under the cell")
        page.open_views()
        page.messages = page.size = 0
        said = page.run(WAIT.format(members=members))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        worker.terminate()
        worker.wait()
    line = next(line for line in said.splitlines() if line.startswith("FIGURES"))
    took, before, after = json.loads(line.removeprefix("FIGURES"))

    def percent(name: str) -> float:
        return 100.0 * float(after["clocks"].get(name, 0.0) - before["clocks"].get(name, 0.0)) / float(took)

    drawing = [name for name in after["clocks"] if name.startswith("nbqueue view")]
    if not drawing:
        raise RuntimeError(f"no thread draws: {after['names']}")
    return {
        "draw_percent": sum(map(percent, drawing)),
        "draw_iopub_percent": percent("IOPub"),
        "draw_kernel_percent": 100 * (after["all"] - before["all"]) / took,
        "draw_messages": page.messages / took,
        "draw_bytes": page.size,
        "draw_s": took,
    }


class Page:
    """Runs cells, and counts what the kernel's views say meanwhile."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.views: list[str] = []
        self.messages = self.size = 0
        self._ended = threading.Event()

    def run(self, code: str) -> str:
        """Run a cell to its end; return what it printed."""
        request = self.client.execute(code)
        printed, end = "", time.monotonic() + WAIT_S
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                message = self.client.get_iopub_msg(timeout=1.0)
                kind, content = message["msg_type"], message["content"]
                self._look(message)
                if message["parent_header"].get("msg_id") != request:
                    continue
                if kind == "stream":
                    printed += content["text"]
                elif kind == "error":
                    raise RuntimeError("\n".join(content["traceback"]))
                elif kind == "status" and content["execution_state"] == "idle":
                    return printed
        raise RuntimeError(f"a cell has not ended in {WAIT_S:g} s")

    def open_views(self) -> None:
        """Say what the page's script says when it shows a view: from then on it is told what changes."""
        for view in self.views:
            content = {"comm_id": view, "data": {"method": "custom", "content": {"do": "hello", "n": -1}}}
            self.client.shell_channel.send(self.client.session.msg("comm_msg", content))

    def _look(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "comm_open" and "now" in content["data"].get("state", {}):
            self.views.append(content["comm_id"])
        elif kind == "comm_msg" and content["comm_id"] in self.views:
            self.messages += 1
            self.size += len(json.dumps(content)) + sum(len(buffer) for buffer in message["buffers"])


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]))), flush=True)
