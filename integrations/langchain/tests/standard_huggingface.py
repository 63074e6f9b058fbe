"""LangChain's standard tests on the class that ours replaces, over a local pipeline.

Not part of the suite: many fail. `python docs/measure_langchain.py standard` counts them. The model
is the one that our own class is tested with; nothing is declared but what the class itself says.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

TRAINED = Path(__file__).parent / "tiny_trained"


@cache
def _pipeline() -> HuggingFacePipeline:
    return HuggingFacePipeline.from_model_id(
        str(TRAINED),
        task="text-generation",
        model_kwargs={"dtype": "float32"},
        pipeline_kwargs={"max_new_tokens": 512, "do_sample": False, "return_full_text": False},
    )


class _OverAPipeline:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatHuggingFace

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"llm": _pipeline(), "model_id": str(TRAINED)}


@pytest.mark.filterwarnings("default")
class TestChatHuggingFaceUnit(_OverAPipeline, ChatModelUnitTests):
    pass


@pytest.mark.filterwarnings("default")
class TestChatHuggingFaceIntegration(_OverAPipeline, ChatModelIntegrationTests):
    pass
