"""Tell how probable the tokens are that may follow the places of a draft."""

from collections.abc import Sequence
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
    Evidence,
    Lean,
    recycled_evidence,
)
from llma_rag.index import MAX_MATCH_LENGTH, NO_TOKEN, SuffixIndex
from llma_rag.tree import Candidate, Copy, Successors, Tree, follow

Ahead = tuple[int, float, Sequence[int], float]
"""Token, its log-odds, recycled successors of the one before it, a bound of their log-odds."""


class Chances(dict[Evidence, float]):
    """Probabilities of tokens by what is known of them, worked out when first asked for."""

    def __init__(self, model: AcceptanceModel, lean: Lean) -> None:
        super().__init__()
        self._model = model
        self._lean = lean

    def __missing__(self, evidence: Evidence) -> float:
        chance = self[evidence] = self._model.probability(evidence, self._lean)
        return chance


class Steady(dict[tuple[int, int], tuple[float, ...]]):
    """Log-odds that stay the same along a run, by distance and source.

    Each in three versions, see `SHORT`: those of the copy, then a bound for what is recycled.
    """

    def __init__(self, model: AcceptanceModel, lean: Lean) -> None:
        super().__init__()
        self._model = model
        self._lean = lean

    def __missing__(self, place: tuple[int, int]) -> tuple[float, ...]:
        model, lean = self._model, self._lean
        odds = self[place] = model.run_log_odds(*place, lean) + model.recycled_log_odds(lean)
        return odds


class Outlook:
    """What the texts of one request, and recycled successors, foretell.

    Attributes:
        tokens: Those of the index.
        successors: Gives the recycled successors of a token; None: nothing is recycled.
    """

    def __init__(
        self,
        index: SuffixIndex,
        model: AcceptanceModel,
        lean: Lean,
        successors: Successors | None = None,
    ) -> None:
        self.tokens = index.tokens
        self.successors = successors
        self._may_copy = index.may_copy
        self._weights = model.weights
        self._chances = Chances(model, lean)
        self._steady = Steady(model, lean)

    def refresh(self) -> None:
        """Take into account what the model of acceptance has learned; do so before every draft."""
        self._chances.clear()
        self._steady.clear()

    def copies(
        self, tree: Tree, node: int, depth: int, last: int
    ) -> tuple[list[Copy], list[float]]:
        """Return the copies that may follow a node, and their probabilities.

        The tree remembers what was looked up.

        Args:
            tree: The draft so far.
            node: The node, `ROOT` for the end of the context.
            depth: Tokens from the root to it.
            last: The token of the node.
        """
        found: Sequence[int] = ()
        if self.successors is not None:
            found = tree.successors[node + 1] = self.successors(last)[:RECYCLED_RANKS]
        places = tree.candidates[node + 1]
        if not places:
            return [], []
        copies = follow(self.tokens, places, depth, found)
        if len(places) > 1:
            tree.copies[node] = copies
        chances = self._chances
        return copies, [chances[copy[1]] for copy in copies]

    def recycled(
        self, tree: Tree, node: int, depth: int, rank: int = 0
    ) -> tuple[int, float] | None:
        """Return the next recycled successor of a node that is not copied there and may be drafted.

        Returns:
            Its rank, at least `rank`, and its probability; None where there is none.
        """
        successors, places = tree.successors[node + 1], tree.candidates[node + 1]
        copied = tree.copied(node, depth, self.tokens) if places else ()
        for place in range(rank, len(successors)):
            token = successors[place]
            if token not in copied and self._may_copy(token):
                longest = places[0][1] + depth if places else 0
                return place, self._chances[recycled_evidence(place, depth, longest)]
        return None

    def after(self, place: Candidate, depth: int, last: int) -> Ahead | None:
        """Return what the only place left foretells; None at the end of its text.

        Args:
            place: The place.
            depth: Tokens from the root to the last one.
            last: The last token.
        """
        position, length, distance, source = place
        position += depth
        token = self.tokens[position] if position < len(self.tokens) else NO_TOKEN
        if token == NO_TOKEN:
            return None
        weights, same = self._weights, self._steady[distance, source]
        matched = length + depth if length + depth < MAX_MATCH_LENGTH else MAX_MATCH_LENGTH
        deep = weights[DEPTH_WEIGHT[depth if depth < DEEPEST else DEEPEST]]
        short, rank = SHORT[matched], NO_SUCCESSORS
        found: Sequence[int] = ()
        if self.successors is not None:
            found = self.successors(last)[:RECYCLED_RANKS]
            if found:
                rank = found.index(token) if token in found else RECYCLED_RANKS
        odds = same[short] + weights[LENGTH_WEIGHT[matched]] + weights[AGREES_WEIGHT + rank] + deep
        return token, odds, found, same[3 + short] + deep

    def run(
        self, place: Candidate, depth: int, room: int, last: int, path: float, least: float
    ) -> tuple[list[int], list[float], list[Sequence[int]]]:
        """Return what `after` foretells token after token, while nothing else is more probable.

        Does without a call per token, because most chains are such runs.

        Args:
            place: The only place left.
            depth: Tokens from the root to the last one.
            room: Most tokens from the root.
            last: The last token.
            path: Probability of the path to it.
            least: Probability below which paths are not wanted.

        Returns:
            Tokens, probabilities of the paths to them, recycled successors of the token before
            each; also of the last one, where these may be more probable than what is copied.
        """
        weights, successors = self._weights, self.successors
        position, length, distance, source = place
        same = self._steady[distance, source]
        found: Sequence[int] = ()
        agrees = weights[AGREES_WEIGHT + NO_SUCCESSORS]
        tokens: list[int] = []
        paths: list[float] = []
        looked_up: list[Sequence[int]] = []
        for token in self.tokens[position + depth : position + room]:
            if token == NO_TOKEN:
                break
            matched = length + depth if length + depth < MAX_MATCH_LENGTH else MAX_MATCH_LENGTH
            deep = weights[DEPTH_WEIGHT[depth if depth < DEEPEST else DEEPEST]]
            short = SHORT[matched]
            if successors is not None:
                found, rank = successors(last)[:RECYCLED_RANKS], NO_SUCCESSORS
                looked_up.append(found)
                if found:
                    rank = found.index(token) if token in found else RECYCLED_RANKS
                agrees = weights[AGREES_WEIGHT + rank]
            odds = same[short] + weights[LENGTH_WEIGHT[matched]] + agrees + deep
            path /= 1.0 + exp(-odds)
            if path < least or (found and same[3 + short] + deep > odds):
                break
            tokens.append(token)
            paths.append(path)
            last = token
            depth += 1
        return tokens, paths, looked_up
