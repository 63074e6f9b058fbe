"""Fixtures of the core's tests."""

from pathlib import Path

import pytest
import torch

from tests.models import shared_folder

torch.set_num_threads(1)


def forget_what_was_compiled_before() -> None:
    """Delete compiled functions that are older than any source file: they may call changed ones."""
    package = Path(__file__).parents[1] / "llma_rag"
    newest = max(file.stat().st_mtime for file in package.glob("*.py"))
    for file in (package / "__pycache__").glob("*.nb[ic]"):
        if file.stat().st_mtime < newest:
            file.unlink(missing_ok=True)


forget_what_was_compiled_before()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with recorded answers and pretrained weights."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("needs the shared folder beside the project, or LLMA_RAG_SHARED")
    return folder
