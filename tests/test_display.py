from __future__ import annotations

import base64
import json
import pickle
import sys
from typing import Any

import pytest

from nbqueue.capture import Recorder
from nbqueue.display import Displayer, bundle
from nbqueue.messages import Output
from nbqueue.notebook.outputs import combined
from nbqueue.paced import MAX_BUNDLE_BYTES
from tests.pools import RunningPool


class Rich:
    def __repr__(self) -> str:
        return "rich"

    def _repr_html_(self) -> str:
        return "<b>rich</b>"

    def _repr_png_(self) -> bytes:
        return b"\x89PNG"

    def _repr_latex_(self) -> None:
        return None

    def _repr_svg_(self) -> str:
        raise ValueError

    def _repr_mimebundle_(self, include: Any, exclude: Any, **_: Any) -> Any:
        return {"application/x-own": {"a": 1}, "application/vnd.jupyter.widget-view+json": {}}, {"application/x-own": 1}


class Everything:
    """Has every attribute, as mocks and proxies have."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: Everything()

    def __repr__(self) -> str:
        return "everything"


def said(record: Any) -> list[dict[str, Any]]:
    """Return the outputs that were sent while `record` ran with a displayer."""
    sent: list[dict[str, Any]] = []
    recorder = Recorder(lambda _, data: sent.append(json.loads(data)))
    record(Displayer(lambda: recorder), recorder)
    recorder.close()
    return sent


def test_bundle_holds_every_form_an_object_has() -> None:
    data, metadata = bundle(Rich())
    assert data["text/plain"] == "rich"
    assert data["text/html"] == "<b>rich</b>"
    assert data["image/png"] == base64.b64encode(b"\x89PNG").decode()
    assert data["application/x-own"] == {"a": 1}
    assert not {"text/latex", "image/svg+xml"} & data.keys()
    assert metadata == {"application/x-own": 1}


@pytest.mark.parametrize("value", [Everything(), Rich, json, 5, None])
def test_bundle_of_what_only_looks_rich_is_its_text(value: object) -> None:
    assert bundle(value) == ({"text/plain": repr(value)}, {})


def test_displays_and_prints_keep_their_order() -> None:
    def work(displayer: Displayer, recorder: Recorder) -> None:
        recorder.write("stdout", "one\n")
        displayer.display(1, 2)
        recorder.write("stdout", "two\n")
        displayer.result("three")

    assert [(one["type"], one.get("text") or one["data"]["text/plain"]) for one in said(work)] == [
        ("stream", "one\n"),
        ("display_data", "1"),
        ("display_data", "2"),
        ("stream", "two\n"),
        ("execute_result", "'three'"),
    ]


def test_display_with_an_id_is_updated_and_cleared() -> None:
    def work(displayer: Displayer, _: Recorder) -> None:
        handle = displayer.display("a", display_id=True)
        assert handle is not None
        handle.update("b")
        displayer.clear_output(wait=True)
        displayer.display("c")
        displayer.clear_output()

    first, *others = said(work)
    assert [one["type"] for one in others] == ["update_display_data", "clear_output", "display_data", "clear_output"]
    assert first["id"] == others[0]["id"] != ""
    assert (others[1]["wait"], "wait" in others[3]) == (True, False)


def test_raw_bundles_and_exclusions() -> None:
    def work(displayer: Displayer, _: Recorder) -> None:
        displayer.display({"text/plain": "x", "image/png": b"png"}, raw=True, metadata={"a": 1})
        displayer.display(Rich(), include=["text/html"])
        displayer.display(Rich(), exclude=["text/html", "image/png"])

    raw, included, excluded = said(work)
    assert raw["data"] == {"text/plain": "x", "image/png": base64.b64encode(b"png").decode()}
    assert raw["metadata"] == {"a": 1}
    assert sorted(included["data"]) == ["text/html", "text/plain"]
    assert "text/html" not in excluded["data"]


def test_object_that_displays_itself_does_so_once() -> None:
    def work(displayer: Displayer, _: Recorder) -> None:
        class Own:
            def _ipython_display_(self) -> None:
                displayer.display("itself")

        displayer.display(Own())
        displayer.result(Own())

    assert [one["data"]["text/plain"] for one in said(work)] == ["'itself'"] * 2


def test_what_is_too_large_is_named_and_the_rest_is_shown() -> None:
    def work(displayer: Displayer, _: Recorder) -> None:
        large = "x" * (MAX_BUNDLE_BYTES + 1)
        displayer.display({"text/plain": "a plot", "image/png": large, "text/html": "<b>small</b>"}, raw=True)

    (shown,) = said(work)
    assert shown["data"] == {
        "text/plain": "a plot\n[image/png of 6,000,003 bytes: not shown, beyond 6,000,000]",
        "text/html": "<b>small</b>",
    }


def test_long_text_of_an_object_says_how_much_of_it_is_left_out() -> None:
    assert bundle("x" * 300_000)[0]["text/plain"].endswith("x\n[… 100,002 characters left out …]")


def test_displays_without_end_are_bounded_however_small() -> None:
    def work(displayer: Displayer, _: Recorder) -> None:
        for number in range(30_000):
            displayer.clear_output()
            displayer.display(number)

    outputs = said(work)
    assert len(outputs) < 11_000
    assert outputs[-1]["data"]["text/plain"] == "29999"


def test_bundle_that_is_no_json_loses_only_that_part() -> None:
    def work(displayer: Displayer, _: Recorder) -> None:
        displayer.display({"text/plain": "kept", "application/json": object()}, raw=True)

    assert said(work)[0]["data"] == {"text/plain": "kept"}


def test_several_outputs_are_one_piece_of_html_in_order() -> None:
    one = Output(
        "display_data", data={"text/plain": "a <b>", "image/png": "AAAA"}, metadata={"image/png": {"width": 5}}
    )
    two = Output("display_data", data={"text/plain": "<script>x</script>\u202e"})
    three = Output("execute_result", data={"text/html": "<table></table>", "text/plain": "t"})
    assert combined([one]) == (one.data, one.metadata)
    assert combined([])[0]["text/html"] == ""
    data, _ = combined([one, two, three])
    html = data["text/html"]
    assert html.index("data:image/png;base64,AAAA") < html.index("&lt;script&gt;") < html.index("<table>")
    assert 'alt="a &lt;b&gt;" width="5"' in html
    assert "\\x202e" in html
    assert data["text/plain"] == "a <b>\n<script>x</script>\u202e\nt"


def test_formulas_and_markdown_among_several_outputs_are_typeset(monkeypatch: pytest.MonkeyPatch) -> None:
    formula = Output("display_data", data={"text/latex": "$x < y$", "text/plain": "x"})
    words = Output("display_data", data={"text/markdown": "**bold** <b>no</b>\n\n|a|\n|-|\n|1|", "text/plain": "w"})
    html = combined([formula, words])[0]["text/html"]
    assert "<div>$x &lt; y$</div>" in html
    assert "<strong>bold</strong> &lt;b&gt;no&lt;/b&gt;" in html
    assert "<td>1</td>" in html
    monkeypatch.setitem(sys.modules, "mistune", None)
    assert "<pre" in combined([formula, words])[0]["text/html"]


# ---- in a child


def texts(pool: RunningPool, seq: int) -> list[str]:
    return [output.text or output.data.get("text/plain", output.type) for output in pool.outputs(seq)]


def test_ipythons_functions_display_in_a_child_without_a_kernel() -> None:
    def work() -> bool:
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.display import HTML, Markdown, clear_output, display, update_display

        display(HTML("<i>x</i>"), display_id="one")  # type: ignore[no-untyped-call]
        update_display(Markdown("*y*"), display_id="one")  # type: ignore[no-untyped-call]
        clear_output()  # type: ignore[no-untyped-call]
        return InteractiveShell.initialized()

    with RunningPool(1) as pool:
        seq = pool.send(work)
        assert pool.value(seq) is False
        first, second, third = pool.outputs(seq)
    assert (first.type, first.data["text/html"], first.id) == ("display_data", "<i>x</i>", "one")
    assert (second.type, second.data["text/markdown"], second.id) == ("update_display_data", "*y*", "one")
    assert third.type == "clear_output"


def test_figures_are_shown_and_closed() -> None:
    def draw(n: int, show: bool) -> int:
        import matplotlib.pyplot as plt

        for _ in range(n):
            plt.figure()
            plt.plot([1, 2, 3])
        plt.figure()  # empty: nothing to see
        if show:
            plt.show()
        return len(plt.get_fignums())

    pytest.importorskip("matplotlib")
    with RunningPool(1) as pool:
        for show in (True, False):
            seq = pool.send(draw, 2, show)
            assert pool.value(seq) == (0 if show else 3)
            pictures = [base64.b64decode(output.data["image/png"]) for output in pool.outputs(seq)]
            assert [picture[:4] for picture in pictures] == [b"\x89PNG"] * 2


def test_figures_of_a_task_that_fails_are_shown_and_not_left_to_the_next() -> None:
    def draw(fail: bool) -> int:
        import matplotlib.pyplot as plt

        found = len(plt.get_fignums())
        plt.plot([1, 2])
        if fail:
            raise ValueError
        return found

    pytest.importorskip("matplotlib")
    with RunningPool(1) as pool:
        failing = pool.send(draw, True)
        assert pool.outcome(failing).outcome.state == "FAILURE"
        assert [output.type for output in pool.outputs(failing)] == ["display_data"]
        assert pool.call(draw, False) == 0


def test_figure_that_can_not_be_drawn_says_why() -> None:
    def draw() -> None:
        import matplotlib.pyplot as plt

        plt.title("$\\wrong$")

    pytest.importorskip("matplotlib")
    with RunningPool(1) as pool:
        seq = pool.send(draw)
        pool.value(seq)
        assert "can't be drawn" in pool.outputs(seq)[0].data["text/plain"]


def test_handle_of_a_display_can_be_pickled() -> None:
    handle = Displayer(lambda: None).display("a", display_id="x")
    copy = pickle.loads(pickle.dumps(handle))
    copy.update("b")
    assert copy.display_id == "x"


def test_child_loads_no_notebook_for_a_display_of_its_own() -> None:
    def work() -> list[str]:
        import sys

        print("x")
        return [name for name in ("IPython", "matplotlib", "tqdm", "PIL") if name in sys.modules]

    with RunningPool(1) as pool:
        assert pool.call(work) == []


def test_asking_for_input_fails_at_once_and_says_what_to_do() -> None:
    def work(secret: bool) -> str:
        import getpass

        return getpass.getpass("Key? ") if secret else input("Name? ")

    with RunningPool(1) as pool:
        outcomes = [pool.outcome(pool.send(work, secret)).outcome for secret in (False, True)]
    assert [outcome.state for outcome in outcomes] == ["FAILURE"] * 2
    assert "can't ask for input (Name? )" in outcomes[0].error
    assert "can't ask for input (Key? )" in outcomes[1].error


def test_logs_warnings_and_colours_are_shown_as_in_a_notebook() -> None:
    def work() -> None:
        import logging
        import warnings

        logging.getLogger("own").warning("no handler yet")
        logging.warning("root")  # noqa: LOG015 - the root logger is what is tested
        logging.getLogger("own").warning("later")
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
        print("\x1b[31mred\x1b[0m")

    with RunningPool(1) as pool:
        seq = pool.send(work)
        pool.value(seq)
        said = {name: "".join(o.text for o in pool.outputs(seq) if o.name == name) for name in ("stdout", "stderr")}
    assert said["stderr"].startswith("no handler yet\nWARNING:root:root\nWARNING:own:later\n")
    assert "UserWarning: careful" in said["stderr"]
    assert said["stdout"] == "\x1b[31mred\x1b[0m\n"


def test_function_displays_without_an_import_as_in_a_notebook() -> None:
    def work() -> list[str]:
        import sys

        display("shown")  # type: ignore[name-defined] # noqa: F821
        return [name for name in sys.modules if name.startswith("IPython")]

    with RunningPool(1) as pool:
        seq = pool.send(work)
        assert pool.value(seq) == []
        assert [output.data["text/plain"] for output in pool.outputs(seq)] == ["'shown'"]
