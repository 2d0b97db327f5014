"""Cells that run by the clock, from a notebook whose kernel ends to what another session sees and changes."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nbqueue import states
from nbqueue.deliveries import QueueSize
from tests.end_to_end.test_output import text
from tests.helpers import wait_until
from tests.workers import ROOT, Site

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(180)]


@pytest.fixture
def session(idle_site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site that kernels which the test starts find by their environment."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("NBQUEUE_BROKER_URL", idle_site.broker_url)
    monkeypatch.setenv("NBQUEUE_KEY_FILE", str(idle_site.key_file))
    if idle_site.on_rabbitmq:
        monkeypatch.setenv("NBQUEUE_RESULT_BACKEND", idle_site.server.url)
    return idle_site


def run_notebook(directory: Path, *cells: str) -> list[str]:
    """Run cells in a kernel that ends with them; return the text of each."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in ("%load_ext nbqueue", *cells)]
    )
    client = NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
    )
    with (directory / "kernel.log").open("w") as log:
        client.execute(stderr=log)
    assert client.km is None, "the kernel has ended"
    return [
        "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
        for cell in notebook.cells[1:]
    ]


def ended(site: Site, name: str, *, by_hand: bool = False) -> list[str]:
    """Return the ids of an entry's runs that came to a value."""
    runs = site.app.beat.get(name).runs
    return [run.id for run in runs if run.state == states.SUCCESS and run.by_hand == by_hand]


def test_cell_fires_after_its_kernel_ended_and_another_session_sees_pauses_runs_and_deletes_it(
    session: Site, tmp_path: Path
) -> None:
    site = session
    _, said, timed = run_notebook(
        tmp_path,
        "rates, large = {'NOK': 11.5}, bytes(200_000)",
        "%%task report --every 2s -o size\nsize = len(large)\nprint('the rates of today')\nrates['NOK'] * 2",
        "%%task weekly --cron '0 7 * * mon' --zone Europe/Oslo\nprint('by hand')\n1 + 1",
    )
    assert said.startswith("report runs every 2 seconds, next ")
    assert "No beat leads yet, so nothing fires: %beat start" in said
    assert timed.startswith("weekly runs Mondays at 07:00 Europe/Oslo, next ")
    worker = site.worker("-B", concurrency=1, home=tmp_path / "elsewhere")  # shares no files with the kernel
    wait_until(lambda: len(ended(site, "report")) >= 2, 30, "two runs by the clock")

    listed, _, value, paused, weekly, panel = run_notebook(
        tmp_path,
        "%beat list",
        "from nbqueue import current_app\nresult = current_app().attach('report')",
        "[result.get(timeout=20), result.outputs]",
        "%beat pause report",
        "%beat run weekly\ncurrent_app().attach('weekly').get(timeout=20)",
        "%beat",
    )
    assert listed.startswith(f"Beat: {worker.name} leads\nreport  every 2 seconds  next ")
    assert value == "[23.0, {'size': 200000}]"
    assert "report is paused" in paused
    assert weekly.startswith("weekly was sent, beside its times, as ")
    assert weekly.endswith("2")
    assert "report  every 2 seconds  paused  " in panel
    assert "weekly  Mondays at 07:00 Europe/Oslo  next Mon " in panel

    (by_hand,) = ended(site, "weekly", by_hand=True)
    assert site.app.attach("weekly").id == by_hand
    assert text(site.app.attach("weekly")) == "by hand\n"
    runs = ended(site, "report")
    assert len(runs) == site.app.beat.get("report").count
    for id_ in runs:
        assert site.app.attach(id_).get(timeout=5) == 23.0
        assert text(site.app.attach(id_)) == "the rates of today\n"
    (deleted,) = run_notebook(tmp_path, "%beat delete report\n%beat delete weekly\n%beat list")
    assert "Nothing is scheduled" in deleted
    assert site.app.beat.list() == []
    assert site.app.attach(by_hand).get(timeout=5) == 2
    assert site.app.broker.size(site.queue) == QueueSize(0, 0, 0)
