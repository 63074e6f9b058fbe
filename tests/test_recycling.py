"""Recycling, experience, earlier answers and earlier turns in the decoder: what is drafted, and for
whom."""

import numpy as np

from llma_rag.acceptance import RECYCLED_RANKS
from llma_rag.recycling import WIDTH, Recycler


def test_the_table_is_bounded_and_keeps_the_latest_successors_of_a_token() -> None:
    recycler = Recycler(width=2, max_tokens=3)
    recycler.observe([1, 2, 3, 1, 4], np.array([[5, 6], [5, 6], [5, 6], [7, 8], [5, 6]]))
    assert len(recycler) == 3
    assert recycler.successors(2) == ()
    assert recycler.successors(1) == (7, 8)
    recycler.observe([1], np.array([[9]]))
    assert recycler.successors(1) == (9, 7)
    assert WIDTH <= RECYCLED_RANKS


def test_special_tokens_stay_out_of_the_table() -> None:
    recycler = Recycler(banned_tokens={0, 99})
    recycler.observe([0, 1], np.array([[2, 3], [0, 4]]))
    assert recycler.successors(0) == ()
    assert recycler.successors(1) == (4,)
