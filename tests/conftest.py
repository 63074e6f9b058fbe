"""Fixtures of the core's tests."""

from pathlib import Path

import pytest
import torch

from tests.models import shared_folder

torch.set_num_threads(1)


LONGEST = ("test_kernels.py", "test_losslessness_table.py", "test_lossless.py")
"""Files that take minutes; they come first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of `LONGEST` first; needs `--no-loadscope-reorder` where workers share."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with recorded answers and pretrained weights."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("needs the shared folder beside the project, or LLMA_RAG_SHARED")
    return folder
