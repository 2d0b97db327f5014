from __future__ import annotations

import base64
import hmac
import stat
from pathlib import Path

import pytest

from nbqueue.exceptions import BadMessage, ImproperlyConfigured
from nbqueue.signing import KINDS, Signer, create_key_file, parse_key, read_key_file


def test_key_file_is_for_its_owner_only_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = create_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key_file(path) == key
    assert len(key) == 32


def test_key_file_is_never_overwritten(tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    with pytest.raises(FileExistsError):
        create_key_file(tmp_path / "key")


def test_key_file_that_others_can_read_is_refused_and_says_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "key"
    create_key_file(path)
    path.chmod(0o640)
    with pytest.raises(ImproperlyConfigured, match=f"chmod 600 {path}"):
        read_key_file(path)


def test_key_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(ImproperlyConfigured, match="can't be opened"):
        read_key_file(tmp_path / "link")


def test_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="nowhere"):
        read_key_file(tmp_path / "nowhere")


def test_key_file_of_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(255, 223, -1)))
    path.chmod(0o600)
    with pytest.raises(ImproperlyConfigured, match="hexadecimal digits are expected"):
        read_key_file(path)


@pytest.mark.parametrize("text", ["", "no hexadecimal", "abcd"])
def test_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="the file"):
        parse_key(text, "the file")


def test_signer_shows_its_key_id_and_never_its_key() -> None:
    signer = Signer(b"secret key of thirty-two bytes!!")
    assert repr(signer) == f"<Signer {signer.key_id}>"
    assert "secret" not in repr(signer)
    with pytest.raises(ImproperlyConfigured):
        Signer(b"short")


def test_signature_is_the_standard_hmac_of_text_and_body() -> None:
    key = b"k" * 32
    signed = Signer(key).sign("task", b'{"id":"1"}', b"body")
    own = hmac.digest(key, b"nbqueue/1/task", "sha256")
    mac = hmac.digest(own, b'10\n{"id":"1"}body', "sha256")
    assert signed.split(".")[2] == base64.b64encode(mac).decode().rstrip("=")


@pytest.mark.parametrize("kind", KINDS)
def test_signature_of_one_kind_is_none_of_another(kind: str) -> None:
    signer = Signer(b"k" * 32)
    signed = signer.sign(kind, b"the same text", b"body")
    assert signer.verify(kind, signed, b"body") == b"the same text"
    for other in KINDS:
        if other != kind:
            with pytest.raises(BadMessage) as caught:
                signer.verify(other, signed, b"body")
            assert caught.value.reason == "signature"
