from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as drawing
from hypothesis import strategies as st

from nbqueue import states
from nbqueue.backends.memory import MemoryBackend
from nbqueue.deliveries import Delivery
from nbqueue.graph import Given, Graph, Join, Node, encode_given, kinds_of, sign_graph
from nbqueue.intake import Accepted, Ended, Intake, NotMine, Refused, Repeat
from nbqueue.messages import (
    Control,
    Failure,
    Message,
    Steering,
    Step,
    encode_failure,
    pack_body,
    pending_facts,
    python_version,
    sign_control,
    sign_group,
    sign_record,
)
from nbqueue.reports import Reporter
from nbqueue.signing import Signer

SIGNER = Signer(b"k" * 32)
NOW = time.time()
STEERING = Steering(id="id", nonce="nonce-1", task="demo.add", queue="q", sent_at=NOW, expires=NOW + 60)


def intake(backend: MemoryBackend | None = None) -> Intake:
    return Intake(SIGNER, backend or MemoryBackend(), "w@host", max_losses=10)


def delivery(steering: Steering = STEERING, signer: Signer = SIGNER, **more: Any) -> Delivery:
    message = Message.sign(steering, pack_body(b"code", b"args"), signer)
    made = Delivery(steering.queue, "n", "1-1", steering.id, message.header.encode(), message.body)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def mark(*ids: str, order: str = "revoke", signer: Signer = SIGNER) -> bytes:
    return sign_control(Control(order=order, at=NOW, nonce="n", ids=ids), signer).encode()


def changed(**fields: Any) -> Steering:
    return msgspec.structs.replace(STEERING, **fields)


def test_task_is_accepted_with_its_code_and_arguments() -> None:
    verdict = intake().judge(delivery(), NOW)
    assert isinstance(verdict, Accepted)
    assert (verdict.steering, verdict.code, verdict.args) == (STEERING, b"code", b"args")


def test_member_of_a_map_gets_what_its_map_shares() -> None:
    backend = MemoryBackend()
    group = Steering(id="g", nonce="n", task="demo.add", queue="q", sent_at=NOW, size=3)
    backend.store_group("g", sign_group(group, b"code", SIGNER), 60)
    message = Message.sign_call("g", 2, b"args", SIGNER)
    verdict = intake(backend).judge(Delivery("q", "n", "1-1", "g-2", message.header.encode(), message.body), NOW)
    assert isinstance(verdict, Accepted)
    assert (verdict.steering.id, verdict.code, verdict.args) == ("g-2", b"code", b"args")
    beyond = Message.sign_call("g", 3, b"args", SIGNER)
    refused = intake(backend).judge(Delivery("q", "n", "1-1", "g-3", beyond.header.encode(), beyond.body), NOW)
    assert isinstance(refused, Refused)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"id": "another"}, "place"), ({"queue": "elsewhere"}, "place"), ({"body": b"altered"}, "signature")],
)
def test_message_is_refused_when_it_is_not_what_was_signed(changes: dict[str, Any], reason: str) -> None:
    verdict = intake().judge(delivery(**changes), NOW)
    assert isinstance(verdict, Refused)
    assert verdict.reason.startswith(reason)


def test_message_of_another_key_is_left_to_others() -> None:
    assert isinstance(intake().judge(delivery(signer=Signer(b"o" * 32)), NOW), NotMine)


@pytest.mark.parametrize("state", [states.SUCCESS, states.FAILURE, states.REVOKED])
def test_task_that_has_ended_is_not_run_again(state: str) -> None:
    body = encode_failure(Failure("E", "m", "t")) if state == states.FAILURE else b""
    record = sign_record(pending_facts(STEERING, state, NOW), body, SIGNER)
    assert isinstance(intake().judge(delivery(record=record), NOW), Repeat)


def test_older_sending_of_an_id_that_was_sent_anew_is_a_repeat() -> None:
    newer = sign_record(pending_facts(changed(nonce="nonce-2")), b"", SIGNER)
    assert isinstance(intake().judge(delivery(record=newer), NOW), Repeat)


def test_task_that_was_started_elsewhere_and_came_back_runs() -> None:
    started = sign_record(pending_facts(STEERING, states.STARTED, NOW), b"", SIGNER)
    assert isinstance(intake().judge(delivery(record=started, attempt=2), NOW), Accepted)


def test_message_whose_task_was_retried_since_is_a_repeat_and_its_retry_runs() -> None:
    facts = msgspec.structs.replace(pending_facts(STEERING, states.RETRY, NOW), retries=1)
    failure = encode_failure(Failure("Busy", "busy", "busy"))
    record = sign_record(facts, failure, SIGNER)
    assert isinstance(intake().judge(delivery(record=record), NOW), Repeat)
    assert isinstance(intake().judge(delivery(changed(retries=1), record=record), NOW), Accepted)


def test_message_whose_task_was_retried_in_another_queue_is_a_repeat_and_its_retry_runs() -> None:
    there = changed(retries=1, queue="there")
    facts = pending_facts(there, states.RETRY, NOW)
    record = sign_record(facts, encode_failure(Failure("Busy", "busy", "busy")), SIGNER)
    assert isinstance(intake().judge(delivery(record=record), NOW), Repeat)
    moved = delivery(there, record=record)
    moved.queue = "there"
    assert isinstance(intake().judge(moved, NOW), Accepted)
    moved.queue = STEERING.queue
    assert isinstance(intake().judge(moved, NOW), Refused)


