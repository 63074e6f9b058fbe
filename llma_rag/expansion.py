"""Grow a token tree out of places that continue the context, most probable paths first."""

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from math import exp
from operator import itemgetter
from typing import NamedTuple

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
    recycled_evidence,
)
from llma_rag.costs import CostCurve
from llma_rag.index import MAX_MATCH_LENGTH, NO_TOKEN
from llma_rag.tree import ROOT, Candidate, Run, Tree, follow

LEAST_PROBABILITY = 1e-4
"""Paths below it are never drafted."""

PRICE_FACTOR, STEP_WEIGHT = 1.15, 1.6
"""How dear a unit of time is: tuned on recorded answers, see `Grower._price`."""

Successors = Callable[[int], Sequence[int]]
"""Gives the likely successors of a token, best first."""

Entry = tuple[float, int, int, int, int, Sequence[Candidate] | None, int]
"""Negated probability, number, token, parent, depth, places, position or recycled rank (as ~rank).

No places: the recycled successors of the parent, not looked at yet; the probability is a bound.
"""


class Limits(NamedTuple):
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
        self._heap: list[Entry] = []
        self._pushed = 0
        self._same: dict[tuple[int, int], tuple[float, ...]] = {}
        self._margins = [] if limits.costs is None else limits.costs.margins(limits.nodes)
        price = min(self._margins, default=0.0) * limits.price * PRICE_FACTOR
        self._least = max(LEAST_PROBABILITY, price)

    def grow(self, candidates: Sequence[Candidate], last_token: int) -> Tree:
        """Draft what `candidates` and successors of `last_token` foretell.

        Args:
            candidates: Places that continue the context, longest match first.
            last_token: Last token of the context.
        """
        tree, limits, heap, margins = self.tree, self._limits, self._heap, self._margins
        tree.candidates[0] = candidates
        if limits.nodes:
            self._expand(ROOT, 0, 1.0, candidates, last_token)
        gain = 0.0
        while heap and len(tree.tokens) < limits.nodes:
            entry = heappop(heap)
            if margins:
                nodes = len(tree.tokens)
                if -entry[0] < margins[nodes] * self._price(nodes, gain):
                    break
            gain = self._take(entry, gain)
        if margins:
            tree.cut(self._best_size(gain))
        return tree

    def _take(self, entry: Entry, gain: float) -> float:
        """Draft what an entry of the heap stands for; return the gain with it."""
        least, _, token, parent, depth, places, position = entry
        tree, limits = self.tree, self._limits
        if places is None:
            self._recycle(parent, depth, 0)
            return gain
        gain -= least
        node = len(tree.tokens)
        tree.add(token, parent, -least, places, position if position >= 0 else None)
        if position < 0 and limits.branching:
            self._recycle(parent, depth - 1, -position)
        if depth >= limits.depth or node + 1 >= limits.nodes:
            return gain
        if len(places) == 1:
            return self._run(node, depth, -least, places, gain)
        self._expand(node, depth, -least, places, token)
        return gain

    def _push(
        self,
        path: float,
        token: int,
        parent: int,
        depth: int,
        places: Sequence[Candidate] | None,
        position: int,
    ) -> None:
        if path > self._least:
            self._pushed += 1
            heappush(self._heap, (-path, self._pushed, token, parent, depth, places, position))

    def _run(
        self, node: int, depth: int, probability: float, places: Sequence[Candidate], gain: float
    ) -> float:
        """Follow the only place left behind a node while nothing else is more probable.

        Does what expanding node after node would do, with less work; most drafts are such runs.
        Returns the gain, that of the nodes before included.
        """
        tree, limits, margins = self.tree, self._limits, self._margins
        rival = -self._heap[0][0] if self._heap else 0.0
        room = min(limits.nodes - node - 1, limits.depth - depth)
        run = Run(places, places[0][0] + depth)
        tokens, paths, looked_up = run.tokens, run.paths, run.successors
        at, before = node, probability
        for token, child, found, recycled in self._ahead(tree.tokens[node], depth, places[0]):
            looked_up.append(found)
            path = before * child
            if found:
                if not limits.branching and recycled > child:
                    break
                if limits.branching:
                    self._push(before * recycled, NO_TOKEN, at, depth, None, 0)
                    rival = max(rival, before * recycled)
            if path < rival or (margins and path < margins[at + 1] * self._price(at + 1, gain)):
                self._push(path, token, at, depth + 1, places, run.position + len(tokens))
                tree.add_run(node, run)
                return gain
            tokens.append(token)
            paths.append(path)
            gain += path
            before = path
            at += 1
            depth += 1
            if len(tokens) >= room:
                tree.add_run(node, run)
                return gain
        tree.add_run(node, run)
        if self._successors is not None:
            self._expand(at, depth, before, places, tree.tokens[at])
        return gain

    def _ahead(
        self, last: int, depth: int, place: Candidate
    ) -> Iterator[tuple[int, float, Sequence[int], float]]:
        """Yield what a place foretells behind `depth` tokens of a path that ends with `last`.

        Token by token: the token, its probability given its parent, the recycled successors of
        its parent, a bound of the probability of each of them.
        """
        weights, successors = self._model.weights, self._successors
        first, length, distance, source = place
        same = self._run_odds(distance, source)
        rank, found, bound = NO_SUCCESSORS, (), 0.0  # type: int, Sequence[int], float
        for token in self._tokens[first + depth : first + self._limits.depth]:
            if token < 0:
                return
            short = min(length + depth, MAX_MATCH_LENGTH)
            deep = weights[DEPTH_WEIGHT[depth if depth < DEEPEST else DEEPEST]]
            if successors is not None:
                found = successors(last)
                rank = NO_SUCCESSORS
                if found:
                    rank = found.index(token) if token in found else RECYCLED_RANKS
                    bound = 1.0 / (1.0 + exp(-same[3 + SHORT[short]] - deep))
            odds = same[SHORT[short]] + weights[LENGTH_WEIGHT[short]] + deep
            odds += weights[AGREES_WEIGHT + rank]
            yield token, 1.0 / (1.0 + exp(-odds)), found, bound
            last = token
            depth += 1

    def _run_odds(self, distance: int, source: int) -> tuple[float, ...]:
        """Return the log-odds that stay the same along a run, by `SHORT`: copied, then recycled."""
        found = self._same.get((distance, source))
        if found is None:
            model, lean = self._model, self._lean
            found = model.run_log_odds(distance, source, lean) + model.recycled_log_odds(lean)
            self._same[distance, source] = found
        return found

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
        places: Sequence[Candidate],
        last_token: int,
    ) -> None:
        """Offer what may follow a node to the heap."""
        tree, model, lean = self.tree, self._model, self._lean
        found: Sequence[int] = ()
        if self._successors is not None:
            found = tree.successors[node + 1] = self._successors(last_token)
        copies = follow(self._tokens, places, depth, found)
        if len(places) > 1:
            tree.copies[node] = copies
        children = [
            (probability * model.probability(evidence, lean), token, rest, position)
            for token, evidence, rest, position in copies
        ]
        if not self._limits.branching:
            if len(children) > 1:
                children = [max(children, key=itemgetter(0))]
            self._recycle(node, depth, 0, more_than=children[0][0] if children else 0.0)
            if self._heap:
                return
        elif found:
            self._recycle(node, depth, 0)
        for path, token, rest, position in children:
            self._push(path, token, node, depth + 1, rest, position)

    def _recycle(self, node: int, depth: int, rank: int, more_than: float = 0.0) -> None:
        """Offer the next recycled successor of a node, from `rank` on, that is not copied there.

        Args:
            node: The node, `ROOT` for the end of the context.
            depth: Tokens from the root to it.
            rank: The first to consider.
            more_than: Least probability of the path for it to be offered.
        """
        tree = self.tree
        found, places = tree.successors[node + 1], tree.candidates[node + 1]
        if rank >= len(found):
            return
        copied = tree.copied(node, depth, self._tokens)
        longest = places[0][1] + depth if places else 0
        before = tree.probabilities[node] if node != ROOT else 1.0
        for place in range(rank, len(found)):
            if found[place] not in copied:
                evidence = recycled_evidence(place, depth, longest)
                path = before * self._model.probability(evidence, self._lean)
                if path > more_than:
                    self._push(path, found[place], node, depth + 1, (), ~place)
                return
