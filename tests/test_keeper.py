from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import pytest

from nbqueue import embedded, keeper, server, watcher
from nbqueue.deliveries import KEEPER_TROUBLE, KEEPER_WAKE, WORKERS, queue_key
from nbqueue.keeper import Keeper
from nbqueue.signing import Signer, read_key_file
from tests.helpers import wait_until
from tests.homes import ROOT, Home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbqueue.keeper import Sight

IDLE_S = 0.4


@pytest.fixture
def home() -> Iterator[Home]:
    """Yield a private home; nothing runs in it yet."""
    with Home() as home:
        yield home


@pytest.fixture
def looking(home: Home) -> Iterator[Keeper]:
    """Yield a keeper in this process that is connected and does nothing by itself."""
    home.places.make()
    lock = home.places.keeper.take()
    assert lock is not None
    looking = Keeper(home.places, lock, 600.0, ["false"])
    looking._connect()
    yield looking
    looking._disconnect()
    os.close(lock)


def sight(looking: Keeper) -> Sight:
    return looking._look()


def advertise(home: Home, name: str, key: bytes, *, age_s: float = 0, **offer: object) -> None:
    """Show a worker that doesn't exist."""
    with home.wire() as wire:
        at = int(wire.call("TIME")[0]) - age_s
        signed = Signer(key).sign("worker", json.dumps(offer).encode())
        wire.call("HSET", WORKERS, name, json.dumps({"at": at, "nbq": signed}))


def clients(home: Home) -> bytes:
    with home.wire() as wire:
        listed: bytes = wire.call("CLIENT", "LIST")
    return listed


def hint(home: Home) -> None:
    """Give a hint, and wait until it has been taken."""
    with home.wire() as wire:
        wire.call("LPUSH", KEEPER_WAKE, "sent")
        wait_until(lambda: not wire.call("LLEN", KEEPER_WAKE), 5, "the hint to be taken")


# ---- what it sees


def test_keeper_and_watcher_agree_when_a_worker_has_been_silent() -> None:
    assert keeper.ALIVE_S == watcher.ALIVE_S


def test_server_is_idle_when_nobody_wants_anything(looking: Keeper) -> None:
    seen = sight(looking)
    assert seen.idle
    assert not seen.wanted
    assert not seen.serving


def test_queue_is_wanted_when_something_waits_on_it(looking: Keeper, home: Home) -> None:
    home.queue("a")
    home.queue("b", lane="r")
    home.queue("c", lane="9")
    assert sight(looking).wanted == {"a", "b", "c"}
    assert not sight(looking).idle


def test_own_queue_of_a_worker_that_is_gone_wants_no_other(looking: Keeper, home: Home) -> None:
    home.queue("news/w1@host.dq")
    seen = sight(looking)
    assert not seen.wanted
    assert seen.idle


@pytest.mark.parametrize(("after_s", "wanted"), [(-1, True), (1, True), (60, False)])
def test_queue_is_wanted_when_something_delayed_is_due_soon(
    looking: Keeper, home: Home, after_s: float, wanted: bool
) -> None:
    home.queue("later", due_ms=int((time.time() + after_s) * 1000))
    seen = sight(looking)
    assert bool(seen.wanted) == wanted
    assert not seen.idle


def test_server_is_busy_when_something_is_claimed(looking: Keeper, home: Home) -> None:
    home.queue("a")
    with home.wire() as wire:
        wire.call("DEL", "nbq:{a}:n")
        wire.call("HSET", queue_key("a", "claims"), "id", "entry")
    assert not sight(looking).idle


@pytest.mark.parametrize(
    ("name", "busy"), [("nbq-client-12", True), ("nbq-worker-mine@host", True), ("", False), ("nbq-keeper", False)]
)
def test_server_is_busy_when_a_client_or_a_users_worker_is_connected(
    looking: Keeper, home: Home, name: str, busy: bool
) -> None:
    with home.wire(name):
        assert sight(looking).idle is not busy


def test_queue_is_served_when_a_live_worker_listens_to_it(looking: Keeper, home: Home) -> None:
    key = read_key_file(home.places.key_file)
    advertise(home, "one", key, queues=["a", "b"])
    advertise(home, "all", key, all_queues=True)
    advertise(home, "silent", key, all_queues=True, age_s=keeper.ALIVE_S + 1)
    advertise(home, "stranger", bytes(32), all_queues=True)
    serving = sight(looking).serving
    assert set(serving) == {"one", "all"}
    assert serving["one"]("a")
    assert not serving["one"]("c")
    assert serving["all"]("c")


