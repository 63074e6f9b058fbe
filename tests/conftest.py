"""Fixtures of the core's tests."""

from pathlib import Path

import pytest
import torch

from tests.models import shared_folder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with recorded answers and pretrained weights."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("needs the shared folder beside the project, or LLMA_RAG_SHARED")
    return folder
