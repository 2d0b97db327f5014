"""Commands that send, drop and try things out, and workers as programs start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from nbqueue.cli.daemon import expanded
from nbqueue.cli.tasks import instant
from tests.end_to_end.test_cli import options_of, run
from tests.helpers import wait_until
from tests.workers import ROOT, Site

pytestmark = pytest.mark.timeout(60)


@pytest.mark.brokers
def test_call_prints_the_id_of_a_task_that_runs(shared_site: Site) -> None:
    said = run(shared_site, *options_of(shared_site), "call", "tests.project.add", "-a", "[1]", "-k", '{"y": 2}')
    assert said.returncode == 0, said.stderr
    assert shared_site.app.AsyncResult(said.stdout.strip()).get(timeout=10) == 3


def test_call_puts_a_task_off_and_lets_it_expire(idle_site: Site) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for words in (("--countdown", "3600"), ("--eta", soon), ("--eta", soon, "--expires", "7200")):
        said = run(idle_site, "call", "tests.project.add", "-a", "[1, 2]", "-b", idle_site.server.url, *words)
        assert said.returncode == 0, said.stderr
    assert idle_site.streams.size("nbqueue").delayed == 3


def test_time_without_zone_is_in_the_apps() -> None:
    oslo = ZoneInfo("Europe/Oslo")
    assert instant("eta", "2026-07-03T07:00", oslo) == datetime(2026, 7, 3, 5, tzinfo=UTC)
    assert instant("eta", "2026-07-03T07:00+00:00", oslo) == datetime(2026, 7, 3, 7, tzinfo=UTC)
    assert instant("expires", "60", oslo) == 60.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-a", "[1, 2"), "is no JSON"),
        (("-a", "{}"), "is no JSON array"),
        (("-k", "[]"), "is no JSON object"),
        (("--eta", "soon"), "'soon' is no time; write"),
        (("--expires", "soon"), "is no time or seconds"),
    ],
)
def test_call_that_can_not_be_read_is_a_usage_error(idle_site: Site, words: tuple[str, ...], says: str) -> None:
    said = run(idle_site, "call", "tests.project.add", *words)
    assert said.returncode == 2
    assert says in said.stderr
    assert "Traceback" not in said.stderr


def test_call_with_an_option_that_can_not_be_used_fails_in_one_line(idle_site: Site) -> None:
    said = run(idle_site, "-b", idle_site.server.url, "call", "tests.project.add", "--serializer", "jsn")
    assert said.returncode == 1
    assert "jsn" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.brokers
def test_purge_drops_what_waits_and_asks_before(idle_site: Site) -> None:
    add = "tests.project.add"
    for number in range(3):
        idle_site.app.send_task(add, (number, 1))
    idle_site.app.send_task(add, (1, 1), countdown=3600)
    idle_site.app.send_task(add, (1, 1), queue="other")
    words = (*options_of(idle_site), "purge", "-Q", f"{idle_site.queue},other", "-X", "other")
    refused = run(idle_site, *words)
    assert refused.returncode == 1
    assert "Drop everything that waits in" in refused.stderr
    said = run(idle_site, *words, "-f")
    assert said.stdout == f"queue {idle_site.queue}: 4 dropped\n", said.stderr
    assert run(idle_site, *options_of(idle_site), "purge", "-f", "-Q", "other").stdout == "queue other: 1 dropped\n"


def test_options_of_celery_without_meaning_are_accepted_and_named_once(idle_site: Site) -> None:
    said = run(idle_site, "--loader", "app", "status", "--skip-checks", "-b", idle_site.server.url)
    assert said.returncode == 0
    assert said.stderr == "nbqueue: without meaning here, and doing nothing: --loader, --skip-checks\n"


def test_command_of_celerys_that_is_not_here_says_what_to_do_instead(idle_site: Site) -> None:
    for command, instead in (("multi", "--detach --pidfile"), ("flower", "celery -b URL flower")):
        said = run(idle_site, command, "start", "w1")
        assert said.returncode == 2
        assert instead in said.stderr


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_another_user_is_refused_in_the_foreground(idle_site: Site, command: str) -> None:
    said = run(idle_site, command, "--uid", "nobody", "--umask", "027")
    assert said.returncode == 2
    assert "--uid, --umask can only be given with --detach" in said.stderr


def test_settings_module_serves_an_app_that_names_none(idle_site: Site, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(f"BROKER_URL = {idle_site.server.url!r}\nCELERY_DEFAULT_QUEUE = 'mine'\n")
    sent = run(idle_site, "--config", "settings", "call", "tests.project.add", directory=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert idle_site.streams.size("mine").queued == 1
    wrong = run(idle_site, "--config", "setings", "status", directory=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "setings" in wrong.stderr


def test_shell_knows_the_app_its_tasks_and_the_words_of_a_canvas(shared_site: Site) -> None:
    for kind in ("--python", "--ipython"):
        said = subprocess.run(
            [sys.executable, "-m", "nbqueue", "-A", "tests.project", "-b", shared_site.server.url, "shell", kind],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NBQUEUE_KEY_FILE": str(shared_site.key_file), "TERM": "dumb"},
            input="print('sum', (add.s(1, 2) | add.s(3))().get(timeout=10), app is celery)\n",
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert "sum 6 True" in said.stdout, said.stderr


def test_worker_purges_its_queues_takes_celerys_options_and_writes_its_log_and_number(
    idle_site: Site, tmp_path: Path
) -> None:
    idle_site.app.send_task("tests.project.add", (1, 2))
    log, pidfile = tmp_path / "%n.log", tmp_path / "%n.pid"
    worker = idle_site.worker(
        *("--purge", "-O", "fair", "--without-gossip", "--prefetch-multiplier", "1", "-s", "schedule.db"),
        *("-I", "tests.pools", "-l", "INFO", "--logfile", str(log), "--pidfile", str(pidfile)),
    )
    written = tmp_path / f"{worker.name.split('@')[0]}.log"
    number = tmp_path / f"{worker.name.split('@')[0]}.pid"
    assert "1 messages were dropped from nbqueue" in written.read_text()
    assert int(number.read_text()) == worker.pid
    assert "-O" not in worker.log.read_text()
    assert worker.log.read_text().count("without meaning here") == 1
    second = run(idle_site, "worker", "-b", idle_site.server.url, "--pidfile", str(number))
    assert second.returncode == 1
    assert f"process {worker.pid} has it, and runs" in second.stderr
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert not number.exists()


def test_names_of_files_and_workers_are_made_of_the_host_its_domain_and_the_workers_own() -> None:
    signs = "%n %h %d %p %i%I"
    assert expanded(signs, "w1@a.example.com") == "w1 a.example.com example.com w1@a.example.com 0"
    own = socket.gethostname().partition(".")[0]
    assert expanded("w1@%n") == f"w1@{own}"


def test_worker_that_begins_anew_purges_nothing_more(idle_site: Site) -> None:
    worker = idle_site.worker("--purge")
    idle_site.app.send_task("tests.project.add", (1, 2), countdown=3600)
    worker.signal(signal.SIGHUP)
    wait_until(lambda: worker.log.read_text().count(": 2 children, queues") == 2, 15, "it to begin anew")
    assert idle_site.app.broker.size("nbqueue").delayed == 1


def test_number_that_a_killed_worker_left_behind_is_in_nobodys_way(idle_site: Site, tmp_path: Path) -> None:
    number = tmp_path / "w.pid"
    first = idle_site.worker("--pidfile", str(number))
    first.kill()
    assert number.exists()
    second = idle_site.worker("--pidfile", str(number))
    assert int(number.read_text()) == second.pid


def test_detached_worker_works_until_it_is_told_to_stop(idle_site: Site, tmp_path: Path) -> None:
    number, log = tmp_path / "w.pid", tmp_path / "w.log"
    said = run(
        idle_site,
        *("-A", "tests.project", "worker", "-b", idle_site.server.url, "-D", "-n", "behind@%h", "-c", "1"),
        *("-l", "info"),
        *("--umask", "027", "--pidfile", str(number), "-f", str(log)),
    )
    assert said.returncode == 0, said.stderr
    pid = int(number.read_text())
    try:
        assert said.stdout == f"worker started, process {pid}; its log is {log}\n"
        wait_until(lambda: bool(idle_site.app.offers()), 40, "the worker to show itself")
        assert idle_site.app.send_task("tests.project.add", (1, 2)).get(timeout=20) == 3
        assert os.getsid(pid) == pid
        assert number.stat().st_mode & 0o777 == 0o640
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: log.read_text().count("child") >= 2, 15, "it to begin anew")
        assert idle_site.app.send_task("tests.project.add", (1, 2)).get(timeout=20) == 3
        assert int(number.read_text()) == pid
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not number.exists(), 15, "it to stop")


def test_detached_worker_that_can_not_start_says_why(idle_site: Site, tmp_path: Path) -> None:
    said = run(idle_site, "-A", "no_such_module", "worker", "-D", "-f", str(tmp_path / "w.log"))
    assert said.returncode == 1
    assert "the worker ended with code 1" in said.stderr
    assert "no_such_module" in said.stderr
    wrong = run(idle_site, "worker", "--uid", "nobody")
    assert wrong.returncode == 2
    assert "--uid can only be given with --detach" in wrong.stderr


def test_program_runs_a_worker_for_its_own_app(idle_site: Site, tmp_path: Path) -> None:
    script = tmp_path / "proj.py"
    script.write_text(
        "import sys\nfrom nbqueue import Celery\n"
        f"app = Celery('proj', broker={idle_site.server.url!r}, key_file={str(idle_site.key_file)!r})\n"
        "@app.task\ndef twice(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n    app.worker_main(['worker', '-l', 'info', '-c', '1'])\n"
    )
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(script)], cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: bool(idle_site.app.offers()), 40, "the worker to show itself")
        assert idle_site.app.send_task("proj.twice", (3,)).get(timeout=20) == 6, (tmp_path / "log").read_text()
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_program_starts_its_worker_in_the_background(idle_site: Site, tmp_path: Path) -> None:
    script = tmp_path / "proj.py"
    script.write_text(
        "from nbqueue import Celery\n"
        f"app = Celery('proj', broker={idle_site.server.url!r}, key_file={str(idle_site.key_file)!r})\n"
        "@app.task\ndef twice(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    app.worker_main(['worker', '-D', '-c', '1', '--pidfile', 'w.pid', '-f', 'w.log'])\n"
    )
    words = [sys.executable, str(script), "not an argument of the worker's"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(words, cwd=tmp_path, env=variables, check=True, timeout=30, capture_output=True)
    try:
        wait_until(lambda: bool(idle_site.app.offers()), 40, "the worker to show itself")
        assert idle_site.app.send_task("proj.twice", (3,)).get(timeout=20) == 6, (tmp_path / "w.log").read_text()
    finally:
        os.kill(int((tmp_path / "w.pid").read_text()), signal.SIGTERM)
    wait_until(lambda: not (tmp_path / "w.pid").exists(), 15, "it to stop")


def test_worker_main_needs_the_word_worker() -> None:
    from nbqueue import App

    with pytest.raises(ValueError, match="the word 'worker'"):
        App(set_as_current=False).worker_main(["-l", "info"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-A", "own", "report", "--template", "x"), "template x loud False"),
        (("report", "-A", "own", "--loud"), "template plain loud True"),
        (("-A", "own", "report"), "template plain loud False"),
    ],
)
def test_options_of_ones_own_reach_receivers(
    idle_site: Site, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    (tmp_path / "own.py").write_text(
        "from click import Option\n"
        "from nbqueue import App, signals\n"
        f"app = App(broker={idle_site.server.url!r})\n"
        "app.user_options['preload'].add(Option(('-Z', '--template'), default='plain'))\n"
        "app.user_options['report'].add(Option(('--loud',), is_flag=True))\n"
        "@signals.user_preload_options.connect\n"
        "def read(options, **_):\n"
        "    print('template', options['template'], 'loud', options['loud'])\n"
    )
    said = run(idle_site, *words, directory=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[0] == says
    wrong = run(idle_site, "-A", "own", "report", "--loudly", directory=tmp_path)
    assert (wrong.returncode, "No such option" in wrong.stderr) == (2, True)
    assert run(idle_site, "report", "--loud", directory=tmp_path).returncode == 2


def test_help_lists_no_words_that_it_says_nothing_of(idle_site: Site) -> None:
    said = run(idle_site, "result", "--help")
    assert "Usage: nbqueue result [OPTIONS] ID\n" in said.stdout
    assert "\n  ID" not in said.stdout


def test_worker_writes_log_lines_in_the_form_that_settings_say(idle_site: Site, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"from nbqueue import App\napp = App(broker={idle_site.server.url!r}, worker_log_format='mine %(message)s')\n"
    )
    log = tmp_path / "log"
    said = run(
        idle_site, "-A", "mine", "worker", "-D", "-l", "info", "--pidfile", "w.pid", "-f", str(log), directory=tmp_path
    )
    assert said.returncode == 0, said.stderr
    try:
        wait_until(lambda: "mine worker-" in log.read_text(), 10, "its first line")
    finally:
        os.kill(int((tmp_path / "w.pid").read_text()), signal.SIGTERM)
    wait_until(lambda: not (tmp_path / "w.pid").exists(), 15, "it to stop")


@pytest.mark.parametrize(
    ("setting", "level", "lines"),
    [
        ("", "info", ["added", "careful"]),
        ("", "warning", ["careful"]),
        (
            "app.conf.worker_task_log_format = '%(levelname)s %(task_name)s[%(task_id)s] %(message)s'",
            "info",
            ["INFO logs.speaks[{}] added", "WARNING logs.speaks[{}] careful"],
        ),
        ("logging.basicConfig(format='own %(message)s')", "info", ["own added", "own careful"]),
    ],
)
def test_what_a_task_logs_is_in_its_output_from_the_workers_level_on(
    idle_site: Site, setting: str, level: str, lines: list[str]
) -> None:
    (idle_site.server.directory / "logs.py").write_text(
        "import logging\n"
        "from nbqueue.utils.log import get_task_logger\n"
        "from tests.project import app\n"
        f"{setting}\n"
        "@app.task\n"
        "def speaks():\n"
        "    logger = get_task_logger(__name__)\n"
        "    logger.info('added')\n"
        "    logger.warning('careful')\n"
    )
    path = f"{ROOT}{os.pathsep}{idle_site.server.directory}"
    idle_site.worker("-I", "logs", "-l", level, concurrency=1, PYTHONPATH=path)
    sent = idle_site.app.send_task("logs.speaks")
    said = run(idle_site, *options_of(idle_site), "result", "--timeout", "20", sent.id)
    assert said.returncode == 0, said.stderr
    assert said.stderr.splitlines() == [line.format(sent.id) for line in lines]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("broker_connection_retry = False", "broker_connection_retry is off"),
        ("broker_connection_max_retries = 2", "it was tried 2 times, broker_connection_max_retries"),
    ],
)
def test_worker_ends_when_its_server_is_lost_and_settings_say_so(idle_site: Site, setting: str, said: str) -> None:
    (idle_site.server.directory / "gives_up.py").write_text(f"from tests.project import app\napp.conf.{setting}\n")
    path = f"{ROOT}{os.pathsep}{idle_site.server.directory}"
    worker = idle_site.worker("-I", "gives_up", concurrency=1, PYTHONPATH=path)
    assert idle_site.app.send_task("tests.project.add", (1, 2)).get(timeout=20) == 3
    idle_site.server.kill()
    assert worker.wait() == 1
    log = worker.log.read_text()
    assert said in log
    assert "Traceback" not in log
    idle_site.server.start()


def test_worker_that_is_not_to_wait_for_its_server_fails_at_once(idle_site: Site, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text("broker_connection_retry_on_startup = False\n")
    words = ("--config", "settings", "-b", f"redis+socket://{tmp_path}/nobody", "worker")
    said = run(idle_site, *words, directory=tmp_path)
    assert said.returncode == 1
    assert "broker_connection_retry_on_startup is off" in said.stderr
    assert "Traceback" not in said.stderr
