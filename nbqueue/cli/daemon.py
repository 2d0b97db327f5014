"""A worker in the background: `--detach`, `--pidfile`, `--logfile`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import select
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import click

from nbqueue.processes import open_log, tail

START_S: Final = 60.0
_OF_DETACHED: Final = ("uid", "gid", "umask", "executable")
F = TypeVar("F", bound=Callable[..., Any])


def detach_options(command: F) -> F:
    """Add the options that say how a process in the background is to run."""
    for option in (
        click.option("--executable", metavar="FILE", help="With --detach: another Python."),
        click.option("--umask", metavar="OCTAL", help="With --detach: for the files that it makes."),
        click.option("--gid", metavar="GROUP", help="With --detach: run as this group."),
        click.option("--uid", metavar="USER", help="With --detach: run as this user; only root can say so."),
    ):
        command = option(command)
    return command


def refuse_without_detach(options: Mapping[str, Any]) -> None:
    """Refuse those options for a process in the foreground.

    Raises:
        UsageError: one was given.
    """
    if alone := [f"--{option}" for option in _OF_DETACHED if options[option]]:
        raise click.UsageError(f"{', '.join(alone)} can only be given with --detach")


def expanded(text: str, name: str = "") -> str:
    """Return a text with Celery's signs replaced.

    `%h` is the host, with its domain, `%d` the domain, `%n` the worker's own name, or its host's if it has none, `%p`
    that and the host. `%i` is 0 and `%I` nothing: a worker's children write to its log.

    >>> expanded("/run/%n.pid %d %p", "w1@a.example.com"), expanded("100%% %i%I")
    ('/run/w1.pid example.com w1@a.example.com', '100% 0')
    """
    short, _, own_host = name.partition("@")
    host = own_host or socket.gethostname()
    own, _, domain = host.partition(".")
    short = short or own
    signs = {"%h": host, "%n": short, "%d": domain, "%p": f"{short}@{host}", "%i": "0", "%I": "", "%%": "%"}
    found, rest = "", text
    while rest:
        sign = rest[:2]
        found += signs.get(sign, rest[0])
        rest = rest[2:] if sign in signs else rest[1:]
    return found


@contextlib.contextmanager
def pid_file(path: Path) -> Iterator[None]:
    """Hold a file with this process's number, for other programs to read; removed in the end.

    It is locked meanwhile, so what a killed process leaves behind is in nobody's way.

    Raises:
        ClickException: a living process holds it, or it can't be written.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            raise click.ClickException(f"--pidfile {path}: {exc.strerror}") from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            number = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise click.ClickException(
                f"--pidfile {path}: process {number} has it, and runs; stop it, or choose another file"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
        os.close(descriptor)  # who had it has removed it meanwhile
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@dataclass(frozen=True)
class Detached:
    """How a process in the background is to run.

    Args:
        log: gets what it prints.
        uid: of another user, by name or number; only root may say so.
        gid: of another group.
        umask: in octal.
        executable: another Python.
    """

    log: Path
    uid: str | None = None
    gid: str | None = None
    umask: str | None = None
    executable: str | None = None

    @classmethod
    def of(cls, log: Path, options: Mapping[str, Any]) -> Self:
        """Return what a command's options say."""
        return cls(log, **{option: options[option] for option in _OF_DETACHED})

    def start(self, arguments: Sequence[str], variables: Mapping[str, str]) -> int:
        """Start `nbqueue` with these arguments; return its process id once it says that it works.

        Raises:
            ClickException: it ended, or said nothing in time and was ended; with the end of its log.
            UsageError: an option can't be used.
        """
        from nbqueue.embedded import daemon_command  # every worker loads this module

        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        command = [*daemon_command("nbqueue.cli", *arguments), "--ready-fd", str(theirs.fileno())]
        if self.executable:
            command[0] = self.executable
        uid, home = _user(self.uid)
        with ours, open_log(self.log) as lines:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=lines,
                    stderr=lines,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env={**variables, **home},
                    user=uid,
                    group=_number(self.gid),
                    extra_groups=[] if uid is not None else None,
                    umask=-1 if self.umask is None else _octal(self.umask),
                )
            except (OSError, subprocess.SubprocessError, KeyError) as exc:
                raise click.ClickException(f"--detach: no process could be started: {exc}") from exc
            finally:
                theirs.close()
            spoke = select.select([ours], [], [], START_S)[0]
            ready = spoke and ours.recv(1)
        if not ready:
            # It has closed its end, so it is ending; or it hangs, and isn't left behind.
            if not spoke:
                process.kill()
            what = f"ended with code {process.wait()}" if spoke else f"did not start within {START_S:.0f} s"
            raise click.ClickException(f"the worker {what}. The end of {self.log}:\n{tail(self.log)}")
        process.returncode = 0  # it goes on, and isn't this one's to wait for
        return process.pid


def tell_ready(descriptor: int | None) -> None:
    """Tell who started this process that it works."""
    if descriptor is not None:
        with contextlib.suppress(OSError), socket.socket(fileno=descriptor) as starter:
            starter.send(b"1")


def without_detach(arguments: Sequence[str]) -> list[str]:
    """Return a command line without what is only said to whoever starts the process.

    >>> without_detach(["worker", "-D", "-l", "info", "--uid", "nobody", "--umask=077"])
    ['worker', '-l', 'info']
    """
    flags, valued = ("-D", "--detach"), ("--uid", "--gid", "--umask", "--executable", "--workdir")
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in valued:
            next(words, None)
        elif word not in flags and not word.startswith(tuple(f"{option}=" for option in valued)):
            kept.append(word)
    return kept


def _user(named: str | None) -> tuple[int | None, dict[str, str]]:
    """Return a user's number, and the variables by which programs find what is theirs."""
    if named is None:
        return None, {}
    try:
        found = pwd.getpwuid(int(named)) if named.isdecimal() else pwd.getpwnam(named)
    except KeyError:
        raise click.UsageError(f"--uid: there is no user {named!r}") from None
    return found.pw_uid, {"HOME": found.pw_dir, "USER": found.pw_name, "LOGNAME": found.pw_name}


def _number(named: str | None) -> str | int | None:
    return int(named) if named is not None and named.isdecimal() else named


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise click.UsageError(f"--umask must be an octal number such as 077, not {text!r}") from None
