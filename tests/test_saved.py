from __future__ import annotations

import re

import pytest

from nbqueue import states
from nbqueue.notebook.saved import static_html
from nbqueue.status import MapStatus
from tests.test_text import TRACE, record, task

EVIL = "<img src=x onerror=alert(1)>\x1b[31mred\x1b[0m\u202eabc\r\n\x00"


def test_static_html_of_a_failure_marks_the_readers_own_line_and_folds_the_rest() -> None:
    status = task(states.FAILURE, error="ValueError: <bad>")
    assert status.failure is not None
    status.failure.traceback = TRACE
    page = static_html(status, 110.0)
    assert "<b>  &gt;   6  df[col] = df[col].astype(float)</b>" in page
    assert "<details><summary>1 frame in pandas</summary>" in page
    assert "&lt;bad&gt;" in page


@pytest.mark.parametrize("state", [states.PENDING, states.STARTED, states.SUCCESS, states.FAILURE, states.REVOKED])
def test_static_html_escapes_every_string_of_a_task(state: str) -> None:
    status = task(state, error=EVIL, summary=EVIL, worker=EVIL)
    status.name = EVIL
    status.log.add(1.0, "stdout", EVIL)
    if status.failure:
        status.failure.traceback = EVIL
    page = static_html(status, 110.0)
    assert "<img" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    assert "<script" not in page
    assert "class=" not in page


def test_static_html_of_a_map_never_averages_a_failure_away() -> None:
    status = MapStatus("0123456789", "sim", 10_000, sent_at=90.0)
    for index in range(10_000):
        failed = index == 5_000
        state = states.FAILURE if failed else states.SUCCESS
        status.apply(record(state, group="0123456789", index=index, error="ValueError: bad" if failed else ""))
    page = static_html(status, 110.0)
    assert len(re.findall(r"■<b[^>]*>x</b>\s■", page)) == 1
    assert "9,999 done, 1 failed" in page
    assert "#5,000" in page
