"""Answers from local models over retrieved text, decoded faster and left unchanged."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llma_rag.answers import AnswerStore
    from llma_rag.conversations import written_by_template
    from llma_rag.decoder import Decoder
    from llma_rag.delivery import AsyncGenerationStream, GenerationStream
    from llma_rag.reference import Reference
    from llma_rag.result import (
        ContextOverflowError,
        CopiedSpan,
        DecodingStats,
        GenerationChunk,
        GenerationOptions,
        GenerationResult,
        NonFiniteLogitsError,
        RequestOptions,
    )
    from llma_rag.schemas import chosen_tools, closed_schema, tool_call_schema
    from llma_rag.tool_calls import WrittenCall, read_tool_calls, text_before_calls

__version__ = "0.1.0"

__all__ = [
    "AnswerStore",
    "AsyncGenerationStream",
    "ContextOverflowError",
    "CopiedSpan",
    "Decoder",
    "DecodingStats",
    "GenerationChunk",
    "GenerationOptions",
    "GenerationResult",
    "GenerationStream",
    "NonFiniteLogitsError",
    "Reference",
    "RequestOptions",
    "WrittenCall",
    "chosen_tools",
    "closed_schema",
    "read_tool_calls",
    "text_before_calls",
    "tool_call_schema",
    "written_by_template",
]

_HOMES = {
    "AnswerStore": "llma_rag.answers",
    "AsyncGenerationStream": "llma_rag.delivery",
    "Decoder": "llma_rag.decoder",
    "GenerationStream": "llma_rag.delivery",
    "Reference": "llma_rag.reference",
    "WrittenCall": "llma_rag.tool_calls",
    "chosen_tools": "llma_rag.schemas",
    "closed_schema": "llma_rag.schemas",
    "read_tool_calls": "llma_rag.tool_calls",
    "text_before_calls": "llma_rag.tool_calls",
    "tool_call_schema": "llma_rag.schemas",
    "written_by_template": "llma_rag.conversations",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module `llma_rag` has no attribute `{name}`")
    value = getattr(import_module(_HOMES.get(name, "llma_rag.result")), name)
    globals()[name] = value
    return value
