from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from nbqueue.app import App
from nbqueue.canvas import group
from nbqueue.cellrun import CellRun
from nbqueue.exceptions import TimeLimitExceeded
from nbqueue.notebook.magics import Place, TaskMagics, parse_line
from nbqueue.notebook.views import watch
from nbqueue.payloads import Packer
from nbqueue.result import AsyncResult
from nbqueue.serialization import loads_args
from tests.helpers import wait_until
from tests.workers import Site


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    made = InteractiveShell(user_ns={})  # type: ignore[no-untyped-call]
    yield made
    made.history_manager.end_session()  # type: ignore[union-attr]
    InteractiveShell.clear_instance()


class Recorder:
    """Stands for an app: keeps what it is asked to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[CellRun, dict[str, Any]]] = []
        # what its handles ask, so that none asks the app of another test
        self.knows_nothing = App("t", broker="memory://", backend="memory://", set_as_current=False)

    def send_cell(self, packed: bytes, packer: Packer, **options: Any) -> AsyncResult:
        read = {ref: memoryview(bytes(data)) for ref, data in packer.blobs.items()}.__getitem__
        self.sent.append((loads_args(packed, read=read)[0][0], options))
        return AsyncResult(f"id-{len(self.sent)}", self.knows_nothing)


def magics(shell: InteractiveShell) -> tuple[TaskMagics, Recorder]:
    app = Recorder()
    return TaskMagics(shell, app, show=lambda *_, **__: None), app  # type: ignore[arg-type]


def test_line_names_the_nearest_option_when_one_is_wrong() -> None:
    with pytest.raises(UsageError, match=r"no option --agian; did you mean --again\?"):
        parse_line("train --agian")


@pytest.mark.parametrize(
    "line",
    [
        *("1train", "for", "train -o a,b-c", "train --view sideways", "train --countdown soon", "'"),
        *("train -o train", "-o a,_task", "--retries x", "--retries -1", "--priority 10", "--time-limit soon"),
    ],
)
def test_line_refuses_what_can_not_be(line: str) -> None:
    with pytest.raises(UsageError):
        parse_line(line)


def test_line_holds_name_outputs_and_options() -> None:
    line = parse_line("train -o model,scores -q gpu --wait --countdown 2.5 --view none")
    assert (line.name, line.outputs, line.queue, line.wait, line.countdown, line.view) == (
        "train",
        ("model", "scores"),
        "gpu",
        True,
        2.5,
        "none",
    )


def test_cell_takes_along_just_what_it_reads(shell: InteractiveShell) -> None:
    shell.user_ns |= {"x": 3, "unused": object()}
    magic, app = magics(shell)
    magic.task("train -o y", "y = 2 * x\ny")
    run, options = app.sent[0]
    assert run.variables == {"x": 3}
    assert run.outputs == ("y",)
    assert options["name"] == options["label"] == "train"
    assert shell.user_ns["train"].id == "id-1"


def test_cell_without_a_name_binds_its_handle_to_task(shell: InteractiveShell) -> None:
    magic, _ = magics(shell)
    magic.task("", "1")
    assert shell.user_ns["_task"].id == "id-1"


def test_cell_in_ipythons_syntax_is_sent_as_python(shell: InteractiveShell) -> None:
    magic, app = magics(shell)
    magic.task("", "files = !ls")
    assert "get_ipython().getoutput" in app.sent[0][0].source


def test_cell_that_can_not_travel_is_named_before_anything_is_sent(shell: InteractiveShell) -> None:
    class Connection:
        def __init__(self) -> None:
            self.stream = (n for n in range(3))

    shell.user_ns["conn"] = Connection()
    magic, app = magics(shell)
    with pytest.raises(UsageError, match=r"Not sent: conn\.stream \(of cell variable conn\) can't travel"):
        magic.task("", "conn.read()")
    assert app.sent == []


def test_cell_that_is_too_large_lists_sizes_and_is_not_sent(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbqueue.notebook.magics.LARGE_BYTES", 1_000_000)
    shell.user_ns |= {"big": b"x" * 2_000_000, "small": 1}
    magic, app = magics(shell)
    with pytest.raises(UsageError, match="big 2 MB"):
        magic.task("", "big, small")
    assert app.sent == []
    magic.task("--large", "big, small")
    assert len(app.sent) == 1


def test_place_is_unknown_where_nobody_looks(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert Place.find(shell) == Place("", "")
    assert Place().identity("train") == ""
    assert Place("book.ipynb", "cell").identity("train") == Place("book.ipynb", "other").identity("train")


def test_outputs_appear_in_the_notebook_when_the_task_is_done(shell: InteractiveShell, shared_site: Site) -> None:
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    shell.user_ns["x"] = 20
    magic.task("made -o y,z", "y = x + 1\nz = 2 * y\n'value'")
    wait_until(lambda: shell.user_ns.get("z") == 42, 10, "the outputs")
    assert shell.user_ns["y"] == 21
    assert shell.user_ns["made"].get(timeout=5) == "value"


def test_functions_see_what_the_cell_binds(shell: InteractiveShell, shared_site: Site) -> None:
    exec("def scale(v):\n    return v * factor", shell.user_ns)
    shell.user_ns["scale"].__module__ = "__main__"
    shell.user_ns["factor"] = 1
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    assert magic.task("--wait --view none", "factor = 10\nscale(4.2)") == 42.0


def test_error_of_a_waiting_cell_is_the_cells_own(shell: InteractiveShell, shared_site: Site) -> None:
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    with pytest.raises(IndexError) as caught:
        magic.task("--wait --view none", "numbers = [1]\nnumbers[5]")
    assert "numbers[5]" in str(caught.value.__cause__)


def test_error_in_a_cell_counts_lines_as_the_notebook_does(shell: InteractiveShell, shared_site: Site) -> None:
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    with pytest.raises(IndexError) as caught:
        magic.task("--wait --view none", "numbers = [1]\nnumbers[5]")
    assert 'File "<cell cell>", line 3' in str(caught.value.__cause__)


def test_cell_that_is_no_python_is_one_error_with_its_own_line(shell: InteractiveShell) -> None:
    magic, app = magics(shell)
    with pytest.raises(UsageError) as caught:
        magic.task("train", "x = 1\ny = = 2")
    said = str(caught.value)
    assert 'File "<cell train>", line 3' in said
    assert "y = = 2" in said
    assert "magics.py" not in said
    assert app.sent == []
    assert "train" not in shell.user_ns


def test_cell_keeps_what_it_reads_from_its_own_handle(shell: InteractiveShell) -> None:
    shell.user_ns["train"] = [1, 2]
    magic, app = magics(shell)
    with pytest.raises(UsageError, match="the cell reads train, a list, which the task's handle would replace"):
        magic.task("train", "sum(train)")
    assert shell.user_ns["train"] == [1, 2]
    magic.task("train", "train = 3")
    assert len(app.sent) == 1
    magic.task("train", "train")  # what is read is the earlier handle, which is no input
    assert app.sent[1][0].variables == {}


def test_cell_takes_along_the_users_own_open_and_not_ipythons(shell: InteractiveShell) -> None:
    magic, app = magics(shell)
    magic.task("", "open('x'), display(1)")
    assert app.sent[0][0].variables == {}
    exec("def open(name): return name\ndef display(x): return x", shell.user_ns)
    magic.task("", "open('x'), display(1)")
    assert sorted(app.sent[1][0].variables) == ["display", "open"]


def test_users_own_display_is_the_one_that_runs(shell: InteractiveShell, shared_site: Site) -> None:
    exec("def display(x): return ['shown', x]", shell.user_ns)
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    assert magic.task("--wait --view none", "display(1)") == ["shown", 1]


def test_outputs_of_two_unnamed_cells_are_both_brought_back(shell: InteractiveShell, shared_site: Site) -> None:
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    magic.task("-o first", "import time; time.sleep(0.2)\nfirst = 1")
    magic.task("-o second", "second = 2")
    wait_until(lambda: shell.user_ns.get("first") == 1 and shell.user_ns.get("second") == 2, 10, "both outputs")


def test_output_of_the_cell_sent_last_stays_when_an_earlier_one_ends_later(
    shell: InteractiveShell, shared_site: Site
) -> None:
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    magic.task("slow -o x", "import time; time.sleep(0.3)\nx = 'slow'")
    magic.task("quick -o x", "x = 'quick'")
    assert shell.user_ns["slow"].get(timeout=10) is None
    wait_until(lambda: shell.user_ns.get("x") == "quick", 10, "the output")
    magic.task("--wait --view none", "1")
    assert shell.user_ns["x"] == "quick"


def test_outputs_are_there_when_a_waiting_cell_ends(shell: InteractiveShell, shared_site: Site) -> None:
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    for number in range(20):
        magic.task("--wait --view none -o x", f"x = {number}")
        assert shell.user_ns["x"] == number


def test_what_has_ended_here_and_groups_of_a_canvas_show_as_text(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App("unused", broker="memory://", backend="memory://")
    monkeypatch.setattr("nbqueue.notebook.magics.current_app", lambda: app)
    assert shell.display_formatter is not None
    TaskMagics.register(shell)
    task = app.task(lambda x: x, name="same")
    for handle in (task.apply((1,)), group(task.s(1), task.s(2)).apply()):
        shown, _ = shell.display_formatter.format(handle)  # type: ignore[no-untyped-call]
        assert shown == {"text/plain": repr(handle)}
    assert capsys.readouterr().out == ""


def test_unloading_leaves_nothing_behind(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("unused", broker="memory://", backend="memory://")
    monkeypatch.setattr("nbqueue.notebook.magics.current_app", lambda: app)
    assert shell.display_formatter is not None
    formatter = shell.display_formatter.ipython_display_formatter
    TaskMagics.register(shell)
    assert (app.show, AsyncResult in formatter.type_printers) == (watch, True)
    TaskMagics.unregister(shell)
    assert app.show is None
    assert AsyncResult not in formatter.type_printers
    assert "task" not in shell.magics_manager.magics["cell"]
    app.close()


def test_limits_retries_and_priority_of_a_line_go_with_the_cell(shell: InteractiveShell) -> None:
    magic, app = magics(shell)
    magic.task("--retries 2 --time-limit 3.5 --memory-limit 2GB --priority 7", "1")
    options = app.sent[0][1]
    assert (options["max_retries"], options["time_limit"]) == (2, 3.5)
    assert (options["memory_limit"], options["priority"]) == ("2GB", 7)


def test_cell_past_its_time_limit_fails_by_name(shell: InteractiveShell, shared_site: Site) -> None:
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    with pytest.raises(TimeLimitExceeded, match=r"0\.5 s"):
        magic.task("--wait --view none --time-limit 0.5", "import time\ntime.sleep(60)")


def test_cell_that_raises_is_run_again(shell: InteractiveShell, shared_site: Site, tmp_path: Path) -> None:
    magic = TaskMagics(shell, shared_site.app, show=lambda *_, **__: None)
    source = f"from pathlib import Path\nfound = len(list(Path({str(tmp_path)!r}).glob('*')))\n"
    source += f"(Path({str(tmp_path)!r}) / str(found)).touch()\nassert found == 1, found\nfound"
    assert magic.task("--wait --view none --retries 3", source) == 1
