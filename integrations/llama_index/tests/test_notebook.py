from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[3] / "examples" / "llama_index_rag.ipynb"
MODEL = Path(__file__).parents[3] / "llma_rag" / "demo" / "model"


def test_the_notebook_is_short():
    nbformat = pytest.importorskip("nbformat", reason="notebooks are read with nbformat")
    assert len(nbformat.read(NOTEBOOK, as_version=4).cells) <= 15


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs():
    """The cells assert that the texts of both classes are equal."""
    nbclient = pytest.importorskip("nbclient", reason="notebooks are executed with nbclient")
    nbformat = pytest.importorskip("nbformat", reason="notebooks are read with nbformat")
    for module in ("llama_index.llms.huggingface", "matplotlib", "ipykernel"):
        pytest.importorskip(module, reason="the notebook imports it")
    if not MODEL.is_dir():
        pytest.skip("the bundled model is not built here")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
