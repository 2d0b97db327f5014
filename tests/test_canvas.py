"""Expansion of canvases into flat plans."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from nbqueue import App
from nbqueue.canvas import Signature, chain, chord, group, signature
from nbqueue.expand import Plan, expand


def names(plan: Plan, calls: list[int]) -> list[str]:
    return [plan.calls[call].signature.task for call in calls]


def test_chain_follows_one_another() -> None:
    plan = expand(signature("a") | signature("b") | signature("c"))
    assert names(plan, plan.heads) == ["a"]
    assert [names(plan, call.follow) for call in plan.calls] == [["b"], ["c"], []]
    assert names(plan, plan.shape.calls) == ["c"]


def test_group_in_a_chain_is_upgraded_to_a_chord() -> None:
    plan = expand(chain(signature("a"), group(signature("b"), signature("c")), signature("d")))
    assert names(plan, plan.calls[0].follow) == ["b", "c"]
    assert [names(plan, join.members) for join in plan.joins] == [["b", "c"]]
    assert names(plan, plan.joins[0].follow) == ["d"]


def test_groups_in_a_header_are_one_flat_header() -> None:
    plan = expand(chord([signature("a"), group(signature("b"), signature("c"))], signature("d")))
    assert names(plan, plan.joins[0].members) == ["a", "b", "c"]


def test_last_task_of_a_chain_in_a_header_is_its_member() -> None:
    plan = expand(chord([signature("a") | signature("b"), signature("c")], signature("d")))
    assert names(plan, plan.joins[0].members) == ["b", "c"]


def test_empty_header_calls_its_body_with_an_empty_list() -> None:
    plan = expand(chord([], signature("d")))
    assert names(plan, plan.heads) == ["d"]
    assert plan.calls[0].signature.args == ([],)


def test_errback_of_a_chain_is_told_by_each_of_its_tasks() -> None:
    plan = expand((signature("a") | signature("b")).on_error(signature("e")))
    assert [names(plan, call.errors) for call in plan.calls if call.signature.task != "e"] == [["e"], ["e"]]


def test_arguments_go_to_the_first_call_alone() -> None:
    plan = expand(signature("a", (1,)) | signature("b", (2,)), (0,))
    assert [call.signature.args for call in plan.calls] == [(0, 1), (2,)]


def linked(name: str) -> Signature:
    """Return a call with all that sending takes out of its copy."""
    made = signature(name, (1,), {"k": [2]}, countdown=3.0, task_id=f"the {name}")
    made.link(signature(f"after {name}"))
    return made.on_error(signature(f"error of {name}"))


@pytest.mark.parametrize(
    "canvas",
    [
        chord([linked("a"), group(linked("b"), linked("c")), linked("d") | linked("e")], linked("f")),
        chord(group(linked("a"), linked("b"), link_error=[signature("x")]), linked("f"), countdown=1.0),
        group(linked("a"), chord([linked("b")], linked("c"))),
        linked("a") | group(linked("b"), linked("c")) | linked("d"),
    ],
)
def test_what_is_sent_changes_nothing_of_what_its_user_holds(canvas: Signature) -> None:
    before = json.dumps(canvas)
    plan = expand(canvas, ("more",), {"kwarg": 1}, {"link": [signature("g")], "priority": 3})
    for call in plan.calls:
        call.signature.options["changed"] = True
        call.signature.kwargs["changed"] = True
    assert json.dumps(canvas) == before


def test_header_may_be_sent_with_one_body_after_the_other() -> None:
    sent: list[chord] = []
    with App("demo", set_as_current=False) as app:
        header = chord(group(linked("a"), linked("b")), app=app, priority=3)
        before = json.dumps(header)
        app.send_canvas = lambda found, *_: sent.append(found)  # type: ignore[method-assign]
        header(signature("c"))
        header(linked("d"))
    assert json.dumps(header) == before
    assert [found.body.task for found in sent] == ["c", "d"]
    assert [found.options for found in sent] == [{"priority": 3}] * 2
    assert [expand(found).calls[0].signature.options["priority"] for found in sent] == [3, 3]


def test_calls_of_a_header_are_copied_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: Counter[str] = Counter()
    clone = Signature.clone

    def counted(self: Signature, *args: Any, **options: Any) -> Signature:
        copied[self.task] += 1
        return clone(self, *args, **options)

    with App("demo", set_as_current=False) as app:
        found = chord([signature(f"t{number}") for number in range(100)], app=app)
        app.send_canvas = lambda found, *_: expand(found)  # type: ignore[method-assign]
        monkeypatch.setattr(Signature, "clone", counted)
        found(signature("body"))
    assert {name: count for name, count in copied.items() if name.startswith("t")} == {f"t{n}": 1 for n in range(100)}


def test_signature_of_a_task_takes_all_that_celerys_takes() -> None:
    task = App("s", broker="memory://", set_as_current=False).task(names, name="names")
    made = task.signature((1,), {"k": 2}, {"countdown": 3}, immutable=True, priority=4)
    assert (made.args, made.kwargs, made.options) == ((1,), {"k": 2}, {"countdown": 3, "priority": 4})
    assert made.immutable
    plan = expand(signature("a") | made)
    assert plan.calls[-1].signature.immutable
    assert plan.calls[-1].signature.options == made.options
