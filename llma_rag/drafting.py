"""Propose the tokens that come next, without a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from llma_rag.index import MAX_INDEXED_TOKENS, NO_TOKEN, SuffixIndex

ROOT = -1
"""Parent of a node that follows the last committed token."""


class Place(NamedTuple):
    """Where a token was copied from: token `offset` of segment `segment` of the index."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens as a tree; a chain is a tree without branches.

    Nodes stand in an order in which a parent precedes its children.

    Attributes:
        tokens: Token id of each node.
        parents: Index of each node's parent, `ROOT` for a node that follows the context.
        places: Where each token was copied from; None for a token that no text gave.
        probabilities: Estimated probability that the whole path to the node is accepted; empty
            where the drafter does not estimate it.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    places: tuple[Place | None, ...] = ()
    probabilities: tuple[float, ...] = ()

    @classmethod
    def chain(cls, tokens: Sequence[int], places: Sequence[Place | None] = ()) -> "Draft":
        """Return the draft of one run of tokens.

        >>> Draft.chain([5, 6]).parents
        (-1, 0)
        """
        return cls(
            tokens=tuple(tokens),
            parents=tuple(range(-1, len(tokens) - 1)),
            places=tuple(places) if places else (None,) * len(tokens),
        )

    @property
    def is_chain(self) -> bool:
        """Whether every node follows the node before it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    def __len__(self) -> int:
        return len(self.tokens)


class Drafter(Protocol):
    """Proposes continuations of one request's context; made anew for every request."""

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose at most `budget` nodes that may follow `context`.

        Args:
            context: Token ids of the prompt and of the answer so far; between two calls it only
                grows, so that what followed the last draft tells which of its nodes were right.
            budget: Most nodes the caller will verify, at least 0.
        """
        ...


class ReferenceDrafter:
    """Drafts what followed the longest match of the context's end in references, prompt or answer.

    `Place.segment` counts the references from 0 in the order given, then the prompt, then the
    answer, whose offsets count from the answer's first token. Among equally long matches the one
    that continues the last drafted copy comes first, then the earliest segment.

    Attributes:
        index: Where the texts were indexed; tells what was truncated.
    """

    def __init__(
        self,
        references: Sequence[Sequence[int]],
        prompt: Sequence[int],
        *,
        max_draft_tokens: int = 20,
        min_match_length: int = 1,
        banned_tokens: frozenset[int] = frozenset(),
        vocab_size: int | None = None,
        max_indexed_tokens: int = MAX_INDEXED_TOKENS,
    ) -> None:
        """Index the texts of one request.

        Args:
            references: Token ids of each reference, without special tokens.
            prompt: Token ids of the prompt; `draft` expects a context that begins with them.
            max_draft_tokens: Most nodes of a draft, at least 0.
            min_match_length: Shortest match that is copied from, at least 1.
            banned_tokens: Ids that are never drafted (special tokens).
            vocab_size: Ids at or above it are never drafted.
            max_indexed_tokens: Most tokens of references and prompt that are indexed.

        Raises:
            ValueError: If a number is out of its range.
        """
        if min_match_length < 1:
            raise ValueError(f"`min_match_length` must be at least 1, got {min_match_length}.")
        if max_draft_tokens < 0:
            raise ValueError(f"`max_draft_tokens` must be at least 0, got {max_draft_tokens}.")
        self.max_draft_tokens = max_draft_tokens
        self.min_match_length = min_match_length
        self.index = SuffixIndex(
            [*references, prompt],
            banned_tokens=banned_tokens,
            vocab_size=vocab_size,
            max_tokens=max_indexed_tokens,
        )
        self._seen = len(prompt)
        self._expected: int | None = None

    def draft(self, context: Sequence[int], budget: int) -> Draft:
        """Propose the continuation of the longest match, at most `budget` tokens of it.

        >>> drafter = ReferenceDrafter([[7, 8, 9, 4]], [1, 2])
        >>> drafter.draft([1, 2, 7, 8], budget=3).tokens
        (9, 4)
        """
        new = context[self._seen :]
        self.index.extend(new)
        self._seen = len(context)
        expected = self._advance(new)
        self._expected = None
        room = min(budget, self.max_draft_tokens)
        if room <= 0:
            return Draft()
        position = self._best_place(context, expected)
        if position is None:
            return Draft()
        return self._copy(position, room)

    def _advance(self, new: Sequence[int]) -> int | None:
        """Return the place after the last drafted copy, if the answer followed it so far."""
        position, tokens = self._expected, self.index.tokens
        if position is None:
            return None
        for token in new:
            if tokens[position] != token:
                return None
            position += 1
            if position >= len(tokens):
                return None
        return position

    def _best_place(self, context: Sequence[int], expected: int | None) -> int | None:
        found = self.index.matches(context)
        if not found or found[0].length < self.min_match_length:
            return None
        best = found[0]
        if expected is not None and self.index.match_length(expected, context) >= best.length:
            return expected
        return best.position

    def _copy(self, position: int, room: int) -> Draft:
        self._expected = position
        tokens = self.index.tokens[position : position + room]
        if NO_TOKEN in tokens:
            tokens = tokens[: tokens.index(NO_TOKEN)]
        segment, offset = self.index.locate(position)
        places = [Place(segment, offset + step) for step in range(len(tokens))]
        return Draft.chain(tokens, places)
