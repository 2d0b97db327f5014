"""Expansion of canvases into flat plans."""

from __future__ import annotations

from nbqueue.canvas import chain, chord, group, signature
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
