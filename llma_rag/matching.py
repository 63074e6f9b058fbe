"""Find the places of indexed texts that continue the end of a context; compiled."""

from typing import NamedTuple

import numpy as np

from llma_rag.compiled import Ints, Longs, compiled, varying

NO_TOKEN = -1
"""Stands between segments and where a token may be neither matched nor copied."""

SORTED_DEPTH = 16
"""Tokens of left context by which places are sorted; longer matches are compared one by one."""

MAX_MATCH_LENGTH = 32
"""Longest match that is told apart from longer ones."""

COMPARED_PLACES = 2
"""Of the places that match in all sorted tokens, how many first and last are compared further."""

RECENT_PLACES = 8
"""Places of the growing text that are compared with the context, newest first."""

BUCKETS, MOST_LOOKED_AT = 2048, 256
"""Lists of places of the growing text, told apart by the tokens before them (a power of two), and
how many of a list are looked at, which other tokens may share."""


class Texts(NamedTuple):
    """Fixed texts and one that grows, as arrays.

    Attributes:
        tokens: [capacity] token ids, `NO_TOKEN` in front of each text; the growing one is last.
        order: [places] positions of the fixed texts, sorted by the tokens to the left of them.
        before: [places] the token to the left of each of these.
        newest: [2, BUCKETS] latest place of the growing text by the token, or the two tokens,
            before it; 0 for none.
        older: [2, capacity of the growing text] the place before that in the same bucket.
        banned: [n] ids that are never matched or copied, sorted.
        size: [3] tokens at present, where the growing text begins, and the size of the vocabulary.
    """

    tokens: Ints
    order: Ints
    before: Ints
    newest: Ints
    older: Ints
    banned: Ints
    size: Longs


@compiled
def may_copy(texts: Texts, token: int) -> bool:
    """Return whether a token may be drafted: neither banned nor outside the vocabulary."""
    if token < 0 or token >= texts.size[2]:
        return False
    banned = texts.banned
    place = _bisect(banned, varying(0), len(banned), token)
    return place == len(banned) or banned[place] != token


@compiled
def append(texts: Texts, token: int) -> None:
    """Append a token to the growing text, which must have room for it."""
    tokens, size = texts.tokens, texts.size
    position, start = size[0], size[1]
    if position > start:
        last, before = varying(tokens[position - 1]), varying(tokens[position - 2])
        for kind in range(2):
            bucket = _bucket(last, before, kind)
            texts.older[kind, position - start] = texts.newest[kind, bucket]
            texts.newest[kind, bucket] = position
    tokens[position] = token if may_copy(texts, token) else NO_TOKEN
    size[0] = position + 1


@compiled
def find_places(texts: Texts, tail: Longs, limit: int, positions: Longs, lengths: Longs) -> int:
    """Find places that continue the end of a context, longest match first.

    Args:
        texts: Where to look.
        tail: The last tokens of the context, `MAX_MATCH_LENGTH` of them if there are as many.
        limit: Most places.
        positions: [limit + RECENT_PLACES] receives the positions of the tokens that followed.
        lengths: Receives how many tokens before them equal the end of the context.

    Returns:
        How many were found.
    """
    end = len(tail)
    if end == 0 or tail[end - 1] < 0:
        return 0
    rings = np.empty((SORTED_DEPTH, 3), np.int64)
    found, inner_low, inner_high = varying(0), 0, 0
    for number in range(_find_rings(texts, tail, rings) - 1, -1, -1):
        if found >= limit:
            break
        length, low, high = rings[number, 0], rings[number, 1], rings[number, 2]
        first = found
        if length >= SORTED_DEPTH:
            found = _tell_apart(texts, tail, low, high, limit, positions, lengths)
        else:
            until = min(inner_low if inner_high else high, low + limit - found)
            for place in range(low, until):
                positions[found] = texts.order[place]
                found += 1
            if inner_high:
                for place in range(inner_high, min(high, inner_high + limit - found)):
                    positions[found] = texts.order[place]
                    found += 1
            lengths[first:found] = length
            _sort(positions, lengths, first, found)
        inner_low, inner_high = low, high
    return min(limit, _add_recent(texts, tail, found, positions, lengths))


@compiled
def match_length(tokens: Ints, position: int, tail: Longs, known: int) -> int:
    """Return how many tokens before a position equal the end of a context, at least `known`."""
    end = len(tail)
    longest = min(MAX_MATCH_LENGTH, end)
    length = known
    while length < longest and tokens[position - length - 1] == tail[end - length - 1]:
        length += 1
    return length


