from __future__ import annotations

import pytest

from nbqueue import App
from nbqueue.acks import DEFAULT_ACKS
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.limits import NO_LIMITS
from nbqueue.messages import Steering
from nbqueue.rates import Gates, per_second
from nbqueue.terms import Terms


def add(x: int, y: int) -> int:
    return x + y


def sent(**more: object) -> Steering:
    return Steering(id="i", nonce="n", task="add", queue="q", sent_at=0.0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "rate"),
    [(None, 0.0), (0, 0.0), ("0", 0.0), (5, 5.0), (0.5, 0.5), ("100/s", 100.0), ("30/m", 0.5), ("36/h", 0.01)],
)
def test_rate_is_read_as_celery_reads_it(value: float | str | None, rate: float) -> None:
    assert per_second(value) == pytest.approx(rate)


@pytest.mark.parametrize("value", ["ten a minute", "10/d", "-1", "10/", True, "1e3", "/m"])
def test_rate_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ImproperlyConfigured, match="10/m"):
        App(set_as_current=False).task(add, rate_limit=value)
    with pytest.raises(ImproperlyConfigured):
        App(set_as_current=False).conf.update(task_default_rate_limit=value)


@pytest.mark.parametrize("lock", [7, "x" * 201])
def test_lock_that_is_no_name_is_refused(lock: object) -> None:
    with pytest.raises(ImproperlyConfigured, match="lock must be a name"):
        App(set_as_current=False).task(add, lock=lock)


def test_call_has_the_gates_it_says_or_its_task_or_its_worker() -> None:
    app = App(set_as_current=False)
    terms = Terms(app.tasks, NO_LIMITS, DEFAULT_ACKS)
    assert terms.gates_of(sent()) is None
    assert terms.gates_of(sent(lock="own")) == Gates("", 0.0, "own")
    app.task(add, name="add", rate_limit="60/m", lock="its")
    assert terms.gates_of(sent()) == Gates("add", 1.0, "its")
    assert terms.gates_of(sent(lock="own", rate_limit=3.0)) == Gates("add", 3.0, "own")
    assert terms.gates_of(sent(code="digest")) is None, "a task that brings its code says it itself"
    assert Terms({}, NO_LIMITS, DEFAULT_ACKS, 2.0).gates_of(sent()) == Gates("add", 2.0, "")
    assert Terms({}, NO_LIMITS, DEFAULT_ACKS, 2.0, rates=False).gates_of(sent()) is None


def test_rate_that_was_set_for_all_workers_is_kept_for_what_says_another() -> None:
    terms = Terms({}, NO_LIMITS, DEFAULT_ACKS)
    terms.told_rates = {"add": 7.0}
    assert terms.gates_of(sent()) == Gates("add", 7.0, "")
    terms.told_rates = {"add": 0.0}
    assert terms.gates_of(sent(rate_limit=3.0)) is None
