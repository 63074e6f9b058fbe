"""Say what verifying more tokens in one pass costs."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from llma_rag.compiled import Floats
from llma_rag.pass_times import PassTimes

TREE_WIDTH = 16
"""Width of a pass at which it is asked whether trees pay."""

TREE_GAIN, LEAST_MARGIN, NO_TREES = 0.0005, 0.005, 0.1
"""Gain of trees over chains times the cost of a token; from which cost on, up to which cost."""

MOVED = 0.01
"""Share by which a time must be off from what is used for it to be exchanged."""


class CostTable(NamedTuple):
    """What passes cost by drafted nodes.

    Attributes:
        times: [nodes + 1] relative times of passes over so many drafted nodes.
        margins: [nodes] least cost per further node, by nodes that are drafted already.
        least_margin: Least of these.
    """

    times: Floats
    margins: Floats
    least_margin: float


class CostCurve:
    """Time of a forward pass by its width, relative to a pass of one token.

    Between measured widths it is interpolated; beyond the last it goes on with the last slope.
    Where a wider pass was measured as cheaper, the curve stays level. What requests' own passes
    take moves it.

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
        self._times = self._measured = _rising(points[width] for width in self._widths)
        self._tables: dict[int, CostTable] = {}
        self._observed = PassTimes(self._widths)
        self._used = self._observed.deviations.copy()

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
        return self._interpolated(width, self._times)

    def _interpolated(self, width: int, times: Sequence[float]) -> float:
        widths = self._widths
        if len(widths) == 1:
            return times[0]
        right = min(max(bisect_right(widths, width), 1), len(widths) - 1)
        left = right - 1
        slope = (times[right] - times[left]) / (widths[right] - widths[left])
        return times[left] + slope * (width - widths[left])

    def observe(
        self, width: int, seconds: float, *, branches: bool = False, request: object = None
    ) -> None:
        """Learn what one pass of a request took, if it is no wider than what was measured.

        Args:
            width: Its tokens.
            seconds: From its start until its tokens can be chosen.
            branches: Whether its draft was a tree.
            request: Stands for the request; passes of one are compared with one another.
        """
        if width > self._widths[-1] or not seconds > 0:
            return
        measured = self._interpolated(width, self._measured)
        time = seconds / (measured + self.branching * branches)
        self._observed.observe(width, time, request)
        deviations = self._observed.deviations
        if np.abs(deviations - self._used).max() > MOVED:
            self._used = deviations.copy()
            self._times = _rising(self._measured * np.exp(self._used))
            self._tables.clear()

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
            further = np.arange(budget + 1) - np.arange(budget)[:, None]
            rises = (times - times[:budget, None]) / np.maximum(further, 1)
            margins = np.where(further > 0, rises, np.inf).min(axis=1)
            found = self._tables[budget] = CostTable(times, margins, float(margins.min()))
        return found


def _rising(times: Iterable[float]) -> list[float]:
    """Return times of which none is less than the one before it."""
    return list(accumulate(map(float, times), max))
