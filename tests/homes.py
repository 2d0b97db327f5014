"""An embedded server of a test's own, with its keeper, and a worker that stands in for the real one."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

from nbqueue import embedded
from nbqueue.deliveries import QUEUES, queue_key, stream_key
from nbqueue.server import Wire
from tests.helpers import wait_until

if TYPE_CHECKING:
    from nbqueue.connection import Connection

ROOT: Final = Path(__file__).resolve().parent.parent

# Arguments: a connection file and what to do. `stay` shows itself until TERM, `busy` ignores TERM, `fail` ends at
# once, `drain` is as `stay` and empties the queue first.
STAND_IN: Final = f"""
import json, os, signal, socket, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from nbqueue import connection
from nbqueue.server import Wire
from nbqueue.signing import Signer

file, manner = sys.argv[1:]
stopped = []
signal.signal(signal.SIGTERM, signal.SIG_IGN if manner == "busy" else lambda *_: stopped.append(1))
print("started as", os.getpid(), flush=True)
print("umask", os.umask(0), "cwd", os.getcwd(), flush=True)
print("variables", sorted(os.environ), flush=True)
if manner == "fail":
    sys.exit("no such thing as a worker")
found = connection.read(Path(file))
name = f"local@{{socket.gethostname()}}"
wire = Wire(Path(found.broker_url.removeprefix("redis+socket://")), f"nbq-worker-{{name}}")
offer = json.dumps({{"name": name, "host": "h", "pid": os.getpid(), "key_id": "k", "all_queues": True}}).encode()
signed = Signer(found.key).sign("worker", offer)
if manner == "drain":
    wire.call("DEL", "nbq:{{nbqueue}}:n")
while not stopped:
    now = int(wire.call("TIME")[0])
    wire.call("HSET", "nbq:workers", name, json.dumps({{"at": now, "nbq": signed}}))
    time.sleep(0.05)
wire.call("HDEL", "nbq:workers", name)
print("stopped", flush=True)
"""


class Home:
    """A private `NBQUEUE_HOME`, everything in which is stopped and removed in the end."""

    def __init__(self) -> None:
        # short, for the socket's sake
        self.directory = Path(tempfile.mkdtemp(prefix="nbq-"))
        self.variables = {**os.environ, "NBQUEUE_HOME": str(self.directory / "h")}
        self.places = embedded.Places.find(self.variables)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            embedded.down(self.places, 0.0)
            # a lock is given back a moment before its process is gone
            wait_until(lambda: not self.processes(), 2, "every process to be gone")
        finally:
            for process in self.processes():
                process.kill()
            shutil.rmtree(self.directory, ignore_errors=True)

    def ensure(self, *, manner: str = "stay", idle_s: float | None = None, work_follows: bool = False) -> Connection:
        """Start what doesn't run; its workers are stand-ins of this manner."""
        script = self.directory / "worker.py"
        script.write_text(STAND_IN)
        command = [sys.executable, str(script), str(self.places.connection_file), manner]
        return embedded.ensure(
            self.places,
            variables=self.variables,
            work_follows=work_follows,
            idle_s=idle_s,
            worker_command=command,
        )

    def wire(self, name: str = "") -> Wire:
        """Connect to the server."""
        return Wire(self.places.socket, name)

    def queue(self, name: str = "nbqueue", *, due_ms: int = 0, lane: str = "n") -> None:
        """Put something on a queue, as a client does that gives no hint."""
        with self.wire() as wire:
            wire.call("SADD", QUEUES, name)
            if due_ms:
                wire.call("ZADD", queue_key(name, "delayed"), due_ms, "id")
            else:
                wire.call("XADD", stream_key(name, lane), "*", "i", "id")

    def log(self, name: str) -> str:
        """Return the log of `keeper`, `worker` or `server`."""
        path = self.places.logs / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def starts(self) -> int:
        """Return how many workers were started."""
        return self.log("worker").count("started as")

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Return the processes of this home whose command contains a word."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            command = " ".join(process.info["cmdline"] or [])
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and str(self.directory) in command and word in command and process.pid != os.getpid():
                found.append(process)
        return found
