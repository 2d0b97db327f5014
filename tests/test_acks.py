from __future__ import annotations

from typing import Any

import pytest

from nbqueue import App
from nbqueue.acks import DEFAULT_ACKS, Acks
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.limits import NO_LIMITS
from nbqueue.messages import Steering
from nbqueue.payloads import Packer
from nbqueue.terms import Terms


def add(x: int, y: int) -> int:
    return x + y


def steering(app: App, *, by_value: bool = False, **options: Any) -> Steering:
    return app.task(add, name="add", by_value=by_value, **options).steering_of(Packer(), ((), {}), {})[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"acks_late": True}, Acks(late=True)),
        ({"acks_late": False}, Acks(late=False)),
        ({"reject_on_worker_lost": False}, Acks(again=False)),
        ({"retry_on_worker_lost": True}, Acks(retry=True)),
        ({"acks_on_failure_or_timeout": False}, Acks(on_failure=False, on_timeout=False)),
        ({"acks_on_failure_or_timeout": False, "acks_on_timeout": True}, Acks(on_failure=False, on_timeout=True)),
    ],
)
def test_message_of_a_task_by_name_says_what_its_task_does(options: dict[str, Any], said: Acks | None) -> None:
    assert steering(App(set_as_current=False), **options).acks == said


def test_settings_of_an_app_travel_with_its_code_and_not_with_names() -> None:
    app = App(set_as_current=False)
    assert steering(app, by_value=True).acks is None
    app.conf.update(task_acks_late=False, task_reject_on_worker_lost=False)
    assert steering(app).acks is None
    sent = steering(app, by_value=True, reject_on_worker_lost=True).acks
    assert sent == Acks(late=False, on_failure=True, on_timeout=True, again=True)


def test_settings_of_failures_and_of_time_outs_win_over_the_one_for_both() -> None:
    app = App(set_as_current=False)
    app.conf.CELERY_ACKS_ON_FAILURE_OR_TIMEOUT = False
    assert app.defaults.acks == Acks(True, False, False, True)
    app.conf.update(task_acks_on_failure=True)
    assert app.defaults.acks == Acks(True, True, False, True)
    with pytest.raises(ImproperlyConfigured, match="task_acks_on_timeout must be True or False, not 1"):
        app.conf.update(task_acks_on_timeout=1)


def test_option_that_is_no_truth_value_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="acks_late must be True or False, not 'no'"):
        App(set_as_current=False).task(add, acks_late="no")


def test_call_says_it_before_its_task_and_that_before_the_worker() -> None:
    app = App(set_as_current=False)
    app.task(add, name="add", acks_late=False)
    terms = Terms(app.tasks, NO_LIMITS, Acks(late=True, on_failure=True, on_timeout=True, again=False))
    sent = Steering(id="i", nonce="n", task="add", queue="q", sent_at=0.0)
    assert terms.acks_of(sent) == Acks(late=False, on_failure=True, on_timeout=True, again=False)
    own = Steering(id="i", nonce="n", task="add", queue="q", sent_at=0.0, acks=Acks(late=True))
    assert terms.acks_of(own).late
    other = Steering(id="i", nonce="n", task="add", queue="q", sent_at=0.0, code="digest")
    assert terms.acks_of(other).late, "what has a worker's name, and brings its code, is no task of the worker's"
    assert Terms({}, NO_LIMITS, DEFAULT_ACKS).acks_of(sent) is DEFAULT_ACKS


def test_loss_of_a_child_is_retried_as_the_task_says_wherever_that_was_said() -> None:
    app = App(set_as_current=False)
    task = app.task(add, name="add", max_retries=7, default_retry_delay=5)
    terms = Terms(app.tasks, NO_LIMITS, Acks(True, True, True, True, retry=True))
    sent = Steering(id="i", nonce="n", task="add", queue="q", sent_at=0.0)
    assert terms.acks_of(sent).retries == (True, 7, 5.0)
    task.retry_on_worker_lost = False
    assert not terms.acks_of(sent).retry
    task.retry_on_worker_lost = True
    assert Terms(app.tasks, NO_LIMITS, Acks()).acks_of(sent).retries == (True, 7, 5.0)
    own = steering(app, by_value=True, retry_on_worker_lost=True, max_retries=2).acks
    assert own is not None
    assert own.retries == (True, 2, 180.0)
    app.conf.task_retry_on_worker_lost = True
    own = steering(app, by_value=True, max_retries=None).acks
    assert own is not None
    assert own.retries == (True, None, 180.0)
    own = steering(app, by_value=True, retry_on_worker_lost=False).acks
    assert own is not None
    assert not own.retry
