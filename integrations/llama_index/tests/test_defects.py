import pytest

from integrations.llama_index.tests.defects import PROBES, Subject, tools_and_stops
from llama_index.llms.llma import LLMA


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.run.__name__)
def test_llma_lacks_the_defects_of_huggingface_llm(probe):
    """`docs/llama_index.md` records what the same probes see of HuggingFaceLLM."""
    if probe.run is tools_and_stops:
        pytest.importorskip("llguidance", reason="structured answers are an optional extra")
    evidence = probe.run(Subject(LLMA))
    assert evidence.fine, evidence.text


def test_fifteen_defects():
    assert len(PROBES) == 15
