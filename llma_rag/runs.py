"""Tell how probable the tokens are that follow one place."""

from collections.abc import Iterator, Sequence
from math import exp

from llma_rag.acceptance import (
    AGREES_WEIGHT,
    DEEPEST,
    DEPTH_WEIGHT,
    LENGTH_WEIGHT,
    NO_SUCCESSORS,
    RECYCLED_RANKS,
    SHORT,
    AcceptanceModel,
    Lean,
)
from llma_rag.index import MAX_MATCH_LENGTH
from llma_rag.tree import Candidate, Successors

Ahead = tuple[int, float, Sequence[int], float]
"""Token, its probability, recycled successors of the one before it, a bound of theirs."""


def _left(weights: Sequence[int]) -> list[int]:
    """Return, for each entry, how many from it on are equal; the last one holds for ever."""
    left = [1 << 30]
    for here, following in zip(weights[-2::-1], weights[:0:-1], strict=True):
        left.append(left[-1] + 1 if here == following else 1)
    return left[::-1]


_LENGTH_LEFT = _left(LENGTH_WEIGHT)
"""For how many further tokens a match length has one weight; the classes of `SHORT` are wider."""
_DEPTH_LEFT = _left(DEPTH_WEIGHT)


class Runs:
    """Probabilities along runs of one draft, each token's given the one before it."""

    def __init__(self, model: AcceptanceModel, lean: Lean) -> None:
        self._model = model
        self._lean = lean
        self._same: dict[tuple[int, int], tuple[float, ...]] = {}

    def copied(self, place: Candidate, depth: int, size: int) -> list[float]:
        """Return the probabilities of `size` tokens behind `depth` ones, nothing being recycled."""
        agrees = self._model.weights[AGREES_WEIGHT + NO_SUCCESSORS]
        found: list[float] = []
        for count, odds in self._levels(place, depth, size):
            found += [1.0 / (1.0 + exp(-agrees - odds))] * count
        return found

    def ahead(
        self,
        last: int,
        tokens: Sequence[int],
        place: Candidate,
        depth: int,
        successors: Successors | None,
    ) -> Iterator[Ahead]:
        """Yield what a place foretells, token by token, so that little is lost where it ends soon.

        Args:
            last: The token before the first.
            tokens: The tokens of the place behind `depth` ones, up to `NO_TOKEN`.
            place: The place.
            depth: Tokens from the root to `last`.
            successors: Gives the recycled successors of a token; None: nothing is recycled.
        """
        weights = self._model.weights
        _, length, distance, source = place
        same = self._odds(distance, source)
        rank, found, bound = NO_SUCCESSORS, (), 0.0  # type: int, Sequence[int], float
        for token in tokens:
            if token < 0:
                return
            matched = length + depth if length + depth < MAX_MATCH_LENGTH else MAX_MATCH_LENGTH
            deep = weights[DEPTH_WEIGHT[depth if depth < DEEPEST else DEEPEST]]
            short = SHORT[matched]
            if successors is not None:
                found = successors(last)
                rank = NO_SUCCESSORS
                if found:
                    rank = found.index(token) if token in found else RECYCLED_RANKS
                    bound = 1.0 / (1.0 + exp(-same[3 + short] - deep))
            odds = same[short] + weights[LENGTH_WEIGHT[matched]] + deep
            yield token, 1.0 / (1.0 + exp(-odds - weights[AGREES_WEIGHT + rank])), found, bound
            last = token
            depth += 1

    def _levels(self, place: Candidate, depth: int, size: int) -> Iterator[tuple[int, float]]:
        """Yield how many tokens share the next log-odds, and these."""
        weights = self._model.weights
        _, length, distance, source = place
        same = self._odds(distance, source)
        end = depth + size
        while depth < end:
            matched = length + depth if length + depth < MAX_MATCH_LENGTH else MAX_MATCH_LENGTH
            deep = depth if depth < DEEPEST else DEEPEST
            count = min(_LENGTH_LEFT[matched], _DEPTH_LEFT[deep], end - depth)
            short, odds = SHORT[matched], weights[DEPTH_WEIGHT[deep]]
            yield count, same[short] + weights[LENGTH_WEIGHT[matched]] + odds
            depth += count

    def _odds(self, distance: int, source: int) -> tuple[float, ...]:
        """Return the log-odds that stay the same along a run, by `SHORT`: copied, then recycled."""
        found = self._same.get((distance, source))
        if found is None:
            model, lean = self._model, self._lean
            found = model.run_log_odds(distance, source, lean) + model.recycled_log_odds(lean)
            self._same[distance, source] = found
        return found