@compiled
def _find_rings(texts: Texts, tail: Longs, rings: Longs) -> int:
    """Find nested ranges of fixed places: length of the match, begin, end; shortest match first.

    A place of a range that is not in the next one matches exactly that length (or more, where that
    is `SORTED_DEPTH` or above). Each takes O(log n).
    """
    tokens, order, end = texts.tokens, texts.order, len(tail)
    last = tail[end - 1]
    low = _bisect(texts.before, varying(0), len(order), last)
    high = _bisect(texts.before, low, len(order), last + 1)
    if low == high:
        return 0
    depth, count = varying(1), varying(1)
    rings[0, 0], rings[0, 1], rings[0, 2] = depth, low, high
    while high - low > 1 and depth < min(SORTED_DEPTH, end):
        wanted = tail[end - depth - 1]
        begin = _bisect_left_of(tokens, order, low, high, depth + 1, wanted)
        until = _bisect_left_of(tokens, order, begin, high, depth + 1, wanted + 1)
        if begin == until or wanted < 0:
            return count
        depth += 1
        if begin > low or until < high:
            count += 1
        low, high = begin, until
        rings[count - 1, 0], rings[count - 1, 1], rings[count - 1, 2] = depth, low, high
    if high - low == 1:
        rings[count - 1, 0] = match_length(tokens, varying(order[low]), tail, depth)
    return count


@compiled
def _bisect(numbers: Ints, low: int, high: int, wanted: int) -> int:
    """Return the first place of a sorted range with a number of at least `wanted`."""
    while low < high:
        middle = (low + high) >> 1
        if numbers[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _bisect_left_of(tokens: Ints, order: Ints, low: int, high: int, depth: int, wanted: int) -> int:
    """Return the first place of a range with at least `wanted` at `depth` tokens to its left."""
    while low < high:
        middle = (low + high) >> 1
        if tokens[order[middle] - depth] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _tell_apart(
    texts: Texts, tail: Longs, low: int, high: int, limit: int, positions: Longs, lengths: Longs
) -> int:
    """Compare the first and the last of the places that match in all sorted tokens."""
    size = min(high - low, limit)
    front = (size + 1) // 2
    for number in range(size):
        place = low + number if number < front else high - size + number
        positions[number] = position = varying(texts.order[place])
        compared = number < COMPARED_PLACES or number >= size - COMPARED_PLACES
        lengths[number] = (
            match_length(texts.tokens, position, tail, varying(SORTED_DEPTH))
            if compared
            else SORTED_DEPTH
        )
    _sort(positions, lengths, varying(0), size)
    return size


@compiled
def _sort(positions: Longs, lengths: Longs, first: int, end: int) -> None:
    """Sort places by length, longest first, then by position."""
    for place in range(first + 1, end):
        position, length, hole = positions[place], lengths[place], place
        while hole > first and (
            lengths[hole - 1] < length
            or (lengths[hole - 1] == length and positions[hole - 1] > position)
        ):
            positions[hole], lengths[hole] = positions[hole - 1], lengths[hole - 1]
            hole -= 1
        positions[hole], lengths[hole] = position, length


@compiled
def _add_recent(texts: Texts, tail: Longs, found: int, positions: Longs, lengths: Longs) -> int:
    """Add places of the growing text, whose end must be that of the context, newest first."""
    tokens, end, start = texts.tokens, len(tail), texts.size[1]
    if end < 2:
        return found
    last, before = tail[end - 1], tail[end - 2]
    for kind in (1, 0):
        place, added, looked = varying(texts.newest[kind, _bucket(last, before, kind)]), 0, 0
        while place > 0 and added < RECENT_PLACES and looked < MOST_LOOKED_AT:
            looked += 1
            if tokens[place - 1] == last and (kind == 0 or tokens[place - 2] == before):
                length, hole = match_length(tokens, place, tail, 1 + kind), found
                while hole > 0 and lengths[hole - 1] < length:
                    positions[hole], lengths[hole] = positions[hole - 1], lengths[hole - 1]
                    hole -= 1
                positions[hole], lengths[hole] = place, length
                found += 1
                added += 1
            place = varying(texts.older[kind, place - start])
        if added:
            break
    return found


@compiled
def _bucket(last: int, before: int, kind: int) -> int:
    """Return the bucket of a token, or of two where `kind` is 1."""
    return (last * 31 + kind * before * 17) & (BUCKETS - 1)
