"""Random faults for as long as you like: `python -m tests.soak --minutes 10 --seed 1`.

Tasks of all kinds are sent while workers, children, connections and the server are killed, frozen and cut. In the end
whatever was sent has ended, each task as it should or with a cause, hardly anything ran twice, and nothing is left.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nbqueue.deliveries import REVOKED
from nbqueue.exceptions import (
    BackendUnavailable,
    SendFailed,
    SendUncertain,
    TaskRevokedError,
    WorkerLostError,
)
from nbqueue.result import AsyncResult, MapResult
from tests.chaos import CHILDREN, Faults
from tests.helpers import RedisServer, wait_until
from tests.proxy import Network
from tests.rabbit import RabbitServer
from tests.workers import Site, Worker

IN_FLIGHT: Final = 60
END_S: Final = 120.0


def note(folder: str, name: str, seconds: float) -> str:
    """Leave a file for each run."""
    import time
    from pathlib import Path

    (Path(folder) / f"{name}.{time.time_ns()}").touch()
    time.sleep(seconds)
    return name


def fail(name: str) -> None:
    raise ValueError(name)


def crash() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def retry_twice(self: Any, name: str) -> str:
    if self.request.retries < 2:
        self.retry(countdown=0.1)
    return name


def talk(name: str) -> str:
    for number in range(200):
        print(name, number)
    return name


@dataclass
class Sent:
    """One task or map, and what it should come to."""

    kind: str
    result: AsyncResult | MapResult
    expected: list[Any]
    revoked: bool = False

    def ended_well(self) -> tuple[Counter[str], list[str]]:
        """Return what became of it, and what should not have."""
        values = self.result.get(timeout=5, propagate=False)
        ends: Counter[str] = Counter()
        wrong = []
        for value, expected in zip(
            values if isinstance(self.result, MapResult) else [values], self.expected, strict=True
        ):
            match value:
                case TaskRevokedError() if self.revoked:
                    ends["revoked"] += 1
                case WorkerLostError():  # hit by three faults, or its own
                    ends[f"{self.kind}: given up"] += 1
                case ValueError() if self.kind == "fail":
                    ends["failed"] += 1
                case _ if value == expected and self.kind not in ("fail", "crash"):
                    ends["done"] += 1
                case _:
                    wrong.append(f"{self.kind} {self.result.id}: {value!r} instead of {expected!r}")
        return ends, wrong


@dataclass
class Tally:
    """What has happened."""

    sent: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    not_sent: int = 0


class Soak:
    """A site under faults.

    Args:
        site: without workers.
        network: by which one of the workers reaches the servers.
        folder: for the files that tasks leave.
        seed: of what happens, and when.
        rabbitmq: the broker, if it is not Redis.
    """

    def __init__(
        self, site: Site, network: Network, folder: Path, seed: int, rabbitmq: RabbitServer | None = None
    ) -> None:
        self.site = site
        self.network = network
        self.rabbitmq = rabbitmq
        self.folder = folder
        self.random = random.Random(seed)
        self.tally = Tally()
        self.live: list[Sent] = []
        self.number = 0
        self.faults = Faults(site, self.random, self._worker, 3, self.go_on)
        app = site.app
        self.note = app.task(note, by_value=True)
        self.fail = app.task(fail, by_value=True)
        self.crash = app.task(crash, by_value=True)
        self.retry = app.task(retry_twice, bind=True, by_value=True)
        self.talk = app.task(talk, by_value=True)
        self.early = app.task(note, name="early", by_value=True, acks_late=False)
        self.limited = app.task(note, name="limited", by_value=True, rate_limit="20/s")

    # ---- tasks

    def send(self) -> None:
        """Send something."""
        self.number += 1
        name, seconds = f"t{self.number}", self.random.uniform(0.01, 0.3)
        kind = self.random.choices(
            ["note", "later", "map", "fail", "crash", "retry", "talk", "early", "lock", "rate"],
            [10, 3, 2, 2, 0.3, 2, 1, 2, 2, 2],
        )[0]
        expected: list[Any] = [name]
        result: AsyncResult | MapResult
        try:
            match kind:
                case "note":
                    result = self.note.delay(str(self.folder), name, seconds)
                case "later":
                    result = self.note.apply_async(
                        (str(self.folder), name, seconds), countdown=seconds * 10, priority=3
                    )
                case "map":
                    expected = [f"{name}-{n}" for n in range(20)]
                    result = self.note.starmap([(str(self.folder), each, 0.02) for each in expected])
                case "fail":
                    result = self.fail.delay(name)
                case "crash":
                    result = self.crash.delay()
                case "retry":
                    result = self.retry.delay(name)
                case "talk":
                    result = self.talk.delay(name)
                case _:
                    result, expected = self._send_rarer(kind, name, seconds)
        except (SendFailed, SendUncertain, BackendUnavailable):
            self.tally.not_sent += 1
            return
        self.tally.sent[kind] += len(expected)
        self.live.append(Sent(kind, result, expected))

    def _send_rarer(self, kind: str, name: str, seconds: float) -> tuple[AsyncResult, list[Any]]:
        """Send what has terms of its own; return its handle, and what it should come to."""
        folder = str(self.folder)
        if kind == "early":
            return self.early.delay(folder, f"early-{name}", seconds), [f"early-{name}"]
        if kind == "lock":
            lock = self.random.choice("ab")
            return self.note.apply_async((folder, name, seconds / 10), lock=lock), [name]
        return self.limited.delay(folder, name, seconds / 10), [name]

    def tick(self) -> None:
        """Send a little, and look at what has ended."""
        if len(self.live) < IN_FLIGHT:
            self.send()
        for sent in [sent for sent in self.live if sent.result.ready()]:
            self.live.remove(sent)
            ends, wrong = sent.ended_well()
            self.tally.ends += ends
            self.tally.wrong += wrong
        if self.random.random() < 0.01 and self.live:
            sent = self.random.choice(self.live)
            with contextlib.suppress(BackendUnavailable):
                sent.revoked = True
                sent.result.revoke(terminate=self.random.random() < 0.5)
        time.sleep(0.01)

    def go_on(self, seconds: float) -> None:
        """Go on for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.tick()

    # ---- faults

    def server_full(self) -> None:
        self.site.server_says("CONFIG", "SET", "maxmemory", "1")
        self.go_on(self.random.uniform(0.2, 1.0))
        self.site.server_says("CONFIG", "SET", "maxmemory", "0")

    def network_cut(self) -> None:
        cuts = self.network.cuts
        self.network.cut_somewhere(self.random, 5_000)
        until = time.monotonic() + 5
        while self.network.cuts == cuts and time.monotonic() < until:
            self.tick()

    def network_swallows(self) -> None:
        self.faults.in_flight += CHILDREN
        self.network.hold()
        self.go_on(self.random.uniform(0.5, 6.0))
        self.network.release()

    def rabbitmq_restarted(self) -> None:
        assert self.rabbitmq is not None
        self.rabbitmq.stop()
        self.rabbitmq.start()

    def run(self, seconds: float) -> None:
        """Break things for so long, then let everything end."""
        kinds = [*self.faults.kinds, self.server_full, self.network_cut, self.network_swallows]
        if self.rabbitmq is not None:
            kinds.append(self.rabbitmq_restarted)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            fault = self.random.choice(kinds)
            self.tally.faults[fault.__name__] += 1
            fault()
            self.go_on(self.random.uniform(0.5, 3.0))
            print(
                f"{until - time.monotonic():5.0f} s left, {sum(self.tally.ends.values())} ended, {fault.__name__}",
                flush=True,
            )
        until = time.monotonic() + END_S
        while self.live and time.monotonic() < until:
            sent, self.number = self.live[0], self.number + 1
            if sent.result.ready():
                self.live.remove(sent)
                ends, wrong = sent.ended_well()
                self.tally.ends += ends
                self.tally.wrong += wrong
            else:
                time.sleep(0.05)

    def verdict(self) -> list[str]:
        """Return what is wrong in the end."""
        wrong = list(self.tally.wrong)
        wrong += [f"stuck: {sent.kind} {sent.result.id}: {sent.result.watched.note}" for sent in self.live]
        if sum(self.tally.sent.values()) != sum(self.tally.ends.values()) + len(self.tally.wrong):
            wrong.append(f"{sum(self.tally.sent.values())} were sent, {sum(self.tally.ends.values())} have ended")
        begun = Counter(path.name.partition(".")[0] for path in self.folder.iterdir())
        again = sum(times - 1 for times in begun.values())
        wrong += [f"{name} ran {times} times" for name, times in begun.items() if name[:5] == "early" and times > 1]
        print(f"{again} ran again, {self.faults.in_flight} were in flight when something broke")
        if again > self.faults.in_flight:
            wrong.append(f"{again} ran again, of {self.faults.in_flight} in flight at most")
        size = self.site.app.broker.size("nbqueue")
        if (size.queued, size.claimed, size.delayed) != (0, 0, 0):
            # What its sender was not sure of may still wait.
            wrong.append(f"the queue has {size}")
        if marks := self.site.streams.client.hlen(REVOKED):
            wrong.append(f"{marks} marks of revoked tasks are left")
        wrong += self.faults.wrong()
        return wrong

    def _worker(self, place: int) -> Worker:
        variables = {}
        if place == 2:
            variables["NBQUEUE_BROKER_URL"], variables["NBQUEUE_RESULT_BACKEND"] = self.network.urls
        return self.site.worker(concurrency=CHILDREN, ready=False, home=None, **variables)


def main() -> int:
    """Soak, say how it went, and return 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(RedisServer(appendonly=True))
        rabbitmq = stack.enter_context(RabbitServer()) if chosen.broker == "rabbitmq" else None
        site = stack.enter_context(Site(server, by_value=False, broker_url=rabbitmq.url if rabbitmq else ""))
        network = stack.enter_context(Network(site))
        soak = Soak(site, network, Path(folder), chosen.seed, rabbitmq)
        wait_until(lambda: len(site.app.backend.adverts()) == 3, 30, "the workers")
        soak.run(chosen.minutes * 60)
        wrong = soak.verdict()
    for title, counts in (("faults", soak.tally.faults), ("sent", soak.tally.sent), ("ended", soak.tally.ends)):
        print(f"{title}: {', '.join(f'{what} {n}' for what, n in sorted(counts.items()))}")
    print(f"not sent: {soak.tally.not_sent}")
    print("\n".join(wrong) or "nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
