"""One request on its way to the decoder and back, the same for chat and for text."""

import os
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from langchain_core.documents import Document
from langchain_core.messages.content import Citation

from langchain_llma.citations import citations_of
from langchain_llma.documents import as_reference
from langchain_llma.overflow import overflow_for_core
from langchain_llma.scopes import CapturedDocument
from langchain_llma.tool_calls import (
    HeldText,
    ReadAnswer,
    Tool,
    cut_call,
    read_answer,
    read_parsed,
)
from llma_rag import GenerationResult, Reference

if TYPE_CHECKING:
    from llma_rag import Decoder, GenerationOptions

Chunk = TypeVar("Chunk")


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
        forced: Whether the answer must be a call.
        several: Whether it may hold more than one.
        history: Earlier turns of the conversation, which the prompt may lack.
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
    forced: bool = False
    several: bool = True
    history: tuple[str, ...] = ()
    draft: bool = True
    namespace: str | None = None
    citations: Literal["prompt", "scope", "off"] = "prompt"
    min_citation_words: int = 4

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything but the prompt that the decoder's methods take."""
        return {
            "references": self.references,
            **({"history": self.history} if self.history else {}),
            "draft": self.draft,
            "namespace": self.namespace,
            **self.options,
        }

    @property
    def references(self) -> list[Reference]:
        """The documents as the decoder takes them."""
        return [as_reference(entry.document) for entry in self.documents]

    def cited(self, answer: str, result: GenerationResult) -> list[Citation]:
        """Return the citations of an answer, up to where it leaves the result's text."""
        sources: Sequence[Document] = [entry.document for entry in self.documents]
        shown = os.path.commonprefix([answer, result.text])  # noqa: RUF071  # no paths
        return citations_of(
            shown,
            result.copied_spans,
            sources,
            min_words=self.min_citation_words,
            scope=self.citations,
        )

    def read(self, result: GenerationResult) -> ReadAnswer:
        """Separate tool calls from text; where one is allowed, only the first counts."""
        answer = self._read(result)
        if self.several:
            return answer
        invalid = () if answer.calls else answer.invalid[:1]
        return replace(answer, calls=answer.calls[:1], invalid=invalid)

    def _read(self, result: GenerationResult) -> ReadAnswer:
        """Read an answer by the tokenizer's own rules where it has some."""
        if self.parses_itself:
            parse, written = self.decoder.tokenizer.parse_response, self._written(result)
            try:
                return read_parsed(parse(written, prefix=self.prompt, tools=list(self.tools)))
            except (ValueError, TypeError, KeyError, AttributeError):
                pass  # a call that was cut short or that the model wrote wrongly
        answer = read_answer(result.text, self.tools)
        if self.forced and not answer.calls:
            return cut_call(result.text, limited=result.finish_reason == "length")
        return answer

    @property
    def parses_itself(self) -> bool:
        """Whether the tokenizer knows how its model writes tool calls, where it is free to."""
        known = getattr(self.decoder.tokenizer, "response_template", None)
        return bool(self.tools) and known is not None and "json_schema" not in self.options

    def _written(self, result: GenerationResult) -> str:
        """Return the answer with its special tokens, without what a stop string cut off."""
        decode, ids = self.decoder.tokenizer.decode, list(result.token_ids)
        written = str(decode(ids))
        cut = str(decode(ids, skip_special_tokens=True)).removeprefix(result.text)
        if not cut or not self.options.get("stop"):
            return written
        before, found, _ = written.rpartition(cut)
        return before if found else result.text

    def held_text(self) -> HeldText:
        """Return what keeps tool calls out of a streamed text."""
        return HeldText(hold=bool(self.tools), hold_all=self.parses_itself)

    def stream(
        self, piece: Callable[[str], Chunk], end: "End[Chunk]"
    ) -> Generator[Chunk, None, None]:
        """Yield the answer as it is decoded; a closed iterator stops the model.

        Args:
            piece: Makes a chunk of text.
            end: Makes the last chunk, in which all metadata stands: chunks add up.
        """
        held = self.held_text()
        with overflow_for_core(), self.decoder.stream(self.prompt, **self.arguments) as stream:
            for chunk in stream:
                if text := held.feed(chunk.text):
                    yield piece(text)
            result = stream.result
        yield end(self, result, held)

    async def astream(
        self, piece: Callable[[str], Chunk], end: "End[Chunk]"
    ) -> AsyncGenerator[Chunk, None]:
        """Do as `stream` without blocking the event loop."""
        held = self.held_text()
        with overflow_for_core():
            async with self.decoder.astream(self.prompt, **self.arguments) as stream:
                async for chunk in stream:
                    if text := held.feed(chunk.text):
                        yield piece(text)
                result = stream.result
        yield end(self, result, held)


End: TypeAlias = Callable[[Call, GenerationResult, HeldText], Chunk]
"""Makes the last chunk of a stream."""