def test_adverts_are_removed_when_their_workers_are_long_gone_or_reaped(looking: Keeper, home: Home) -> None:
    key = read_key_file(home.places.key_file)
    advertise(home, "old", key, age_s=keeper.FORGET_S + 1)
    advertise(home, "silent", key, age_s=keeper.ALIVE_S + 1)
    advertise(home, looking.worker_name, key, all_queues=True)
    assert looking.worker_name not in sight(looking).serving
    with home.wire() as wire:
        assert wire.call("HKEYS", WORKERS) == [b"silent"]


def test_adverts_are_ignored_when_they_are_nonsense(looking: Keeper, home: Home) -> None:
    with home.wire() as wire:
        for n, text in enumerate(["", "[]", "null", "{}", '{"at":"x","nbq":1}', '{"at":1e99,"nbq":7}', "\\"]):
            wire.call("HSET", WORKERS, str(n), text)
    assert sight(looking).serving == {}


def test_keys_are_passed_over_when_they_are_of_another_kind(looking: Keeper, home: Home) -> None:
    with home.wire() as wire:
        wire.call("SET", WORKERS, "x")
        wire.call("SADD", "nbq:queues", "a")
        wire.call("SET", "nbq:{a}:n", "x")
    assert sight(looking).wanted == frozenset()


# ---- what it does


def test_one_worker_is_started_when_something_waits(home: Home) -> None:
    home.ensure()
    home.queue()
    wait_until(home.starts, 5, "a worker to be started")
    home.queue("another")
    for _ in range(3):  # between two hints it has looked at everything
        hint(home)
    assert home.starts() == 1


def test_worker_is_started_with_the_keeper_when_work_follows(home: Home) -> None:
    home.ensure(work_follows=True)
    wait_until(home.starts, 5, "a worker to be started")
    home.queue()
    wait_until(lambda: b"cmd=blpop" in clients(home), 5, "the keeper to wait")
    for _ in range(3):
        hint(home)
    assert home.starts() == 1


def test_no_second_worker_is_started_when_a_keeper_that_work_follows_comes_anew(home: Home) -> None:
    home.ensure(work_follows=True)
    wait_until(home.starts, 5, "a worker to be started")
    home.places.keeper.end((signal.SIGKILL, 5.0))
    home.ensure(work_follows=True)
    wait_until(lambda: b"cmd=blpop" in clients(home), 5, "the keeper to wait")
    assert home.starts() == 1


def test_worker_is_started_at_once_when_a_client_gives_a_hint(home: Home) -> None:
    home.ensure()
    wait_until(lambda: b"cmd=blpop" in clients(home), 5, "the keeper to wait")
    with home.wire() as wire:
        # nothing but the hint can make it look sooner than this
        home.queue()
        began = time.monotonic()
        wire.call("LPUSH", KEEPER_WAKE, "sent")
        wait_until(home.places.worker.pid, 5, "a worker to be started")
    assert time.monotonic() - began < keeper.LOOK_S / 2


def test_worker_is_started_again_when_it_was_killed(home: Home) -> None:
    home.ensure()
    home.queue()
    wait_until(home.starts, 5, "a worker to be started")
    home.places.worker.end((signal.SIGKILL, 5.0))
    wait_until(lambda: home.starts() == 2, 5, "another worker")


@pytest.mark.faults
def test_server_is_started_again_with_its_data_when_it_was_killed(home: Home) -> None:
    home.ensure()
    with home.wire() as wire:
        wire.call("SET", "kept", "yes")
        wire.call("WAITAOF", 1, 0, 2_000)
    old = home.places.server.pid()
    home.places.server.end((signal.SIGKILL, 5.0))
    wait_until(lambda: server.state(home.places.socket) == "ready", 2, "the server to answer")
    assert home.places.server.pid() not in (None, old)
    with home.wire() as wire:
        assert wire.call("GET", "kept") == b"yes"
    home.queue()
    wait_until(home.starts, 5, "the keeper to go on")


@pytest.mark.faults
def test_trouble_is_told_when_workers_end_at_their_start(home: Home) -> None:
    home.ensure(manner="fail")
    home.queue()
    with home.wire() as wire:
        text = wait_until(lambda: wire.call("GET", KEEPER_TROUBLE), 10, "the trouble to be told")
    trouble = json.loads(text)["text"]
    assert "ended 3 times at its start (exit code 1)" in trouble
    assert "no such thing as a worker" in trouble
    wait_until(lambda: "the next is started in 2 s" in home.log("keeper"), 10, "longer pauses")


