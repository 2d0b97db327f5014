"""Pydantic models as arguments and values of tasks. The annotations of this module are texts."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Optional

import cloudpickle
import pytest
from pydantic import BaseModel, ValidationError

from nbqueue import App, Task, serialization
from nbqueue.current import set_current_app
from nbqueue.exceptions import ImproperlyConfigured, NotPicklable
from nbqueue.payloads import Packer
from tests.modelled import Large, Order, pay
from tests.test_serialization import cell, run_elsewhere

if TYPE_CHECKING:
    from decimal import Decimal


@pytest.fixture
def app() -> App:
    """Return an app that nothing is sent through."""
    return App("demo", broker="redis+socket:///nowhere", set_as_current=False)


def kind(order: Order, *rest: Any, other: Optional[Order] = None, price: Decimal | None = None) -> list[str]:  # noqa: UP045
    return [type(value).__name__ for value in (order, *rest, other, price)]


def echo(value: Any) -> Order:
    return value  # type: ignore[no-any-return]


def test_arguments_are_made_the_models_that_they_are_annotated_with(app: App) -> None:
    task = app.task(kind, pydantic=True)
    one = {"number": "1"}
    assert task(one, one, other=one, price=None) == ["Order", "dict", "Order", "NoneType"]
    assert task(Order(number=1), other=None) == ["Order", "NoneType", "NoneType"]
    assert task(Large(number=1)) == ["Large", "NoneType", "NoneType"]
    assert task.apply(({"number": 1},)).get() == ["Order", "NoneType", "NoneType"]
    assert app.task(kind, name="plain")(one) == ["dict", "NoneType", "NoneType"]
    with pytest.raises(ValidationError, match="number"):
        task({"number": "one"})
    with pytest.raises(TypeError, match="missing a required argument: 'order'"):
        task.delay()


def test_nothing_is_converted_when_models_are_strict(app: App) -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        app.task(kind, pydantic=True, pydantic_strict=True)({"number": "1"})


def test_value_is_dumped_where_it_is_the_model_that_was_promised(app: App) -> None:
    task = app.task(echo, pydantic=True)
    assert task(Order(number=1)) == {"number": 1, "paid": False}
    assert task("no model") == "no model"
    assert app.task(echo, name="brief", pydantic=True, pydantic_dump_kwargs={"exclude_unset": True})(
        Order(number=1)
    ) == {"number": 1}

    async def later(order: Order) -> Order:
        return order

    assert asyncio.run(app.task(later, name="later", pydantic=True)({"number": 2}))["number"] == 2


def test_validators_know_app_task_and_what_was_said_besides(app: App) -> None:
    task = app.task(kind, name="kind", pydantic=True, pydantic_context={"most": 5})
    with pytest.raises(ValidationError, match="too many for kind of demo"):
        task({"number": 6})


def test_model_that_is_defined_below_its_task_is_found(app: App) -> None:
    names = cell(
        "from __future__ import annotations\n"
        "from pydantic import BaseModel\n"
        "def below(item: Item) -> str: return type(item).__name__\n"
        "class Item(BaseModel): x: int\n"
    )
    task = app.task(names["below"], pydantic=True)
    assert task({"x": 1}) == "Item"


def test_models_travel_with_a_function_that_names_them_in_annotations_alone(app: App) -> None:
    names = cell(
        "from __future__ import annotations\n"
        "from pydantic import BaseModel\n"
        "class Item(BaseModel): x: int\n"
        "def far(item: Item) -> str:\n"
        "    return type(item).__name__ + str(item.x)\n"
    )
    task = app.task(names["far"], pydantic=True)
    assert task.by_value
    code, _ = task.packed(Packer())
    assert run_elsewhere(code, "print(run({'x': '7'}))").strip() == "Item7"
    assert "return type(item)" in "".join(serialization.sources_of(task.function).values())


def test_task_with_models_is_the_same_after_it_travelled(app: App) -> None:
    set_current_app(app)
    try:
        task = app.task(kind, name="kind", pydantic=True, pydantic_context={"most": 5}, by_value=True)
        travelled = cloudpickle.loads(cloudpickle.dumps(task))
        assert travelled({"number": 1}) == task({"number": 1})
        with pytest.raises(ValidationError, match="too many for kind of demo"):
            travelled({"number": 6})
        assert inspect.signature(travelled.s({"number": 1}).type) == inspect.signature(kind)
    finally:
        set_current_app(None)


class Patient(Task):
    """A class of tasks."""


def test_class_of_tasks_may_have_models(app: App) -> None:
    task = app.task(kind, base=Patient, pydantic=True, name="other")
    assert isinstance(cloudpickle.loads(cloudpickle.dumps(task)), Patient)
    assert task({"number": 1})[0] == "Order"


def packed(task: Task, *args: Any, serializer: str = "json", **kwargs: Any) -> Any:
    data = task.dumps_args(args, kwargs, serializer, Packer())
    found, named = serialization.loads_args(data, serializer)
    return [*found, named]


def test_models_are_sent_as_what_they_are_made_of_again(app: App) -> None:
    task = app.task(kind, pydantic=True)
    one = Order(number=1)
    plain = {"number": 1, "paid": False}
    assert packed(task, one, other=one) == [plain, {"other": plain}]
    assert packed(task, one, serializer="cloudpickle") == [one, {}]
    with pytest.raises(NotPicklable, match="Large"):  # not the same once it is an Order
        packed(task, Large(number=1))
    with pytest.raises(NotPicklable, match="Order"):  # nobody would make it one again
        packed(task, one, one)
    with pytest.raises(NotPicklable, match="Order"):
        packed(app.task(kind, name="plain"), one)


def test_bound_task_has_its_models_one_place_further(app: App) -> None:
    def bound(self: Any, order: Order) -> str:
        return f"{self.name} {type(order).__name__}"

    task = app.task(bound, name="bound", bind=True, pydantic=True)
    assert packed(task, Order(number=1)) == [{"number": 1, "paid": False}, {}]
    assert task({"number": 1}) == "bound Order"


def test_package_that_is_missing_is_named(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(ImproperlyConfigured, match=r"kind needs the package pydantic: pip install pydantic"):
        app.task(kind, pydantic=True)
    assert app.task(kind, name="plain").name == "plain"


def test_what_can_not_be_a_task_is_refused_with_models_too(app: App) -> None:
    def several(order: Order) -> Any:
        yield order

    refused: list[Callable[..., Any]] = [several, BaseModel.model_dump]
    for run in refused:
        with pytest.raises(TypeError, match=r"is a generator|is a method"):
            app.task(run, pydantic=True)
    with pytest.raises(TypeError, match="no option pydantic_frobnicate"):
        app.task(kind, pydantic_frobnicate=1)


def test_shared_task_takes_models(app: App) -> None:
    assert pay.options["pydantic"]
    set_current_app(app)
    try:
        assert pay({"number": 1}) == {"number": 2, "paid": True}
        assert json.loads(json.dumps(pay.apply((Order(number=3),)).get())) == {"number": 4, "paid": True}
    finally:
        set_current_app(None)
