"""A project whose modules listen to every signal, and write each to a file: one line of JSON a signal."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from nbqueue import signals
from nbqueue.exceptions import Reject
from tests.project import app

FILE = Path(os.environ.get("TESTS_SIGNALS", "/dev/null"))
_lock = threading.Lock()


def note(signal: signals.Signal, sender: Any = None, **named: Any) -> None:
    """Write what has been sent; fails for one name, which must harm nobody."""
    shown = {
        name: value if isinstance(value, str | int | float | bool | None) else repr(value)
        for name, value in named.items()
    }
    line = {"signal": signal.name, "sender": getattr(sender, "name", sender if isinstance(sender, str) else None)}
    if "task_id" not in shown and "request" in named:
        shown["task_id"] = named["request"].id
    with _lock, FILE.open("a") as file:
        file.write(json.dumps({**line, **shown, "process": os.getpid()}) + "\n")
    if signal.name == "task_prerun" and named.get("kwargs", {}).get("stumble"):
        raise RuntimeError("the receiver has stumbled")


for _name in signals.__all__:
    _signal = getattr(signals, _name)
    if isinstance(_signal, signals.Signal) and _name != "setup_logging":
        _signal.connect(note)


@signals.celeryd_init.connect
def configure(conf: Any, **_: Any) -> None:
    conf.worker_max_losses = 7


@signals.celeryd_after_setup.connect
def listen_to_one_of_its_own(sender: str, instance: Any, **_: Any) -> None:
    instance.app.amqp.queues.select_add(f"{instance.hostname}.own")


@app.task(bind=True)
def rejects(self: Any, stumble: bool = False) -> None:
    raise Reject("not today")


@app.task
def noted(*_: Any) -> None: ...


@app.task(bind=True)
def gives_way(self: Any, number: int) -> None:
    raise self.replace(app.tasks["tests.project.add"].s(number, number))


@app.task(bind=True)
def headers(self: Any, stumble: bool = False) -> Any:
    return self.request.headers


@signals.before_task_publish.connect(sender="tests.signalled.headers")
def trace(headers: dict[str, Any], **_: Any) -> None:
    headers["worker"] = os.getpid()
    if headers["retries"]:
        headers["again"] = headers["retries"]
    if headers.get("broken"):
        headers["object"] = object()


@app.task(bind=True)
def headers_at_last(self: Any, times: int) -> Any:
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.headers


signals.before_task_publish.connect(trace, sender="tests.signalled.headers_at_last")


@app.task(bind=True)
def speaks(self: Any) -> None:
    self.send_event("task-speaking", words=3)


@app.task(send_events=False)
def is_silent() -> None: ...
