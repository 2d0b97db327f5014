"""Retries: who asks for one, when it is due, and when there is none left."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from kombu import Exchange, Queue

from nbqueue import App, serialization, states
from nbqueue.exceptions import Ignore, ImproperlyConfigured, MaxRetriesExceededError, PayloadTooLarge, Reject, Retry
from nbqueue.execute import BoundTask, Executor, Loaded
from nbqueue.messages import Changes, Outcome, Steering, decode_again
from nbqueue.retries import DEFAULTS, Plan, RetryOptions, plan, planned_for
from tests.pools import child_task


class Call(SimpleNamespace):
    """A call as `plan` sees it."""

    def __init__(self, retries: int = 0, **options: Any) -> None:
        made = RetryOptions.of(**options)
        steering = Steering(id="1", nonce="n", task="demo", queue="q", sent_at=1.0, priority=3)
        super().__init__(
            task="demo",
            retries=retries,
            args=(1, 2),
            kwargs={"k": 3},
            retry_options=made,
            steering=steering,
            loaded=None,
        )

    def callee(self) -> Any:
        app = App("demo", set_as_current=False)
        news = Exchange("news", type="fanout")
        film = Queue("film", Exchange("media"), routing_key="moving")
        app.conf.update(task_queues=[Queue("q"), Queue("paper", news), Queue("radio", news), film])
        return SimpleNamespace(app=app)


class Mine(Exception):
    pass


def delay_s(planned: Plan | None) -> float:
    assert planned is not None
    return planned.due - time.time()


# ---- with what


def changes(**options: Any) -> Changes:
    found = plan(Call(), countdown=60, **options).changes
    assert found is not None
    return found


def test_retry_says_what_is_to_be_otherwise_and_nothing_else() -> None:
    assert plan(Call()).changes is None
    assert plan(Call(), expires=None, priority=None, queue=None, connection=object(), retry=True).changes is None
    assert changes(priority=0) == Changes(priority=0)
    assert changes(time_limit=5, soft_time_limit=4, memory_limit="1 KB") == Changes(
        time_limit=5.0, soft_time_limit=4.0, memory_limit=1000
    )
    assert changes(shadow="s", headers={"a": 1}, ignore_result=False, lock="l") == Changes(
        name="s", headers={"a": 1}, ignore_result=False, lock="l"
    )
    at = datetime.now(UTC) + timedelta(hours=1)
    assert changes(expires=at).expires == at.timestamp()
    assert changes(expires=30).expires == pytest.approx(time.time() + 30, abs=5)


def test_retry_goes_to_a_queue_or_to_what_is_bound_to_an_exchange() -> None:
    assert changes(queue="other") == Changes(queue="other")
    assert changes(exchange="media", routing_key="moving") == Changes(queue="film")
    with pytest.raises(ImproperlyConfigured, match=r"one message, and 'paper . radio' stands for several queues"):
        changes(exchange="news")


def test_arguments_of_a_retry_are_packed_anew_in_another_form() -> None:
    planned = plan(Call(), serializer="json", compression="zlib")
    assert (planned.call, planned.compression) == (((1, 2), {"k": 3}), "gzip")
    assert planned.changes == Changes(serializer="json")
    assert plan(Call(), priority=1).call is None


@pytest.mark.parametrize(
    ("option", "value", "error", "why"),
    [
        ("priority", 10, ImproperlyConfigured, "from 0 to 9"),
        ("time_limit", -1, ImproperlyConfigured, "time_limit must be"),
        ("serializer", "yml", ImproperlyConfigured, "cloudpickle, pickle, json"),
        ("headers", {"a": object()}, TypeError, "headers must be JSON"),
        ("shadow", 1, TypeError, "shadow must be a string"),
        ("expires", datetime(2030, 1, 1), ImproperlyConfigured, "no time zone"),  # noqa: DTZ001
        ("headers", {"a": "x" * 7_000}, PayloadTooLarge, "Not retried: .*shorten headers"),
    ],
)
def test_option_of_a_retry_that_can_not_be_used_is_named(
    option: str, value: Any, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        changes(**{option: value})


def test_soft_limit_of_a_retry_above_its_hard_one_is_refused() -> None:
    with pytest.raises(ValueError, match="demo has a soft_time_limit of 5 s, above its time_limit of 4 s"):
        changes(time_limit=4, soft_time_limit=5)


def test_call_of_a_canvas_keeps_its_value_for_what_follows() -> None:
    call = Call()
    call.steering = msgspec.structs.replace(call.steering, graph="g")
    with pytest.raises(TypeError, match="ignore_result of a call of a canvas"):
        plan(call, ignore_result=True)
    assert plan(call, ignore_result=False, priority=1).changes == Changes(priority=1, ignore_result=False)


def test_error_that_retries_by_itself_does_so_as_retry_kwargs_say() -> None:
    found = planned_for(Call(autoretry_for=(Mine,), retry_kwargs={"priority": 7, "countdown": 9}), Mine())
    assert found is not None
    assert found.changes == Changes(priority=7)


# ---- when


def test_retry_is_due_after_the_default_delay_when_nothing_is_said() -> None:
    assert delay_s(plan(Call())) == pytest.approx(180, abs=5)
    assert delay_s(plan(Call(default_retry_delay=20))) == pytest.approx(20, abs=5)


def test_retry_is_due_when_its_countdown_or_eta_says() -> None:
    assert delay_s(plan(Call(), countdown=60)) == pytest.approx(60, abs=5)
    assert delay_s(plan(Call(), eta=datetime.now(UTC) + timedelta(seconds=90))) == pytest.approx(90, abs=5)
    assert plan(Call(), countdown=0).due == 0.0


@pytest.mark.parametrize(("retries", "delay"), [(0, 2.0), (1, 4.0), (4, 32.0), (5, 50.0), (2_000, 50.0)])
def test_backoff_doubles_up_to_its_maximum(retries: int, delay: float) -> None:
    options = RetryOptions.of(retry_backoff=2, retry_backoff_max=50, retry_jitter=False)
    assert options.backoff_s(retries) == delay


def test_backoff_is_drawn_below_its_value_when_it_jitters() -> None:
    delays = [RetryOptions.of(retry_backoff=True).backoff_s(3) for _ in range(200)]
    assert 0 <= min(delays) < 2
    assert 6 < max(delays) <= 8


# ---- whether


def test_error_is_raised_when_no_retries_are_left() -> None:
    error = Mine()
    with pytest.raises(Mine) as caught:
        plan(Call(retries=3), exc=error)
    assert caught.value is error
    with pytest.raises(MaxRetriesExceededError, match="demo has been retried 3 times"):
        plan(Call(retries=3))
    assert plan(Call(retries=3), max_retries=4).max_retries == 4
    assert plan(Call(retries=1_000, max_retries=None)).max_retries is None


def test_errors_retry_by_themselves_when_the_task_says_so() -> None:
    call = Call(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,), retry_kwargs={"countdown": 7})
    assert delay_s(planned_for(call, PermissionError())) == pytest.approx(7, abs=5)
    assert planned_for(call, FileNotFoundError()) is None
    assert planned_for(call, ValueError()) is None
    assert planned_for(Call(autoretry_for=Exception), Ignore()) is None
    assert planned_for(Call(autoretry_for=Exception), Reject()) is None


def test_arguments_stay_unless_others_are_given() -> None:
    assert plan(Call()).call is None
    assert plan(Call(), args=[5]).call == ((5,), {"k": 3})
    assert plan(Call(), kwargs={}).call == ((1, 2), {})


@pytest.mark.parametrize(
    "wrong",
    [{"max_retries": -1}, {"max_retries": 1.5}, {"autoretry_for": ("x",)}, {"retry_backoff": "a"}],
)
def test_options_that_can_not_be_used_are_refused_and_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match=next(iter(wrong))):
        RetryOptions.of(**wrong)


# ---- in a child


def run(function: Any, *, retries: int = 0, options: RetryOptions = DEFAULTS, bind: bool = True) -> Outcome:
    registry = SimpleNamespace(tasks={"demo": SimpleNamespace(loaded=Loaded(function, options))})
    task, _ = child_task("demo", bind=bind)
    task.retries = retries
    return Executor(lambda *_: None, [registry]).execute(task)


def test_outcome_holds_the_error_and_the_new_call_when_a_task_retries() -> None:
    def work(self: BoundTask) -> None:
        try:
            raise Mine("busy")
        except Mine as exc:
            raise self.retry(exc=exc, countdown=60, args=("other",)) from exc

    outcome = run(work)
    assert (outcome.state, outcome.error) == (states.RETRY, "Mine: busy")
    again = decode_again(outcome.body)
    assert again.max_retries == 3
    assert again.args is not None
    assert serialization.loads_args(again.args) == (("other",), {})


def test_retry_counts_when_it_was_not_raised() -> None:
    def work(self: BoundTask) -> str:
        return str(self.retry(throw=False, countdown=5, exc=Mine("soon")))

    assert run(work).state == states.RETRY


def test_retry_counts_when_the_task_swallows_it() -> None:
    def work(self: BoundTask) -> str:
        try:
            self.retry(countdown=5, exc=Mine("soon"))
        except Exception as exc:
            raise Mine("something else") from exc
        return "done"

    outcome = run(work)
    assert (outcome.state, outcome.error) == (states.RETRY, "Mine: soon")


def test_retry_raised_by_hand_is_one() -> None:
    def work() -> None:
        raise Retry("not yet", when=5)

    outcome = run(work, bind=False)
    assert (outcome.state, outcome.error) == (states.RETRY, "Retry: not yet")


def test_task_fails_with_its_error_when_its_retries_are_used_up() -> None:
    def work() -> None:
        raise Mine("still busy")

    options = RetryOptions.of(autoretry_for=(Mine,), max_retries=2)
    assert run(work, retries=1, options=options, bind=False).state == states.RETRY
    outcome = run(work, retries=2, options=options, bind=False)
    assert (outcome.state, outcome.error) == (states.FAILURE, "Mine: still busy")


def test_task_fails_when_the_arguments_of_its_retry_can_not_travel() -> None:
    import threading

    def work(self: BoundTask) -> None:
        self.retry(args=(threading.Lock(),))

    outcome = run(work)
    assert outcome.state == states.FAILURE
    assert "NotPicklable" in outcome.error


@pytest.mark.parametrize(
    ("error", "state", "body"),
    [
        (Ignore("not today"), states.IGNORED, b""),
        (Reject("not mine"), states.REJECTED, b""),
        (Reject("not here", requeue=True), states.REJECTED, b"requeue"),
    ],
)
def test_task_ends_as_it_says_when_it_ignores_or_rejects(error: Exception, state: str, body: bytes) -> None:
    def work() -> None:
        raise error

    outcome = run(work, bind=False)
    assert (outcome.state, outcome.body, outcome.error) == (state, body, str(error))


def test_task_called_here_raises_its_error_instead_of_being_retried() -> None:
    app = App("demo", broker="redis+socket:///nowhere", set_as_current=False)

    @app.task(bind=True, max_retries=7)
    def work(self: Any) -> None:
        assert self.max_retries == 7
        self.retry(exc=Mine("now"))

    with pytest.raises(Mine, match="now"):
        work()
