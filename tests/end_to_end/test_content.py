"""Arguments and values in every form, and what a worker refuses to load."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from nbqueue import App, contents
from nbqueue.exceptions import ContentDisallowed
from tests.workers import Site

pytestmark = pytest.mark.brokers


def twice(x: Any) -> Any:
    return {"twice": [x, x]}


def bad(x: Any) -> None:
    raise ValueError("bad", x)


def app_of(site: Site, **settings: Any) -> App:
    app = site.new_app()
    app.conf.update(settings)
    return app


def test_every_form_goes_to_a_worker_and_back(idle_site: Site) -> None:
    idle_site.worker(CELERY_CONFIG_MODULE="tests.any_content")
    waiting = []
    apps = []
    for serializer in contents.SERIALIZERS:
        app = app_of(
            idle_site, accept_content=contents.SERIALIZERS, task_serializer=serializer, result_serializer=serializer
        )
        apps.append(app)
        for compression in contents.COMPRESSIONS:
            app.conf.result_compression = compression
            task = app.task(twice, name=f"twice.{serializer}.{compression}")
            waiting.append(task.apply_async(("é" * 5_000,), compression=compression))
    for result in waiting:
        assert result.get(timeout=30) == {"twice": ["é" * 5_000, "é" * 5_000]}
    chained = apps[2].task(twice).s(1) | apps[2].task(twice).s()
    assert chained.apply_async().get(timeout=20) == {"twice": [{"twice": [1, 1]}, {"twice": [1, 1]}]}
    assert apps[3].task(twice).map([1, 2], compression="gzip").get(timeout=20)[1] == {"twice": [2, 2]}
    for app in apps:
        app.close()


def test_worker_of_json_refuses_pickles_and_tells_who_waits(idle_site: Site) -> None:
    idle_site.worker(CELERY_CONFIG_MODULE="tests.json_content")
    with pytest.raises(ContentDisallowed, match=r"worker w.*content in cloudpickle is refused; accept_content is json"):
        idle_site.app.task(twice).delay(1).get(timeout=20)
    results = idle_site.app.task(twice).map([1, 2])
    with pytest.raises(ContentDisallowed):
        results.get(timeout=20)
    app = app_of(idle_site, accept_content=["json"])
    assert app.send_task("tests.project.add", (1, 2)).get(timeout=20) == 3
    with pytest.raises(ContentDisallowed, match="content in pickle is refused"):
        app.send_task("tests.project.add", (1, 2), serializer="pickle").get(timeout=20)
    with pytest.raises(TypeError, match="said in json"):
        app.send_task("tests.project.odd").get(timeout=20)
    with pytest.raises(ConnectionError, match="no way out"):
        app.send_task("tests.project.stuck").get(timeout=20)
    app.close()


def test_value_that_is_not_accepted_is_not_loaded(shared_site: Site) -> None:
    result = shared_site.app.task(twice).delay(1)
    assert result.get(timeout=20) == {"twice": [1, 1]}
    failed = shared_site.app.task(bad).delay(1)
    failed.get(timeout=20, propagate=False)
    wary = app_of(shared_site, result_accept_content=["json"])
    with pytest.raises(ContentDisallowed, match="content in cloudpickle is refused"):
        wary.AsyncResult(result.id).get(timeout=20)
    with pytest.raises(ValueError, match="bad"):
        wary.AsyncResult(failed.id).get(timeout=20)
    wary.close()


def test_clients_of_celery_read_values_in_json(shared_site: Site) -> None:
    app = app_of(shared_site, result_serializer="json")
    result = app.task(twice).delay("é")
    assert result.get(timeout=20) == {"twice": ["é", "é"]}
    theirs = Celery(backend="cache+memory://")
    stored = shared_site.server_says("GET", f"celery-task-meta-{result.id}")
    assert isinstance(stored, bytes)
    assert theirs.backend.decode_result(stored)["result"] == {"twice": ["é", "é"]}
    app.close()
