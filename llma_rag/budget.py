"""Say how many nodes a draft may have and which of them are worth their verification; compiled."""

from typing import NamedTuple

import numpy as np

from llma_rag.compiled import Floats, compiled
from llma_rag.costs import CostCurve

LEAST_PROBABILITY = 1e-9
"""Paths below it are never drafted."""

PRICE_FACTOR, STEP_WEIGHT = 1.45, 1.6
"""How dear a unit of time is: tuned on recorded answers, see `_worth`."""

FREE = np.zeros(0)
"""Times and margins where nodes cost nothing."""


class Budget(NamedTuple):
    """When a draft is complete.

    Attributes:
        nodes: Most nodes.
        depth: Most tokens of a path.
        least: A path must be more probable than this to be looked at.
        price: Tokens that a unit of time, one pass of width 1, yields otherwise.
        times: [nodes + 1] time of a pass by drafted nodes; empty where nodes are free.
        margins: [nodes] least cost of a further node, by nodes that are drafted already.
    """

    nodes: int
    depth: int
    least: float
    price: float
    times: Floats
    margins: Floats


def budget_of(nodes: int, depth: int, costs: CostCurve | None = None, price: float = 0.0) -> Budget:
    """Return the limits of one draft.

    Args:
        nodes: Most nodes.
        depth: Most tokens of a path.
        costs: What a pass costs by its width; None: nodes are free.
        price: Tokens that one pass of width 1 is worth: what a unit of time yields otherwise.
    """
    if costs is None or nodes == 0:
        return Budget(nodes, depth, LEAST_PROBABILITY, 0.0, FREE, FREE)
    table = costs.table(nodes)
    price *= PRICE_FACTOR
    least = max(LEAST_PROBABILITY, table.least_margin * price)
    return Budget(nodes, depth, least, price, table.times, table.margins)


@compiled
def pays(budget: Budget, path: float, nodes: int, gain: float) -> bool:
    """Return whether a node is worth verifying.

    Args:
        budget: The limits.
        path: Probability of the path to it.
        nodes: Nodes that are drafted already.
        gain: Sum of the probabilities of their paths.
    """
    if path <= budget.least:
        return False
    return len(budget.times) == 0 or path >= budget.margins[nodes] * _worth(budget, nodes, gain)


@compiled
def _worth(budget: Budget, nodes: int, gain: float) -> float:
    """Return how many tokens a unit of time is worth in this step.

    At least what the request yields otherwise. Amid a long copy more: its tokens come nearly for
    free in the next pass too, so it is this step's own yield that counts.
    """
    price, here = budget.price, (1.0 + gain) / budget.times[nodes]
    return price * (here / price) ** STEP_WEIGHT if here > price else price


@compiled
def best_size(budget: Budget, paths: Floats) -> int:
    """Return how many nodes, of which `paths` are the probabilities, to keep; best come first.

    Where the curve rises in steps, the last ones may not pay.
    """
    if len(budget.times) == 0:
        return len(paths)
    price = _worth(budget, len(paths), paths.sum())
    best, size, gain = 0.0, 0, 0.0
    for node in range(len(paths)):
        gain += paths[node]
        net = gain - price * (budget.times[node + 1] - 1.0)
        if net >= best:
            best, size = net, node + 1
    return size
