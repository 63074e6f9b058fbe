"""Turn what the decoder wrote into LlamaIndex's responses."""

from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CitationBlock,
    CompletionResponse,
    MessageRole,
    TextBlock,
)

from llama_index.llms.llma.answers import Answer, numbers
from llama_index.llms.llma.capture import Found
from llama_index.llms.llma.citations import Citation, cite, note_answers
from llama_index.llms.llma.overflow import note_end
from llma_rag import GenerationResult

CitationStyle = Literal["raw", "blocks", "off"]


class Finished(NamedTuple):
    """A finished model call: its text, what of it was copied, and `raw` of the response."""

    text: str
    citations: tuple[Citation, ...]
    raw: dict[str, Any]


def finish(
    result: GenerationResult,
    found: Found,
    *,
    model_name: str,
    style: CitationStyle,
    min_characters: int,
) -> Finished:
    """Cite what an answer copied and leave it where the response around it finds it.

    Runs in the reader's context, never in a worker thread.
    """
    copied = () if style == "off" else result.copied_spans
    citations = cite(result.text, copied, found.nodes, min_characters)
    note_end(result.finish_reason)
    note_answers([Answer(result.text, citations, result, next(numbers))])
    raw = _raw(result, found, citations, model_name)
    return Finished(result.text, citations if style == "blocks" else (), raw)


def _raw(
    result: GenerationResult, found: Found, citations: tuple[Citation, ...], model_name: str
) -> dict[str, Any]:
    """Return what JSON can hold of an answer; `usage` is what token counters read."""
    stats = result.stats
    prompt, completion = stats.prompt_tokens, stats.generated_tokens
    return {
        "model": model_name,
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
        "llma": {
            **asdict(stats),
            "tokens_per_forward": stats.tokens_per_forward,
            "acceptance_rate": stats.acceptance_rate,
            "references": len(found.nodes),
            "reach": found.reach,
            "citations": [citation.to_dict() for citation in citations],
        },
    }


def completion_response(
    text: str, delta: str | None = None, finished: Finished | None = None
) -> CompletionResponse:
    """Return a completion, or a chunk of one whose `text` is what was written so far."""
    return CompletionResponse(text=text, delta=delta, raw=finished.raw if finished else None)


def chat_response(
    text: str, delta: str | None = None, finished: Finished | None = None
) -> ChatResponse:
    """Return a chat answer, or a chunk of one whose message is what was written so far."""
    citations, raw = (finished.citations, finished.raw) if finished else ((), None)
    return ChatResponse(message=assistant_message(text, citations), delta=delta, raw=raw)


def assistant_message(text: str, citations: tuple[Citation, ...] = ()) -> ChatMessage:
    """Return the answer as one text block, followed by a block per citation.

    One block, because `ChatMessage.content` joins text blocks with line breaks. Nothing goes into
    `additional_kwargs`: they are printed into the prompt of the next turn.
    """
    blocks = [TextBlock(text=text), *map(citation_block, citations)]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)


def citation_block(citation: Citation) -> CitationBlock:
    """Return a citation as LlamaIndex's block; its location holds whole numbers only."""
    return CitationBlock(
        cited_content=TextBlock(text=citation.text),
        source=citation.node_id or "",
        title=citation.title,
        additional_location_info={
            "start": citation.start,
            "end": citation.end,
            "source_start": citation.node_start,
            "source_end": citation.node_end,
            "source_number": citation.number,
        },
    )
