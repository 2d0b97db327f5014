"""Files of services, and the commands around them.

systemd itself isn't told anything: a program notes what it would be. What it makes of a unit, its own checker says.
"""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nbqueue.exceptions import ImproperlyConfigured
from nbqueue.service import Launchd, Service, Systemd, manager
from tests.workers import ROOT

HOSTILE = 'a "b" $HOME 50% \\n'


def made(**variables: str) -> Service:
    return Service("gpu", ("-A", "proj", "-n", HOSTILE), Path("/srv/my work"), variables)


def test_unit_starts_the_worker_and_stops_it_warmly() -> None:
    found = Systemd({"HOME": "/home/me"})
    lines = found.text(made(NBQUEUE_BROKER_URL="redis://h", SECRET="x")).splitlines()
    assert found.file(made()) == Path("/home/me/.config/systemd/user/nbqueue-gpu.service")
    assert "WorkingDirectory=/srv/my work" in lines
    assert 'Environment="NBQUEUE_BROKER_URL=redis://h"' in lines
    assert not [line for line in lines if "SECRET" in line]
    command = next(line for line in lines if line.startswith("ExecStart="))
    assert command.startswith(f'ExecStart="{sys.executable}" "-m" "nbqueue" "worker" "-A" "proj" "-n" ')
    assert command.endswith(r'"a \"b\" $$HOME 50%% \\n"')
    assert "KillMode=mixed" in lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("directory", ["plain", 'a b%c "q" $HOME é'])
def test_unit_is_what_systemd_takes(tmp_path: Path, directory: str) -> None:
    place = tmp_path / directory
    place.mkdir()
    service = Service(
        "gpu", ("-A", "proj", "-n", HOSTILE), place, {"NBQUEUE_BROKER_URL": "redis://h", "NBQUEUE_X": HOSTILE}
    )
    unit = tmp_path / "nbqueue-gpu.service"

    def complaints(text: str) -> str:
        unit.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "--user", "verify", str(unit)],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        # It exits with 0 where it passes over what it doesn't know. Of other units it may say what it likes.
        return "\n".join(line for line in done.stderr.splitlines() if "nbqueue-gpu" in line)

    text = Systemd({"HOME": str(tmp_path)}).text(service)
    assert complaints(text) == ""
    assert "Unknown key" in complaints(text.replace("KillMode=", "Killmode=")), "it is looked at"


def test_unit_with_a_line_break_in_a_word_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="one line each"):
        Systemd({"HOME": "/h"}).text(Service("w", ("-n", "a\nExecStart=/bin/evil")))
    with pytest.raises(ImproperlyConfigured, match="letters, digits"):
        Service("../../etc/x")


def test_property_list_of_launchd_says_the_same() -> None:
    found = Launchd({"HOME": "/Users/me"})
    parsed = plistlib.loads(found.text(made(NBQUEUE_HOME="/data")).encode())
    assert found.file(made()) == Path("/Users/me/Library/LaunchAgents/org.nbqueue.gpu.plist")
    assert parsed["ProgramArguments"] == made().command
    assert parsed["EnvironmentVariables"] == {"NBQUEUE_HOME": "/data"}
    assert parsed["KeepAlive"] == {"SuccessfulExit": False}


def test_system_without_services_is_named() -> None:
    assert isinstance(manager({"HOME": "/h"}, "darwin"), Launchd)
    with pytest.raises(ImproperlyConfigured, match="win32"):
        manager({}, "win32")


def nbqueue(home: Path, *words: str, path: str = "/usr/bin:/bin", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nbqueue", *words],
        cwd=home,
        env={"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at systemd's files")
def test_install_and_uninstall_write_and_remove_the_file_and_tell_systemd(tmp_path: Path) -> None:
    tools, notes = tmp_path / "tools", tmp_path / "notes"
    tools.mkdir()
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(notes))}\n')
    (tools / "systemctl").chmod(0o755)
    path = f"{tools}{os.pathsep}/usr/bin:/bin"
    unit = tmp_path / ".config/systemd/user/nbqueue-gpu.service"
    words = ("service", "install", "--name", "gpu", "-A", "proj", "-b", "redis://:hunter2@h")
    dry = nbqueue(tmp_path, *words, "--dry-run", "--", "-c", "4", path=path)
    assert dry.returncode == 0, dry.stderr
    assert '"-A" "proj" "-b" "redis://:***@h" "-c" "4"' in dry.stdout
    assert "$ systemctl --user enable --now nbqueue-gpu.service" in dry.stdout
    assert not unit.exists()
    assert not notes.exists()
    done = nbqueue(tmp_path, *words, "--", "-c", "4", path=path, NBQUEUE_KEY_FILE="/key")
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout
    assert "hunter2@h" in unit.read_text()
    assert unit.stat().st_mode & 0o777 == 0o600
    assert 'Environment="NBQUEUE_KEY_FILE=/key"' in unit.read_text()
    assert notes.read_text().splitlines() == ["--user daemon-reload", "--user enable --now nbqueue-gpu.service"]
    assert nbqueue(tmp_path, "service", "status", "--name", "gpu", path=path).returncode == 0
    gone = nbqueue(tmp_path, "service", "uninstall", "--name", "gpu", path=path)
    assert gone.returncode == 0, gone.stderr
    assert not unit.exists()
    again = nbqueue(tmp_path, "service", "uninstall", "--name", "gpu", path=path)
    assert again.returncode == 1
    assert "there is no service nbqueue-gpu" in again.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at systemd's files")
def test_install_says_what_systemd_said_when_it_fails(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
    (tools / "systemctl").chmod(0o755)
    said = nbqueue(tmp_path, "service", "install", path=str(tools))
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1] == "Error: systemctl --user daemon-reload: Failed to connect to bus"
    missing = nbqueue(tmp_path, "service", "install", path=str(tmp_path))
    assert "there is no systemctl here" in missing.stderr


@pytest.mark.parametrize(("word", "says"), [("--nosuch", "No such option '--nosuch'"), ("-c0", "'0' is neither")])
def test_install_refuses_what_the_worker_would_refuse_at_each_start(tmp_path: Path, word: str, says: str) -> None:
    said = nbqueue(tmp_path, "service", "install", "--dry-run", "--", word)
    assert (said.returncode, said.stdout) == (2, "")
    assert says in said.stderr
