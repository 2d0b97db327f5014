from __future__ import annotations

from typing import Any

import pytest

from nbqueue import App, chain
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.messages import encode_steering, pending_facts, sign_record
from nbqueue.payloads import Packer
from nbqueue.signing import Signer


@pytest.fixture
def app() -> App:
    """Return an app that nothing is sent through."""
    return App("demo", broker="redis+socket:///nowhere", set_as_current=False)


def add(x: int, y: int = 1) -> int:
    return x + y


def test_task_runs_here_when_it_is_called(app: App) -> None:
    task = app.task(add)
    assert task(40, y=2) == 42
    assert vars(task)["__name__"] == "add"


def test_task_is_named_after_its_module_and_known_to_its_app(app: App) -> None:
    task = app.task(add)
    assert task.name == "tests.test_tasks.add"
    assert app.tasks[task.name] is task
    assert app.task(add, name="other").name == "other"


def test_functions_of_scripts_travel_by_value_and_those_of_modules_by_name(app: App) -> None:
    assert not app.task(add).by_value
    assert app.task(add, by_value=True).by_value
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(): pass", scope)
    assert app.task(scope["f"]).by_value


def test_arguments_that_do_not_fit_are_refused_where_the_call_is_made(app: App) -> None:
    with pytest.raises(TypeError, match=r"tests\.test_tasks\.add.*missing a required argument: 'x'"):
        app.task(add).delay()
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        app.task(add).delay(1, z=2)
    with pytest.raises(TypeError, match="too many positional arguments"):
        app.task(add).delay(1, 2, 3)
    with pytest.raises(TypeError, match=r"missing a required .*argument: 'only'"):
        app.task(lambda x, *, only: (x, only), name="only").delay(1)


def test_options_that_do_not_exist_are_named(app: App) -> None:
    with pytest.raises(TypeError, match="no option priorty"):
        app.task(add, priorty=1)
    with pytest.raises(TypeError, match="no option countdwn"):
        app.task(add).apply_async((1,), countdwn=1)
    with pytest.raises(TypeError, match="no option task_id"):
        app.task(add).map([1], task_id="x")


def test_serializer_that_does_not_exist_names_those_that_do(app: App) -> None:
    with pytest.raises(ImproperlyConfigured, match="cloudpickle, pickle, json"):
        app.task(add).apply_async((1,), serializer="yml")


def test_what_a_call_does_not_say_takes_no_room_in_its_message(app: App) -> None:
    steering, _ = app.task(add)._steering(Packer())
    text = encode_steering(steering)
    for field in (b'"eta"', b'"time_limit"', b'"soft_time_limit"', b'"memory_limit"', b'"priority"', b'"retries"'):
        assert field not in text
    assert b'"eta"' not in sign_record(pending_facts(steering), b"", Signer(b"k" * 32))


def test_limit_that_would_be_told_after_the_end_is_refused(app: App) -> None:
    task = app.task(soft_time_limit=20)(lambda: None)
    with pytest.raises(ValueError, match="soft_time_limit of 20 s, above its time_limit of 10 s"):
        task.apply_async(time_limit=10)
    with pytest.raises(ValueError, match="soft_time_limit of 30 s"):
        chain(task.s().set(soft_time_limit=30, time_limit=20), task.si()).apply_async()
