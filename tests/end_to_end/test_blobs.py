"""Large data on its way: between processes that share files, and between such as don't."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbqueue.exceptions import BlobMissing
from nbqueue.payloads import Ref
from tests.helpers import RedisServer, wait_until
from tests.workers import Site

LARGE = 300_000  # 2.4 MB of float64: three parts


@pytest.fixture
def two_machines(tmp_path: Path) -> Iterator[Site]:
    """Yield a server whose worker shares no files with the app."""
    with RedisServer() as server, Site(server) as site:
        site.worker(home=tmp_path / "elsewhere")
        yield site


def doubled(array: Any) -> Any:
    array *= 2  # what arrives may be written to
    return array


def files(site: Site, size_bytes: int) -> list[Path]:
    found = [path for path in site.app.link.blobs.glob("*/*") if not path.name.startswith(".")]
    return [path for path in found if path.stat().st_size == size_bytes]


@pytest.mark.parametrize("site", ["shared_site", "two_machines"])
def test_array_goes_there_and_comes_back_changed(site: str, request: pytest.FixtureRequest) -> None:
    app = request.getfixturevalue(site).app
    array = np.arange(LARGE, dtype=float)
    back = app.task(doubled).delay(array).get(timeout=20)
    assert (back == 2 * array).all()
    back += 1  # and what comes back too
    assert array[1] == 1.0


@pytest.mark.parametrize("site", ["shared_site", "two_machines"])
def test_map_sends_what_its_calls_share_once(site: str, request: pytest.FixtureRequest) -> None:
    found: Site = request.getfixturevalue(site)
    array = np.random.default_rng().random(LARGE)
    before = len(files(found, array.nbytes))

    def part(whole: Any, n: int) -> float:
        return float(whole[n])

    task = found.app.task(part)
    assert task.starmap((array, n) for n in range(40)).get(timeout=30) == array[:40].tolist()
    assert len(files(found, array.nbytes)) == before + 1


@pytest.mark.parametrize("site", ["shared_site", "two_machines"])
def test_function_brings_along_the_array_it_reads(site: str, request: pytest.FixtureRequest) -> None:
    array = np.arange(LARGE)

    def total() -> int:
        return int(array.sum())

    assert request.getfixturevalue(site).app.task(total).delay().get(timeout=20) == LARGE * (LARGE - 1) // 2


def test_messages_stay_small_whatever_they_name(shared_site: Site) -> None:
    result = shared_site.app.task(doubled).delay(np.arange(LARGE))
    result.get(timeout=20)
    record = shared_site.app.backend.load([result.id])[0]
    assert record is not None
    assert len(record) < 2_000


def test_data_that_is_gone_everywhere_is_a_named_failure(idle_site: Site) -> None:
    result = idle_site.app.task(doubled).delay(np.arange(LARGE))
    shutil.rmtree(idle_site.app.link.blobs)
    for key in idle_site.server.client().keys("nbq:blob:*"):
        idle_site.server_says("DEL", key)
    worker = idle_site.worker()
    with pytest.raises(BlobMissing, match=r"a part of .* is gone"):
        result.get(timeout=20)
    assert idle_site.app.task(doubled).delay(2).get(timeout=20) == 4
    worker.kill()


def test_file_that_is_gone_is_fetched_from_the_backend_again(idle_site: Site) -> None:
    result = idle_site.app.task(doubled).delay(np.arange(LARGE))
    shutil.rmtree(idle_site.app.link.blobs)
    idle_site.worker()
    assert result.get(timeout=20)[1] == 2
    shutil.rmtree(idle_site.app.link.blobs)
    assert idle_site.new_app().AsyncResult(result.id).get(timeout=20)[1] == 2


def test_worker_removes_what_nobody_names_any_more(idle_site: Site) -> None:
    store = idle_site.app.blobs.store
    ref = Ref("a" * 64, 1)
    unfinished = store.begin(ref, 1.0)
    unfinished.write(b"x")
    unfinished.commit()
    assert store.keep(ref, 0.0)
    idle_site.worker()
    wait_until(lambda: not store.keep(ref, 0.0), 20, "the file to be removed")


def test_large_data_comes_while_the_server_goes_away_and_returns(tmp_path: Path) -> None:
    with RedisServer(appendonly=True) as server, Site(server) as site:
        result = site.app.task(doubled).delay(np.ones(4_000_000))
        site.worker(home=tmp_path / "elsewhere")
        wait_until(lambda: list((tmp_path / "elsewhere").glob("**/.*")) or result.ready(), 20, "the data to come")
        server.kill()
        server.start()
        assert result.get(timeout=40).sum() == 8_000_000
