from __future__ import annotations

import gc
import logging
from typing import Any

import pytest
from celery import signals as celery_signals

from nbqueue import signals
from nbqueue.signals import Signal


def receiver_of(seen: list[Any]) -> Any:
    def receive(sender: Any, **named: Any) -> str:
        seen.append((sender, named.get("value")))
        return "answered"

    return receive


def test_receivers_are_called_with_what_is_sent_and_their_answers_returned() -> None:
    signal = Signal("one")
    seen: list[Any] = []
    receive = receiver_of(seen)
    signal.connect(receive)
    assert signal.send("somebody", value=1) == [(receive, "answered")]
    assert seen == [("somebody", 1)]


def test_connect_is_a_decorator_with_options_and_without() -> None:
    signal = Signal("one")
    seen: list[Any] = []

    @signal.connect
    def plain(**named: Any) -> None:
        seen.append("plain")

    @signal.connect(sender="a")
    def for_a(**named: Any) -> None:
        seen.append("for a")

    signal.send("b")
    signal.send("a")
    assert seen == ["plain", "plain", "for a"]
    assert plain.__name__ == "plain"


class Task:
    def __init__(self, name: str) -> None:
        self.name = name


def test_sender_is_told_apart_by_its_name_and_what_has_none_by_itself() -> None:
    signal = Signal("one")
    seen: list[Any] = []
    receive = receiver_of(seen)
    one, other = object(), object()
    signal.connect(receive, sender=Task("a"))
    signal.connect(receive, sender=one)
    for sender in ("a", "b", one, other):
        signal.send(sender)
    assert [sender for sender, _ in seen] == ["a", one]


def test_error_of_a_receiver_is_logged_and_returned_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    signal = Signal("one")
    seen: list[Any] = []

    def fails(**named: Any) -> None:
        raise KeyError("no such thing")

    signal.connect(fails)
    signal.connect(receive := receiver_of(seen))
    with caplog.at_level(logging.ERROR):
        answers = dict(signal.send("x"))
    assert isinstance(answers[fails], KeyError)
    assert answers[receive] == "answered"
    assert "no such thing" in caplog.text


def test_receiver_is_forgotten_with_its_object_unless_it_is_to_be_kept() -> None:
    signal = Signal("one")
    seen: list[Any] = []
    signal.connect(receiver_of(seen))
    gc.collect()
    assert not signal.receivers
    signal.connect(receiver_of(seen), weak=False)
    gc.collect()
    signal.send("x")
    assert len(seen) == 1


class Holder:
    def __init__(self) -> None:
        self.seen = 0

    def receive(self, **named: Any) -> None:
        self.seen += 1


def test_method_is_connected_once_lives_with_its_object_and_can_be_disconnected() -> None:
    signal, holder = Signal("one"), Holder()
    signal.connect(holder.receive)
    signal.connect(holder.receive)
    signal.send("x")
    assert holder.seen == 1
    assert signal.disconnect(holder.receive)
    assert not signal.disconnect(holder.receive)
    assert signal.send("x") == []


def test_dispatch_uid_connects_once_and_disconnects_by_itself() -> None:
    signal = Signal("one")
    seen: list[Any] = []
    kept = [receiver_of(seen), receiver_of(seen)]
    for receive in kept:
        signal.connect(receive, dispatch_uid="key")
    signal.send("x")
    assert len(seen) == 1
    assert signal.disconnect(dispatch_uid="key")
    assert not signal.has_listeners()


def print_it(sender: object) -> None:
    print(sender)


def test_receiver_without_keyword_arguments_is_refused_when_it_is_connected() -> None:
    with pytest.raises(ValueError, match=r"\*\*kwargs"):
        Signal("one").connect(print_it)


def test_names_and_arguments_are_celerys() -> None:
    named = {name for name in signals.__all__ if name != "Signal"}
    theirs = {name for name, value in vars(celery_signals).items() if isinstance(value, celery_signals.Signal)}
    assert theirs - {"task_sent"} == named
    for name in named:
        assert getattr(signals, name).providing_args >= getattr(celery_signals, name).providing_args, name
