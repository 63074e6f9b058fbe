"""Show copied spans as the standard citations of LangChain messages."""

import re
from collections.abc import Sequence
from typing import Any, Literal, cast

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.block_translators import register_translator
from langchain_core.messages.content import Citation, ContentBlock, create_citation

from langchain_llma.options import PROVIDER
from llma_rag import CopiedSpan

_WEB = ("http://", "https://")
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff00-\uffef\U00020000-\U0003ffff]"
)
"""Characters of scripts without spaces between words: Thai to Burmese, Khmer, Japanese, Chinese."""
_PER_WORD = 4
"""Such characters that count as one more word."""


def citations_of(
    answer: str,
    spans: Sequence[CopiedSpan],
    documents: Sequence[Document],
    *,
    min_words: int,
    scope: Literal["prompt", "scope", "off"],
) -> list[Citation]:
    """Return a citation for every copied run of whole words that is long enough.

    In each, `answer[start_index:end_index]` equals
    `document.page_content[start_char_index:end_char_index]`, the latter two in `extras`.

    Args:
        answer: The text that the message shows.
        spans: Copied spans of the answer; `reference_index` counts in `documents`.
        documents: Documents in the order in which the decoder got them.
        min_words: Shortest run that is cited, in words; in a script without spaces, 12 characters
            in a row are 4 words.
        scope: `"prompt"` cites only documents whose text stands in the prompt.
    """
    if scope == "off":
        return []
    return [
        _citation(answer, start, end, span, documents)
        for span in spans
        if span.in_prompt or scope == "scope"
        for start, end in [_whole_words(answer, span.start, min(span.end, len(answer)))]
        if _length(answer[start:end]) >= min_words
    ]


def _citation(
    answer: str, start: int, end: int, span: CopiedSpan, documents: Sequence[Document]
) -> Citation:
    document = documents[span.reference_index]
    source = document.metadata.get("source")
    url = document.metadata.get("url")
    if url is None and isinstance(source, str) and source.startswith(_WEB):
        url = source
    title = document.metadata.get("title", source)
    first = span.reference_start + start - span.start
    return create_citation(
        url=None if url is None else str(url),
        title=None if title is None else str(title),
        start_index=start,
        end_index=end,
        cited_text=answer[start:end],
        document_id=document.id,
        document_index=span.reference_index,
        also_in=list(span.also_in) or None,
        source=None if source is None else str(source),
        start_char_index=first,
        end_char_index=first + end - start,
    )


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Shrink a span so that it begins and ends with whole words."""
    if 0 < start < end and _in_word(text[start]) and _in_word(text[start - 1]):
        while start < end and _in_word(text[start]):
            start += 1
    if start < end < len(text) and _in_word(text[end - 1]) and _in_word(text[end]):
        while end > start and _in_word(text[end - 1]):
            end -= 1
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _in_word(character: str) -> bool:
    """Whether a character belongs to a word that must stay whole."""
    return character.isalnum() and not _UNSPACED.match(character)


def _length(text: str) -> int:
    """Count words, and in scripts without spaces one more for every few characters."""
    return len(text.split()) + len(_UNSPACED.findall(text)) // _PER_WORD


def _content_blocks(message: AIMessage) -> list[ContentBlock]:
    """Content, citations and tool calls as standard blocks; `.content` itself stays a text."""
    return cast("list[ContentBlock]", [*_text_blocks(message), *_tool_blocks(message)])


def _text_blocks(message: AIMessage) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if isinstance(message.content, str):
        blocks += [{"type": "text", "text": message.content}] if message.content else []
    else:
        blocks += [
            dict(part) if isinstance(part, dict) else {"type": "text", "text": part}
            for part in message.content
        ]
    cited = message.response_metadata.get("citations")
    if cited:
        text = next((block for block in blocks if block["type"] == "text"), None)
        if text is None:  # the last chunk of a stream has no text of its own
            text = {"type": "text", "text": ""}
            blocks.append(text)
        text.setdefault("annotations", [dict(citation) for citation in cited])
    return blocks


def _tool_blocks(message: AIMessage) -> list[dict[str, Any]]:
    if isinstance(message, AIMessageChunk) and message.chunk_position != "last":
        return [
            {"type": "tool_call_chunk", **{key: chunk.get(key) for key in ("id", "name", "args")}}
            for chunk in message.tool_call_chunks
        ]
    calls = [
        {"type": "tool_call", **{key: call[key] for key in ("id", "name", "args")}}
        for call in message.tool_calls
    ]
    invalid = [dict(call) for call in message.invalid_tool_calls]
    return calls + invalid


register_translator(PROVIDER, _content_blocks, _content_blocks)
