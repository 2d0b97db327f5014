"""The command line as users type it: another process, with nothing but options and environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nbqueue.cli.group import SECTIONS, cli
from tests.helpers import RedisServer, wait_until
from tests.workers import ROOT, Site

pytestmark = pytest.mark.timeout(60)


def options_of(site: Site) -> tuple[str, ...]:
    """Return the options that name the site's servers."""
    return ("-b", site.broker_url, *(("--result-backend", site.server.url) if site.on_rabbitmq else ()))


def run(site: Site, *words: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `nbqueue` with the site's key in the environment; the broker is left to the options.

    What it keeps is in the home of the tests: without one, `down` would stop the user's own server.
    """
    variables = {n: v for n, v in os.environ.items() if not n.startswith("NBQUEUE_") or n == "NBQUEUE_HOME"}
    return subprocess.run(
        [sys.executable, "-m", "nbqueue", *words],
        cwd=directory,
        env={**variables, "PYTHONPATH": str(ROOT), "NBQUEUE_KEY_FILE": str(site.key_file)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_status_shows_workers_and_queues_wherever_the_global_options_stand(shared_site: Site) -> None:
    shared_site.app.send_task("tests.project.add", (1, 2)).get(timeout=10)
    broker = ("-b", shared_site.server.url)
    for words in ((*broker, "status"), ("status", *broker)):
        said = run(shared_site, *words)
        assert said.returncode == 0, said.stderr
        assert re.search(
            rf"^{shared_site.workers[0].name}  [012] of 2 children busy  nbqueue$", said.stdout, re.MULTILINE
        )
        assert re.search(r"^queue nbqueue: 0 queued, \d claimed, 0 delayed$", said.stdout, re.MULTILINE)


def test_status_as_json_is_for_programs(shared_site: Site) -> None:
    shared_site.app.send_task("tests.project.add", (1, 2)).get(timeout=10)
    said = json.loads(run(shared_site, "status", "--json", "-b", shared_site.server.url).stdout)
    (worker,) = said["workers"]
    assert (worker["name"], worker["children"], worker["queues"]) == (shared_site.workers[0].name, 2, ["nbqueue"])
    assert said["queues"]["nbqueue"].keys() == {"queued", "claimed", "delayed"}
    assert said["dead_letters"] == 0
    assert isinstance(said["counters"], dict)


def test_commands_of_these_tests_leave_the_users_own_data_alone(idle_site: Site, own_home: Path) -> None:
    said = run(idle_site, "clean", "--dry-run", "-b", idle_site.server.url)
    assert said.stdout == f"Nothing to remove in {own_home / 'data'}.\n", said.stderr


def test_status_without_workers_says_so(idle_site: Site) -> None:
    idle_site.app.send_task("tests.project.add", (1, 2))
    said = run(idle_site, "status", "-b", idle_site.server.url)
    assert said.stdout.splitlines()[:2] == ["No workers.", "queue nbqueue: 1 queued, 0 claimed, 0 delayed"]


def test_result_prints_output_and_value(shared_site: Site) -> None:
    sent = shared_site.app.send_task("tests.project.talk", (2,))
    said = run(shared_site, "-b", shared_site.server.url, "result", sent.id)
    assert (said.returncode, said.stdout) == (0, "line 0\nline 1\n'said'\n"), said.stderr


def test_result_of_a_failure_is_its_error_and_exit_code_1(shared_site: Site) -> None:
    sent = shared_site.app.send_task("tests.project.add", (1, "2"))
    said = run(shared_site, "result", sent.id, "--traceback", "-b", shared_site.server.url)
    assert said.returncode == 1
    assert said.stdout == ""
    assert "Error: TypeError: unsupported operand" in said.stderr
    assert "in add" in said.stderr
    brief = run(shared_site, "result", sent.id, "-b", shared_site.server.url)
    assert brief.stderr.count("\n") == 1, "without --traceback one line is all"


def test_result_that_takes_too_long_says_that_the_task_goes_on(idle_site: Site) -> None:
    sent = idle_site.app.send_task("tests.project.add", (1, 2))
    said = run(idle_site, "-b", idle_site.server.url, "result", "--timeout", "0.5", sent.id)
    assert said.returncode == 1
    assert said.stderr == f"Error: task {sent.id} has not ended within 0.5 s; it goes on\n"


def test_unknown_id_is_one_line_and_exit_code_1(shared_site: Site) -> None:
    for command in ("result", "revoke"):
        said = run(shared_site, command, "no-such-task", "-b", shared_site.server.url)
        assert said.returncode == 1
        assert said.stderr.startswith("Error: no task has the label or id 'no-such-task'")
        assert said.stderr.count("\n") == 1


def test_revoke_ends_a_queued_task(idle_site: Site) -> None:
    sent = idle_site.app.send_task("tests.project.add", (1, 2))
    said = run(idle_site, "-b", idle_site.server.url, "revoke", sent.id)
    assert said.stdout == f"{sent.id}: REVOKED\n", said.stderr


def test_revoke_stops_a_running_task_only_with_terminate(shared_site: Site, tmp_path: Path) -> None:
    sent = shared_site.app.send_task("tests.project.note", (str(tmp_path), "long", 60.0))
    wait_until(lambda: sent.state == "STARTED", 10, "it to run")
    assert run(shared_site, "revoke", sent.id, "-b", shared_site.server.url).stdout == f"{sent.id}: STARTED\n"
    said = run(shared_site, "revoke", "--terminate", sent.id, "-b", shared_site.server.url)
    assert said.stdout == f"{sent.id}: REVOKED\n"
    wait_until(sent.ready, 5, "it to be known here")


def touch(path: Path) -> None:
    path.touch()


def test_revoke_ends_a_map_by_its_id(idle_site: Site, tmp_path: Path) -> None:
    sent = idle_site.app.task(touch).map([tmp_path / "a", tmp_path / "b"])
    said = run(idle_site, "-b", idle_site.server.url, "revoke", sent.id)
    assert said.stdout == f"{sent.id}: REVOKED\n", said.stderr
    idle_site.worker()
    wait_until(lambda: idle_site.streams.size("nbqueue").queued == 0, 10, "the worker to take them off the queue")
    assert list(tmp_path.iterdir()) == []


def test_unknown_command_names_the_nearest_and_is_a_usage_error(idle_site: Site) -> None:
    said = run(idle_site, "stats")
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1] == "Error: No such command 'stats'. Did you mean 'status'?"


def test_help_lists_every_command_in_its_section(idle_site: Site) -> None:
    said = run(idle_site, "--help").stdout
    for title, commands in SECTIONS.items():
        section = said.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert set(re.findall(r"^  (\w+)  ", section, re.MULTILINE)) == set(commands)


def test_help_of_every_command_is_whole_and_reads_as_it_is_laid_out() -> None:
    def look(command: click.Command, context: click.Context) -> int:
        said = command.get_help(context)
        assert "\\b" not in said, context.command_path
        assert not re.search(r"\.\.\.$", said.split("\n", 1)[1], re.MULTILINE), context.command_path
        arguments = {param.make_metavar(context) for param in command.params if isinstance(param, click.Argument)}
        assert not arguments & {line.strip() for line in said.splitlines()}, f"{context.command_path}: a row is empty"
        assert not re.search(r"\.\.\.$", command.get_short_help_str(200)), context.command_path
        names = command.list_commands(context) if isinstance(command, click.Group) else []
        found = 1
        for name in names:
            sub = command.get_command(context, name)  # type: ignore[attr-defined]
            assert sub is not None
            found += look(sub, click.Context(sub, parent=context, info_name=name))
        return found

    assert look(cli, click.Context(cli, info_name="nbqueue")) > sum(map(len, SECTIONS.values()))


def test_app_module_brings_broker_and_tasks(shared_site: Site, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"from nbqueue import App\napp = App(broker={shared_site.server.url!r})\n")
    for words in (("-A", "mine", "status"), ("status", "--app", "mine:app")):
        said = run(shared_site, *words, directory=tmp_path)
        assert shared_site.workers[0].name in said.stdout, said.stderr
    assert shared_site.workers[0].name in run(shared_site, "status", "-A", "mine", "--workdir", str(tmp_path)).stdout


def test_app_module_that_is_missing_is_named(shared_site: Site) -> None:
    said = run(shared_site, "-A", "no_such_module", "worker", "-b", shared_site.server.url)
    assert said.returncode != 0
    assert "no_such_module" in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("words", [("-A", "mine"), ("--config", "mine"), ("worker", "-I", "mine")])
def test_module_that_fails_shows_its_own_lines_and_which_option_named_it(
    idle_site: Site, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "mine.py").write_text("raise LookupError('no licence')\n")
    said = run(
        idle_site, "-b", idle_site.server.url, *words, *([] if "worker" in words else ["status"]), directory=tmp_path
    )
    assert said.returncode == 1
    trace = [line for line in said.stderr.splitlines() if line.startswith('  File "')]
    assert trace == [f'  File "{tmp_path / "mine.py"}", line 1, in <module>']
    assert re.fullmatch(r"Error: .*\bmine: LookupError: no licence", said.stderr.splitlines()[-1])


def test_module_that_imports_what_is_missing_is_not_called_missing_itself(idle_site: Site, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import no_such_library\n")
    said = run(idle_site, "-A", "mine", "status", directory=tmp_path)
    assert said.returncode == 1
    assert f'  File "{tmp_path / "mine.py"}", line 1, in <module>\n' in said.stderr
    assert said.stderr.splitlines()[-1] == "Error: -A mine: ModuleNotFoundError: No module named 'no_such_library'"


def test_module_that_can_not_be_parsed_shows_the_line(idle_site: Site, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(:\n")
    said = run(idle_site, "-A", "mine", "status", directory=tmp_path)
    assert said.returncode == 1
    assert "    def f(:\n" in said.stderr
    assert "Traceback" not in said.stderr
    assert said.stderr.splitlines()[-1].startswith("Error: -A mine: SyntaxError: ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-b", "http://h", "status"), "http://h is no URL of a broker or backend nbqueue knows"),
        (("-b", "redis://:hunter2@h:port", "status"), "redis://:***@h:port is no URL: "),
        (("-b", "amqp://h:99999", "--result-backend", "redis://h", "status"), "amqp://h:99999 is no URL: "),
        (("-b", "redis://h", "--result-backend", "rediss://[::1", "status"), "rediss://[::1 is no URL: "),
        (("--connect", ".", "status"), "the connection file . is no regular file"),
        (("worker", "-I", "no_such_module"), "tasks of no_such_module: ModuleNotFoundError: "),
        (("worker", "--logfile", "/no/such/log"), "--logfile /no/such/log: No such file or directory"),
        (("beat", "--logfile", "/no/such/log"), "--logfile /no/such/log: No such file or directory"),
        (("events", "-b", "redis://127.0.0.1:1"), "no answer from redis://127.0.0.1:1: "),
        (
            ("events", "-b", "amqp://127.0.0.1:1", "--result-backend", "redis://h"),
            "no answer from amqp://127.0.0.1:1: ",
        ),
    ],
)
def test_what_can_not_be_used_is_named_in_one_line(
    idle_site: Site, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    before = () if {"-b", "--connect"} & {*words} else ("-b", idle_site.server.url)
    said = run(idle_site, *before, *words, directory=tmp_path)
    assert (said.returncode, said.stdout) == (1, "")
    (line,) = [line for line in said.stderr.splitlines() if "can be read on the way" not in line]
    assert line.startswith(f"Error: {says}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("events", "--timeout", "nan"), "'--timeout': 'nan' is no number of seconds."),
        (("result", "id", "--timeout", "-1"), "'--timeout': '-1' is no number of seconds."),
        (("inspect", "ping", "-t", "0"), "'0' is no number of seconds above 0."),
        (("down", "--grace", "inf"), "'--grace': 'inf' is no number of seconds."),
        (("worker", "--grace", "-1"), "'--grace': '-1' is no number of seconds."),
        (("worker", "--time-limit", "0"), "'--time-limit': '0' is no number of seconds above 0."),
        (("worker", "--memory-limit", "lots"), "not 'lots'"),
        (("-b", "", "status"), "'--broker': it is empty."),
        (("status", "-A", ""), "'--app': it is empty."),
        (("call", ""), "'NAME': it is empty."),
        (("call", "t", "--queue", ""), "'--queue': it is empty."),
        (("control", "pool_grow", "x"), "pool_grow [N=1]: 'x' is no whole number"),
        (("control", "time_limit", "t", "x"), "time_limit TASK SOFT_S [HARD_S]: 'x' is no number"),
        (("control", "rate_limit", "t"), "something is missing after rate_limit t"),
        (("control", "revoke"), "revoke ID ...: something is missing after revoke"),
        (("control", "terminate", "NOSUCH", "id"), "terminate: there is no signal 'NOSUCH'"),
        (("inspect", "ping", "x"), "Error: ping: ping takes no arguments, not also x"),
    ],
)
def test_wrong_word_is_a_usage_error_that_names_it(idle_site: Site, words: tuple[str, ...], says: str) -> None:
    before = () if "-b" in words else ("-b", idle_site.server.url)
    said = run(idle_site, *before, *words)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.splitlines()[-1].endswith(says)


def test_server_that_goes_away_ends_the_list_of_events_with_a_line(tmp_path: Path) -> None:
    with RedisServer() as server:
        words = (sys.executable, "-m", "nbqueue", "-b", server.url, "events")
        with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as listening:
            try:
                wait_until(lambda: server.client().pubsub_numpat(), 20, "it listens")
                server.stop()
                said = listening.communicate(timeout=30)[1]
            finally:
                listening.kill()
    assert listening.returncode == 1
    assert said.startswith(f"Error: no answer from {server.url}: ")


def test_server_that_does_not_answer_is_named_in_one_line(shared_site: Site, tmp_path: Path) -> None:
    said = run(shared_site, "status", "-b", f"redis+socket://{tmp_path}/nobody")
    assert said.returncode == 1
    assert said.stderr.startswith("Error: ")
    assert "Traceback" not in said.stderr


def test_script_sends_functions_of_its_own_main_module(shared_site: Site, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from nbqueue import App\n"
        "FACTOR = 6\n"
        "@dataclass\n"
        "class Pair:\n    x: int\n    y: int\n"
        "def swap(pair):\n    return Pair(FACTOR * pair.y, FACTOR * pair.x)\n"
        "if __name__ == '__main__':\n"
        "    with App(broker=sys.argv[1]) as app:\n"
        "        print(app.task(swap).delay(Pair(1, 2)).get(timeout=10))\n"
        "        print(app.task(swap).map([Pair(0, 1)]).get(timeout=10))\n"
    )
    said = subprocess.run(
        [sys.executable, str(script), shared_site.server.url],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NBQUEUE_KEY_FILE": str(shared_site.key_file)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert said.stdout == "Pair(x=12, y=6)\n[Pair(x=6, y=0)]\n", said.stderr
