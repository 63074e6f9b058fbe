"""Grow a token tree out of places that continue the context, most probable paths first."""

from array import array
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from llma_rag.acceptance import AcceptanceModel, Lean, recycled_evidence
from llma_rag.costs import CostCurve
from llma_rag.index import NO_TOKEN
from llma_rag.runs import Ahead, Runs
from llma_rag.tree import ROOT, Candidate, Run, Successors, Tree, follow

LEAST_PROBABILITY = 1e-4
"""Paths below it are never drafted."""

PRICE_FACTOR, STEP_WEIGHT = 1.45, 1.6
"""How dear a unit of time is: tuned on recorded answers, see `Grower._price`."""

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
        tokens: "array[int]",
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
        self._runs = Runs(model, lean)
        self._begun: dict[Candidate, Iterator[Ahead]] = {}
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
        start = places[0][0] + depth
        room = min(self._limits.nodes - node - 1, self._limits.depth - depth)
        if self._heap or self._margins or self._successors is not None:
            return self._run_among(node, depth, probability, places, gain, room)
        tokens = self._tokens[start : start + room].tolist()
        if NO_TOKEN in tokens:
            del tokens[tokens.index(NO_TOKEN) :]
        chances = self._runs.copied(places[0], depth, len(tokens))
        paths = [*accumulate(chances, mul, initial=probability)][1:]
        self.tree.add_run(node, Run(places, start, tokens, paths))
        return gain + sum(paths)

    def _run_among(
        self,
        node: int,
        depth: int,
        probability: float,
        places: Sequence[Candidate],
        gain: float,
        room: int,
    ) -> float:
        """Do what `_run` does where something else may be more probable, or nodes have a price."""
        tree, limits, margins = self.tree, self._limits, self._margins
        rival = -self._heap[0][0] if self._heap else 0.0
        run = Run(places, places[0][0] + depth)
        tokens, paths, looked_up = run.tokens, run.paths, run.successors
        ahead = self._foretold(node, depth, places[0], room)
        at, before = node, probability
        for token, child, found, recycled in ahead:
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

    def _foretold(self, node: int, depth: int, place: Candidate, room: int) -> Iterator[Ahead]:
        """Return what a place foretells behind a node, from where it was interrupted."""
        ahead = self._begun.get(place)
        if ahead is None:
            tokens = self._tokens[place[0] + depth : place[0] + depth + room]
            last = self.tree.tokens[node]
            ahead = self._runs.ahead(last, tokens, place, depth, self._successors)
            self._begun[place] = ahead
        return ahead

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
        paths = [
            probability * chance
            for chance in model.probabilities([copy[1] for copy in copies], lean)
        ]
        best = 0.0
        if not self._limits.branching and copies:
            best = max(paths)
            copies, paths = [copies[paths.index(best)]], [best]
        if found:
            self._recycle(node, depth, 0, more_than=best)
            if self._heap and not self._limits.branching:
                return
        for path, (token, _, rest, position) in zip(paths, copies, strict=True):
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
