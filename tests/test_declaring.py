"""How an app gets its tasks, and what it refuses."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from nbqueue import App, Task, current_app, shared_task
from nbqueue.app import app_or_default
from nbqueue.current import set_current_app
from nbqueue.exceptions import ImproperlyConfigured, NotPicklable, Retry
from nbqueue.extras import EXTRAS, IDLE
from nbqueue.log import get_task_logger
from nbqueue.request import Request
from nbqueue.tasks import OPTIONS
from nbqueue.utils.log import get_task_logger as celerys


@pytest.fixture
def app() -> App:
    """Return an app that nothing is sent through."""
    return App("demo", broker="redis+socket:///nowhere", set_as_current=False)


@pytest.fixture
def made_current(app: App) -> Iterator[App]:
    """Return an app that is the current one."""
    set_current_app(app)
    yield app
    set_current_app(None)


def add(x: int, y: int = 1) -> int:
    return x + y


class Patient(Task):
    """A class of tasks with options as attributes."""

    max_retries = 7
    autoretry_for = (OSError,)
    time_limit = 5
    priority = 4
    acks_late = False
    tenant = "nobody"


def test_attributes_of_a_class_are_options_and_those_given_win(app: App) -> None:
    task = app.task(add, base=Patient, time_limit=9, tenant="me")
    assert isinstance(task, Patient)
    assert (task.max_retries, task.time_limit, task.priority, task.tenant) == (7, 9, 4, "me")
    assert task.retry_options.autoretry_for == (OSError,)
    assert task.acks is not None
    assert task.acks.late is False
    assert task(1, 2) == 3


def test_options_may_be_set_later_and_are_checked_then(app: App) -> None:
    task = app.task(add)
    task.max_retries = 1
    task.priority = 9
    assert (task.retry_options.max_retries, task._steering(_packer())[0].priority) == (1, 9)
    with pytest.raises(ImproperlyConfigured, match="max_retries"):
        task.max_retries = -1


def _packer() -> Any:
    from nbqueue.payloads import Packer

    return Packer()


def test_app_has_a_class_for_all_its_tasks(app: App) -> None:
    assert app.Task is Task
    app.Task = Patient
    assert isinstance(app.task(add), Patient)
    assert isinstance(App("b", task_cls=Patient, set_as_current=False).task(add), Patient)
    with pytest.raises(TypeError, match=r"derived from nbqueue\.Task"):
        app.task(add, base=int)


def test_class_of_tasks_is_registered_as_a_class_or_as_an_object(app: App) -> None:
    class Naive(Task):
        def __init__(self) -> None:
            self.users = {"george": 1}

        def run(self, user: str) -> int:
            return self.users[user]

    task = app.register_task(Naive())
    assert app.tasks[task.name] is task
    assert task.name.endswith("Naive")
    assert task("george") == task.run("george") == 1
    assert app.register_task(Naive, name="short").name == "short"
    with pytest.raises(TypeError, match="missing a required argument: 'user'"):
        task.delay()
    with pytest.raises(TypeError, match="no method run"):
        app.register_task(Patient)
    with pytest.raises(TypeError, match=r"derived from nbqueue\.Task"):
        app.register_task(add)  # type: ignore[arg-type]


def test_task_with_its_class_survives_the_way_to_a_worker(app: App) -> None:
    task = cloudpickle.loads(cloudpickle.dumps(app.task(add, base=Patient, name="far", queue="q")))
    assert isinstance(task, Patient)
    assert (task.name, task.queue, task.max_retries, task(1)) == ("far", "q", 7, 2)


def test_hooks_may_be_given_as_options(app: App) -> None:
    seen: list[Any] = []

    def told(self: Task, retval: Any, *_: Any) -> None:
        seen.append((self.name, retval))

    app.task(add, name="hooked", on_success=told).apply((1, 2))
    assert seen == [("hooked", 3)]


class Things:
    def method(self, x: int) -> int:
        return x

    @staticmethod
    def static(x: int) -> int:
        return x


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (Things.method, "is a method"),
        (Things.__dict__["static"], "plain function"),
        (Things, "register_task"),
        (lambda: (yield 1), "is a generator"),
        (functools.partial(add, 1), "no name of its own"),
    ],
)
def test_what_can_not_be_a_task_is_refused_with_what_to_do(app: App, run: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        app.task(run)


def test_checking_of_arguments_may_be_turned_off(app: App) -> None:
    for task in (app.task(add, typing=False), App("b", strict_typing=False, set_as_current=False).task(add)):
        task._check_arguments((1, 2, 3), {})
    with pytest.raises(TypeError, match="too many"):
        App("b", strict_typing=False, set_as_current=False).task(add, typing=True)._check_arguments((1, 2, 3), {})


def test_name_that_is_shown_may_be_made_of_the_arguments(app: App) -> None:
    def shown(self: Task, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]) -> str:
        return f"{self.name} {args[0]}"

    task = app.task(add, shadow_name=shown)
    assert task._shadows
    assert task.shadow_name((5,), {}, {}) == f"{task.name} 5"


def test_options_are_those_that_classes_may_have() -> None:
    assert [name for name in OPTIONS if not hasattr(Task, name)] == []


def test_shared_task_is_one_of_every_app(made_current: App) -> None:
    before = App("before", set_as_current=False)

    @shared_task(name="shared.one", bind=True)
    def one(self: Task, x: int) -> str:
        return f"{self.name} {x}"

    after = App("after", set_as_current=False)
    for app in (before, made_current, after):
        assert app.tasks["shared.one"].app is app
    assert one(3) == "shared.one 3"
    assert one.s(1).task == "shared.one"
    assert one.app is made_current
    set_current_app(after)
    assert one.app is after
    assert current_app.main == "after"
    assert current_app() is after


def test_app_makes_itself_the_current_one(app: App, made_current: App) -> None:
    other = App("other", timezone="Europe/Oslo", set_as_current=False)
    for become in (other.set_current, app.set_default):
        become()
        assert app_or_default() is current_app() is become.__self__  # type: ignore[attr-defined]
        assert app_or_default(other) is other
    assert str(other.now().tzinfo) == "Europe/Oslo"
    assert abs(other.now() - app.now()) < timedelta(minutes=1)
    both = other.ResultSet([other.AsyncResult("a"), other.AsyncResult("b")])
    assert (len(both), both.app) == (2, other)


def test_modules_of_tasks_are_looked_for(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("has_tasks", "has_none"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "has_tasks" / "tasks.py").write_text(
        "from nbqueue import shared_task\n@shared_task\ndef found(): ...\n"
    )
    (tmp_path / "has_tasks" / "broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    app.autodiscover_tasks(["has_tasks", "has_none"])
    assert "has_tasks.tasks.found" not in app.tasks
    assert app.import_modules() == ["has_tasks.tasks"]
    assert "has_tasks.tasks.found" in app.tasks
    assert app.import_modules() == []
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        app.autodiscover_tasks(lambda: ["has_tasks"], related_name="broken", force=True)
    with pytest.raises(ImproperlyConfigured, match="Django"):
        app.autodiscover_tasks(force=True)
    for name in [name for name in sys.modules if name.startswith(("has_tasks", "has_none"))]:
        del sys.modules[name]


def test_task_logger_is_where_celery_has_it() -> None:
    assert celerys is get_task_logger
    assert get_task_logger("proj.tasks").name == "nbqueue.task.proj.tasks"


# What Celery's tasks have of its workers' machinery, which is another here.
MACHINERY = {
    *("Request", "Strategy", "start_strategy", "abstract", "add_around", "annotate", "from_config"),
    *("request_stack", "push_request", "pop_request"),
}


def test_task_has_what_celerys_has() -> None:
    from celery.app.task import Context
    from celery.app.task import Task as Celerys

    theirs = {name for name in dir(Celerys) if name[0] != "_"}
    assert sorted(theirs - set(dir(Task)) - MACHINERY - MISSING) == []
    fields = {name for name in dir(Context) if name[0] != "_"} - {"args", "kwargs", "clear", "update"}
    assert sorted(fields - set(dir(Request))) == []


MISSING = {"on_replace"}


def test_calls_take_what_celerys_take(app: App) -> None:
    import inspect

    from celery import Celery

    theirs = set(inspect.signature(Celery.send_task).parameters) - {"self", "name", "args", "kwargs", "options"}
    own = set(inspect.signature(Task.apply_async).parameters) | EXTRAS | IDLE
    assert sorted(theirs - own) == []


def test_class_that_can_not_be_made_anew_in_a_worker_is_not_sent(app: App) -> None:
    class Needy(Task):
        def __init__(self, url: str) -> None:
            self.url = url

        def run(self) -> str:
            return self.url

    task = app.register_task(Needy("here"), by_value=True)
    assert task() == "here"
    with pytest.raises(NotPicklable, match=r"Needy is made anew in each worker.*'url'"):
        task.delay()


def test_request_of_a_call_that_runs_here_has_what_its_caller_said(app: App) -> None:
    def said(self: Task) -> Any:
        return self.request.headers, self.request.is_eager, self.request.called_directly, self.request.reply_to

    task = app.task(said, bind=True)
    assert task.apply(headers={"a": 1}, reply_to="there").get() == ({"a": 1}, True, False, "there")
    app.conf.task_always_eager = True
    assert task.apply_async(headers={"b": 2}).get()[0] == {"b": 2}
    assert task() == (None, False, True, None)
    with pytest.raises(TypeError, match="headers must be"):
        task.apply_async(headers={"b": object()})


def test_retry_with_options_of_another_call_says_what_to_do() -> None:
    task = App("c", set_as_current=False).task(add, name="again")
    cases: list[tuple[str, str]] = [
        ("link", r"link: what follows the call follows its retries; .*signature_from_request\(link"),
        ("task_id", "task_id: the same call runs again, under its id"),
        ("prioritty", "prioritty: it has .*priority"),
    ]
    for option, why in cases:
        options: dict[str, Any] = {option: "other"}
        with pytest.raises(TypeError, match=f"retry has no option {why}"):
            task.retry(**options)
        options[option] = None
        with pytest.raises(Retry, match="would be retried in a worker"):
            task.retry(**options)


def test_options_of_ones_own_are_those_that_a_class_has(app: App) -> None:
    class Billed(Task):
        account = "nobody"

    assert vars(app.task(add, base=Billed, account="me", name="billed"))["account"] == "me"
    with pytest.raises(TypeError, match=r"a task has no option accuont; it has .*, and those that a class .* has"):
        app.task(add, base=Billed, accuont="me", name="wrong")


def test_app_of_a_class_of_ones_own_names_its_tasks() -> None:
    class Short(App):
        def gen_task_name(self, name: str, module: str) -> str:
            return super().gen_task_name(name, module.removeprefix("tests."))

    assert Short("s", set_as_current=False).task(add).name == "test_declaring.add"


def test_app_of_a_class_of_ones_own_is_told_once_it_is_made() -> None:
    class Told(App):
        def on_init(self) -> None:
            self.seen = self.main, self.conf.timezone

    assert Told("t", timezone="Europe/Oslo", set_as_current=False).seen == ("t", "Europe/Oslo")


def test_class_of_tasks_may_be_named_by_its_place() -> None:
    named = App("n", task_cls="tests.test_declaring:Patient", set_as_current=False)
    assert isinstance(named.task(add), Task)
    assert named.Task.__name__ == "Patient"
    with pytest.raises(ImproperlyConfigured, match=r"no 'tests\.nowhere\.Patient'"):
        App("n", task_cls="tests.nowhere.Patient", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match=r"derived from nbqueue\.Task"):
        App("n", task_cls="tests.test_declaring:add", set_as_current=False)
