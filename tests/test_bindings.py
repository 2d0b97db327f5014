"""Which queues an exchange and a routing key lead to."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Exchange, Queue, binding
from kombu.common import Broadcast

from nbqueue import App
from nbqueue.bindings import BoundQueue, Defaults, bound_queues, broadcasts, queues_for, topic_matches
from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.payloads import Packer

DEFAULTS = Defaults("tasks", "topic", "task.default")
MEDIA = Exchange("media", type="topic")


def found(queues: Any, exchange: str | None = None, routing_key: str | None = None) -> tuple[str, ...]:
    return queues_for(bound_queues(queues), DEFAULTS, exchange, routing_key)


def app(**settings: Any) -> App:
    return App("test", set_as_current=False, **settings)


@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("*.b", "a.b", True),
        ("*.b", "b", False),
        ("a.*", "a.b.c", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.#.c", "a.b", False),
        ("#.*", "", True),  # an empty key is one word without letters
        ("usa.#", "usa.weather", True),
        ("#.weather", "europe.weather", True),
    ],
)
def test_pattern_of_a_topic_fits_words(pattern: str, key: str, fits: bool) -> None:
    assert topic_matches(pattern, key) is fits


@given(
    st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6), st.lists(st.sampled_from("ab"), min_size=1)
)
def test_pattern_fits_what_its_definition_says(pattern: list[str], words: list[str]) -> None:
    def fits(parts: list[str], rest: list[str]) -> bool:
        if not parts:
            return not rest
        if parts[0] == "#":
            return any(fits(parts[1:], rest[at:]) for at in range(len(rest) + 1))
        return bool(rest) and parts[0] in ("*", rest[0]) and fits(parts[1:], rest[1:])

    assert topic_matches(".".join(pattern), ".".join(words)) is fits(pattern, words)


def test_pattern_with_many_signs_is_tried_in_no_time() -> None:
    assert not topic_matches(".".join(["#", "a"] * 200), ".".join(["a"] * 1000 + ["b"]))


def test_direct_topic_and_fanout_lead_to_queues_as_in_amqp() -> None:
    queues = [
        Queue("video", MEDIA, routing_key="media.video.#"),
        Queue("all", MEDIA, routing_key="media.#"),
        Queue("exact", Exchange("direct"), routing_key="x"),
        Queue("one", Exchange("news", type="fanout")),
        Queue("two", Exchange("news", type="fanout")),
        Queue("many", [binding(MEDIA, routing_key="a.b"), binding(MEDIA, routing_key="c.*")]),
    ]
    assert found(queues, "media", "media.video.new") == ("video", "all")
    assert found(queues, "media", "media.audio") == ("all",)
    assert found(queues, "media", "c.d") == found(queues, "media", "a.b") == ("many",)
    assert found(queues, "direct", "x") == ("exact",)
    assert found(queues, "news", "whatever") == ("one", "two")
    assert found(queues, "", "anything") == ("anything",), "each queue is bound to AMQP's own exchange by its name"


def test_queue_that_says_nothing_is_bound_as_the_settings_say() -> None:
    queues = [Queue("default"), Queue("feeds", routing_key="feed.#")]
    assert found(queues) == ("default",)
    assert found(queues, None, "feed.import") == ("feeds",)
    assert found({"default": None, "feeds": {"routing_key": "feed.#"}}, None, "feed.import") == ("feeds",)
    assert found({"old": {"exchange": "e", "exchange_type": "direct", "binding_key": "k"}}, "e", "k") == ("old",)
    assert found(["plain"], "plain", "plain") == ("plain",), "a bare name is bound to an exchange of that name"


def test_key_that_leads_nowhere_is_an_error_that_says_what_is_bound() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'media' for routing key 'x'; task_queues binds video to that"):
        found([Queue("video", MEDIA, routing_key="media.#")], "media", "x")
    with pytest.raises(ImproperlyConfigured, match="binds nothing"):
        found([], "nowhere", "x")


def test_queue_with_bindings_to_two_exchanges_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="'many': a queue is bound to one exchange, not to media, other"):
        bound_queues([Queue("many", [binding(MEDIA, routing_key="a"), binding(Exchange("other"), routing_key="a")])])


@pytest.mark.parametrize(
    "wrong", [5, [5], {5: {}}, {"a": {"exchange_type": "headers"}}, [Queue("a", Exchange("e", type="headers"))]]
)
def test_queues_that_can_not_be_bound_are_refused_when_they_are_set(wrong: object) -> None:
    with pytest.raises(ImproperlyConfigured):
        app(task_queues=wrong)


def test_broadcast_is_known_by_the_name_that_routes_use() -> None:
    queues = bound_queues([Broadcast("news"), Queue("a")])
    assert queues == ("news", "a")
    assert broadcasts(queues) == {"news"}


def test_bound_queue_is_its_name_and_travels() -> None:
    queue = BoundQueue("a", "e", "topic", ("k",), broadcast=True)
    again = pickle.loads(pickle.dumps(queue))
    assert again == "a"
    assert (again.exchange, again.kind, again.routing_keys, again.broadcast) == ("e", "topic", ("k",), True)


def test_routes_name_exchange_and_key_and_calls_overrule_them() -> None:
    made = app(
        task_queues=[
            Queue("video", MEDIA, routing_key="media.video"),
            Queue("audio", MEDIA, routing_key="media.audio"),
        ],
        task_routes={
            "video.*": {"exchange": "media", "routing_key": "media.video"},
            "feed.*": {"queue": "feeds", "routing_key": "feed.x", "exchange": "nowhere"},
            "sound.*": {"queue": "audio"},
            "made.*": Queue("made"),
        },
    )
    assert made.destination("video.encode") == ("video", 0)
    assert made.destination("video.encode", routing_key="media.audio") == ("audio", 0)
    assert made.destination("video.encode", queue="own") == ("own", 0)
    assert made.destination("video.encode", queue=Queue("object")) == ("object", 0)
    assert made.destination("other", exchange=MEDIA, routing_key="media.audio") == ("audio", 0)
    with pytest.raises(ImproperlyConfigured, match="queue must be a name, or have one as kombu's, not 5"):
        made.destination("other", queue=5)
    assert made.destination("feed.read") == ("feeds", 0), "a queue that is named comes before an exchange"
    assert made.destination("sound.x", routing_key="media.video") == ("video", 0), "its queue's exchange, another key"
    assert made.destination("made.x") == ("made", 0)
    assert made.destination("other") == ("nbqueue", 0)
    assert made.destination("other", exchange="media", routing_key="media.audio") == ("audio", 0)


def test_task_names_exchange_and_key_and_calls_overrule_them() -> None:
    made = app(
        broker="memory://",
        task_queues=[
            Queue("video", MEDIA, routing_key="media.video"),
            Queue("audio", MEDIA, routing_key="media.audio"),
        ],
    )

    @made.task(exchange="media", routing_key="media.video")
    def encode() -> None: ...

    def queue(**options: Any) -> str:
        return encode._steering(Packer(), **options)[0].queue

    assert queue() == "video"
    assert queue(routing_key="media.audio") == "audio"
    assert queue(queue="own") == "own"
    encode.queue = "first"
    assert queue() == "first", "a queue that is named comes before an exchange"


def test_default_exchange_and_key_of_settings_lead_to_the_default_queue() -> None:
    made = app(
        task_default_queue="default",
        task_default_exchange="tasks",
        task_default_exchange_type="topic",
        task_default_routing_key="task.default",
        task_queues=[Queue("default", routing_key="task.#"), Queue("feeds", routing_key="feed.#")],
    )
    assert made.destination("x") == ("default", 0)
    assert made.destination("x", routing_key="feed.import") == ("feeds", 0)
    with pytest.raises(ImproperlyConfigured, match="must be one of direct, topic, fanout, not 'headers'"):
        made.conf.task_default_exchange_type = "headers"


def test_kombu_is_not_loaded_for_routes() -> None:
    code = (
        "import sys\nfrom nbqueue import App\n"
        "app = App('t', task_queues={'a': {'exchange': 'e', 'exchange_type': 'topic', 'routing_key': 'k.#'}})\n"
        "assert app.destination('x', exchange='e', routing_key='k.z') == ('a', 0)\n"
        "assert 'kombu' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
