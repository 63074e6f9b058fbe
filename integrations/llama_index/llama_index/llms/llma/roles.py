"""Say which part of LlamaIndex a span's instance is."""

from functools import lru_cache
from typing import Any, NamedTuple

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine.types import BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.response_synthesizers.base import BaseSynthesizer
from llama_index.core.workflow import Workflow


class Role(NamedTuple):
    """What a class is to a request; `request` marks those whose outermost span is its root."""

    engine: bool = False
    synthesizer: bool = False
    retriever: bool = False
    postprocessor: bool = False
    workflow: bool = False
    chat_stream: bool = False
    request: bool = False


NOBODY = Role()


def role_of(instance: Any) -> Role:
    """Return the role of a span's instance."""
    if instance is None:
        return NOBODY
    return _role(type(instance))  # type: ignore[arg-type]  # every class is hashable


@lru_cache(maxsize=1024)
def _role(cls: type) -> Role:
    """Return the role of a class; remembered, as this runs at every span."""
    role = Role(
        engine=issubclass(cls, (BaseQueryEngine, BaseChatEngine)),
        synthesizer=issubclass(cls, BaseSynthesizer),
        retriever=issubclass(cls, (BaseRetriever, BaseQueryEngine)),
        postprocessor=issubclass(cls, BaseNodePostprocessor),
        workflow=issubclass(cls, Workflow),
        chat_stream=issubclass(cls, StreamingAgentChatResponse),
    )
    return role._replace(request=any(role)) if any(role) else NOBODY
