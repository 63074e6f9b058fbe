"""Tell which characters of a response were copied from which node, and keep that per response."""

import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import BaseNode

from llama_index.llms.llma.answers import Answer, in_order, joined
from llama_index.llms.llma.captured import CapturedNode
from llama_index.llms.llma.spans import active_span, tree
from llama_index.llms.llma.streams import active_stream
from llma_rag import CopiedSpan, GenerationResult

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Citation:
    """Characters of an answer that equal characters of a node.

    Attributes:
        start: First character in the answer.
        end: One past the last character in the answer.
        text: The characters themselves.
        node_id: Id of the node; None for a reference given as a string.
        node_start: First character in the node's text at the moment of capture.
        node_end: One past the last character in that text.
        title: File name of the node where its metadata has one, else its id.
        number: Its place, from 1, in the references of the model call that copied it.
        node: The node itself; None for a reference that was none.
    """

    start: int
    end: int
    text: str
    node_id: str | None
    node_start: int
    node_end: int
    title: str
    number: int
    node: BaseNode | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the citation without its node, as JSON can hold it."""
        names = ("start", "end", "text", "node_id", "node_start", "node_end", "title", "number")
        return {name: getattr(self, name) for name in names}


def cite(
    text: str, spans: Iterable[CopiedSpan], nodes: Sequence[CapturedNode], min_characters: int
) -> tuple[Citation, ...]:
    """Turn the copied spans of an answer into citations of at least `min_characters`."""
    citations = []
    for span in spans:
        if span.end - span.start < min_characters:
            continue
        node = nodes[span.reference_index]
        citations.append(
            Citation(
                start=span.start,
                end=span.end,
                text=text[span.start : span.end],
                node_id=node.id,
                node_start=span.reference_start,
                node_end=span.reference_end,
                title=_title(node),
                number=span.reference_index + 1,
                node=node.node,
            )
        )
    return tuple(citations)


def _title(captured: CapturedNode) -> str:
    metadata = captured.node.metadata if captured.node is not None else {}
    named = (metadata.get(key) for key in ("title", "file_name", "file", "source", "url"))
    return str(next((name for name in named if name), captured.id or ""))


def note_answers(answers: Sequence[Answer]) -> None:
    """Remember finished answers where the response that will hold them can find them.

    Runs in the reader's context, never in a worker thread.
    """
    span, stream = active_span(), active_stream.get()
    if span is not None and (stream is None or span.stream is stream):
        tree.answered(span, answers)
    elif stream is not None:
        stream.answers = joined(stream.answers, answers)


class _Kept(NamedTuple):
    response: weakref.ref[Any]
    text: str
    answers: tuple[Answer, ...]


_kept: dict[int, _Kept] = {}


def attach(response: Any, text: str | None, answers: Sequence[Answer]) -> None:
    """Keep, as long as `response` lives, its text and what the model answered for it.

    A streamed response gets its answers in parts, those of its end from the thread that reads it,
    and its text perhaps after its end.
    """
    kept = _kept_for(response)
    if kept is not None:
        text, answers = text or kept.text, in_order((*answers, *kept.answers))
    if response is None or not answers:
        return
    key = id(response)
    with suppress(TypeError):  # an object that takes no weak reference
        reference = weakref.ref(response, lambda _: _kept.pop(key, None))
        _kept[key] = _Kept(reference, text or "", tuple(answers))


def hand_on(streamed: Any, whole: R) -> R:
    """Let a whole response have what is kept for the streamed one that made it."""
    kept = _kept_for(streamed)
    if kept is not None:
        attach(whole, kept.text, kept.answers)
    return whole


def _place(text: str, answers: Sequence[Answer]) -> set[Citation]:
    """Return the citations of `answers` in the coordinates of `text`.

    Equal answers are placed one after the other, as `accumulate` joins them.
    """
    searched: dict[str, int] = {}
    placed: set[Citation] = set()
    for answer in answers:
        body = answer.text.strip()
        at = text.find(body, searched.get(body, 0)) if body else -1
        if at < 0:
            continue
        searched[body] = at + len(body)
        shift = at - (len(answer.text) - len(answer.text.lstrip()))
        for citation in answer.citations:
            moved = replace(citation, start=citation.start + shift, end=citation.end + shift)
            if text[max(moved.start, 0) : moved.end] == moved.text:
                placed.add(moved)
    return placed


def text_of(response: Any) -> str | None:
    """Return the text of a response object of the framework."""
    text = getattr(response, "response", None)
    if isinstance(text, ChatMessage):
        text = text.content
    return text if isinstance(text, str) else None


def citations_of(response: object) -> list[Citation]:
    """Return what a response copied from its nodes, in order of the answer; [] for nothing.

    Works for `Response`, `StreamingResponse`, `AgentChatResponse`, `StreamingAgentChatResponse` and
    their asynchronous forms; of a streamed one after it was read to its end. `citation.text` equals
    `str(response)[citation.start:citation.end]` and the node's text at `node_start:node_end`.
    """
    kept = _kept_for(response)
    placed = _place(kept.text, kept.answers) if kept else ()
    return sorted(placed, key=lambda citation: (citation.start, citation.end))


def results_of(response: object) -> list[GenerationResult]:
    """Return the results of the model calls made for a response, in their order: the last 32.

    A result holds the token ids of the answer and the counts and times of its decoding.
    """
    kept = _kept_for(response)
    results = [answer.result for answer in kept.answers] if kept else []
    return [result for result in results if result is not None]


def _kept_for(response: object) -> _Kept | None:
    kept = _kept.get(id(response))
    return kept if kept is not None and kept.response() is response else None
