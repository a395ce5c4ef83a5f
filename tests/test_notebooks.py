"""The notebooks run as they are, and print what they show."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_tutorials import form

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def texts(notebook: Any) -> list[list[str]]:
    """What each cell prints or shows as text, without numbers."""
    return [
        form("".join(output.get("text", "")))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream" and output.name == "stdout"
    ]


@pytest.mark.proof
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path: Path, tmp_path: Path) -> None:
    shown = read(path)
    run = read(path)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(run, timeout=600, kernel_name="python3", resources=resources).execute()
    assert texts(run) == texts(shown)
    kinds = [
        kind
        for cell in run.cells
        for out in cell.get("outputs", ())
        for kind in out.get("data", ())
    ]
    assert {"text/html", "image/png"} <= set(kinds)


def test_notebooks_were_run_in_order() -> None:
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        notebook = read(path)
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))
