"""Remember which tokens the model held likely after which; token-to-token only, no text.

Token recycling (arXiv 2408.08696): the logits of verified nodes are computed anyway; their best
tokens are drafted when the same token comes again.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH, MAX_TOKENS = 8, 16_384
"""Successors kept per token, and tokens that have some: 8 MB at most."""


class Recycler:
    """Bounded table from a token to its latest best successors.

    One instance belongs to one model. It holds no order of tokens beyond pairs, but pairs of one
    request are drafted in the next: give every tenant its own where that is not wanted.
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
        self.max_tokens = max_tokens
        self._banned_tokens = frozenset(banned_tokens)
        self._table: OrderedDict[int, tuple[int, ...]] = OrderedDict()

    def observe(self, tokens: Sequence[int], successors: NDArray[np.integer]) -> None:
        """Put new successors before those seen earlier.

        Args:
            tokens: The n tokens of a pass; where one comes twice, its last successors lead.
            successors: [n, k] ids of the most likely next tokens, best first.

        >>> recycler = Recycler(width=3)
        >>> recycler.observe([5, 5], np.array([[6, 7], [8, 7]]))
        >>> recycler.successors(5)
        (8, 7, 6)
        """
        table, width, banned = self._table, self.width, self._banned_tokens
        for token, best in zip(tokens, successors.tolist(), strict=True):
            if not banned.isdisjoint(best):
                best = [other for other in best if other not in banned]
            if token in banned:
                continue
            before = table.pop(token, ())
            if len(best) < width:
                best += [other for other in before if other not in best]
            table[token] = tuple(best[:width])
        while len(table) > self.max_tokens:
            table.popitem(last=False)

    def successors(self, token: int) -> Sequence[int]:
        """Return the known successors of a token, best first; empty for none."""
        return self._table.get(token, ())

    def __len__(self) -> int:
        return len(self._table)
