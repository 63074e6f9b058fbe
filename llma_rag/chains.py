"""Grow a chain out of places that continue the context, always by the most probable token."""

from collections.abc import Sequence

from llma_rag.budget import Budget
from llma_rag.outlook import Outlook
from llma_rag.tree import Candidate, Tree


class Chain:
    """Grows one chain; made anew for every draft."""

    def __init__(self, outlook: Outlook, budget: Budget) -> None:
        self.tree = Tree()
        self._outlook = outlook
        self._budget = budget
        self._room = min(budget.nodes, budget.depth)
        self._gain = 0.0

    def grow(self, candidates: Sequence[Candidate], last_token: int) -> Tree:
        """Draft what `candidates` and successors of `last_token` foretell.

        Args:
            candidates: Places that continue the context, longest match first.
            last_token: Last token of the context.
        """
        tree = self.tree
        tree.candidates[0] = candidates
        going = self._room > 0 and self._choose(last_token)
        while going and len(tree.tokens) < self._room:
            going = (len(tree.candidates[-1]) != 1 or self._run()) and self._choose(tree.tokens[-1])
        if self._budget.priced:
            tree.cut(self._budget.best_size(tree.probabilities))
        return tree

    def _choose(self, last: int) -> bool:
        """Draft the most probable token behind `last`, copied or recycled; tell if there is one."""
        tree, outlook = self.tree, self._outlook
        depth = len(tree.tokens)
        node = depth - 1
        copies, chances = outlook.copies(tree, node, depth, last)
        best = max(chances, default=0.0)
        before = tree.probabilities[node] if depth else 1.0
        found = tree.successors[depth]
        recycled = outlook.recycled(tree, node, depth) if found else None
        if recycled is not None and recycled[1] > best:
            return self._add(found[recycled[0]], before * recycled[1], (), None)
        if not copies:
            return False
        token, _, places, position = copies[chances.index(best)]
        return self._add(token, before * best, places, position)

    def _add(
        self, token: int, path: float, places: Sequence[Candidate], position: int | None
    ) -> bool:
        """Append a node unless it is not worth verifying."""
        tree, budget = self.tree, self._budget
        node = len(tree.tokens)
        if path <= budget.least or (budget.priced and not budget.pays(path, node, self._gain)):
            return False
        tree.add(token, node - 1, path, places, position)
        self._gain += path
        return True

    def _run(self) -> bool:
        """Follow the only place left until another token may be more probable.

        Does what choosing token after token would do, with less work.

        Returns:
            Whether to choose what follows.
        """
        tree, budget, places = self.tree, self._budget, self.tree.candidates[-1]
        depth, place = len(tree.tokens), places[0]
        tokens, paths, looked_up = self._outlook.run(
            place,
            depth,
            self._room,
            tree.tokens[-1],
            tree.probabilities[-1],
            budget.least if budget.priced else 0.0,
        )
        size = self._paying(paths) if budget.priced else len(paths)
        tree.tokens += tokens[:size]
        tree.probabilities += paths[:size]
        tree.parents += range(depth - 1, depth + size - 1)
        tree.positions += range(place[0] + depth, place[0] + depth + size)
        tree.candidates += [places] * size
        known = looked_up[: size + 1]
        tree.successors[-1:] = known + [()] * (size + 1 - len(known))
        return size == len(paths) and depth + size < self._room

    def _paying(self, paths: Sequence[float]) -> int:
        """Return how many further nodes, of which `paths` are the probabilities, pay."""
        node = len(self.tree.tokens)
        for size, path in enumerate(paths):
            if not self._budget.pays(path, node + size, self._gain):
                return size
            self._gain += path
        return len(paths)
