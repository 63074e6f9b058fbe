"""Turn the decoder's results into LangChain's messages and generations."""

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
    LLMResult,
)

from langchain_llma.calls import Call
from langchain_llma.options import PROVIDER
from langchain_llma.scopes import origins
from langchain_llma.tool_calls import HeldText, ReadAnswer
from llma_rag import DecodingStats, GenerationResult


def generation(call: Call, result: GenerationResult) -> ChatGeneration:
    """Return the finished answer as a message."""
    answer = call.read(result)
    message = AIMessage(
        content=answer.content,
        tool_calls=list(answer.calls),
        invalid_tool_calls=list(answer.invalid),
        response_metadata=response_metadata(call, result, answer),
        usage_metadata=usage_metadata(result.stats),
    )
    return ChatGeneration(message=message)


def message_piece(text: str) -> ChatGenerationChunk:
    """Return a piece of a streamed message."""
    return ChatGenerationChunk(
        message=AIMessageChunk(content=text, response_metadata={"model_provider": PROVIDER})
    )


def message_end(call: Call, result: GenerationResult, held: HeldText) -> ChatGenerationChunk:
    """Return the end of a streamed message; all metadata stands here, for chunks add up.

    Arguments that are no JSON go as a quoted string: core would repair them when it adds chunks.
    """
    answer = call.read(result)
    chunks = [
        tool_call_chunk(
            name=entry["name"], args=json.dumps(entry["args"]), id=entry["id"], index=index
        )
        for index, entry in enumerate([*answer.calls, *answer.invalid])
    ]
    message = AIMessageChunk(
        content=held.rest_of(answer.content),
        tool_call_chunks=chunks,
        response_metadata=response_metadata(call, result, answer),
        usage_metadata=usage_metadata(result.stats),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def text_piece(text: str) -> GenerationChunk:
    """Return a piece of a streamed completion."""
    return GenerationChunk(text=text)


def text_end(call: Call, result: GenerationResult, held: HeldText) -> GenerationChunk:
    """Return the end of a streamed completion; all metadata stands here."""
    return GenerationChunk(
        text=held.rest_of(result.text), generation_info=generation_info(call, result)
    )


def generation_info(call: Call, result: GenerationResult) -> dict[str, Any]:
    """Return finish reason, citations and the cost of a completion."""
    cited = call.cited(result.text, result)
    return {
        "finish_reason": result.finish_reason,
        **({"citations": cited} if cited else {}),
        "usage": usage_metadata(result.stats),
        PROVIDER: decoding_metadata(call, result.stats),
    }


def llm_result(calls: Sequence[Call], results: Sequence[GenerationResult]) -> LLMResult:
    """Return finished completions, one for each call."""
    usage = [usage_metadata(result.stats) for result in results]
    return LLMResult(
        generations=[
            [Generation(text=result.text, generation_info=generation_info(call, result))]
            for call, result in zip(calls, results, strict=True)
        ],
        llm_output={
            "model_name": calls[0].model if calls else None,
            "token_usage": {
                name: sum(entry[name] for entry in usage)
                for name in ("input_tokens", "output_tokens", "total_tokens")
            },
        },
    )


def response_metadata(call: Call, result: GenerationResult, answer: ReadAnswer) -> dict[str, Any]:
    """Return model, finish reason, citations and the cost of an answer."""
    cited = call.cited(answer.content, result)
    return {
        "model_name": call.model,
        "model_provider": PROVIDER,
        "finish_reason": "tool_calls" if answer.calls else result.finish_reason,
        **({"citations": cited} if cited else {}),
        PROVIDER: decoding_metadata(call, result.stats),
    }


def decoding_metadata(call: Call, stats: DecodingStats) -> dict[str, Any]:
    """Return counts and times (seconds); names and numbers only, never texts."""
    return {
        "forward_passes": stats.forward_passes,
        "tokens_per_forward": stats.tokens_per_forward,
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "acceptance_rate": stats.acceptance_rate,
        "mean_acceptance_length": stats.mean_acceptance_length,
        "time_to_first_token": stats.time_to_first_token,
        "time_per_output_token": stats.time_per_output_token,
        "total_time": stats.total_time,
        "references": origins(call.documents),
        "references_used": stats.references_used,
        "references_skipped": stats.references_skipped,
        "references_truncated": stats.references_truncated,
    }


def usage_metadata(stats: DecodingStats) -> UsageMetadata:
    """Return token counts; the details hold what was drafted, in OpenAI's names."""
    details = {
        "accepted_prediction_tokens": stats.accepted_tokens,
        "rejected_prediction_tokens": stats.drafted_tokens - stats.accepted_tokens,
    }
    return UsageMetadata(
        input_tokens=stats.prompt_tokens,
        output_tokens=stats.generated_tokens,
        total_tokens=stats.prompt_tokens + stats.generated_tokens,
        input_token_details=InputTokenDetails(cache_read=stats.cached_prompt_tokens),
        output_token_details=OutputTokenDetails(**details),  # type: ignore[typeddict-item]  # extra keys
    )
