"""Map copied tokens back to the characters they were copied from; text only, no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from llma_rag.places import Place
from llma_rag.reference import AcceptedReferences
from llma_rag.result import CopiedSpan

SLACK = 4
"""Characters by which a token's place in a text may be off (dummy prefixes, split characters)."""


def joined(places: Sequence[Place | None]) -> list[Place | None]:
    """Return places of the same tokens, accepted one after the other, that form runs of one text.

    A token that several places offer shows one of them; what was accepted behind it tells which.

    >>> joined([Place(0, 2), Place(0, 3), Place(1, 9)])
    [Place(segment=1, offset=7), Place(segment=1, offset=8), Place(segment=1, offset=9)]
    """
    found = list(places)
    for node in range(len(found) - 2, -1, -1):
        following = found[node + 1]
        if found[node] is not None and following is not None and following.offset > 0:
            found[node] = Place(following.segment, following.offset - 1)
    return found


@dataclass(frozen=True, slots=True)
class Source:
    """A place in a reference: character `start` of the text number `reference`."""

    reference: int
    start: int


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer and where its tokens stand in it.

    Attributes:
        text: The answer.
        starts: For each token, its first character.
        ends: For each token, one past its last character.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]


class Provenance:
    """Knows, for one request, which characters each place of the index stands for.

    Segments are numbered as `ReferenceDrafter` numbers them: the references, the prompt, the
    answer, then earlier answers. A token copied from the answer itself inherits the source of the
    token it repeats; one copied from an earlier answer has none.
    """

    def __init__(
        self,
        accepted: AcceptedReferences,
        offsets: Sequence[Sequence[int]],
        decode_prompt: Callable[[int | None], str],
        decode_reference: Callable[[int], str],
    ) -> None:
        """Take the texts of one request.

        Args:
            accepted: The usable references.
            offsets: For each reference, the first character of each of its tokens.
            decode_prompt: Gives the text of the first n prompt tokens, of all for None.
            decode_reference: Gives the text of the tokens of reference n, which a tokenizer that
                normalises makes another one.
        """
        self._accepted = accepted
        self._texts = [reference.text for reference in accepted.references]
        self._offsets = offsets
        self._decode_prompt = decode_prompt
        self._decode_reference = decode_reference
        self._places: list[Place | None] = []

    @cached_property
    def _prompt(self) -> str:
        return self._decode_prompt(None)

    @cached_property
    def _in_prompt(self) -> list[int]:
        """Where each reference stands in the prompt, -1 where it does not."""
        return [self._find_in_prompt(number) for number in range(len(self._texts))]

    def _find_in_prompt(self, number: int) -> int:
        found = self._prompt.find(self._texts[number].strip())
        return found if found >= 0 else self._prompt.find(self._decode_reference(number).strip())

    def commit(self, place: Place | None) -> None:
        """Note where the next token of the answer was copied from; None if it was not."""
        if place is not None and place.segment > len(self._texts):
            answer = len(self._texts) + 1
            place = self._places[place.offset] if place.segment == answer else None
        self._places.append(place)

    def trace(self, answer: AnswerText, first: int) -> tuple[CopiedSpan, ...]:
        """Return the runs copied since token `first`, as they are, without extending them."""
        if not self._texts:
            return ()
        return tuple(span for run in self._runs(first) if (span := self._span(answer, *run)))

    def spans(self, answer: AnswerText) -> tuple[CopiedSpan, ...]:
        """Return all copied runs, each extended to the longest equal text, in answer order.

        Neighbours of one source become one span; a span never overlaps the one before it.
        """
        merged: list[CopiedSpan] = []
        for span in self.trace(answer, 0):
            floor = merged[-1].end if merged else 0
            if span.end <= floor:
                continue
            longest = self._extend(answer.text, span, floor)
            if merged and _continues(merged[-1], longest):
                last = merged.pop()
                longest = replace(last, end=longest.end, reference_end=longest.reference_end)
            merged.append(longest)
        trimmed = (_trim(answer.text, span) for span in merged)
        return tuple(self._complete(answer.text, span) for span in trimmed if span is not None)

    def _runs(self, first: int) -> list[tuple[int, int]]:
        """Return ranges of tokens from `first` on that were copied from consecutive places."""
        runs: list[tuple[int, int]] = []
        previous: Place | None = None
        for token in range(first, len(self._places)):
            place = self._places[token]
            if place is not None:
                follows = previous is not None and place == (previous[0], previous[1] + 1)
                if follows and runs:
                    runs[-1] = (runs[-1][0], token + 1)
                else:
                    runs.append((token, token + 1))
            previous = place
        return runs

    def _span(self, answer: AnswerText, first: int, end: int) -> CopiedSpan | None:
        start = min(answer.starts[first], len(answer.text))
        stop = min(answer.ends[end - 1], len(answer.text))
        piece = answer.text[start:stop]
        skipped = len(piece) - len(piece.lstrip())
        piece = piece.strip()
        place = self._places[first]
        if not piece or place is None:
            return None
        source = self._find(place, piece, skipped)
        if source is None:
            return None
        index, begin = source.reference, source.start
        return CopiedSpan(
            start=start + skipped,
            end=start + skipped + len(piece),
            reference_id=self._accepted.references[index].id,
            reference_index=self._accepted.positions[index],
            reference_start=begin,
            reference_end=begin + len(piece),
        )

    def _find(self, place: Place, piece: str, skipped: int) -> Source | None:
        """Return where `piece` stands near the place it was copied from."""
        guess = self._guess(place, skipped)
        if guess is None:
            return None
        text = self._texts[guess.reference]
        if text.startswith(piece, guess.start):
            return guess
        near = text.find(piece, max(0, guess.start - SLACK), guess.start + len(piece) + SLACK)
        return Source(guess.reference, near) if near >= 0 else None

    def _guess(self, place: Place, skipped: int) -> Source | None:
        if place.segment >= len(self._texts):
            return self._source_in_prompt(place.offset, skipped)
        return Source(place.segment, self._offsets[place.segment][place.offset] + skipped)

    def _source_in_prompt(self, offset: int, skipped: int) -> Source | None:
        """Return which reference stands around a prompt token."""
        character = len(self._decode_prompt(offset)) + skipped
        for number, begin in enumerate(self._in_prompt):
            text = self._texts[number]
            if begin >= 0 and begin - SLACK <= character < begin + len(text.strip()):
                lead = len(text) - len(text.lstrip())
                return Source(number, max(0, character - begin + lead))
        return None

    def _extend(self, answer: str, span: CopiedSpan, floor: int) -> CopiedSpan:
        text = self._text_of(span)
        cut = max(0, floor - span.start)
        start, begin = span.start + cut, span.reference_start + cut
        while start > floor and begin > 0 and answer[start - 1] == text[begin - 1]:
            start, begin = start - 1, begin - 1
        end, stop = span.end, span.reference_end
        while end < len(answer) and stop < len(text) and answer[end] == text[stop]:
            end, stop = end + 1, stop + 1
        return replace(span, start=start, end=end, reference_start=begin, reference_end=stop)

    def _complete(self, answer: str, span: CopiedSpan) -> CopiedSpan:
        """Add whether the source stands in the prompt, and who else holds the same text."""
        own = self._accepted.positions.index(span.reference_index)
        piece = answer[span.start : span.end]
        others = tuple(
            position
            for number, position in enumerate(self._accepted.positions)
            if number != own and piece in self._texts[number]
        )
        return replace(span, in_prompt=self._in_prompt[own] >= 0, also_in=others)

    def _text_of(self, span: CopiedSpan) -> str:
        return self._texts[self._accepted.positions.index(span.reference_index)]


def _continues(last: CopiedSpan, span: CopiedSpan) -> bool:
    return (
        last.reference_index == span.reference_index
        and last.end == span.start
        and last.reference_end == span.reference_start
    )


def _trim(answer: str, span: CopiedSpan) -> CopiedSpan | None:
    """Leave out white space at both ends; return None if nothing else is left."""
    piece = answer[span.start : span.end]
    lead = len(piece) - len(piece.lstrip())
    tail = len(piece) - len(piece.rstrip())
    if lead == len(piece):
        return None
    return replace(
        span,
        start=span.start + lead,
        end=span.end - tail,
        reference_start=span.reference_start + lead,
        reference_end=span.reference_end - tail,
    )
