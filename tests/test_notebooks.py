"""The notebooks in `examples`: short, stored without outputs, and executed as a user would."""

from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def test_each_integration_has_a_notebook():
    assert [path.stem for path in NOTEBOOKS] == ["langchain_rag", "llama_index_rag"]


@notebooks
def test_a_notebook_is_short(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert len(cells) <= 15
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@notebooks
def test_a_notebook_runs(notebook):
    """Its cells assert that the texts before and after the swap are equal."""
    cells = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(cells, timeout=300, kernel_name="python3").execute()
