from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from nbqueue import states
from nbqueue.notebook.saved import static_html
from nbqueue.status import MapStatus
from tests.test_text import TRACE, record, task

EVIL = "<img src=x onerror=alert(1)>\x1b[31mred\x1b[0m\u202eabc\r\n\x00"


# What got through somewhere once: out of text, attributes, comments, styles, and by characters that nobody sees.
PAYLOADS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "<svg><script>alert&#40;1&#41;</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<iframe src=javascript:alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "<details open ontoggle=alert(1)>",
    "<body onload=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<math><mtext></mtext><mglyph><style><img src=x onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<style>@import url(//evil.example)</style>",
    "<link rel=stylesheet href=//evil.example>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example>",
    "<form action=//evil.example><button>x</button></form>",
    "<object data=javascript:alert(1)>",
    "<embed src=javascript:alert(1)>",
    "<template><script>alert(1)</script></template>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "</b></span></div><script>alert(1)</script>",
    "<img src=x onerror=alert(1)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "<\u0000script>alert(1)</script>",
    "\x1b]8;;javascript:alert(1)\x1b\\click\x1b]8;;\x1b\\",
    "\x1b[31m<script>alert(1)</script>\x1b[0m",
    "\u202e<script>alert(1)</script>\u202c",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
    "x' style='background:url(javascript:alert(1))' y='",
    'x" onmouseover="alert(1)" y="',
    "{{constructor.constructor('alert(1)')()}}",
]


OWN = {"div", "span", "b", "br", "pre", "code", "details", "summary", "table", "tr", "td", "th"}


class Page(HTMLParser):
    """What a page has of elements and attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.styles = ""
        self.other: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            self.styles += f"{value or ''};"

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    def handle_decl(self, decl: str) -> None:
        self.other.append(decl)

    def unknown_decl(self, data: str) -> None:
        self.other.append(data)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_static_html_has_no_element_or_attribute_from_a_task(payload: str) -> None:
    pages = []
    for state in (states.PENDING, states.STARTED, states.SUCCESS, states.FAILURE, states.REVOKED):
        status = task(state, error=payload, summary=payload, worker=payload)
        status.name = status.queue = status.note = payload
        status.log.add(1.0, "stdout", payload)
        if status.failure:
            status.failure.traceback = f'File "{payload}", line 1, in {payload}\n    {payload}\n{payload}'
        pages.append(static_html(status, 110.0))
    group = MapStatus("0123456789", payload, 3, sent_at=90.0)
    group.apply(record(states.FAILURE, group="0123456789", index=1, error=payload, worker=payload, label=payload))
    pages.append(static_html(group, 110.0))
    for page in map(Page, pages):
        assert page.elements <= OWN
        assert page.attributes <= {"style", "open"}
        assert "url(" not in page.styles
        assert "expression" not in page.styles
        assert page.other == []


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
