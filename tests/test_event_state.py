from __future__ import annotations

import random
from typing import Any

import pytest
from celery.events.state import State as CelerysState

from nbqueue.event_state import State, Worker
from nbqueue.events import Event, group_from

NOW = 1_700_000_000.0


def task_event(what: str, uuid: str = "a", at: float = 0.0, clock: int = 1, **fields: Any) -> dict[str, Any]:
    base = {"uuid": uuid, "hostname": "w@h", "timestamp": NOW + at, "local_received": NOW + at, "clock": clock}
    return {"type": f"task-{what}", **base, **fields}


def worker_event(what: str, hostname: str = "w@h", at: float = 0.0, **fields: Any) -> dict[str, Any]:
    base = {"hostname": hostname, "timestamp": NOW + at, "local_received": NOW + at, "clock": 1, "pid": 7}
    return {"type": f"worker-{what}", **base, **fields}


LIFE = [
    task_event("sent", at=0, clock=1, hostname="client", name="add", queue="q"),
    task_event("received", at=1, clock=2, name="add", args="(1, 2)", kwargs="{}", retries=0, root_id="a"),
    task_event("started", at=2, clock=3, pid=7),
    task_event("succeeded", at=3, clock=4, result="3", runtime=1.0),
]


def test_state_keeps_what_events_tell_of_a_task() -> None:
    state = State()
    for event in LIFE:
        state.event(dict(event))
    task = state.tasks["a"]
    assert (task.state, task.name, task.args, task.result, task.runtime) == ("SUCCESS", "add", "(1, 2)", "3", 1.0)
    assert (task.sent, task.received, task.started, task.succeeded) == tuple(NOW + at for at in range(4))
    assert (task.client, task.worker) == ("client", Worker("w@h"))
    assert task.ready
    assert (state.event_count, state.task_count, state.task_types()) == (4, 1, ["add"])
    told = {"args": "(1, 2)", "kwargs": "{}", "retries": 0, "result": "3", "runtime": 1.0, "root_id": "a"}
    assert task.info() == told
    assert task.as_dict()["worker"] is task.worker


@pytest.mark.parametrize("seed", range(20))
def test_state_is_as_celerys_whatever_order_events_come_in(seed: int) -> None:
    dice = random.Random(seed)
    events = [
        *LIFE,
        task_event("received", "b", 1, 5, name="mul", args="()"),
        task_event("started", "b", 2, 6),
        task_event("failed", "b", 3, 7, exception="ValueError('x')", traceback="..."),
        task_event("received", "c", 1, 8, name="mul", parent_id="a", root_id="a"),
        task_event("revoked", "c", 2, 9, terminated=False),
        task_event("rejected", "d", 2, 10, requeue=False),
        task_event("halfway", "e", 2, 10, name="own"),
        worker_event("online"),
        worker_event("heartbeat", at=2, active=3, processed=9, loadavg=[0, 0, 0]),
        worker_event("heartbeat", "other@h", at=2),
    ]
    dice.shuffle(events)
    ours, theirs = State(), CelerysState()
    for event in events:
        ours.event(dict(event))
        theirs.event(dict(event))
    assert ours.event_count == theirs.event_count
    assert set(ours.tasks) == set(theirs.tasks)
    for uuid, task in ours.tasks.items():
        other = theirs.tasks[uuid]
        for name in ("state", "name", "args", "result", "exception", "received", "started", "succeeded", "failed"):
            assert getattr(task, name) == getattr(other, name), (uuid, name)
        assert (task.client, task.parent_id) == (other.client, other.parent_id)
    for hostname, worker in theirs.workers.items():
        assert (ours.workers[hostname].active, ours.workers[hostname].processed) == (worker.active, worker.processed)
        assert max(ours.workers[hostname].heartbeats) == max(worker.heartbeats)


def test_retried_task_begins_anew() -> None:
    state = State()
    for event in (
        *LIFE[:3],
        task_event("retried", at=4, clock=5, exception="E()"),
        task_event("received", at=5, clock=6),
    ):
        state.event(dict(event))
    assert state.tasks["a"].state == "RECEIVED"
    assert state.tasks["a"].retried == NOW + 4


def test_tasks_are_found_by_time_by_name_and_by_worker() -> None:
    state = State()
    for number, (uuid, name, host) in enumerate((("a", "add", "x"), ("b", "mul", "y"), ("c", "add", "x"))):
        state.event(task_event("received", uuid, number, number, name=name, hostname=host))
    assert [uuid for uuid, _ in state.tasks_by_time()] == ["c", "b", "a"]
    assert [uuid for uuid, _ in state.tasks_by_timestamp(limit=1, reverse=False)] == ["a"]
    assert [uuid for uuid, _ in state.tasks_by_type("add")] == ["c", "a"]
    assert [uuid for uuid, _ in state.tasks_by_worker("y")] == ["b"]
    assert [uuid for uuid, _ in state.itertasks(2)] == ["a", "b"]
    assert state.tasks_by_type["add"] == {state.tasks["a"], state.tasks["c"]}
    assert state.tasks_by_worker["nobody"] == set()
    assert set(state.tasks_by_worker) == {"x", "y"}


def test_relatives_are_found_by_their_ids() -> None:
    state = State()
    state.event(task_event("received", "child", name="n", parent_id="a", root_id="a"))
    child = state.tasks["child"]
    assert (child.parent, child.root) == (None, None)
    state.event(task_event("received", "a", name="n"))
    assert child.parent is state.tasks["a"]
    assert state.tasks["child"].root is state.tasks["a"]
    assert state.tasks["a"].children == {state.tasks["child"]}


def test_state_forgets_the_oldest_when_there_are_very_many() -> None:
    state = State(max_tasks_in_memory=10, max_workers_in_memory=2)
    for number in range(1000):
        state.event(task_event("received", str(number), name="n", hostname=f"w{number % 5}"))
    assert list(state.tasks) == [str(number) for number in range(990, 1000)]
    assert len(state.workers) == 2


def test_worker_joins_and_leaves_and_is_told_of() -> None:
    joined: list[Worker] = []
    left: list[Worker] = []
    state = State(on_node_join=joined.append, on_node_leave=left.append)
    state.event(worker_event("heartbeat"))
    state.event(worker_event("online"))
    state.event(worker_event("offline"))
    assert [worker.hostname for worker in joined] == ["w@h"] * 2
    assert left == [Worker("w@h")]
    assert not state.workers


def test_events_of_other_groups_go_to_their_handlers_and_garbage_is_passed_over() -> None:
    seen: list[Any] = []
    state = State(callback=lambda _, event: seen.append(event["type"]))
    state.handlers["mine"] = lambda subject, event: (subject, event["x"])
    assert state.event({"type": "mine-own", "x": 1}) == (("own", 1), "own")
    for garbage in ({"type": "task-received"}, {"type": "worker-online"}, {"type": "x"}, {"type": ""}):
        assert state.event(dict(garbage)) is None
    state.event(task_event("received", "a", ready=1, origin=2, event=3, cluster_state=4, heartbeats=5))
    assert state.tasks["a"].origin == "w@h.None"
    assert seen[0] == "mine-own"
    state.clear(ready=False)
    assert not state.tasks


def test_event_is_a_dict_with_its_type_and_time() -> None:
    event = Event("task-mine", {"a": 1}, b=2)
    assert {**event, "timestamp": 0} == {"type": "task-mine", "a": 1, "b": 2, "timestamp": 0}
    assert group_from(event["type"]) == "task"
