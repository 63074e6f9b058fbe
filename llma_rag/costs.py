"""Say what verifying more tokens in one pass costs."""

from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TREE_WIDTH = 16
"""Width of a pass at which it is asked whether trees pay."""

TREE_GAIN, LEAST_MARGIN, NO_TREES = 0.0005, 0.005, 0.1
"""Gain of trees over chains times the cost of a token; from which cost on, up to which cost."""


class CostTable(NamedTuple):
    """What passes cost by drafted nodes.

    Attributes:
        times: [nodes + 1] relative times of passes over so many drafted nodes.
        margins: [nodes] least cost per further node, by nodes that are drafted already.
        least_margin: Least of these.
    """

    times: NDArray[np.float64]
    margins: NDArray[np.float64]
    least_margin: float


class CostCurve:
    """Time of a forward pass by its width, relative to a pass of one token.

    Between measured widths it is interpolated; beyond the last it goes on with the last slope.
    Where a wider pass was measured as cheaper, the curve stays level.

    Attributes:
        branching: What a pass takes longer where its draft is a tree.

    >>> curve = CostCurve({1: 1.0, 8: 1.3, 16: 1.6})
    >>> round(curve(12), 3), round(curve(24), 3)
    (1.45, 1.9)
    """

    def __init__(self, relative_times: Mapping[int, float], branching: float = 0.0) -> None:
        """Take measured points: width in tokens -> time relative to width 1.

        Args:
            relative_times: The points.
            branching: What a pass takes longer, in passes of one token, where its draft is a tree.

        Raises:
            ValueError: If no point is given, or a width or time is not positive.
        """
        self.branching = max(0.0, branching)
        if not relative_times:
            raise ValueError("`relative_times` must hold at least one width.")
        points = {1: 1.0, **relative_times}
        if min(points) < 1 or min(points.values()) <= 0:
            raise ValueError(f"Widths and times must be positive, got {dict(relative_times)}.")
        self._widths = sorted(points)
        self._times: list[float] = []
        for width in self._widths:
            before = self._times[-1] if self._times else 0.0
            self._times.append(max(before, points[width]))
        self._tables: dict[int, CostTable] = {}

    @classmethod
    def linear(cls, cost: float, branching: float = 0.0) -> "CostCurve":
        """Return the curve on which every token after the first costs `cost` of a pass.

        Raises:
            ValueError: If `cost` is negative.
        """
        if not cost >= 0:
            raise ValueError(f"`cost` must be at least 0, got {cost}.")
        return cls({1: 1.0, 2: 1.0 + cost}, branching)

    def __call__(self, width: int) -> float:
        """Return the relative time of a pass over `width` tokens."""
        widths, times = self._widths, self._times
        if len(widths) == 1:
            return times[0]
        right = min(max(bisect_right(widths, width), 1), len(widths) - 1)
        left = right - 1
        slope = (times[right] - times[left]) / (widths[right] - widths[left])
        return times[left] + slope * (width - widths[left])

    @property
    def branches_pay(self) -> bool:
        """Whether drafts should be trees.

        What a tree yields beyond a chain shrinks as further tokens cost more: on recorded answers
        about as `TREE_GAIN / margin`, which has to pay for branching.

        >>> CostCurve.linear(0.02, branching=0.01).branches_pay
        True
        >>> CostCurve.linear(0.02, branching=0.05).branches_pay
        False
        """
        margin = (self(TREE_WIDTH) - 1.0) / (TREE_WIDTH - 1)
        return margin < NO_TREES and self.branching * max(margin, LEAST_MARGIN) < TREE_GAIN

    def table(self, budget: int) -> CostTable:
        """Return what passes over up to `budget` drafted nodes cost."""
        found = self._tables.get(budget)
        if found is None:
            times = np.array([self(nodes + 1) for nodes in range(budget + 1)], float)
            # A node that is less probable than the least cost per further node, times the tokens
            # per unit of time, cannot pay, however many more such nodes share a step of the curve.
            margins = np.array(
                [
                    np.min((times[nodes + 1 :] - times[nodes]) / np.arange(1, budget + 1 - nodes))
                    for nodes in range(budget)
                ]
            )
            found = self._tables[budget] = CostTable(times, margins, float(margins.min()))
        return found
