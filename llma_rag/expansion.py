"""Grow a token tree out of places that continue the context, most probable paths first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import exp

from llma_rag.acceptance import (
    DEEPEST,
    DEPTH_WEIGHT,
    LENGTH_WEIGHT,
    NO_SUCCESSORS,
    RECYCLED_RANKS,
    SHORT,
    AcceptanceModel,
    Evidence,
    Lean,
    copy_evidence,
    recycled_evidence,
)
from llma_rag.costs import CostCurve
from llma_rag.index import MAX_MATCH_LENGTH

ROOT = -1

OBSERVED = 8
"""Of what may follow a node, how many tokens are learned from; longest matches come first."""

LEAST_PROBABILITY = 1e-4
"""Paths below it are never drafted."""

PRICE_FACTOR, STEP_WEIGHT = 1.15, 1.6
"""How dear a unit of time is: tuned on recorded answers, see `Grower._price`."""

Candidate = tuple[int, int, int, int]
"""Position of the next token, match length, distance from the last accepted copy, source."""

Offer = tuple[int, Evidence]
"""A token that may follow a node, drafted or not, and what is known of it."""

Successors = Callable[[int], Sequence[int]]
"""Gives the likely successors of a token, best first."""


@dataclass(slots=True)
class Tree:
    """A grown draft and what is needed to learn from its verification.

    Attributes:
        tokens: Token of each node.
        parents: Parent of each node.
        positions: Where each token was copied from; None for recycled tokens.
        probabilities: Probability of the path to each node.
        candidates: Places that are left behind each node.
        offers: For `ROOT` and nodes expanded with several places, what could follow.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    positions: list[int | None] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    candidates: list[Sequence[Candidate]] = field(default_factory=list)
    offers: dict[int, list[Offer]] = field(default_factory=dict)

    def offered(self, node: int, depth: int, tokens: Sequence[int]) -> Sequence[Offer]:
        """Return what could follow a node with `depth` tokens from the root to it."""
        found = self.offers.get(node)
        if found is not None or node == ROOT or len(self.candidates[node]) != 1:
            return found or ()
        position, length, distance, source = self.candidates[node][0]
        if position >= len(tokens) or tokens[position] < 0:
            return ()
        return ((tokens[position], copy_evidence(length, distance, depth, source)),)

    def cut(self, size: int) -> None:
        """Forget the nodes after the first `size`."""
        for column in (self.tokens, self.parents, self.positions, self.probabilities):
            del column[size:]
        del self.candidates[size:]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a tree is complete.

    Attributes:
        nodes: Most nodes.
        depth: Most tokens of a path.
        branching: False keeps the most probable child of each node only: a chain.
        costs: What a pass costs by its width; None: nodes are free.
        price: Tokens that one pass of width 1 is worth: what a unit of time yields otherwise.
    """

    nodes: int
    depth: int
    branching: bool = True
    costs: CostCurve | None = None
    price: float = 0.0


class Grower:
    """Expands one tree; made anew for every draft."""

    def __init__(
        self,
        tokens: Sequence[int],
        model: AcceptanceModel,
        lean: Lean,
        limits: Limits,
        successors: Successors | None = None,
    ) -> None:
        self.tree = Tree()
        self._tokens = tokens
        self._model = model
        self._lean = lean
        self._limits = limits
        self._successors = successors
        self._heap: list[tuple[float, int, int, int, int, Sequence[Candidate], int | None]] = []
        self._pushed = 0

    def grow(self, candidates: Sequence[Candidate], last_token: int) -> Tree:
        """Draft what `candidates` and successors of `last_token` foretell.

        Args:
            candidates: Places that continue the context, longest match first.
            last_token: Last token of the context.
        """
        tree, limits, heap = self.tree, self._limits, self._heap
        self._expand(ROOT, 0, 1.0, candidates, last_token)
        margins = [] if limits.costs is None else limits.costs.margins(limits.nodes)
        gain = 0.0
        while heap and len(tree.tokens) < limits.nodes:
            least, _, token, parent, depth, rest, position = heappop(heap)
            probability = -least
            node = len(tree.tokens)
            if margins and probability < margins[node] * self._price(node, gain):
                break
            gain += probability
            tree.tokens.append(token)
            tree.parents.append(parent)
            tree.positions.append(position)
            tree.probabilities.append(probability)
            tree.candidates.append(rest)
            if depth >= limits.depth or node + 1 >= limits.nodes:
                continue
            if len(rest) == 1 and self._successors is None:
                gain += self._run(node, depth, probability, rest[0], gain)
            else:
                self._expand(node, depth, probability, rest, token)
        if margins:
            tree.cut(self._best_size(gain))
        return tree

    def _run(
        self, node: int, depth: int, probability: float, place: Candidate, gain: float
    ) -> float:
        """Follow the only place left behind a node while nothing else is more probable.

        Does what expanding node after node would do, without the heap; most drafts are such runs.
        Returns the probability gained.
        """
        tree, limits, tokens = self.tree, self._limits, self._tokens
        before = gain
        rival = -self._heap[0][0] if self._heap else LEAST_PROBABILITY
        margins = [] if limits.costs is None else limits.costs.margins(limits.nodes)
        position, length, distance, source = place
        room = min(limits.nodes - node - 1, limits.depth - depth, len(tokens) - position)
        weights = self._model.weights
        base = self._model.run_log_odds(distance, source, self._lean)
        parent = node
        for step in range(room):
            token = tokens[position]
            if token < 0:
                break
            at = depth + step
            odds = base[SHORT[length]] + weights[LENGTH_WEIGHT[length]]
            odds += weights[DEPTH_WEIGHT[at if at < DEEPEST else DEEPEST]]
            path = probability / (1.0 + exp(-odds))
            bar = margins[parent + 1] * self._price(parent + 1, gain) if margins else 0.0
            if path < rival or path < bar:
                if path > LEAST_PROBABILITY:
                    rest = (_moved((position, length, distance, source)),)
                    self._pushed += 1
                    heappush(
                        self._heap, (-path, self._pushed, token, parent, at + 1, rest, position)
                    )
                break
            probability = path
            gain += path
            tree.tokens.append(token)
            tree.parents.append(parent)
            tree.positions.append(position)
            tree.probabilities.append(path)
            position += 1
            if length < MAX_MATCH_LENGTH:
                length += 1
            tree.candidates.append(((position, length, distance, source),))
            parent += 1
        return gain - before

    def _price(self, nodes: int, gain: float) -> float:
        """Return how many tokens a unit of time is worth in this step.

        At least what the request yields otherwise. Amid a long copy more: its tokens come nearly
        for free in the next pass too, so it is this step's own yield that counts.
        """
        limits = self._limits
        price = limits.price * PRICE_FACTOR
        here = (1.0 + gain) / limits.costs(nodes + 1) if limits.costs else 0.0
        return price * (here / price) ** STEP_WEIGHT if here > price else price

    def _best_size(self, gain: float) -> int:
        """Return how many of the nodes, best first, to keep on a curve that rises in steps."""
        costs, probabilities = self._limits.costs, self.tree.probabilities
        if costs is None:
            return len(probabilities)
        price = self._price(len(probabilities), gain)
        best, best_size, gain = 0.0, 0, 0.0
        for node, probability in enumerate(probabilities):
            gain += probability
            net = gain - price * (costs(node + 2) - 1.0)
            if net >= best:
                best, best_size = net, node + 1
        return best_size

    def _expand(
        self,
        node: int,
        depth: int,
        probability: float,
        candidates: Sequence[Candidate],
        last_token: int,
    ) -> None:
        """Offer what may follow a node to the heap."""
        ranks = self._ranks(last_token)
        found = self._copied(candidates, depth, ranks)
        if ranks:
            longest = candidates[0][1] if candidates else 0
            found += [
                (token, recycled_evidence(rank, depth, longest), (), None)
                for token, rank in ranks.items()
            ]
        if not found:
            return
        model, lean = self._model, self._lean
        self.tree.offers[node] = [(token, evidence) for token, evidence, _, _ in found[:OBSERVED]]
        scored = [
            (model.probability(evidence, lean), token, rest, position)
            for token, evidence, rest, position in found
        ]
        if not self._limits.branching and len(scored) > 1:
            scored = [max(scored, key=lambda child: child[0])]
        for child, token, rest, position in scored:
            path = probability * child
            if path > LEAST_PROBABILITY:
                self._pushed += 1
                heappush(self._heap, (-path, self._pushed, token, node, depth + 1, rest, position))

    def _ranks(self, last_token: int) -> dict[int, int]:
        if self._successors is None:
            return {}
        return {token: rank for rank, token in enumerate(self._successors(last_token))}

    def _copied(
        self, candidates: Sequence[Candidate], depth: int, ranks: dict[int, int]
    ) -> list[tuple[int, Evidence, Sequence[Candidate], int | None]]:
        """Group places by the token that follows; takes those tokens out of `ranks`."""
        tokens = self._tokens
        size = len(tokens)
        unknown = RECYCLED_RANKS if ranks else NO_SUCCESSORS
        if len(candidates) == 1:
            position, length, distance, source = candidates[0]
            if position >= size or tokens[position] < 0:
                return []
            token = tokens[position]
            rank = ranks.pop(token, unknown)
            evidence = copy_evidence(length, distance, depth, source, rank=rank)
            return [(token, evidence, (_moved(candidates[0]),), position)]
        groups: dict[int, list[Candidate]] = {}
        voters: dict[int, int] = {}
        for candidate in candidates:
            position, length, _, _ = candidate
            if position < size:
                voters[length] = voters.get(length, 0) + 1
                groups.setdefault(tokens[position], []).append(candidate)
        groups.pop(-1, None)
        found: list[tuple[int, Evidence, Sequence[Candidate], int | None]] = []
        for token, group in groups.items():
            position, length, distance, source = group[0]
            votes = 1
            if len(group) > 1:
                votes = sum(candidate[1] == length for candidate in group)
                distance = min(candidate[2] for candidate in group)
            evidence = copy_evidence(
                length,
                distance,
                depth,
                source,
                votes,
                voters[length],
                len(group),
                len(candidates),
                candidates[0][1] - length,
                ranks.pop(token, unknown),
            )
            found.append((token, evidence, [_moved(candidate) for candidate in group], position))
        return found


def _moved(candidate: Candidate) -> Candidate:
    position, length, distance, source = candidate
    return position + 1, length + 1 if length < MAX_MATCH_LENGTH else length, distance, source
