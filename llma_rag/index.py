"""Find where the last tokens of a context stood before; knows token ids, no text and no model."""

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_TOKEN = -1
"""Stands between segments and where a token may be neither matched nor copied."""

SORTED_DEPTH = 16
"""Tokens of left context by which places are sorted; longer matches are compared one by one."""

MAX_MATCH_LENGTH = 32
"""Longest match that is told apart from longer ones."""

MAX_INDEXED_TOKENS = 262_144
"""Tokens of one request's fixed segments that are indexed by default (about 0.1 s)."""

COMPARED_PLACES = 2
"""Of the places that match in all sorted tokens, how many first and last are compared further."""

RECENT_PLACES = 8
"""Places of the growing text that are compared with the context, newest first."""

Tokens = Sequence[int] | NDArray[np.integer]


class Match(NamedTuple):
    """A place whose left context equals the last `length` tokens of the context.

    Attributes:
        position: Position of the token that followed, see `SuffixIndex.tokens`.
        length: Equal tokens before it, at most `MAX_MATCH_LENGTH`.
    """

    position: int
    length: int


Ring = tuple[int, int, int]
"""Length, begin and end of a range of sorted places whose left contexts share `length` tokens."""


class SuffixIndex:
    """Longest-suffix matches over fixed segments and one text that grows.

    The fixed part is an array of its positions sorted by what stands to the left of them, so that
    the places that continue the last tokens of a context are a range of that array and each
    further token of context narrows the range by bisection: O(log n) per token of context, also
    for periodic texts. It costs 12 bytes per token. The growing text is indexed by its bigrams.

    Attributes:
        tokens: Token ids of all segments and of the growing text, `NO_TOKEN` in front of each.
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
            vocab_size: Ids at or above it are banned as well; None bans none.
            max_tokens: Most tokens of all segments together.
        """
        kept = _fit(segments, max_tokens)
        self.truncated = tuple(
            number for number, (part, _) in enumerate(kept) if len(part) < len(segments[number])
        )
        self.indexed_tokens = sum(len(part) for part, _ in kept)
        self._banned = banned_tokens
        self._vocab_size = vocab_size
        self.starts: list[int] = []
        self._offsets: list[int] = []
        flat = self._flatten(kept)
        order = _sort_by_left_context(flat)
        self.tokens = array("i", flat.tobytes())
        self._order = array("i", order.tobytes())
        self._before = array("i", flat[order - 1].tobytes())
        self._begin_growing_text()

    def _flatten(self, kept: list[tuple[Tokens, int]]) -> NDArray[np.int32]:
        parts = [np.full(1, NO_TOKEN, np.int32)]
        position = 1
        for part, offset in kept:
            ids = np.asarray(part, dtype=np.int64)
            bad = ids < 0
            if self._vocab_size is not None:
                bad |= ids >= self._vocab_size
            if self._banned:
                bad |= np.isin(ids, list(self._banned))
            parts += [np.where(bad, NO_TOKEN, ids).astype(np.int32), parts[0]]
            self.starts.append(position)
            self._offsets.append(offset)
            position += len(ids) + 1
        return np.concatenate(parts)

    def _begin_growing_text(self) -> None:
        self._growing_start = len(self.tokens)
        self.starts.append(self._growing_start)
        self._offsets.append(0)
        self._after_token: defaultdict[int, list[int]] = defaultdict(list)
        self._after_pair: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens to the growing text."""
        tokens = self.tokens
        for token in token_ids:
            position = len(tokens)
            if position > self._growing_start:
                last = tokens[position - 1]
                self._after_token[last].append(position)
                self._after_pair[tokens[position - 2], last].append(position)
            tokens.append(token if self.may_copy(token) else NO_TOKEN)

    def may_copy(self, token: int) -> bool:
        """Return whether a token may be drafted: neither banned nor outside the vocabulary."""
        if token < 0 or token in self._banned:
            return False
        return self._vocab_size is None or token < self._vocab_size

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
        >>> [index.tokens[place] for place, _ in index.matches([7, 8, 9])]
        [5]
        >>> index.matches([3, 8])
        [Match(position=3, length=1), Match(position=7, length=1)]
        """
        return [Match(*place) for place in self.places(context, limit)]

    def places(self, context: Sequence[int], limit: int) -> list[tuple[int, int]]:
        """Return what `matches` returns, as plain pairs of position and length."""
        found = self._fixed_places(context, self.rings(context), limit)
        recent = self._recent_places(context)
        if recent:
            found += recent
            found.sort(key=itemgetter(1), reverse=True)
        return found[:limit]

    def rings(self, context: Sequence[int]) -> list[Ring]:
        """Return the nested ranges of fixed places, shortest match first.

        A place of a ring that is not in the next ring matches exactly the ring's `length` tokens
        (or more, where that is `SORTED_DEPTH` or above). Cost: O(log n) per ring.
        """
        end = len(context)
        last = context[-1] if end else NO_TOKEN
        low, high = bisect_left(self._before, last), bisect_right(self._before, last)
        if low == high or last < 0:
            return []
        depth, rings = 1, [(1, low, high)]
        while high - low > 1 and depth < min(SORTED_DEPTH, end):
            narrowed = self._narrow(low, high, depth + 1, context[end - depth - 1])
            if narrowed is None:
                return rings
            depth += 1
            if narrowed == (low, high):
                rings[-1] = (depth, low, high)
            else:
                low, high = narrowed
                rings.append((depth, low, high))
        if high - low == 1:
            rings[-1] = (self.match_length(self._order[low], context, depth), low, high)
        return rings

    def _narrow(self, low: int, high: int, depth: int, wanted: int) -> tuple[int, int] | None:
        """Narrow a range to the places with `wanted` at `depth` tokens to their left."""
        tokens, order = self.tokens, self._order
        first, last = tokens[order[low] - depth], tokens[order[high - 1] - depth]
        if first > wanted or last < wanted:
            return None
        if first < wanted:
            low = self._bisect(low, high - 1, depth, wanted)
            if tokens[order[low] - depth] != wanted:
                return None
        if last > wanted:
            high = self._bisect(low, high - 1, depth, wanted + 1)
        return low, high

    def _bisect(self, low: int, high: int, depth: int, wanted: int) -> int:
        """Return the first place of a range with at least `wanted` at `depth` to its left."""
        tokens, order = self.tokens, self._order
        while low < high:
            middle = (low + high) >> 1
            if tokens[order[middle] - depth] < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    def match_length(self, position: int, context: Sequence[int], known: int = 0) -> int:
        """Return how many tokens before `position` equal the end of `context`.

        The first `known` of them are taken as equal.
        """
        tokens, end = self.tokens, len(context)
        longest = min(MAX_MATCH_LENGTH, end)
        length = known
        while length < longest and tokens[position - length - 1] == context[end - length - 1]:
            length += 1
        return length

    def _fixed_places(
        self, context: Sequence[int], rings: Sequence[Ring], limit: int
    ) -> list[tuple[int, int]]:
        """Return up to `limit` fixed places of `rings`, longest match first, then by position."""
        order = self._order
        found: list[tuple[int, int]] = []
        inner_low = inner_high = 0
        for length, low, high in reversed(rings):
            room = limit - len(found)
            if room <= 0:
                break
            if length >= SORTED_DEPTH:
                found += self._told_apart(low, high, context, room)
            else:
                places = order[low : min(inner_low if inner_high else high, low + room)]
                if inner_high:
                    places += order[inner_high : min(high, inner_high + room - len(places))]
                found += zip(sorted(places), repeat(length))
            inner_low, inner_high = low, high
        return found

    def _told_apart(
        self, low: int, high: int, context: Sequence[int], room: int
    ) -> list[tuple[int, int]]:
        """Compare the first and the last of the places that match in all sorted tokens."""
        order = self._order
        size = min(high - low, room)
        places = [*order[low : low + (size + 1) // 2], *order[high - size // 2 : high]]
        compared = {*places[:COMPARED_PLACES], *places[-COMPARED_PLACES:]}
        found = [
            (
                place,
                self.match_length(place, context, SORTED_DEPTH)
                if place in compared
                else SORTED_DEPTH,
            )
            for place in places
        ]
        found.sort(key=lambda place: (-place[1], place[0]))
        return found

    def _recent_places(self, context: Sequence[int]) -> list[tuple[int, int]]:
        """Return places of the growing text, newest first, of the last `RECENT_PLACES` ones.

        The end of `context` must be the end of the growing text.
        """
        end = len(context)
        if end < 2:
            return []
        places = self._after_pair.get((context[-2], context[-1]))
        known = 2
        if places is None:
            places = self._after_token.get(context[-1])
            known = 1
        if places is None:
            return []
        return [
            (place, self.match_length(place, context, known))
            for place in places[: -RECENT_PLACES - 1 : -1]
        ]


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
