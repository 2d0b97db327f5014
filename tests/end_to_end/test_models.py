"""Pydantic models on their way to a worker and back, by name and by value."""

from __future__ import annotations

from typing import Any

import pytest

from nbqueue import App, chord
from tests.modelled import Order, pay, pay_later
from tests.test_serialization import cell
from tests.workers import Site

pytestmark = pytest.mark.brokers

PAID = {"number": 2, "paid": True}


def in_json(site: Site) -> App:
    site.worker("-I", "tests.modelled", CELERY_CONFIG_MODULE="tests.json_content")
    app = site.new_app(by_value=False)
    app.conf.update(task_serializer="json", result_serializer="json", accept_content=["json"])
    return app


def test_models_go_by_name_in_json_and_are_models_in_the_worker(idle_site: Site) -> None:
    app = in_json(idle_site)
    task, later = app.share(pay), app.share(pay_later)
    assert task.delay(Order(number=1)).get(timeout=20) == PAID
    assert task.delay({"number": 1}).get(timeout=20) == PAID
    assert task.map([Order(number=1), Order(number=2)]).get(timeout=20) == [PAID, {"number": 3, "paid": True}]
    assert (task.s(Order(number=1)) | task.s("again")).apply_async().get(timeout=20) == {"number": 3, "paid": True}
    assert later.delay(Order(number=1)).get(timeout=20) == {"number": 11, "paid": False}
    assert later.delay().get(timeout=20) is None
    with pytest.raises(Exception, match=r"too many for tests\.modelled\.pay of project"):
        task.delay({"number": 101}).get(timeout=20)
    app.close()


def test_models_of_a_notebook_travel_with_its_functions(shared_site: Site) -> None:
    names: dict[str, Any] = cell(
        "from __future__ import annotations\n"
        "from pydantic import BaseModel\n"
        "class Item(BaseModel):\n"
        "    x: int\n"
        "def twice(item: Item) -> Item:\n"
        "    return type(item)(x=2 * item.x)\n"
        "def total(items: list, extra: Item) -> int:\n"
        "    return sum(item['x'] for item in items) + extra.x\n"
    )
    app, item = shared_site.app, names["Item"]
    twice = app.task(names["twice"], pydantic=True)
    total = app.task(names["total"], pydantic=True)
    assert twice.by_value
    assert twice.delay(item(x=2)).get(timeout=20) == {"x": 4}
    assert twice.apply_async(({"x": "3"},), serializer="json").get(timeout=20) == {"x": 6}
    assert (twice.s(item(x=1)) | twice.s()).apply_async().get(timeout=20) == {"x": 4}
    assert chord([twice.s(item(x=1)), twice.s({"x": 2})])(total.s(extra={"x": 100})).get(timeout=20) == 106
    with pytest.raises(Exception, match="valid integer"):
        twice.delay({"x": "three"}).get(timeout=20)
