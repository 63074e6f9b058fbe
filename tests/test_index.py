"""The index against a brute-force oracle."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llma_rag.index import MAX_MATCH_LENGTH, NO_TOKEN, SuffixIndex
from llma_rag.matching import BUCKETS

tokens = st.lists(st.integers(0, 3), max_size=40)


def matched(text: Sequence[int], place: int, context: Sequence[int]) -> int:
    length = 0
    while length < min(place, len(context)) and text[place - length - 1] == context[-length - 1]:
        length += 1
    return min(length, MAX_MATCH_LENGTH)


def oracle(segments, context) -> dict[tuple[int, int], int]:
    found = {}
    for number, text in enumerate(segments):
        for place in range(len(text)):
            if length := matched(text, place, context):
                found[number, place] = length
    return found


@given(st.lists(tokens, min_size=1, max_size=4), tokens)
@settings(max_examples=300, deadline=None)
def test_fixed_segments_are_matched_as_by_brute_force(segments, context):
    index = SuffixIndex(segments)
    found = {
        index.locate(match.position): match.length for match in index.matches(context, limit=1_000)
    }
    longest = sorted(oracle(segments, context).items())
    assert sorted(found) == [place for place, _ in longest]
    # Beyond the sorted depth only a few of many equal places are compared further.
    assert all(found[place] in (length, min(length, 16)) for place, length in longest)


@given(tokens, tokens, st.lists(st.integers(0, 3), min_size=1, max_size=60))
@settings(max_examples=300, deadline=None)
def test_longest_match_is_found_in_fixed_and_growing_text(reference, prompt, answer):
    index = SuffixIndex([reference, prompt])
    context = list(prompt)
    for token in answer:
        index.extend([token])
        context.append(token)
    found = index.matches(context, limit=1_000)
    wanted = oracle([reference, prompt], context)
    assert max((m.length for m in found), default=0) >= min(max(wanted.values(), default=0), 16)
    assert [m.length for m in found] == sorted((m.length for m in found), reverse=True)
    texts = [reference, prompt, answer]
    for position, length in found:
        segment, offset = index.locate(position)
        assert texts[segment][offset] == index.tokens[position]
        inside = matched(texts[segment], offset, context)
        assert length in (inside, min(inside, 16))


@given(st.lists(tokens, min_size=1, max_size=4), tokens, st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_limit_keeps_the_longest(segments, context, limit):
    index = SuffixIndex(segments)
    every = index.matches(context, limit=1_000)
    assert [m.length for m in index.matches(context, limit)] == [m.length for m in every[:limit]]


def test_matches_do_not_cross_segments():
    index = SuffixIndex([[1, 2], [3, 4]])
    assert index.matches([2, 3]) == [(index.tokens.tolist().index(4), 1)]
    assert index.matches([1, 2]) == []


def test_banned_tokens_are_neither_matched_nor_copied():
    index = SuffixIndex([[1, 2, 9, 2, 5, 70]], banned_tokens=frozenset({9}), vocab_size=64)
    index.extend([9, 70])
    assert set(index.tokens) == {NO_TOKEN, 1, 2, 5}
    assert index.matches([9]) == []
    assert [index.tokens[place] for place, _ in index.matches([1, 2])] == [5]


def test_equal_matches_stand_in_order_of_segments_then_the_newest():
    index = SuffixIndex([[5, 1], [5, 2], [5, 3]])
    index.extend([5, 6, 5, 7, 5])
    assert [index.tokens[place] for place, _ in index.matches([8, 5])] == [1, 2, 3, 7, 6]


def test_what_is_cut_is_reported_and_places_stay_true():
    index = SuffixIndex([[1, 2, 3], [4, 5, 6], [7, 8, 9, 3]], max_tokens=5)
    assert index.indexed_tokens == 5
    assert index.truncated == (0, 1)
    index = SuffixIndex([[1, 2, 3], [7, 8, 9, 3]], max_tokens=2)
    assert index.truncated == (0, 1)
    assert index.locate(index.matches([9])[0].position) == (1, 3)


@pytest.mark.parametrize("segments", [[], [[]], [[], []], [[1]]])
def test_nothing_to_match(segments):
    index = SuffixIndex(segments)
    assert index.matches([]) == []
    assert index.matches([1]) == []


class Counted(np.ndarray):
    """Counts what is read of an array."""

    reads = 0

    def __getitem__(self, place):
        Counted.reads += 1
        return super().__getitem__(place)


REPETITIVE = [np.zeros(100_000, int), np.arange(100_000) % 3, np.arange(100_000) % 1_000]


def count_reads() -> None:
    """Print the reads of a query in each repetitive text; needs functions that are not compiled."""
    for text in REPETITIVE:
        index, Counted.reads = SuffixIndex([text]), 0
        tokens = index.texts.tokens.view(Counted)
        index.texts = index.texts._replace(tokens=tokens, order=index.texts.order.view(Counted))
        assert index.matches(text[:5_000].tolist(), limit=8)[0].length == MAX_MATCH_LENGTH
        sys.stdout.write(f"{Counted.reads}\n")
    index, Counted.reads = SuffixIndex([]), 0
    index.extend([1, 2] * 5_000)
    index.texts = index.texts._replace(older=index.texts.older.view(Counted))
    assert index.matches([7, 7, 2 + BUCKETS]) == []  # shares its list with 2
    sys.stdout.write(f"{Counted.reads}\n")


def test_work_of_a_query_does_not_grow_with_repetition():
    found = subprocess.run(
        [sys.executable, "-c", "from tests.test_index import count_reads; count_reads()"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    reads = [int(line) for line in found.stdout.split()]
    assert len(reads) == len(REPETITIVE) + 1
    # Two bisections by up to 17 steps of two reads for each of 16 tokens, and 8 compared places.
    assert 0 < min(reads) <= max(reads) < 2_500


def test_memory_per_token_of_large_references():
    size = 200_000
    index = SuffixIndex([np.random.default_rng(0).integers(0, 30_000, size)])
    held = sum(part.nbytes for part in index.texts)
    assert held <= 16 * size