def test_record_that_is_not_signed_is_not_believed() -> None:
    record = b'{"task_id":"id","status":"SUCCESS","nbq":"1.x.y.{}"}'
    assert isinstance(intake().judge(delivery(record=record), NOW), Accepted)


@pytest.mark.parametrize(
    ("made", "state", "error"),
    [
        (delivery(mark=mark("id")), states.REVOKED, "cancelled"),
        (delivery(changed(expires=NOW - 1)), states.REVOKED, "expired"),
        (
            delivery(worker_losses=11),
            states.FAILURE,
            "WorkerLostError: Given up: it lost its worker 11 times, the last time while it ran alone.",
        ),
    ],
)
def test_task_ends_without_running_when_there_is_reason_to(made: Delivery, state: str, error: str) -> None:
    verdict = intake().judge(made, NOW)
    assert isinstance(verdict, Ended)
    assert (verdict.state, verdict.error) == (state, error)


def test_code_of_another_python_is_refused_with_both_versions_named() -> None:
    verdict = intake().judge(delivery(changed(python="2.7")), NOW)
    assert isinstance(verdict, Ended)
    assert verdict.error.startswith("PythonMismatch")
    assert "2.7" in verdict.error
    assert python_version() in verdict.error


@pytest.mark.parametrize(
    "left",
    [b"{}", b"\xff", mark("another"), mark("id", order="restart"), mark("id", signer=Signer(b"x" * 32))],
    ids=["unsigned", "garbage", "of another task", "another order", "of another key"],
)
def test_mark_that_no_client_left_for_this_task_revokes_nothing(left: bytes) -> None:
    assert isinstance(intake().judge(delivery(mark=left), NOW), Accepted)


@pytest.mark.parametrize(("losses", "alone"), [(9, False), (10, True)])
def test_task_that_lost_its_worker_too_often_gets_one_more_run_alone(losses: int, alone: bool) -> None:
    verdict = intake().judge(delivery(worker_losses=losses), NOW)
    assert isinstance(verdict, Accepted)
    assert verdict.alone == alone


# A machine that is busy is no reason to fail.
EVERY = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
numbers = st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False), st.sampled_from([1e308, -1e308, 0, -1]))
fields = st.fixed_dictionaries(
    {},
    optional={
        name: numbers if isinstance(getattr(STEERING, name), int | float) else st.text(max_size=8)
        for name in Steering.__struct_fields__
        if name not in ("id", "queue")
    },
)


@EVERY
@drawing(fields, st.integers(-1, 12))
def test_any_task_that_is_signed_gets_a_verdict_and_its_end_can_be_written(
    changes: dict[str, Any], losses: int
) -> None:
    text = json.dumps({**msgspec.to_builtins(STEERING), **changes}).encode()
    body = pack_body(b"code", b"args")
    made = Delivery("q", "n", "1-1", "id", SIGNER.sign("task", text, body).encode(), body, worker_losses=losses)
    verdict = intake().judge(made, NOW)
    if isinstance(verdict, Ended):
        v = verdict
        Reporter("w@host", SIGNER).never_began(made, v.steering, v.state, v.body, v.error, dead=v.dead)


places = st.integers(-3, 3)
nodes = st.builds(
    Node,
    places,
    st.just(b"args"),
    st.lists(places, max_size=2).map(tuple),
    st.lists(places, max_size=2).map(tuple),
    places,
    places,
    st.booleans(),
    numbers.map(float),
)
joins = st.builds(Join, st.lists(places, max_size=3).map(tuple), st.lists(places, max_size=2).map(tuple))
hows = st.sampled_from(["nothing", "value", "record", "gather", "failed", "error", "args", "else"])


@EVERY
@drawing(
    st.lists(nodes, max_size=3),
    st.lists(joins, max_size=2),
    st.builds(Step, st.just("g"), places, places, numbers.map(float), numbers.map(float)),
    st.builds(
        Given, hows, st.just("id"), st.just(b"body"), st.sampled_from([*states.READY_STATES, "else"]), join=places
    ),
)
def test_any_call_of_a_canvas_that_is_signed_gets_a_verdict_and_what_follows_can_be_sent(
    calls: list[Node], together: list[Join], step: Step, given: Given
) -> None:
    backend = MemoryBackend()
    kinds = kinds_of([msgspec.structs.replace(STEERING, id="")])
    graph = Graph("g", "n", "s", NOW, {"d": b"code"}, kinds, tuple(calls), tuple(together))
    backend.store_graph("g", sign_graph(graph, SIGNER), 60)
    message = Message.sign_step(step, f"g-{step.node}", encode_given(given), SIGNER)
    made = Delivery("q", "n", "1-1", message.id, message.header.encode(), message.body)
    verdict = intake(backend).judge(made, NOW)
    if isinstance(verdict, Accepted | Ended) and verdict.drawn is not None:
        assert not isinstance(verdict, Ended) or verdict.state in states.READY_STATES
        verdict.drawn.after(step.node, states.SUCCESS, b"value", "", SIGNER, NOW)
        verdict.drawn.after(step.node, states.FAILURE, b"failure", "", SIGNER, NOW)
