"""Run an example notebook from a fresh clone with nothing but a system's Python, and say how to open it.

    python3 notebooks/run.py            01_quickstart.ipynb
    python3 notebooks/run.py --all      every notebook of this folder
    python3 notebooks/run.py 02 03      those whose names begin so

The virtual environment `.venv-examples` is made on the first run. The notebooks stay as they are: the copies with
outputs are in notebooks/out/.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.environment import ROOT, ensure_environment, environment_folder, fail, replace_process

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT = HERE / "out"
FIRST = "01_quickstart"
CELL_TIMEOUT_S = 300
LINE = 110


def main(args: Sequence[str]) -> int:
    """Go on in the examples' environment, and run the notebooks there."""
    if args and args[0] in {"-h", "--help"}:
        print(__doc__)
        return 0
    if Path(sys.prefix) != environment_folder("examples"):
        replace_process(ensure_environment("examples"), __file__, *args)
    notebooks = choose(args)
    passed = [run(notebook) for notebook in notebooks]
    jupyter = (Path(sys.prefix) / "bin" / "jupyter").relative_to(ROOT)
    print(f"\nTo open it in JupyterLab, from {ROOT}:\n  {jupyter} lab {notebooks[0].relative_to(ROOT)}")
    return 0 if all(passed) else 1


def choose(args: Sequence[str]) -> list[Path]:
    """Return the notebooks that the command line names, in order of their names."""
    prefixes = [""] if "--all" in args else list(args) or [FIRST]
    chosen = [path for path in sorted(HERE.glob("*.ipynb")) if path.name.startswith(tuple(prefixes))]
    if not chosen:
        fail(f"no notebook in {HERE} begins with {' or '.join(prefixes)}")
    return chosen


def run(path: Path) -> bool:
    """Run one notebook from top to bottom, keep the copy with outputs, print what happened; False if a cell failed."""
    # only the environment has these
    import nbformat  # noqa: PLC0415
    from nbclient import NotebookClient  # noqa: PLC0415
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError  # noqa: PLC0415

    OUT.mkdir(exist_ok=True)
    copy, log = OUT / path.name, OUT / f"{path.stem}.log"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT_S, resources={"metadata": {"path": str(HERE)}})
    print(f"{path.name} ...", flush=True)
    began, problem = time.monotonic(), ""
    # what the kernel itself logs is no output of a cell
    with log.open("w") as kernel_log:
        try:
            client.execute(stderr=kernel_log)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            problem = f"{error}\nThe kernel's own log: {log.relative_to(ROOT)}"
    nbformat.write(notebook, copy)
    print(summary(notebook.cells, time.monotonic() - began))
    print(f"  {problem or f'with outputs: {copy.relative_to(ROOT)}'}", flush=True)
    return not problem


def summary(cells: Sequence[dict[str, Any]], took_s: float) -> str:
    """Describe what ran: a line for each code cell that was begun, and the last assertion among them."""
    ran = [cell for cell in cells if cell["cell_type"] == "code" and cell["execution_count"]]
    lines = [f"  [{cell['execution_count']}] {shown(cell)}"[:LINE] for cell in ran]
    assertions = [line for cell in ran for line in cell["source"].splitlines() if line.startswith("assert ")]
    lines.append(f"  {len(ran)} cells ran in {took_s:.1f} s")
    if assertions:
        lines.append(f"  the last assertion: {assertions[-1]}")
    return "\n".join(lines)


def shown(cell: dict[str, Any]) -> str:
    """Return a cell's first line, and the last line of text that it put out."""
    first = next((line for line in cell["source"].splitlines() if line.strip()), "")
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
    last = "".join(texts).strip().splitlines()[-1:]
    return f"{first}  ->  {last[0]}" if last else first


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
