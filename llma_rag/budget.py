"""Say how many nodes a draft may have and which of them are worth their verification."""

from collections.abc import Sequence

from llma_rag.costs import CostCurve

LEAST_PROBABILITY = 1e-4
"""Paths below it are never drafted."""

PRICE_FACTOR, STEP_WEIGHT = 1.45, 1.6
"""How dear a unit of time is: tuned on recorded answers, see `Budget._worth`."""


class Budget:
    """When a draft is complete.

    Attributes:
        nodes: Most nodes.
        depth: Most tokens of a path.
        priced: Whether nodes cost anything.
        least: A path must be more probable than this to be looked at.
    """

    __slots__ = ("_margins", "_price", "_times", "depth", "least", "nodes", "priced")

    def __init__(
        self, nodes: int, depth: int, costs: CostCurve | None = None, price: float = 0.0
    ) -> None:
        """Set the limits of one draft.

        Args:
            nodes: Most nodes.
            depth: Most tokens of a path.
            costs: What a pass costs by its width; None: nodes are free.
            price: Tokens that one pass of width 1 is worth: what a unit of time yields otherwise.
        """
        self.nodes = nodes
        self.depth = depth
        self.priced = costs is not None and nodes > 0
        self.least = LEAST_PROBABILITY
        if costs is not None and nodes > 0:
            self._price = price * PRICE_FACTOR
            self._times, self._margins = costs.times(nodes), costs.margins(nodes)
            self.least = max(LEAST_PROBABILITY, min(self._margins) * self._price)

    def pays(self, path: float, nodes: int, gain: float) -> bool:
        """Return whether a node is worth verifying, where nodes are priced.

        Args:
            path: Probability of the path to it.
            nodes: Nodes that are drafted already.
            gain: Sum of the probabilities of their paths.
        """
        return path >= self._margins[nodes] * self._worth(nodes, gain)

    def _worth(self, nodes: int, gain: float) -> float:
        """Return how many tokens a unit of time is worth in this step.

        At least what the request yields otherwise. Amid a long copy more: its tokens come nearly
        for free in the next pass too, so it is this step's own yield that counts.
        """
        price, here = self._price, (1.0 + gain) / self._times[nodes]
        return price * (here / price) ** STEP_WEIGHT if here > price else price

    def best_size(self, paths: Sequence[float]) -> int:
        """Return how many nodes, of which `paths` are the probabilities, to keep; best come first.

        Where the curve rises in steps, the last ones may not pay.
        """
        if not self.priced:
            return len(paths)
        price = self._worth(len(paths), sum(paths))
        best, best_size, gain = 0.0, 0, 0.0
        for node, probability in enumerate(paths):
            gain += probability
            net = gain - price * (self._times[node + 1] - 1.0)
            if net >= best:
                best, best_size = net, node + 1
        return best_size
