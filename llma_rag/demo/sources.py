"""Say which document a copied span comes from."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from llma_rag.demo.passages import Passage
from llma_rag.reference import Reference

if TYPE_CHECKING:
    from llma_rag.demo.recording import RecordedStream

MIN_WORDS = 3
"""Shorter runs are coincidences more often than copies."""


class SourcedSpan(NamedTuple):
    """Characters `start` to `end` of an answer, and the document they were copied from."""

    start: int
    end: int
    source: str


class Sources:
    """Finds passages by their text, under whatever id a framework hands them to the decoder."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._names = {passage.text: passage.source for passage in passages}

    def of(self, reference: Reference | str) -> str | None:
        """Return the document of a reference; None for a text that is no passage."""
        text = reference.text if isinstance(reference, Reference) else reference
        return self._names.get(text)

    def spans(self, answer: str, call: "RecordedStream") -> list[SourcedSpan]:
        """Return what of an answer was copied from which document, in the answer's coordinates.

        Args:
            answer: What the framework returned, which may be stripped of white space.
            call: The call that wrote it.
        """
        shift = call.text.find(answer)
        if shift < 0:
            return []
        found = []
        for span in call.copied_spans:
            start, end = max(span.start - shift, 0), min(span.end - shift, len(answer))
            name = self.of(call.request.references[span.reference_index])
            if name is not None and len(answer[start:end].split()) >= MIN_WORDS:
                found.append(SourcedSpan(start, end, name))
        return found


def sources_of(spans: Iterable[SourcedSpan]) -> tuple[str, ...]:
    """Return the documents of spans, each once, in order of appearance."""
    return tuple(dict.fromkeys(span.source for span in spans))
