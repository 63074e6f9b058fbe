"""Fixtures of the integration's tests."""

import pytest

from integrations.langchain.tests.probes import ProbeDecoder
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
