"""Remember which tokens the model held likely after which; token-to-token only, no text.

Token recycling (arXiv 2408.08696): the logits of verified nodes are computed anyway; their best
tokens are drafted when the same token comes again.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llma_rag.compiled import Ints, Longs, compiled

WIDTH, MAX_TOKENS = 8, 16_384
"""Successors kept per token, and tokens that have some: 1 MB and 4 bytes per token id at most."""

GROWTH = 4_096
"""Least token ids by which the table of rows grows."""


BEFORE, AFTER = 0, 1
"""Kinds of links between rows."""


class Successors(NamedTuple):
    """Successors of tokens, as arrays.

    Attributes:
        rows: [token ids] row of each token, counted from 1; 0 for none.
        table: [rows + 1, width] successors, best first; row 0 stays empty.
        counts: [rows + 1] how many each row holds.
        owners: [rows + 1] token of each row.
        links: [2, rows + 1] the row written before each, and after it: a ring through row 0.
        used: [1] rows in use.
    """

    rows: Ints
    table: Ints
    counts: Ints
    owners: Ints
    links: Ints
    used: Longs


class Recycler:
    """Bounded table from a token to its latest best successors.

    One instance belongs to one model, and is not locked: the decoder's worker thread alone uses it.
    It holds no order of tokens beyond pairs, but pairs of one request are drafted in the next: give
    every tenant its own where that is not wanted.

    Attributes:
        table: The arrays.
    """

    def __init__(
        self,
        *,
        width: int = WIDTH,
        max_tokens: int = MAX_TOKENS,
        banned_tokens: Collection[int] = (),
    ) -> None:
        """Make an empty table.

        Args:
            width: Successors kept per token, at least 1.
            max_tokens: Tokens with successors; the least recently seen is dropped.
            banned_tokens: Ids that are never kept (special tokens).

        Raises:
            ValueError: If a number is below 1.
        """
        for name, value in (("width", width), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.width = width
        self._banned = np.array(sorted(banned_tokens), np.int32)
        self.table = empty(width, max_tokens)

    def observe(
        self, tokens: Sequence[int] | NDArray[np.integer], successors: NDArray[np.integer]
    ) -> None:
        """Put new successors before those seen earlier.

        Args:
            tokens: The n tokens of a pass; where one comes twice, its last successors lead.
            successors: [n, k] ids of the most likely next tokens, best first.

        >>> recycler = Recycler(width=3)
        >>> recycler.observe([5, 5], np.array([[6, 7], [8, 7]]))
        >>> recycler.successors(5)
        (8, 7, 6)
        """
        if len(tokens) != len(successors):
            raise ValueError(f"{len(tokens)} tokens have {len(successors)} rows of successors.")
        seen = np.asarray(tokens, np.int64)
        best = np.ascontiguousarray(successors, np.int64)
        while missing := _observe(self.table, seen, best, self._banned):
            more = np.zeros(max(missing, GROWTH), np.int32)
            self.table = self.table._replace(rows=np.concatenate([self.table.rows, more]))

    def successors(self, token: int) -> tuple[int, ...]:
        """Return the known successors of a token, best first; empty for none."""
        row = row_of(self.table, token)
        return tuple(self.table.table[row, : self.table.counts[row]].tolist())

    def __len__(self) -> int:
        return int(self.table.used[0])


def empty(width: int = WIDTH, max_tokens: int = 0) -> Successors:
    """Return arrays without any successors."""
    return Successors(
        rows=np.zeros(0, np.int32),
        table=np.zeros((max_tokens + 1, width), np.int32),
        counts=np.zeros(max_tokens + 1, np.int32),
        owners=np.zeros(max_tokens + 1, np.int32),
        links=np.tile(np.arange(max_tokens + 1, dtype=np.int32), (2, 1)),
        used=np.zeros(1, np.int64),
    )


@compiled
def row_of(successors: Successors, token: int) -> int:
    """Return the row of a token; 0, which is empty, for none."""
    row: int = successors.rows[token] if 0 <= token < len(successors.rows) else 0
    return row


@compiled
def _observe(successors: Successors, tokens: Longs, best: Longs, banned: Ints) -> int:
    """Do what `Recycler.observe` says; return by how many ids too small the table of rows is."""
    largest = -1
    for token in tokens:
        largest = max(largest, token)
    if largest >= len(successors.rows):
        return largest + 1 - len(successors.rows)
    for place in range(len(tokens)):
        if tokens[place] >= 0 and not _holds(banned, tokens[place]):
            _put(successors, _row_for(successors, tokens[place]), best[place], banned)
    return 0


@compiled
def _row_for(successors: Successors, token: int) -> int:
    """Return the row of a token, that of the least recently seen one where all are taken."""
    row: int = successors.rows[token]
    if row == 0:
        if successors.used[0] + 1 < len(successors.table):
            successors.used[0] += 1
            row = successors.used[0]
        else:
            row = successors.links[AFTER, 0]  # the first that was written behind row 0
            successors.rows[successors.owners[row]] = 0
        successors.rows[token], successors.owners[row] = row, token
        successors.counts[row] = 0
    return row


@compiled
def _put(successors: Successors, row: int, best: Longs, banned: Ints) -> None:
    """Put the best successors before those that a row holds."""
    table, counts, width = successors.table, successors.counts, successors.table.shape[1]
    before, count = table[row, : counts[row]].copy(), 0
    for token in best:
        if count < width and not _holds(banned, token):
            table[row, count] = token
            count += 1
    fresh = count
    for token in before:
        if count < width and not _holds(table[row, :fresh], token):
            table[row, count] = token
            count += 1
    counts[row] = count
    _move_to_end(successors.links, row)


@compiled
def _move_to_end(links: Ints, row: int) -> None:
    """Note that a row was written last; new ones are linked to themselves."""
    before, after = links[BEFORE, row], links[AFTER, row]
    links[AFTER, before], links[BEFORE, after] = after, before
    last = links[BEFORE, 0]
    links[BEFORE, row], links[AFTER, row] = last, 0
    links[AFTER, last] = links[BEFORE, 0] = row


@compiled
def _holds(numbers: Ints, wanted: int) -> bool:
    place = 0
    while place < len(numbers) and numbers[place] != wanted:
        place += 1
    return place < len(numbers)
