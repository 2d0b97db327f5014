"""What tasks put out on a real worker: live, replayed, and bounded all the way."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

from nbqueue.status import TaskStatus
from tests.helpers import wait_until
from tests.workers import Site


def status_of(result: Any) -> TaskStatus:
    status = result.watched.status
    assert isinstance(status, TaskStatus)
    return status


def text(result: Any, stream: str = "stdout") -> str:
    return "".join(part for _, name, part in list(status_of(result).log.chunks) if name == stream)


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_hundred_megabytes_of_prints_are_bounded_everywhere_and_replayed_as_they_were(shared_site: Site) -> None:
    def shout() -> tuple[int, int]:
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = "x" * 999
        for _ in range(100_000):
            print(line)
        print("the end")
        return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    server = shared_site.app.backend.client  # type: ignore[attr-defined]
    used_before = server.info("memory")["used_memory"]
    supervisor = shared_site.workers[0].process.pid
    theirs_before, mine_before = rss_bytes(supervisor), rss_bytes(os.getpid())
    sent = shared_site.app.task(shout).delay()
    before, after = sent.get(timeout=50)
    assert after - before < 40_000  # KiB
    assert server.info("memory")["used_memory"] - used_before < 10_000_000
    assert rss_bytes(supervisor) - theirs_before < 40_000_000
    assert rss_bytes(os.getpid()) - mine_before < 40_000_000
    wait_until(lambda: text(sent).endswith("the end\n"), 10, "the last line")
    assert "characters left out" in text(sent)
    assert len(text(sent)) < 2_000_000
    with shared_site.new_app() as other:
        found = other.attach(sent.id)
        found.get(timeout=10)
        assert text(found) == text(sent)


def test_outputs_attached_to_later_are_those_seen_live(shared_site: Site) -> None:
    def draw() -> None:
        print("before")
        handle = display("a", display_id=True)  # type: ignore[name-defined] # noqa: F821
        os.system("echo from a process")
        handle.update("b")
        display({"text/html": "<b>c</b>"}, raw=True)  # type: ignore[name-defined] # noqa: F821

    sent = shared_site.app.task(draw).delay()
    sent.get(timeout=20)
    wait_until(lambda: len(status_of(sent).outputs) == 2, 10, "what was displayed")
    with shared_site.new_app() as other:
        found = other.attach(sent.id)
        found.get(timeout=10)
        for result in (sent, found):
            assert text(result) == "before\nfrom a process\n"
            assert [output.data for output in status_of(result).outputs] == [
                {"text/plain": "'b'"},
                {"text/html": "<b>c</b>"},
            ]