def test_everything_leaves_when_nothing_is_left_to_do(home: Home) -> None:
    home.ensure(manner="drain", idle_s=IDLE_S)
    home.queue()
    wait_until(home.starts, 5, "a worker to be started")
    wait_until(lambda: not home.processes(), 10, "everything to leave")
    assert "stopped" in home.log("worker")
    assert home.log("keeper").count("everything leaves") == 1
    assert "Traceback" not in home.log("keeper")


# Schedules a cell that names large data, and a canvas; deletes both once each has run by the clock.
SCHEDULING: Final = """
from IPython.core.interactiveshell import InteractiveShell
from nbqueue import App, chain
from nbqueue.notebook.magics import TaskMagics
from tests.helpers import wait_until
app = App(by_value=True)
def add(x, y): return x + y
task = app.task(add)
shell = InteractiveShell(user_ns={"large": bytes(200_000)})
TaskMagics(shell, app).task("report --every 1s", "len(large)")
app.beat.add("sums", 1.0, chain(task.s(1, 1), task.s(2)))
def ran(name): return any(run.state == "SUCCESS" for run in app.beat.get(name).runs)
wait_until(lambda: ran("report") and ran("sums"), 30, "both to run")
assert app.attach("report").get(timeout=10) == 200_000
app.beat.delete("report")
app.beat.delete("sums")
"""


def test_everything_leaves_when_what_was_scheduled_has_run_and_is_deleted(home: Home) -> None:
    embedded.ensure(home.places, variables=home.variables, idle_s=2.0)
    variables = {**home.variables, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SCHEDULING], env=variables, check=True, cwd=home.directory)
    assert home.processes("nbqueue.cli"), "its worker, with a beat, is there"
    wait_until(lambda: not home.processes(), 20, "everything to leave")
    assert "everything leaves" in home.log("keeper")


@pytest.mark.parametrize("due_s", [0, 3600])
def test_everything_stays_when_something_is_queued_or_delayed(home: Home, due_s: int) -> None:
    home.ensure(idle_s=0.1)
    home.queue(due_ms=int((time.time() + due_s) * 1000) if due_s else 0)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.6, 5, "six times the idle time")
    assert server.state(home.places.socket) == "ready"


def test_everything_stays_until_the_last_client_is_gone(home: Home) -> None:
    home.ensure(idle_s=0.1)
    with home.wire("nbq-client-1") as wire:
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.6, 5, "six times the idle time")
        assert wire.call("PING") == b"PONG"
    wait_until(lambda: not home.processes(), 10, "everything to leave")


def test_everything_starts_again_when_ensured_while_it_leaves(home: Home) -> None:
    home.ensure(idle_s=0.1)
    wait_until(lambda: "everything leaves" in home.log("keeper"), 5, "the keeper to leave")
    home.ensure()
    wait_until(lambda: len(home.processes()) == 2, 5, "only the new ones to be there")
    assert home.places.keeper.held()
    assert server.state(home.places.socket) == "ready"


@pytest.mark.faults
def test_worker_is_adopted_when_its_keeper_was_killed(home: Home) -> None:
    home.ensure(manner="drain", idle_s=600)
    home.queue()
    wait_until(home.starts, 5, "a worker to be started")
    worker = home.places.worker.pid()
    home.places.keeper.end((signal.SIGKILL, 5.0))
    home.queue()
    home.ensure(manner="drain", idle_s=IDLE_S)
    assert home.places.worker.pid() == worker
    with home.wire() as wire:
        wire.call("DEL", "nbq:{nbqueue}:n")
    wait_until(lambda: not home.processes(), 10, "everything to leave")
    assert home.starts() == 1


def test_second_keeper_ends_when_one_runs(home: Home) -> None:
    home.ensure()
    pid = home.places.keeper.pid()
    assert keeper.main(["--data", str(home.places.data), "--runtime", str(home.places.runtime)]) == 0
    assert home.places.keeper.pid() == pid


def test_keeper_is_small_when_it_waits(home: Home) -> None:
    home.ensure()
    [process] = home.processes("nbqueue.keeper")
    wait_until(lambda: b"name=nbq-keeper" in clients(home), 5, "the keeper to be connected")
    assert process.memory_info().rss < 40_000_000
