"""Fixtures of the integration's tests."""

from collections import Counter
from pathlib import Path

import pytest

from integrations.langchain.tests.probes import ProbeDecoder
from integrations.langchain.tests.tiny import tiny_model
from langchain_llma.capture import HANDLER, model_starts, recent_documents

STANDARD: Counter[str] = Counter()
"""Outcomes so far of `test_standard.py`, in the words of `docs/measure_langchain.py`."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "test_standard.py::TestChat" not in report.nodeid or report.when == "teardown":
        return
    if report.failed:
        STANDARD["failed"] += 1
    elif report.skipped:
        STANDARD["expected_failures" if hasattr(report, "wasxfail") else "skipped"] += 1
    elif report.when == "call":
        STANDARD["passed"] += 1


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
