"""Fixtures of the integration's tests."""

from pathlib import Path

import pytest

from integrations.langchain.tests.probes import ProbeDecoder
from integrations.langchain.tests.tiny import tiny_model
from langchain_llma.capture import HANDLER, model_starts, recent_documents


@pytest.fixture
def decoder() -> ProbeDecoder:
    return ProbeDecoder()


@pytest.fixture(autouse=True)
def _own_context():
    """Tests share a context; documents of one must not be recent ones of the next."""
    recent_documents.set(None)
    model_starts.set(())
    yield
    assert len(HANDLER.tree) == 0, "a run was opened and never closed"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of another one."""
    return tiny_model(tmp_path_factory.mktemp("tiny2"), seed=1)
