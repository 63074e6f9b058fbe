"""Grow a token tree out of places that continue the context, most probable paths first."""

from collections.abc import Sequence
from heapq import heappop, heappush
from math import exp

from llma_rag.budget import Budget
from llma_rag.index import NO_TOKEN
from llma_rag.outlook import Outlook
from llma_rag.tree import ROOT, Candidate, Tree

Entry = tuple[float, int, int, int, int, Sequence[Candidate] | None, int]
"""Negated probability, number, token, parent, depth, places, position or recycled rank (as ~rank).

No places: the recycled successors of the parent, not looked at yet; the probability is a bound.
"""


class Grower:
    """Expands one tree; made anew for every draft."""

    def __init__(self, outlook: Outlook, budget: Budget) -> None:
        self.tree = Tree()
        self._outlook = outlook
        self._budget = budget
        self._heap: list[Entry] = []
        self._pushed = 0
        self._gain = 0.0

    def grow(self, candidates: Sequence[Candidate], last_token: int) -> Tree:
        """Draft what `candidates` and successors of `last_token` foretell.

        Args:
            candidates: Places that continue the context, longest match first.
            last_token: Last token of the context.
        """
        tree, budget, heap = self.tree, self._budget, self._heap
        tree.candidates[0] = candidates
        if budget.nodes:
            self._expand(ROOT, 0, 1.0, last_token)
        while heap and len(tree.tokens) < budget.nodes:
            entry = heappop(heap)
            if budget.priced and not budget.pays(-entry[0], len(tree.tokens), self._gain):
                break
            self._take(entry)
        if budget.priced:
            tree.cut(budget.best_size(tree.probabilities))
        return tree

    def _take(self, entry: Entry) -> None:
        """Draft what an entry of the heap stands for."""
        least, _, token, parent, depth, places, position = entry
        tree, budget = self.tree, self._budget
        if places is None:
            self._recycle(parent, depth, 0)
            return
        self._gain -= least
        node = len(tree.tokens)
        tree.add(token, parent, -least, places, position if position >= 0 else None)
        if position < 0:
            self._recycle(parent, depth - 1, -position)
        if depth >= budget.depth or node + 1 >= budget.nodes:
            return
        if len(places) == 1:
            self._follow(node, depth, -least, places)
        else:
            self._expand(node, depth, -least, token)

    def _follow(self, node: int, depth: int, path: float, places: Sequence[Candidate]) -> None:
        """Follow the only place left behind a node while nothing else is more probable.

        Does what expanding node after node would do, with less work.
        """
        tree, budget, heap, outlook = self.tree, self._budget, self._heap, self._outlook
        place, last = places[0], tree.tokens[node]
        rival = -heap[0][0] if heap else 0.0
        while ahead := outlook.after(place, depth, last):
            last, odds, found, recycled = ahead
            if found:
                tree.successors[node + 1] = found
                bound = path / (1.0 + exp(-recycled))
                self._push(bound, NO_TOKEN, node, depth, None, 0)
                rival = max(rival, bound)
            path /= 1.0 + exp(-odds)
            depth += 1
            position = place[0] + depth - 1
            if path < rival or (budget.priced and not budget.pays(path, node + 1, self._gain)):
                self._push(path, last, node, depth, places, position)
                return
            tree.add(last, node, path, places, position)
            self._gain += path
            node += 1
            if depth >= budget.depth or node + 1 >= budget.nodes:
                return
        if outlook.successors is not None:
            self._expand(node, depth, path, last)

    def _expand(self, node: int, depth: int, path: float, last: int) -> None:
        """Offer what may follow a node to the heap."""
        copies, chances = self._outlook.copies(self.tree, node, depth, last)
        self._recycle(node, depth, 0)
        heap, least, number = self._heap, self._budget.least, self._pushed
        for chance, (token, _, places, position) in zip(chances, copies, strict=True):
            if path * chance > least:
                number += 1
                heappush(heap, (-path * chance, number, token, node, depth + 1, places, position))
        self._pushed = number

    def _recycle(self, node: int, depth: int, rank: int) -> None:
        """Offer the next recycled successor of a node, from `rank` on, to the heap."""
        tree = self.tree
        if rank >= len(tree.successors[node + 1]):
            return
        recycled = self._outlook.recycled(tree, node, depth, rank)
        if recycled is not None:
            rank, chance = recycled
            path = chance * (tree.probabilities[node] if node != ROOT else 1.0)
            self._push(path, tree.successors[node + 1][rank], node, depth + 1, (), ~rank)

    def _push(
        self,
        path: float,
        token: int,
        parent: int,
        depth: int,
        places: Sequence[Candidate] | None,
        position: int,
    ) -> None:
        """Put an entry on the heap."""
        if path > self._budget.least:
            self._pushed += 1
            heappush(self._heap, (-path, self._pushed, token, parent, depth, places, position))
