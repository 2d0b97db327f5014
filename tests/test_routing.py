"""Routes: which of them a call takes, and which are refused."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from nbqueue import App
from nbqueue.bindings import bound_queues
from nbqueue.config import Settings
from nbqueue.exceptions import ImproperlyConfigured, QueueNotFound
from nbqueue.payloads import Packer
from nbqueue.routing import Call, Route, find_route, routers


def route(routes: object, name: str, *args: Any) -> Route:
    return find_route(routers(routes), Call(name, args))


def by_size(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]) -> str | None:
    return "large" if args and args[0] > 100 else None


class BySize:
    def route_for_task(self, task: str, args: tuple[Any, ...] = (), kwargs: Any = None) -> dict[str, Any] | None:
        return {"queue": by_size(task, args, kwargs or {}, {})} if args else {}


@pytest.mark.parametrize(
    ("name", "queue"),
    [("feed.add", "exact"), ("feed.other", "feeds"), ("video.encode", "media"), ("web.get", None)],
)
def test_exact_name_wins_over_patterns_which_are_tried_in_order(name: str, queue: str | None) -> None:
    routes = {"feed.*": "feeds", "feed.add": {"queue": "exact"}, re.compile(r"(video|audio)\..*"): {"queue": "media"}}
    assert route(routes, name).queue == queue


def test_first_router_that_knows_the_call_decides() -> None:
    routes = [by_size, ("feed.*", {"queue": "feeds", "priority": 7}), {"*": "rest"}]
    assert route(routes, "feed.add", 500) == Route("large")
    assert route(routes, "feed.add", 5) == Route("feeds", 7)
    assert route(routes, "other") == Route("rest")


def test_function_may_be_named_by_its_path() -> None:
    assert route("tests.test_routing.by_size", "x", 500).queue == "large"
    with pytest.raises(ImproperlyConfigured, match=r"tests\.test_routing\.nothing is no function"):
        routers("tests.test_routing.nothing")


@pytest.mark.parametrize("router", [BySize(), BySize, "tests.test_routing.BySize", [BySize()]])
def test_object_with_route_for_task_is_a_router_and_an_empty_route_leaves_the_call_to_the_next(router: Any) -> None:
    assert route([router, {"*": "rest"}], "x", 500).queue == "large"
    assert route([router, {"*": "rest"}], "x").queue == "rest"


def test_keys_of_amqp_are_taken() -> None:
    given = {"queue": "q", "routing_key": "q.x", "exchange": SimpleNamespace(name="e"), "exchange_type": "topic"}
    assert route({"a": given}, "a") == Route("q", None, "e", "q.x")


@pytest.mark.parametrize("wrong", [5, {"a": 5}, {"a": {"que": "x"}}, {5: "q"}, {"a": {"priority": 10}}, [5]])
def test_routes_that_can_not_be_used_are_refused_when_they_are_set(wrong: object) -> None:
    with pytest.raises(ImproperlyConfigured):
        Settings().task_routes = wrong


def test_queues_are_names_or_have_one() -> None:
    assert bound_queues(["a", SimpleNamespace(name="b"), "a"]) == ("a", "b")
    assert bound_queues({"a": {}, "b": {}}) == ("a", "b")
    with pytest.raises(ImproperlyConfigured, match="or queues as kombu's, not 5"):
        Settings().task_queues = (5,)  # type: ignore[assignment]


# ---- of an app


@pytest.fixture
def app() -> App:
    made = App("demo", broker="redis+socket:///nowhere", set_as_current=False)
    made.conf.update(task_routes={"feed.*": {"queue": "feeds", "priority": 3}}, task_default_priority=1)
    return made


def test_call_comes_before_task_before_routes_before_defaults(app: App) -> None:
    assert app.destination("feed.add") == ("feeds", 3)
    assert app.destination("feed.add", queue="mine") == ("mine", 3)
    assert app.destination("feed.add", priority=0) == ("feeds", 0)
    assert app.destination("web.get") == ("nbqueue", 1)
    steering, _ = app.task(by_size, name="feed.x", queue="tasks", priority=5)._steering(Packer())
    assert (steering.queue, steering.priority) == ("tasks", 5)
    app.conf.task_routes = None
    assert app.destination("feed.add") == ("nbqueue", 1)


def test_queue_that_is_not_known_is_an_error_when_none_may_be_missing(app: App) -> None:
    app.conf.update(task_create_missing_queues=False, task_queues=("nbqueue", "feeds"))
    assert app.destination("feed.add")[0] == "feeds"
    with pytest.raises(QueueNotFound, match=r"no queue 'feds' among task_queues \(nbqueue, feeds\)"):
        app.destination("x", queue="feds")


@pytest.mark.parametrize("wrong", [-1, 10, 1.5, True, "high"])
def test_priority_is_a_whole_number_from_0_to_9(app: App, wrong: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="priority must be"):
        app.task(by_size, priority=wrong)
    with pytest.raises(ImproperlyConfigured, match="priority must be"):
        app.task(by_size).apply_async((1, (), {}, {}), priority=wrong)
