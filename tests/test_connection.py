from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING

import pytest

from nbqueue import connection
from nbqueue.connection import Connection
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.signing import create_key_file

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
KNOWN = Connection("redis://:secret@host/1", "redis://:secret@host/2", KEY)
HERE = "0123456789ab"


def changed(path: Path, **fields: object) -> Path:
    """Write a connection file, some of whose fields are others."""
    connection.write(path, KNOWN)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


@pytest.mark.parametrize(
    "known",
    [
        KNOWN,
        Connection("amqp://host", None, KEY, host="ü"),
        Connection("redis+socket:///run/b.sock", None, KEY, embedded=True, machine=HERE),
    ],
)
def test_connection_comes_back_whole_when_it_was_written(tmp_path: Path, known: Connection) -> None:
    connection.write(tmp_path / "c", known)
    assert connection.read(tmp_path / "c", HERE) == known


def test_file_is_its_owners_alone_when_it_is_written(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        connection.write(tmp_path / "c", KNOWN)
    finally:
        os.umask(old)
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def test_file_is_replaced_when_it_was_a_connection_file(tmp_path: Path) -> None:
    connection.write(tmp_path / "c", KNOWN)
    other = dataclasses.replace(KNOWN, broker_url="redis://other")
    connection.write(tmp_path / "c", other)
    assert connection.read(tmp_path / "c") == other


def test_write_leaves_a_file_alone_when_it_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("thoughts")
    with pytest.raises(ImproperlyConfigured, match="no connection file; choose another name"):
        connection.write(tmp_path / "notes", KNOWN)
    assert (tmp_path / "notes").read_text() == "thoughts"


def test_write_says_so_when_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="No such file or directory"):
        connection.write(tmp_path / "none" / "c", KNOWN)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o644])
def test_file_is_refused_when_others_may_use_it(tmp_path: Path, mode: int) -> None:
    connection.write(tmp_path / "c", KNOWN)
    (tmp_path / "c").chmod(mode)
    with pytest.raises(ImproperlyConfigured, match="chmod 600"):
        connection.read(tmp_path / "c")


def test_file_is_refused_when_it_is_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.write(tmp_path / "c", KNOWN)
    if os.geteuid() == 0:
        os.chown(tmp_path / "c", 54321, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ImproperlyConfigured, match="another user"):
        connection.read(tmp_path / "c")


def test_file_is_refused_when_it_is_a_link(tmp_path: Path) -> None:
    connection.write(tmp_path / "c", KNOWN)
    (tmp_path / "link").symlink_to(tmp_path / "c")
    with pytest.raises(ImproperlyConfigured, match="symbolic link"):
        connection.read(tmp_path / "link")


def test_file_is_refused_when_it_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ImproperlyConfigured, match="no regular file"):
        connection.read(tmp_path / "pipe")


def test_file_is_refused_when_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="No such file"):
        connection.read(tmp_path / "c")


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"nbqueue_connection": "1"}', "\udcff"])
def test_file_is_refused_when_it_is_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "c").write_text(text, errors="surrogateescape")
    (tmp_path / "c").chmod(0o600)
    with pytest.raises(ImproperlyConfigured, match="no connection file"):
        connection.read(tmp_path / "c")


def test_file_is_refused_when_a_newer_nbqueue_wrote_it(tmp_path: Path) -> None:
    path = changed(tmp_path / "c", nbqueue_connection=connection.FORMAT + 1, version="9.8")
    with pytest.raises(ImproperlyConfigured, match=r"newer nbqueue \(9\.8, .*pip install -U nbqueue"):
        connection.read(path)


@pytest.mark.parametrize(
    "fields", [{"broker_url": None}, {"backend_url": 3}, {"embedded": "yes"}, {"key": ""}, {"key": "00"}, {"key": 7}]
)
def test_file_is_refused_when_a_field_is_off(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(ImproperlyConfigured):
        connection.read(changed(tmp_path / "c", **fields))


def test_file_serves_no_other_machine_when_it_is_of_an_embedded_server(tmp_path: Path) -> None:
    connection.write(tmp_path / "c", Connection("redis+socket:///b", None, KEY, embedded=True, machine="m", host="ada"))
    with pytest.raises(
        ImproperlyConfigured, match=r"server of ada, which only that machine can use.*NBQUEUE_BROKER_URL"
    ):
        connection.read(tmp_path / "c", HERE)


def test_file_serves_every_machine_when_its_server_is_no_embedded_one(tmp_path: Path) -> None:
    connection.write(tmp_path / "c", dataclasses.replace(KNOWN, machine="another"))
    assert connection.read(tmp_path / "c", HERE).broker_url == KNOWN.broker_url


def test_key_is_found_when_the_file_names_a_key_file_beside_it(tmp_path: Path) -> None:
    key = create_key_file(tmp_path / "key")
    path = changed(tmp_path / "c", key_file="key")
    assert connection.read(path).key == key


def test_repr_tells_no_secret_when_urls_have_passwords() -> None:
    text = repr(KNOWN)
    assert "secret" not in text
    assert KEY.hex() not in text
    assert str(KEY) not in text
