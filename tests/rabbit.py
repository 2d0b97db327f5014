"""A RabbitMQ of the tests' own: its node, files, cookie and ports are nobody else's, and it ends with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from nbqueue import amqp
from tests.environment import rabbitmq_binary
from tests.helpers import wait_until

START_S: Final = 60.0
STOP_S: Final = 20.0
HOSTS_AT_ONCE: Final = 8


class RabbitServer:
    """One node on loopback. Used as a context manager it is started, and in the end stopped and its files removed."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nbq-rabbit-"))
        self.port, self.tls_port, distribution, mapper = free_ports(4)
        make_certificate(self.directory)
        (self.directory / "plugins").write_text("[].\n")
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self.certificate}\n"
            f"ssl_options.certfile = {self.certificate}\n"
            f"ssl_options.keyfile = {self.directory}/key.pem\n"
            "log.console = false\n"
        )
        # how often a channel looks for deliveries that nobody acknowledges, milliseconds
        (self.directory / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 500}]}].\n")
        self.variables = {
            **os.environ,
            "HOME": str(self.directory),  # the cookie's place
            "RABBITMQ_NODENAME": f"nbq{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self._hosts: list[str] = []
        self._numbers = 0
        self._mapper: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything, and remove the files."""
        self.kill()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait(STOP_S)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def url(self) -> str:
        """The URL for nbqueue."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def certificate(self) -> Path:
        """The certificate it shows, signed by itself."""
        return self.directory / "certificate.pem"

    def start(self) -> None:
        """Start the node, with what it had stored; wait until it answers."""
        if self._mapper is None:
            # Started by a node it would outlive it.
            port = self.variables["ERL_EPMD_PORT"]
            self._mapper = subprocess.Popen(["epmd", "-port", port, "-address", "127.0.0.1"], env=self.variables)
        binary = _binary()
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [binary], env=self.variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        wait_until(self._answers, START_S, "RabbitMQ to answer", 0.1)

    def stop(self) -> None:
        """End the node in good order, as for an upgrade.

        Killed within seconds of making a queue, 3.10 has been seen to come back with that queue without a leader.
        """
        assert self._process is not None
        subprocess.run([_control(), "-q", "stop"], env=self.variables, capture_output=True, check=True)
        self._process.wait(STOP_S)
        self._process = None

    def kill(self) -> None:
        """End the node by force, and wait until it has ended."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)

    def processor_s(self) -> float:
        """Return the processor time of the node and what it started, in seconds so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes())

    def memory_bytes(self) -> int:
        """Return the memory of the node and what it started (RSS)."""
        return sum(process.memory_info().rss for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        node = psutil.Process(self._process.pid)
        return [node, *node.children(recursive=True)]

    def new_host(self) -> str:
        """Return the URL of a virtual host that is empty, for tests whose queues have names that others use too."""
        if not self._hosts:
            # The call takes a second, a host next to nothing.
            self._hosts = [f"host{self._numbers + n}" for n in range(HOSTS_AT_ONCE)]
            self._numbers += HOSTS_AT_ONCE
            names = ", ".join(f'<<"{name}">>' for name in self._hosts)
            rights = 'rabbit_auth_backend_internal:set_permissions(<<"guest">>, H, R, R, R, <<"test">>)'
            self.evaluate(f'R = <<".*">>, [begin rabbit_vhost:add(H, <<"test">>), {rights} end || H <- [{names}]].')
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{self._hosts.pop()}"

    def connect(self) -> amqp.Connection:
        """Return a connection, to do by hand what nbqueue doesn't."""
        return amqp.connect(self.url, name="test")

    def evaluate(self, expression: str) -> str:
        """Have the node evaluate an Erlang expression."""
        done = subprocess.run([_control(), "eval", expression], env=self.variables, capture_output=True, check=True)
        return done.stdout.decode()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"RabbitMQ ended: {(self.directory / 'output').read_text()[-2000:]}")
        try:
            self.connect().close()
        except amqp.ERRORS:
            return False
        return True


def make_certificate(directory: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-days", "2"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "certificate.pem")]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)


def _binary() -> str:
    binary = rabbitmq_binary()
    assert binary, "tests that use RabbitMQ are marked so"
    return binary


def _control() -> str:
    return str(Path(_binary()).with_name("rabbitmqctl"))


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
