"""Code that calls bring again and again: kept once, named by each call."""

from __future__ import annotations

import time
from typing import Any

import pytest

from nbqueue.backends.memory import MemoryBackend
from nbqueue.codes import MOST, Codes
from nbqueue.deliveries import LIVE_S, code_name
from nbqueue.exceptions import BadMessage, BlobMissing
from nbqueue.messages import open_code
from nbqueue.signing import Signer
from tests.workers import Site

SIGNER = Signer(b"k" * 32)
SOON = time.time() + 60


def codes(backend: MemoryBackend) -> Codes:
    return Codes(lambda: backend, SIGNER)


def kept(backend: MemoryBackend, digest: str) -> bytes:
    text = backend.load_group(code_name(digest))
    assert text is not None
    return open_code(text, digest, SIGNER)


def test_code_that_is_met_once_travels_and_then_is_kept() -> None:
    backend = MemoryBackend()
    made = codes(backend)
    assert not made.is_kept("d", b"code", SOON)
    assert backend.load_group(code_name("d")) is None
    assert made.is_kept("d", b"code", SOON)
    assert kept(backend, "d") == b"code"


def test_code_is_kept_for_longer_when_a_call_may_start_later() -> None:
    clock = [time.time()]
    backend = MemoryBackend(now=lambda: clock[0])
    made = codes(backend)
    for until in (SOON, SOON, SOON + 40 * 86_400):
        made.is_kept("d", b"code", until)
    clock[0] = SOON + 40 * 86_400 + LIVE_S
    assert kept(backend, "d") == b"code"


def test_code_that_was_lost_is_kept_again() -> None:
    lost, backend = MemoryBackend(), MemoryBackend()
    backends = [lost, backend]
    made = Codes(lambda: backends[0], SIGNER)
    for _ in range(2):
        made.is_kept("d", b"code", SOON)
    del backends[0]
    made.keep_again({"d", "never met"})
    assert kept(backend, "d") == b"code"


def test_code_that_was_not_met_for_long_is_forgotten_and_travels_again() -> None:
    made = codes(MemoryBackend())
    for number in range(MOST + 1):
        made.is_kept(str(number), b"code", SOON)
    assert not made.is_kept("0", b"code", SOON)


def test_code_under_another_name_or_key_is_not_believed() -> None:
    backend = MemoryBackend()
    made = codes(backend)
    for _ in range(2):
        made.is_kept("d", b"code", SOON)
    text = backend.load_group(code_name("d"))
    assert text is not None
    with pytest.raises(BadMessage, match="other code"):
        open_code(text, "e", SIGNER)
    with pytest.raises(BadMessage, match="signed with key"):
        open_code(text, "d", Signer(b"o" * 32))


def test_calls_of_one_function_name_its_code(shared_site: Site) -> None:
    factor = 3

    def scale(x: int) -> int:
        return factor * x

    task = shared_site.app.task(scale)
    client = shared_site.streams.client
    before = set(client.keys("nbq:group:code:*"))
    assert task.delay(1).get(timeout=10) == 3
    assert set(client.keys("nbq:group:code:*")) == before
    assert task.delay(2).get(timeout=10) == 6
    (name,) = set(client.keys("nbq:group:code:*")) - before
    assert client.pttl(name) > LIVE_S * 1000
    client.delete(name)  # as a server does that was started anew
    assert task.delay(3).get(timeout=10) == 9
    assert client.exists(name)
    with shared_site.app.pipeline():
        client.delete(name)
        results = [task.delay(n) for n in range(20)]
    assert [result.get(timeout=10) for result in results] == [3 * n for n in range(20)]


def test_what_a_function_refers_to_may_change_between_calls(shared_site: Site) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("factor = 1\ndef scale(x): return factor * x", names)
    task = shared_site.app.task(names["scale"], by_value=True)
    found = []
    for factor in (1, 1, 2, 2, 1):
        names["factor"] = factor
        found.append(task.delay(10).get(timeout=10))
    assert found == [10, 10, 20, 20, 10]


def test_call_whose_code_is_gone_fails_by_name(idle_site: Site) -> None:
    def work() -> None: ...

    task = idle_site.app.task(work)
    results = [task.delay() for _ in range(3)]
    client = idle_site.streams.client
    client.delete(*client.keys("nbq:group:code:*"))
    idle_site.worker()
    assert results[0].get(timeout=10) is None
    with pytest.raises(BlobMissing, match=r"the code of .*work is gone from the backend; send it again"):
        results[1].get(timeout=20)  # its sender might just be putting it there again
