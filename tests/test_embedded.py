from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbqueue import connection, embedded, server
from nbqueue.embedded import Places
from nbqueue.exceptions import BackendUnavailable, ImproperlyConfigured
from nbqueue.processes import locked
from tests.helpers import wait_until
from tests.homes import ROOT, Home

if TYPE_CHECKING:
    from collections.abc import Iterator

# says that it is ready, waits for a word, and calls `ensure`
CLIENT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a kernel, whatever this run was started with
from nbqueue import embedded
print("ready", flush=True)
sys.stdin.readline()
print(embedded.ensure(embedded.Places.find(os.environ), variables=os.environ).broker_url, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def home() -> Iterator[Home]:
    """Yield a private home; nothing runs in it yet."""
    with Home() as home:
        yield home


def client(home: Home, *, session: bool = False) -> subprocess.Popen[str]:
    """Start a program that will call `ensure`."""
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=home.variables,
        cwd=ROOT,
        start_new_session=session,
    )


def told(process: subprocess.Popen[str]) -> str:
    """Tell the program to go on, and return the line it prints then."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


# ---- places


def test_places_are_the_systems_own_when_nothing_overrides_them(tmp_path: Path) -> None:
    run = Path(tempfile.mkdtemp(prefix="r-"))
    try:
        places = Places.find({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(run)})
    finally:
        run.rmdir()
    share = "Library/Application Support" if sys.platform == "darwin" else ".local/share"
    assert places.data == tmp_path / share / "nbqueue" / embedded.machine_id()
    assert places.runtime.parent == run
    assert places.note == ""


def test_data_is_where_xdg_says_when_it_says_so(tmp_path: Path) -> None:
    assert Places.find({"XDG_DATA_HOME": str(tmp_path)}).data.is_relative_to(tmp_path)
    assert not Places.find({"XDG_DATA_HOME": "relative", "HOME": str(tmp_path)}).data.is_relative_to("relative")


def test_places_say_that_they_may_not_last_when_there_is_no_home(tmp_path: Path) -> None:
    places = Places.find({"TMPDIR": str(tmp_path)})
    assert places.data.is_relative_to(tmp_path / f"nbqueue-{os.geteuid()}")
    assert "may not last" in places.note


def test_two_data_directories_share_no_socket_when_the_session_is_one(tmp_path: Path) -> None:
    sockets = {Places.find({"XDG_DATA_HOME": f"/{name}", "XDG_RUNTIME_DIR": str(tmp_path)}).socket for name in "ab"}
    assert len(sockets) == 2


@pytest.mark.parametrize("name", ["NBQUEUE_HOME", "XDG_RUNTIME_DIR"])
def test_socket_path_is_short_when_the_directory_is_deep(tmp_path: Path, name: str) -> None:
    deep = tmp_path / ("ü" * 40) / ("x" * 40)
    deep.mkdir(parents=True)
    places = Places.find({"HOME": str(tmp_path), name: str(deep)})
    assert len(os.fsencode(places.socket)) < embedded.MAX_SOCKET_BYTES
    assert str(deep) not in str(places.socket)


def test_machine_id_is_a_digest_when_the_system_has_one(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "id").write_text("feedbeef\n")
    here = embedded.machine_id([tmp_path / "none", tmp_path / "empty", tmp_path / "id"])
    assert here == embedded.machine_id([tmp_path / "id"])
    assert here != embedded.machine_id([])
    assert len(here) == 12
    assert "feedbeef" not in here


def test_directories_are_private_when_they_are_made(home: Home) -> None:
    old = os.umask(0)
    try:
        home.places.make()
    finally:
        os.umask(old)
    for path in (home.places.data, home.places.runtime, home.places.logs, home.places.server_directory):
        assert path.stat().st_mode & 0o777 == 0o700


def test_directory_is_refused_when_others_may_enter(home: Home) -> None:
    home.places.make()
    home.places.data.chmod(0o750)
    with pytest.raises(ImproperlyConfigured, match="chmod 700"):
        home.ensure()


def test_directory_is_refused_when_it_is_a_link(home: Home, tmp_path: Path) -> None:
    home.places.runtime.parent.mkdir(parents=True)
    home.places.runtime.symlink_to(tmp_path)
    with pytest.raises(ImproperlyConfigured, match="no directory"):
        home.ensure()


def test_directory_is_refused_when_it_is_another_users(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.places.make()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ImproperlyConfigured, match="belongs to another user"):
        home.places.make()


def test_directory_is_refused_when_anybody_may_rename_it(home: Home) -> None:
    home.places.data.parent.mkdir(parents=True)
    home.places.data.parent.chmod(0o777)
    with pytest.raises(ImproperlyConfigured, match="chmod o-w"):
        home.ensure()


def test_data_is_refused_when_a_newer_nbqueue_wrote_it(home: Home) -> None:
    home.places.make()
    (home.places.data / "format").write_text(f"{embedded.FORMAT + 1}\n")
    with pytest.raises(ImproperlyConfigured, match="pip install -U nbqueue"):
        home.ensure()
    assert home.processes() == []


# ---- ensure


def test_everything_runs_and_is_private_when_ensured(home: Home) -> None:
    found = home.ensure()
    assert found.embedded
    assert found.key == embedded.own_key(home.places)
    assert found == connection.read(home.places.connection_file, embedded.machine_id())
    with home.wire() as wire:
        settings = wire.call("CONFIG", "GET", "*")
    settings = dict(zip(settings[::2], settings[1::2], strict=True))
    wanted = {"port": "0", "appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
    assert {name: settings[name.encode()].decode() for name in wanted} == wanted
    assert home.places.socket.stat().st_mode & 0o777 == 0o600
    exposed = [path for path in home.places.data.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert exposed == []


def test_ensure_starts_nothing_when_everything_runs(home: Home) -> None:
    found = home.ensure()
    pids = home.places.server.pid(), home.places.keeper.pid()
    assert home.ensure() == found
    assert (home.places.server.pid(), home.places.keeper.pid()) == pids


def test_one_server_and_one_keeper_run_when_five_processes_race(home: Home) -> None:
    clients = [client(home) for _ in range(5)]
    for process in clients:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in clients:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    urls = {process.stdout.readline().strip() for process in clients if process.stdout}
    for process in clients:
        process.communicate()
    assert urls == {f"redis+socket://{home.places.socket}"}
    assert [process.pid for process in home.processes("valkey-server")] == [home.places.server.pid()]
    assert [process.pid for process in home.processes("nbqueue.keeper")] == [home.places.keeper.pid()]


def test_server_and_keeper_live_on_when_their_client_is_interrupted_and_gone(home: Home) -> None:
    with client(home, session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        told(process)
        pids = home.places.server.pid(), home.places.keeper.pid()
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    assert None not in pids
    assert (home.places.server.pid(), home.places.keeper.pid()) == pids
    assert server.state(home.places.socket) == "ready"


def test_server_starts_when_a_dead_ones_socket_is_left(home: Home) -> None:
    home.places.make()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(home.places.socket))
    home.ensure()
    assert server.state(home.places.socket) == "ready"


def test_nobody_else_is_harmed_when_a_pid_file_is_stale(home: Home) -> None:
    home.places.make()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        for pid_file in (home.places.server, home.places.keeper, home.places.worker):
            descriptor = pid_file.take()
            assert descriptor is not None
            pid_file.write(descriptor, other.pid)
            os.close(descriptor)
        home.ensure()
        assert other.pid not in (home.places.server.pid(), home.places.keeper.pid())
        embedded.down(home.places, 1.0)
        assert other.poll() is None
        other.kill()


def test_server_is_found_when_the_session_has_another_runtime_directory(home: Home) -> None:
    found = home.ensure()
    elsewhere = replace(home.places, runtime=home.directory / "elsewhere")
    assert embedded.ensure(elsewhere, variables=home.variables) == found
    assert not elsewhere.socket.exists()
    assert len(home.processes("valkey-server")) == 1
    assert embedded.down(elsewhere, 1.0)
    wait_until(lambda: not home.processes(), 2, "every process to be gone")


@pytest.mark.faults
def test_server_is_started_anew_when_its_socket_was_removed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_ORPHAN_S", 0.1)
    home.ensure()
    with home.wire() as wire:
        wire.call("SET", "kept", "yes")
    old = home.places.server.pid()
    home.places.keeper.end((signal.SIGKILL, 5.0))
    home.places.socket.unlink()
    home.ensure()
    assert home.places.server.pid() not in (None, old)
    with home.wire() as wire:
        assert wire.call("GET", "kept") == b"yes"


def test_server_in_another_container_is_left_alone_when_it_holds_the_data(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_ORPHAN_S", 0.0)
    home.places.make()
    descriptor = home.places.server.take()
    assert descriptor is not None
    os.write(descriptor, f"{os.getpid()} pid:[1]\n".encode())
    try:
        with pytest.raises(ImproperlyConfigured, match="another container runs the embedded server"):
            home.ensure()
    finally:
        os.close(descriptor)


def test_ensure_says_so_when_another_process_never_gives_the_lock_back(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOCK_S", 0.05)
    home.places.make()
    with locked(home.places.lock, 0.0), pytest.raises(BackendUnavailable, match="has held"):
        home.ensure()


def test_nothing_is_left_when_the_server_ends_while_it_starts(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = home.directory / "broken"
    broken.write_text("#!/bin/sh\nsleep 0.3; echo no room left >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(server, "find_binary", lambda _: broken)
    with pytest.raises(BackendUnavailable, match=r"(?s)ended while it started.*no room left"):
        home.ensure(work_follows=True)
    assert not home.processes()


@pytest.mark.parametrize("sends", [True, False], ids=["sends", "only asks"])
def test_app_gets_a_worker_with_the_server_when_it_sends(home: Home, sends: bool) -> None:
    program = f"from nbqueue import App; app = App(); app.work_follows = {sends}; app.link"
    subprocess.run([sys.executable, "-c", program], env=home.variables, check=True)
    assert bool(home.processes("--work-follows")) == sends


@pytest.mark.faults
def test_keeper_is_started_again_when_it_was_killed(home: Home) -> None:
    home.ensure()
    old = home.places.keeper.pid()
    assert home.places.keeper.end((signal.SIGKILL, 5.0))
    home.ensure()
    assert home.places.keeper.pid() not in (None, old)


def test_connection_file_is_written_again_when_it_was_damaged(home: Home) -> None:
    found = home.ensure()
    home.places.connection_file.write_text("nbqueue_connection?")
    assert home.ensure() == found
    assert connection.read(home.places.connection_file) == found


def test_own_key_is_one_when_many_make_it_at_once(home: Home) -> None:
    code = "import os; from nbqueue import embedded; print(embedded.own_key(embedded.Places.find(os.environ)).hex())"
    makers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=home.variables, cwd=ROOT)
        for _ in range(4)
    ]
    keys = {maker.communicate()[0].strip() for maker in makers}
    assert keys == {embedded.own_key(home.places).hex()}
    assert home.places.key_file.stat().st_mode & 0o777 == 0o600


def test_ensure_loads_no_redis_client_when_it_starts_everything(home: Home) -> None:
    code = (
        "import os, sys; from nbqueue import embedded, keeper; "
        "embedded.ensure(embedded.Places.find(os.environ), variables=os.environ); "
        "print({'redis', 'kombu', 'valkey', 'psutil'} & set(sys.modules))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=home.variables, cwd=ROOT, check=True
    )
    assert said.stdout.strip() == "set()"


# ---- down


def test_down_says_nothing_when_nothing_runs(home: Home) -> None:
    assert embedded.down(home.places, 1.0) == []
    assert not home.places.data.exists()


def test_data_is_there_again_when_everything_was_stopped(home: Home) -> None:
    home.ensure()
    with home.wire() as wire:
        wire.call("SET", "kept", "yes")
    server_pid, keeper_pid = home.places.server.pid(), home.places.keeper.pid()
    lines = embedded.down(home.places, 1.0)
    assert lines == [f"keeper {keeper_pid} stopped", f"server {server_pid} stopped; its data is in {home.places.data}"]
    wait_until(lambda: not home.processes(), 2, "every process to be gone")
    assert embedded.down(home.places, 1.0) == []
    home.ensure()
    with home.wire() as wire:
        assert wire.call("GET", "kept") == b"yes"


def test_down_stops_the_worker_when_one_runs(home: Home) -> None:
    home.ensure()
    home.queue()
    worker = wait_until(home.places.worker.pid, 5, "a worker to be started")
    wait_until(home.starts, 5, "the worker to run")
    assert f"worker {worker} stopped" in embedded.down(home.places, 5.0)
    wait_until(lambda: "stopped" in home.log("worker"), 1, "the worker to have ended in order")


@pytest.mark.faults
def test_down_ends_a_worker_when_it_takes_longer_than_the_grace(home: Home) -> None:
    home.ensure(manner="busy")
    home.queue()
    wait_until(home.starts, 5, "a worker to run")
    began = time.monotonic()
    lines = embedded.down(home.places, 0.2)
    assert time.monotonic() - began < 5
    assert [line.split()[0] for line in lines] == ["worker", "keeper", "server"]
    wait_until(lambda: not home.processes(), 2, "every process to be gone")


@pytest.mark.faults
def test_down_stops_the_worker_when_the_keeper_was_killed(home: Home) -> None:
    home.ensure()
    home.queue()
    wait_until(home.starts, 5, "a worker to run")
    home.places.keeper.end((signal.SIGKILL, 5.0))
    assert [line.split()[0] for line in embedded.down(home.places, 5.0)] == ["worker", "server"]


@pytest.mark.faults
def test_server_leaves_when_its_home_was_removed(home: Home) -> None:
    home.ensure()
    home.queue()
    wait_until(home.starts, 5, "a worker to run")
    shutil.rmtree(home.directory / "h")
    wait_until(lambda: not home.processes(), 10, "everything to leave")


def test_daemons_get_no_variables_of_jupyter_when_a_kernel_starts_them(home: Home) -> None:
    home.variables |= {"JPY_PARENT_PID": "1", "JUPYTER_TOKEN": "t", "NBQUEUE_BROKER_URL": "redis://x", "MINE": "1"}
    home.ensure()
    home.queue()
    wait_until(lambda: "variables" in home.log("worker"), 5, "the worker to tell its variables")
    line = next(line for line in home.log("worker").splitlines() if line.startswith("variables"))
    names = json.loads(line.removeprefix("variables ").replace("'", '"'))
    assert {"MINE", "NBQUEUE_HOME", "PATH"} <= set(names)
    assert not {"JPY_PARENT_PID", "JUPYTER_TOKEN", "NBQUEUE_BROKER_URL"} & set(names)
    umask = os.umask(0o022)
    os.umask(umask)
    assert f"umask {umask} cwd {Path(home.variables['HOME']).resolve()}" in home.log("worker")
