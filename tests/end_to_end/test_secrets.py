"""Passwords and keys are in nothing that anybody reads: logs, errors, pages, command lines."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from nbqueue import App
from nbqueue.exceptions import NBQueueError
from nbqueue.notebook.saved import static_html
from tests.helpers import RedisServer, wait_until
from tests.workers import ROOT, Site

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]

CANARY: Final = "c4n4ry-that-nobody-reads"
COMMANDS: Final = (("status",), ("result", "no-such-id"), ("revoke", "no-such-id"), ("dead", "list"))


def fail() -> None:
    raise ValueError("as it should")


def told(call: object) -> str:
    """Return what a call says when it fails, as a user's traceback shows it."""
    assert callable(call)
    try:
        return repr(call())
    except NBQueueError:
        return traceback.format_exc()


def printed(site: Site, url: str, *words: str) -> str:
    """Return what the command line writes."""
    done = subprocess.run(
        [sys.executable, "-m", "nbqueue", *words],
        cwd=ROOT,
        env={
            **os.environ,
            "NBQUEUE_BROKER_URL": url,
            "NBQUEUE_RESULT_BACKEND": site.server.url,
            "NBQUEUE_KEY_FILE": str(site.key_file),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout + done.stderr


def command_lines(pid: int) -> str:
    """Return the command lines of a process and of all that it has started."""
    parent = psutil.Process(pid)
    lines = []
    for process in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            lines.append(" ".join(process.cmdline()))
    return "\n".join(lines)


def as_user(site: Site, url: str) -> App:
    app = App("tests", broker=url, key_file=site.key_file, by_value=True, set_as_current=False)
    app.conf.task_publish_retry = False
    app.conf.backend_timeout = 1.0
    return app


@pytest.fixture
def site(private_redis: RedisServer) -> Iterator[Site]:
    """Yield a site whose server knows a user with a password beside the tests' own."""
    with Site(private_redis) as made:
        made.server_says("ACL", "SETUSER", "reader", "on", f">{CANARY}", "~*", "&*", "+@all")
        yield made


@pytest.mark.parametrize("form", ["login", "query"])
def test_password_and_key_are_in_nothing_that_a_run_writes(site: Site, tmp_path: Path, form: str) -> None:
    socket = site.server.socket
    url = f"unix://reader:{CANARY}@{socket}?db=0"
    if form == "query":
        url = f"unix://{socket}?db=0&username=reader&password={CANARY}"
    worker = site.worker("-l", "debug", NBQUEUE_BROKER_URL=url, NBQUEUE_RESULT_BACKEND=url)
    said = [command_lines(worker.pid)]
    with as_user(site, url) as app:
        done, failed = app.send_task("tests.project.add", (1, 2)), app.task(fail).delay()
        assert done.get(timeout=20) == 3
        with pytest.raises(ValueError, match="as it should") as caught:
            failed.get(timeout=20)
        said += traceback.format_exception(caught.value)
        said += [static_html(one.watched.status, 0.0) for one in (done, failed)]
        said += [repr(one) for one in (app, app.conf, app.link, app.signer, app.broker, app.backend, done)]
        said += [printed(site, url, *words) for words in COMMANDS]
        waits = app.send_task("tests.project.note", (str(tmp_path), "n", 1.0))
        wait_until(lambda: list(tmp_path.glob("n.*")), 10, "it to run")
        site.server.kill()
        wait_until(lambda: "can't be used" in worker.log.read_text(), 15, "the worker to notice")
        said += [told(lambda: app.send_task("tests.project.add", (1, 2))), told(waits.get), told(waits.revoke)]
        said += [told(lambda: app.task(fail).map([()])), printed(site, url, "status")]
    site.server.start()
    said += [worker.log.read_text(), site.server.log()]
    assert any("Traceback" in text for text in said)
    key = site.key_file.read_text().strip()
    assert [text for text in said if CANARY in text or key in text] == []


def test_wrong_password_is_named_and_not_shown(site: Site) -> None:
    url = f"unix://reader:{CANARY}-wrong@{site.server.socket}?db=0"
    worker = site.worker(ready=False, NBQUEUE_BROKER_URL=url, NBQUEUE_RESULT_BACKEND=url)
    with as_user(site, url) as app:
        said = [told(lambda: app.send_task("tests.project.add", (1, 2))), told(lambda: app.AsyncResult("x").get(5))]
    said.append(printed(site, url, "status"))
    wait_until(worker.log.read_text, 20, "the worker to say something")
    worker.kill()
    everything = "\n".join([*said, worker.log.read_text()])
    assert "WRONGPASS" in everything or "invalid username-password" in everything
    assert CANARY not in everything


@pytest.mark.rabbitmq
@pytest.mark.timeout(180)
def test_wrong_password_of_rabbitmq_is_not_shown(site: Site, rabbit_server: object) -> None:
    url = str(getattr(rabbit_server, "url")).replace("guest:guest@", f"guest:{CANARY}@")  # noqa: B009
    assert CANARY in url
    worker = site.worker(ready=False, NBQUEUE_BROKER_URL=url, NBQUEUE_RESULT_BACKEND=site.server.url)
    app = App("t", broker=url, backend=site.server.url, key_file=site.key_file, set_as_current=False)
    app.conf.task_publish_retry = False
    with app:
        said = [told(lambda: app.send_task("tests.project.add", (1, 2)))]
    said.append(printed(site, url, "status"))
    wait_until(worker.log.read_text, 20, "the worker to say something")
    worker.kill()
    everything = "\n".join([*said, worker.log.read_text()])
    assert "SendFailed" in everything
    assert CANARY not in everything
