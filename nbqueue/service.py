"""A worker as a service of this user: a unit of systemd on Linux, an agent of launchd on macOS.

Source: systemd.unit(5), systemd.service(5); launchd.plist(5).
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nbqueue.exceptions import ImproperlyConfigured

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STOP_S: Final = 600  # for a warm stop; what has not ended by then runs again elsewhere
_KEPT: Final = ("NBQUEUE_", "CELERY_")
_ALSO_KEPT: Final = ("PYTHONPATH", "PATH", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Service:
    """One service.

    Args:
        name: of its file, after `nbqueue-`.
        arguments: of `nbqueue worker`.
        directory: in which it works.
        variables: of its environment.
    """

    name: str
    arguments: tuple[str, ...] = ()
    directory: Path = Path("/")
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ImproperlyConfigured(f"a service's name has letters, digits, - and _ only, not {self.name!r}")

    @property
    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [sys.executable, "-m", "nbqueue", "worker", *self.arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Return what it needs of the variables."""
        return {n: v for n, v in self.variables.items() if n.startswith(_KEPT) or n in _ALSO_KEPT}


class Systemd:
    """systemd's units of a user."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        given = Path(variables.get("XDG_CONFIG_HOME") or "-")
        self.folder = (given if given.is_absolute() else _home(variables) / ".config") / "systemd" / "user"

    def file(self, service: Service) -> Path:
        """Return where its unit is."""
        return self.folder / f"nbqueue-{service.name}.service"

    def text(self, service: Service) -> str:
        """Return its unit."""
        lines = [
            "[Unit]",
            f"Description=nbqueue worker {service.name}",
            "",
            "[Service]",
            "Type=exec",
            f"WorkingDirectory={_unit_path(service.directory)}",
            *(f"Environment={_quoted(f'{name}={value}')}" for name, value in sorted(service.environment.items())),
            f"ExecStart={' '.join(_quoted(word, command=True) for word in service.command)}",
            # the supervisor alone is told: it stops its children once their tasks have ended
            "KillMode=mixed",
            f"TimeoutStopSec={_STOP_S}",
            "Restart=on-failure",
            "RestartSec=5",
            "",
            "[Install]",
            "WantedBy=default.target",
        ]
        return "\n".join(lines) + "\n"

    def start(self, service: Service) -> list[list[str]]:
        """Return the commands that start it, now and after each login."""
        unit = self.file(service).name
        return [["systemctl", "--user", "daemon-reload"], ["systemctl", "--user", "enable", "--now", unit]]

    def stop(self, service: Service) -> list[list[str]]:
        """Return the commands that stop it for good; its file is removed after the first of them."""
        unit = self.file(service).name
        return [["systemctl", "--user", "disable", "--now", unit], ["systemctl", "--user", "daemon-reload"]]

    def status(self, service: Service) -> list[str]:
        """Return the command that shows how it does."""
        return ["systemctl", "--user", "--no-pager", "status", self.file(service).name]

    hint = "It ends when you log out, unless lingering is on: loginctl enable-linger"


class Launchd:
    """launchd's agents of a user."""

    hint = ""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.folder = _home(variables) / "Library" / "LaunchAgents"
        self.logs = _home(variables) / "Library" / "Logs"

    def file(self, service: Service) -> Path:
        """Return where its property list is."""
        return self.folder / f"{self._label(service)}.plist"

    def text(self, service: Service) -> str:
        """Return its property list."""
        return plistlib.dumps(
            {
                "Label": self._label(service),
                "ProgramArguments": service.command,
                "WorkingDirectory": str(service.directory),
                "EnvironmentVariables": service.environment,
                "RunAtLoad": True,
                "KeepAlive": {"SuccessfulExit": False},
                "ExitTimeOut": _STOP_S,
                "StandardErrorPath": str(self.logs / f"nbqueue-{service.name}.log"),
            }
        ).decode()

    def start(self, service: Service) -> list[list[str]]:
        """Return the commands that start it, now and after each login."""
        return [["launchctl", "bootstrap", self._domain, str(self.file(service))]]

    def stop(self, service: Service) -> list[list[str]]:
        """Return the commands that stop it for good."""
        return [["launchctl", "bootout", f"{self._domain}/{self._label(service)}"]]

    def status(self, service: Service) -> list[str]:
        """Return the command that shows how it does."""
        return ["launchctl", "print", f"{self._domain}/{self._label(service)}"]

    @property
    def _domain(self) -> str:
        return f"gui/{os.getuid()}"

    def _label(self, service: Service) -> str:
        return f"org.nbqueue.{service.name}"


def manager(variables: Mapping[str, str], platform: str = sys.platform) -> Systemd | Launchd:
    """Return what starts services on a system.

    Raises:
        ImproperlyConfigured: this one has neither systemd nor launchd.
    """
    if platform == "darwin":
        return Launchd(variables)
    if platform.startswith("linux"):
        return Systemd(variables)
    raise ImproperlyConfigured(
        f"nbqueue knows no way to install a service on {platform}; use 'nbqueue worker --detach'"
    )


def write(path: Path, text: str) -> None:
    """Write a file that only this user can read: it may hold a password."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.replace(path)


def run(commands: Sequence[Sequence[str]], search_path: str | None) -> None:
    """Run commands one after the other.

    Raises:
        ImproperlyConfigured: one is missing, or fails; with what it said.
    """
    for command in commands:
        program = shutil.which(command[0], path=search_path)
        if program is None:
            raise ImproperlyConfigured(f"there is no {command[0]} here; use 'nbqueue worker --detach'")
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise ImproperlyConfigured(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")


def _home(variables: Mapping[str, str]) -> Path:
    home = variables.get("HOME")
    if not home:
        raise ImproperlyConfigured("HOME is not set, so there is no place for a service's file")
    return Path(home)


def _quoted(word: str, *, command: bool = False) -> str:
    """Return a word as systemd reads it: it expands % everywhere, and $ in commands."""
    if "\n" in word:
        raise ImproperlyConfigured(f"a service's words have one line each, not {word!r}")
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{word.replace("$", "$$") if command else word}"'


def _unit_path(path: Path) -> str:
    return str(path).replace("%", "%%")
