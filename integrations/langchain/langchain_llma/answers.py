"""Turn the decoder's results into LangChain's messages and generations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.content import Citation
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from langchain_llma.citations import citations_of
from langchain_llma.local_model import PROVIDER, as_reference
from langchain_llma.scopes import CapturedDocument, origins
from langchain_llma.tool_calls import HeldText, ReadAnswer, Tool, read_answer, read_parsed
from llma_rag import DecodingStats, GenerationResult, Reference

if TYPE_CHECKING:
    from llma_rag import Decoder, GenerationOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as it goes to the decoder, and what its answer needs to be shown.

    Attributes:
        decoder: The decoder that answers.
        model: The name of its model.
        prompt: Token ids of a conversation, or a text.
        documents: What may be copied, in the order of the references.
        options: Options of the decoder.
        tools: Tools that the model may call.
        draft: Whether tokens may be drafted.
        namespace: Whose request this is.
        citations: What is cited.
        min_citation_words: Shortest run that is cited.
    """

    decoder: "Decoder"
    model: str
    prompt: str | list[int]
    documents: tuple[CapturedDocument, ...]
    options: "GenerationOptions"
    tools: tuple[Tool, ...] = ()
    draft: bool = True
    namespace: str | None = None
    citations: Literal["prompt", "scope", "off"] = "prompt"
    min_citation_words: int = 4

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything but the prompt that the decoder's methods take."""
        return {
            "references": self.references,
            "draft": self.draft,
            "namespace": self.namespace,
            **self.options,
        }

    @property
    def references(self) -> list[Reference]:
        """The documents as the decoder takes them."""
        return [as_reference(entry.document) for entry in self.documents]

    def cited(self, answer: str, result: GenerationResult) -> list[Citation]:
        """Return the citations of an answer, whose beginning at least is the result's text."""
        sources: Sequence[Document] = [entry.document for entry in self.documents]
        shown = answer if result.text.startswith(answer) else ""
        return citations_of(
            shown,
            result.copied_spans,
            sources,
            min_words=self.min_citation_words,
            scope=self.citations,
        )

    def read(self, result: GenerationResult) -> ReadAnswer:
        """Separate tool calls from text, by the tokenizer's own rules where it has some."""
        if self.parses_itself:
            parse = self.decoder.tokenizer.parse_response
            return read_parsed(
                parse(list(result.token_ids), prefix=self.prompt, tools=list(self.tools))
            )
        return read_answer(result.text, self.tools)

    @property
    def parses_itself(self) -> bool:
        """Whether the tokenizer knows how its model writes tool calls."""
        known = getattr(self.decoder.tokenizer, "response_template", None)
        return bool(self.tools) and known is not None

    def held_text(self) -> HeldText:
        """Return what keeps tool calls out of a streamed text."""
        return HeldText(hold=bool(self.tools), hold_all=self.parses_itself)


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


def text_chunk(text: str) -> ChatGenerationChunk:
    """Return a piece of a streamed answer."""
    return ChatGenerationChunk(
        message=AIMessageChunk(content=text, response_metadata={"model_provider": PROVIDER})
    )


def last_chunk(call: Call, result: GenerationResult, held: HeldText) -> ChatGenerationChunk:
    """Return the end of a streamed answer; all metadata stands here, for chunks add up.

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
