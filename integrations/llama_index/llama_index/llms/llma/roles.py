"""Say which part of LlamaIndex a span's instance is."""

from typing import NamedTuple

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine.types import BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.response_synthesizers.base import BaseSynthesizer
from llama_index.core.workflow import Workflow


class Role(NamedTuple):
    """What a class is to a request; the outermost span of one that is anything is its root."""

    engine: bool = False
    synthesizer: bool = False
    retriever: bool = False
    postprocessor: bool = False
    workflow: bool = False
    chat_stream: bool = False

    @property
    def gives_nodes(self) -> bool:
        """Whether its result is nodes for the caller, not an answer that used them."""
        return self.postprocessor or (self.retriever and not self.engine)


NOBODY = Role()


class _Roles(dict[type, Role]):
    """Remembers the roles of classes: every span asks for one."""

    MAX_KEPT = 1024

    def __missing__(self, cls: type) -> Role:
        role = Role(
            engine=issubclass(cls, (BaseQueryEngine, BaseChatEngine)),
            synthesizer=issubclass(cls, BaseSynthesizer),
            retriever=issubclass(cls, (BaseRetriever, BaseQueryEngine)),
            postprocessor=issubclass(cls, BaseNodePostprocessor),
            workflow=issubclass(cls, Workflow),
            chat_stream=issubclass(cls, StreamingAgentChatResponse),
        )
        if len(self) >= self.MAX_KEPT:
            self.clear()  # programs may make classes as they go
        self[cls] = role = role if any(role) else NOBODY
        return role


roles = _Roles()
"""The role of a span's instance, by its class."""
