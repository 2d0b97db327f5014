"""`nbqueue.wire`: commands on a kept connection."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from nbqueue import wire
from nbqueue.wire import Patience, Wire, connect
from tests.helpers import RedisServer, wait_until


@pytest.fixture(params=["hiredis", "redis-py"])
def made(request: pytest.FixtureRequest, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Yield a wire that reads with hiredis' own parser, or as redis-py does."""
    if request.param == "redis-py":
        monkeypatch.setattr(wire, "_hiredis", None)
    client = connect(redis_server.url, name="nbq-test")
    found = Wire(client)
    yield found
    found.close()
    client.close()


def test_answers_come_as_they_are(made: Wire) -> None:
    assert made.call("SET", "wire", b"\x00\xff", "PX", 60_000) == b"OK"
    assert made.call("GET", "wire") == b"\x00\xff"
    assert made.call("GET", "wire:none") is None
    assert made.call("DEL", "wire") == 1


def test_large_answer_comes_whole(made: Wire) -> None:
    data = bytes(range(256)) * 40_000
    made.call("SET", "wire:large", data, "PX", 60_000)
    assert made.call("GET", "wire:large") == data


def test_refusal_is_raised_and_the_connection_goes_on(made: Wire) -> None:
    with pytest.raises(redis.exceptions.NoScriptError):
        made.call("EVALSHA", "0" * 40, 0)
    with pytest.raises(redis.ResponseError, match="unknown command"):
        made.call("NOSUCHCOMMAND")
    assert made.call("PING") == b"PONG"


def test_lost_connection_is_told_and_made_anew(made: Wire, redis_server: RedisServer) -> None:
    number = made.call("CLIENT", "ID")
    with redis_server.client() as other:
        other.execute_command("CLIENT", "KILL", "ID", number)
    with pytest.raises(redis.ConnectionError):
        made.call("PING")
    assert made.call("CLIENT", "ID") != number


def test_answer_that_nobody_has_asked_for_is_not_taken_for_that_to_the_next_command(made: Wire) -> None:
    assert made.call("PING") == b"PONG"
    sock = made._connection._sock
    sock.sendall(b"*2\r\n$4\r\nECHO\r\n$5\r\nstray\r\n")
    wait_until(lambda: select.select([sock], [], [], 0)[0], 5, "the answer")
    with pytest.raises(redis.ConnectionError, match="nobody has asked for"):
        made.call("PING")
    assert made.call("ECHO", "mine") == b"mine"


def test_connection_may_be_lost_very_often(made: Wire, redis_server: RedisServer) -> None:
    with redis_server.client() as other:
        for _ in range(150):
            other.execute_command("CLIENT", "KILL", "ID", made.call("CLIENT", "ID"))
            with pytest.raises(redis.ConnectionError, match=r"lost|closed|Broken"):
                made.call("PING")
        assert made.call("PING") == b"PONG"
        assert len(other.client_list()) < 10


def test_who_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in ("hiredis", "redis-py"):
        if parser == "redis-py":
            monkeypatch.setattr(wire, "_hiredis", None)
        path = tmp_path / parser
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            threading.Thread(target=_greet, args=(listener,), daemon=True).start()
            client = connect(f"redis+socket://{path}", name="nbq-test", timeout_s=0.3)
            silent = Wire(client)
            with pytest.raises(redis.TimeoutError):
                silent.call("PING")
            silent.close()


def _greet(listener: socket.socket) -> None:
    """Answer what a new connection says of itself, and nothing after."""
    peer, _ = listener.accept()
    with peer:
        while data := peer.recv(65_536):
            if b"PING" in data:
                threading.Event().wait(2.0)
                return
            peer.sendall(b"+OK\r\n" * data.count(b"*"))


def test_patience_ends_where_looking_is_in_vain_and_comes_back() -> None:
    patience = Patience(1.0)
    for _ in range(wire._MISSES):
        assert patience.begin()
        patience.missed()
    assert patience.begin()
    patience.missed()
    left_out = 0
    while not patience.begin():
        left_out += 1
    assert 0 < left_out < 1_000
    patience.came()
    patience.missed()
    assert patience.begin()


def test_no_patience_never_looks() -> None:
    assert not Patience(0.0).begin()
