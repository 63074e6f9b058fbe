"""Remember which tokens the model held likely after which; token-to-token only, no text.

Token recycling (arXiv 2408.08696): the logits of verified nodes are computed anyway; their best
tokens are drafted when the same token comes again.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class SuccessorObserver(Protocol):
    """What the decoder tells after each verification pass."""

    def observe(self, tokens: Sequence[int], successors: NDArray[np.integer]) -> None:
        """Take the best successors of verified tokens.

        Args:
            tokens: The n tokens of the pass: the last committed one and the drafted ones.
            successors: [n, k] ids of the most likely next tokens, best first.
        """
        ...


class Recycler:
    """Bounded table from a token to its latest best successors.

    One instance belongs to one model. It holds no order of tokens beyond pairs, but pairs of one
    request are drafted in the next: give every tenant its own where that is not wanted.
    """

    def __init__(self, *, width: int = 8, max_tokens: int = 65_536) -> None:
        """Make an empty table.

        Args:
            width: Successors kept per token, at least 1.
            max_tokens: Tokens with successors; the least recently seen is dropped.

        Raises:
            ValueError: If a number is below 1.
        """
        for name, value in (("width", width), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.width = width
        self.max_tokens = max_tokens
        self._table: OrderedDict[int, tuple[int, ...]] = OrderedDict()

    def observe(self, tokens: Sequence[int], successors: NDArray[np.integer]) -> None:
        """Put new successors before those seen earlier.

        >>> recycler = Recycler(width=3)
        >>> recycler.observe([5, 5], np.array([[6, 7], [8, 7]]))
        >>> recycler.successors(5)
        (8, 7, 6)
        """
        table, width = self._table, self.width
        for token, best in zip(tokens, successors.tolist(), strict=True):
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
