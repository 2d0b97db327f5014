"""A primary, its replica and the sentinel that watches them: real servers of a test's own, on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis

from nbqueue import App
from nbqueue.config import Settings, in_the_open, mask
from nbqueue.endpoints import broker_url
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.signing import create_key_file
from nbqueue.stock import kombu_connection
from tests.helpers import server_binary, wait_until
from tests.rabbit import free_ports
from tests.test_endpoints import NOTHING
from tests.workers import ROOT

PASSWORD = "hunter2"


class Watched:
    """Two servers and a sentinel; used as a context manager."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nbq-"))
        self.ports = free_ports(3)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.key_file = self.directory / "key"
        create_key_file(self.key_file)

    def __enter__(self) -> Self:
        primary, replica, sentinel = self.ports
        common = ["--bind", "127.0.0.1", "--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", ""]
        self._start(["--port", str(primary), *common], "primary")
        self._start(["--port", str(replica), *common, "--replicaof", f"127.0.0.1 {primary}"], "replica")
        for port in (primary, replica):
            wait_until(lambda port=port: self._says(port, "PING"), 10, "a server to answer")  # type: ignore[misc]
        settings = self.directory / "sentinel.conf"
        settings.write_text(
            f"port {sentinel}\nbind 127.0.0.1\nsentinel monitor mine 127.0.0.1 {primary} 1\n"
            f"sentinel auth-pass mine {PASSWORD}\nsentinel down-after-milliseconds mine 500\n"
            "sentinel failover-timeout mine 3000\n"
        )
        self._start([str(settings), "--sentinel"], "sentinel")
        wait_until(lambda: self.replicas() == 1, 20, "the sentinel to know both")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)

    @property
    def url(self) -> str:
        return f"sentinel://:{PASSWORD}@127.0.0.1:{self.ports[2]}"

    def replicas(self) -> int:
        with redis.Redis(port=self.ports[2], socket_timeout=5, decode_responses=True) as client:
            try:
                found: dict[str, Any] = client.sentinel_master("mine")
            except redis.RedisError:
                return -1
        return int(found["num-slaves"])

    def primary(self) -> int:
        with redis.Redis(port=self.ports[2], socket_timeout=5) as client:
            return int(client.sentinel_get_master_addr_by_name("mine")[1])

    def kill_primary(self) -> None:
        self._processes[0].kill()
        self._processes[0].wait(10)

    def app(self, **options: Any) -> App:
        return App("test", broker=self.url, key_file=self.key_file, by_value=True, set_as_current=False, **options)

    def _start(self, arguments: list[str], name: str) -> None:
        with (self.directory / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [server_binary(), *arguments], cwd=self.directory, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)

    def _says(self, port: int, *command: str) -> object:
        with redis.Redis(port=port, password=PASSWORD, socket_timeout=5) as client:
            try:
                return client.execute_command(*command)
            except redis.RedisError:
                return None


@pytest.fixture
def watched() -> Iterator[Watched]:
    with Watched() as made:
        yield made


@pytest.mark.faults
def test_tasks_run_on_after_a_failover(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from nbqueue import App\napp = App('mine')\n@app.task\ndef add(x, y):\n    return x + y\n"
    )
    url = f"{watched.url}?master_name=mine"
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "nbqueue", "-A", "mine", "-b", url, "worker", "-c", "1", "-l", "info"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NBQUEUE_KEY_FILE": str(watched.key_file)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with watched.app(broker_transport_options={"master_name": "mine"}) as app:
            assert app.link.joined
            wait_until(lambda: bool(app.offers()), 40, "the worker to show itself")
            assert app.send_task("mine.add", (1, 2)).get(timeout=20) == 3
            before = watched.primary()
            watched.kill_primary()
            wait_until(lambda: watched.primary() != before, 20, "the sentinel to choose the other")
            policy = {"max_retries": 20, "interval_start": 0.2, "interval_step": 0.2, "interval_max": 1.0}
            sent = app.send_task("mine.add", (2, 3), retry_policy=policy)
            assert sent.get(timeout=30) == 5, (tmp_path / "log").read_text()
        assert PASSWORD not in (tmp_path / "log").read_text()
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0


def test_kombu_reaches_the_same_server(watched: Watched) -> None:
    with kombu_connection(f"{watched.url}/0?master_name=mine") as connection:
        connection.ensure_connection(max_retries=1)
        assert connection.default_channel.client.ping()


def test_celerys_ways_to_write_sentinels_become_one_url() -> None:
    conf = Settings(
        broker_url="sentinel://:pw@a:26379;sentinel://b:26380/2",
        broker_transport_options={"master_name": "mine", "sentinel_kwargs": {"password": "pw2"}},
    )
    url = "sentinel://:pw@a:26379;b:26380/2?master_name=mine&sentinel_password=pw2"
    assert broker_url(conf, NOTHING) == url
    assert "pw" not in mask(url)
    assert in_the_open(url)
    assert not in_the_open("sentinel://localhost;127.0.0.1:26380/0?master_name=mine")
    secure = broker_url(Settings(broker_url="sentinel://a?master_name=m", broker_use_ssl={"ca_certs": "/c"}), NOTHING)
    assert secure == "sentinel://a?master_name=m&ssl=True&ssl_ca_certs=/c"
    with pytest.raises(ImproperlyConfigured, match="broker_transport_options = "):
        broker_url(Settings(broker_url="sentinel://a"), NOTHING)
