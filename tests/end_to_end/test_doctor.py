"""`nbqueue report` and `nbqueue doctor`, on real servers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nbqueue import App, doctor
from nbqueue.signing import create_key_file
from tests.end_to_end.test_cli import options_of, run
from tests.helpers import RedisServer
from tests.workers import Site

pytestmark = pytest.mark.timeout(60)


@pytest.mark.brokers
def test_doctor_finds_servers_and_workers_in_order(shared_site: Site) -> None:
    said = run(shared_site, *options_of(shared_site), "doctor")
    assert said.returncode == 0, said.stdout
    assert said.stdout.count(" answers in ") == (2 if shared_site.on_rabbitmq else 1)
    assert re.search(r"^ok      [1-9]\d* workers with your key, [1-9]\d* children$", said.stdout, re.MULTILINE)
    assert "clock: as the server's" in said.stdout
    assert re.search(r"^0 broken, \d+ to note, \d+ in order$", said.stdout.splitlines()[-1])


def test_doctor_notes_tasks_that_nobody_listens_for(idle_site: Site) -> None:
    idle_site.app.send_task("tests.project.add", (1, 2), queue="lonely")
    said = run(idle_site, "-b", idle_site.server.url, "doctor")
    assert said.returncode == 0, "notes are no defects"
    assert "note    no worker has your key" in said.stdout
    assert "note    1 tasks wait in queue lonely, and nobody listens" in said.stdout
    assert "-> nbqueue worker -Q lonely" in said.stdout


def test_doctor_tells_workers_of_another_key_apart(shared_site: Site, tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    app = App(broker=shared_site.server.url, key_file=tmp_path / "key", set_as_current=False)
    found = list(doctor.examine(app))
    app.close()
    text = next(finding for finding in found if "another key" in finding.text)
    assert shared_site.workers[0].name in text.text
    assert any(finding.text == "no worker has your key" for finding in found)


def test_doctor_says_that_a_server_drops_tasks_and_fails(private_redis: RedisServer) -> None:
    with Site(private_redis) as site:
        site.server_says("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        site.server_says("CONFIG", "SET", "appendonly", "no")
        said = run(site, "-b", private_redis.url, "doctor", "-q")
    assert said.returncode == 1
    assert "maxmemory-policy allkeys-lru" in said.stdout
    assert "-> run there: CONFIG SET maxmemory-policy noeviction" in said.stdout
    assert "note    " in said.stdout
    assert "(appendonly no)" in said.stdout
    assert "\nok " not in said.stdout
    assert said.stdout.splitlines()[-1].startswith("1 broken")


@pytest.mark.parametrize("url", ["redis://:hunter2@127.0.0.1:1/0", "amqp://me:hunter2@127.0.0.1:1//"])
def test_doctor_says_what_can_not_be_reached_without_its_password(idle_site: Site, url: str) -> None:
    backend = ("--result-backend", idle_site.server.url) if url.startswith("amqp") else ()
    said = run(idle_site, "-b", url, *backend, "doctor")
    assert said.returncode == 1
    assert re.search(r"^broken  \w+://.*127\.0\.0\.1:1/.* can't be used: ", said.stdout, re.MULTILINE)
    assert said.stdout.splitlines()[-1].startswith("1 broken")
    assert "hunter2" not in said.stdout + said.stderr
    assert "Traceback" not in said.stderr


def test_doctor_says_that_a_key_can_be_read_by_others(idle_site: Site) -> None:
    mode = idle_site.key_file.stat().st_mode
    idle_site.key_file.chmod(0o644)
    try:
        said = run(idle_site, "-b", idle_site.server.url, "doctor")
    finally:
        idle_site.key_file.chmod(mode)
    assert said.returncode == 1
    assert f"run: chmod 600 {idle_site.key_file}" in said.stdout


def test_doctor_starts_no_embedded_server(idle_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    said = run(idle_site, "doctor")
    assert said.returncode == 0, said.stdout
    assert "the embedded one is not running, and starts when needed" in said.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://example.org", ["can be read and changed on the way", "without a password"]),
        ("rediss://:pw@example.org?ssl_cert_reqs=none", ["is not verified"]),
        ("amqp://me:pw@example.org", ["can be read and changed on the way"]),
        ("sentinel://:pw@example.org:26379;127.0.0.1/0?master_name=m", ["can be read and changed on the way"]),
        ("redis://localhost", []),
        ("rediss://:pw@example.org", []),
        ("redis+socket:///run/s", []),
    ],
)
def test_what_is_open_or_unsafe_is_noted(url: str, says: list[str]) -> None:
    found = list(doctor.encryption(url))
    assert [finding.level for finding in found] == ["note"] * len(says)
    for finding, words in zip(found, says, strict=True):
        assert words in finding.text
        assert ":pw@" not in finding.text


@pytest.mark.parametrize(("ahead_s", "level"), [(0.5, "ok"), (-5.0, "note"), (90.0, "broken"), (-90.0, "broken")])
def test_clocks_that_differ_are_noted_and_far_ones_broken(ahead_s: float, level: str) -> None:
    assert doctor.skew(ahead_s).level == level


@pytest.mark.parametrize(("free", "level"), [(5_000_000_000, "ok"), (500_000_000, "note"), (1_000_000, "broken")])
def test_disk_that_is_nearly_full_is_noted_and_a_full_one_broken(free: int, level: str) -> None:
    assert doctor.disk(free, Path("/data")).level == level


def test_report_says_what_runs_where_and_keeps_secrets(idle_site: Site, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from nbqueue import App\n"
        "app = App('mine', broker='redis://:hunter2@example.org/0', backend='redis://me:hunter2@example.org/1',\n"
        "          redis_password='hunter2', task_publish_retry_policy={'max_retries': 7},\n"
        "          broker_use_ssl={'ssl_password': 'hunter2', 'ssl_ca_certs': '/ca.pem'})\n"
        "app.conf.update(database_engine_options=[{'url': 'postgresql://me:hunter2@db', 'api_token': 'hunter2'}])\n"
        "@app.task\ndef add(x, y): ...\n"
    )
    said = run(idle_site, "-A", "mine", "report", directory=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "hunter2" not in said.stdout + said.stderr
    for part in ("software -> nbqueue:", "platform -> system:", "rediss://:***@example.org/0?", "1 known by name"):
        assert part in said.stdout
    assert re.search(r"^    task_publish_retry_policy: .*'max_retries': 7", said.stdout, re.MULTILINE)
    assert f"NBQUEUE_KEY_FILE={idle_site.key_file}" in said.stdout


def test_report_of_a_program_is_the_same_text() -> None:
    text = App("mine", broker="redis://:hunter2@example.org", set_as_current=False).bugreport()
    assert "broker   -> redis://:***@example.org" in text
    assert "hunter2" not in text
