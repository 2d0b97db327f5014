"""Options of tasks that settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbqueue import App, Task
from nbqueue.exceptions import ImproperlyConfigured
from tests.workers import Site


def app(**settings: Any) -> App:
    return App("test", set_as_current=False, **settings)


def add(x: int, y: int) -> int:
    return x + y


def test_annotations_win_over_what_a_task_says_and_its_own_over_those_for_all() -> None:
    made = app(task_annotations={"*": {"time_limit": 10, "queue": "all"}, "one": {"queue": "one"}})
    one, other = made.task(add, name="one", queue="said"), made.task(add, name="other")
    assert (one.queue, one.time_limit, other.queue) == ("one", 10.0, "all")
    assert made.destination("one", queue=one.queue) == ("one", 0)


def test_annotations_reach_tasks_that_were_there_before_them() -> None:
    made = app()
    task = made.task(add, name="one")
    made.conf.CELERY_ANNOTATIONS = [{"one": {"max_retries": 7}}]
    assert task.max_retries == 7
    late = app(config_source={"task_annotations": {"one": {"max_retries": 8}}})
    task = late.task(add, name="one")
    assert task.max_retries == 3
    _ = late.conf
    assert task.max_retries == 8, "as soon as the configuration is read"


def test_object_annotates_the_tasks_it_likes() -> None:
    class Slow:
        def annotate(self, task: Task) -> dict[str, Any] | None:
            return {"time_limit": 99} if task.name.startswith("slow") else None

    made = app(task_annotations=(Slow(), {"*": {"priority": 4}}))
    slow, quick = made.task(add, name="slow"), made.task(add, name="quick")
    assert (slow.time_limit, quick.time_limit) == (99.0, 0.0)
    assert (slow.priority, quick.priority) == (4, 4)


@pytest.mark.parametrize("wrong", [5, ["x"], {"one": 5}, {"one": {"time_limit": -1}}, {"one": {"tme_limit": 1}}])
def test_annotations_that_can_not_be_are_refused(wrong: object) -> None:
    made = app()
    made.task(add, name="one")
    with pytest.raises(ImproperlyConfigured, match=r"annotations|time_limit"):
        made.conf.task_annotations = wrong


def test_annotation_is_a_tasks_own_in_a_worker(idle_site: Site, tmp_path: Path) -> None:
    (tmp_path / "settings_with_hook.py").write_text(
        "from pathlib import Path\n"
        "def noted(self, value, task_id, args, kwargs):\n"
        f"    Path({str(tmp_path)!r}, 'noted').write_text(f'{{self.name}} {{value}}')\n"
        "task_annotations = {'tests.project.add': {'on_success': noted}}\n"
    )
    idle_site.worker(CELERY_CONFIG_MODULE="settings_with_hook", PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert idle_site.app.send_task("tests.project.add", (1, 2)).get(timeout=20) == 3
    assert (tmp_path / "noted").read_text() == "tests.project.add 3"
