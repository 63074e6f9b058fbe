"""Find where the last tokens of a context stood before; knows token ids, no text and no model."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llma_rag.compiled import Ints
from llma_rag.matching import (
    BUCKETS,
    MAX_MATCH_LENGTH,
    NO_TOKEN,
    RECENT_PLACES,
    SORTED_DEPTH,
    Texts,
    append,
    find_places,
)

MAX_INDEXED_TOKENS = 262_144
"""Tokens of one request's fixed segments that are indexed by default (about 0.1 s)."""

GROWTH = 512
"""Least tokens by which the room for the growing text grows."""

LARGEST = int(np.iinfo(np.int32).max)
"""Size of the vocabulary where none is given: ids are kept in 32 bits."""

Tokens = Sequence[int] | NDArray[np.integer]


class Match(NamedTuple):
    """A place whose left context equals the last `length` tokens of the context.

    Attributes:
        position: Position of the token that followed, see `SuffixIndex.tokens`.
        length: Equal tokens before it, at most `MAX_MATCH_LENGTH`.
    """

    position: int
    length: int


class SuffixIndex:
    """Longest-suffix matches over fixed segments and one text that grows.

    The fixed part is an array of its positions sorted by what stands to the left of them, so that
    the places that continue the last tokens of a context are a range of that array and each
    further token of context narrows the range by bisection: O(log n) per token of context, also
    for periodic texts. It costs 12 bytes per token. The growing text is indexed by its bigrams.

    Attributes:
        texts: The arrays.
        starts: Position of the first token of each segment, the growing text's last.
        indexed_tokens: Tokens of fixed segments that were indexed.
        truncated: Which fixed segments were cut or left out to keep to `max_tokens`.
    """

    def __init__(
        self,
        segments: Sequence[Tokens],
        *,
        banned_tokens: frozenset[int] = frozenset(),
        vocab_size: int | None = None,
        max_tokens: int = MAX_INDEXED_TOKENS,
    ) -> None:
        """Index `segments`; about 0.5 ms per 1,000 tokens.

        Args:
            segments: Token ids of each text, in order of preference among equal matches. The last
                one is served first when `max_tokens` is short, and loses its beginning; others
                lose their end.
            banned_tokens: Ids that are never matched or copied (special tokens).
            vocab_size: Ids at or above it are banned as well; None is `LARGEST`.
            max_tokens: Most tokens of all segments together.
        """
        kept = _fit(segments, max_tokens)
        self.truncated = tuple(
            number for number, (part, _) in enumerate(kept) if len(part) < len(segments[number])
        )
        self.indexed_tokens = sum(len(part) for part, _ in kept)
        banned = np.array(sorted(banned_tokens), np.int32)
        vocab_size = LARGEST if vocab_size is None else vocab_size
        self.starts: list[int] = []
        self._offsets: list[int] = []
        flat = self._flatten(kept, banned, vocab_size)
        order = _sort_by_left_context(flat)
        size = len(flat)
        self.starts.append(size)
        self._offsets.append(0)
        self.texts = Texts(
            tokens=np.concatenate([flat, np.zeros(GROWTH, np.int32)]),
            order=order,
            before=flat[order - 1],
            newest=np.zeros((2, BUCKETS), np.int32),
            older=np.zeros((2, GROWTH), np.int32),
            banned=banned,
            size=np.array([size, size, vocab_size], np.int64),
        )

    def _flatten(self, kept: list[tuple[Tokens, int]], banned: Ints, vocab_size: int) -> Ints:
        parts = [np.full(1, NO_TOKEN, np.int32)]
        position = 1
        for part, offset in kept:
            ids = np.asarray(part, dtype=np.int64)
            bad = (ids < 0) | (ids >= vocab_size)
            if len(banned):
                bad |= np.isin(ids, banned)
            parts += [np.where(bad, NO_TOKEN, ids).astype(np.int32), parts[0]]
            self.starts.append(position)
            self._offsets.append(offset)
            position += len(ids) + 1
        return np.concatenate(parts)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens to the growing text."""
        self.make_room(len(token_ids))
        for token in token_ids:
            append(self.texts, token)

    def make_room(self, count: int) -> None:
        """Make sure that `count` tokens can be appended."""
        texts = self.texts
        start, end = int(texts.size[1]), int(texts.size[0]) + count
        if end > len(texts.tokens):
            more = max(GROWTH, end - start)
            self.texts = texts._replace(
                tokens=np.concatenate([texts.tokens, np.zeros(more, np.int32)]),
                older=np.concatenate([texts.older, np.zeros((2, more), np.int32)], axis=1),
            )

    @property
    def tokens(self) -> Ints:
        """Token ids of all segments and of the growing text, `NO_TOKEN` in front of each."""
        return self.texts.tokens[: self.texts.size[0]]

    def locate(self, position: int) -> tuple[int, int]:
        """Return segment and offset in it of a position of `tokens`; the growing text is last."""
        segment = bisect_right(self.starts, position) - 1
        return segment, position - self.starts[segment] + self._offsets[segment]

    def matches(self, context: Sequence[int], limit: int = 8) -> list[Match]:
        """Return places that continue the end of `context`, longest match first.

        Among equal lengths, fixed segments come in their order, then the growing text, newest
        first. Where more places match than `limit`, which of the equal ones are kept is arbitrary
        but repeatable.

        >>> index = SuffixIndex([[7, 8, 9], [1, 8, 9, 5]])
        >>> [int(index.tokens[place]) for place, _ in index.matches([7, 8, 9])]
        [5]
        >>> index.matches([3, 8])
        [Match(position=3, length=1), Match(position=7, length=1)]
        """
        limit = max(0, limit)
        positions, lengths = np.empty((2, limit + RECENT_PLACES), np.int64)
        tail = np.array(context[-MAX_MATCH_LENGTH:], np.int64)
        found = find_places(self.texts, tail, limit, positions, lengths)
        return list(map(Match, positions[:found].tolist(), lengths[:found].tolist()))


def _fit(segments: Sequence[Tokens], max_tokens: int) -> list[tuple[Tokens, int]]:
    """Cut segments to `max_tokens` in all; return each with the offset of its first kept token."""
    if not segments:
        return []
    last = segments[-1]
    offset = max(0, len(last) - max_tokens)
    room = max_tokens - (len(last) - offset)
    kept: list[tuple[Tokens, int]] = []
    for segment in segments[:-1]:
        part = segment[:room]
        room -= len(part)
        kept.append((part, 0))
    kept.append((last[offset:], offset))
    return kept


def _sort_by_left_context(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the positions that hold a token, sorted by the `SORTED_DEPTH` tokens before them.

    Prefix doubling: the rank by 2d tokens is the rank of the pair (rank by d tokens here, rank by
    d tokens d places to the left). Equal left contexts stay in order of position.
    """
    size = len(tokens)
    ranks = np.empty(size, np.int64)
    ranks[0] = 0
    ranks[1:] = tokens[:-1] + 1
    shift = 1
    while shift < SORTED_DEPTH and size > 1:
        keys = ranks * (int(ranks.max()) + 1)
        keys[shift:] += ranks[:-shift]
        order = np.argsort(keys)
        sorted_keys = keys[order]
        steps = np.empty(size, np.int64)
        steps[0] = 0
        np.cumsum(sorted_keys[1:] != sorted_keys[:-1], out=steps[1:])
        ranks[order] = steps
        shift *= 2
        if int(steps[-1]) == size - 1:
            break
    order = np.argsort(ranks, kind="stable")
    kept: NDArray[np.int32] = order[tokens[order] != NO_TOKEN].astype(np.int32)
    return kept
