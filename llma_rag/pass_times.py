"""Learn from the passes of requests where their times are not those that were measured once."""

from collections.abc import Sequence

import numpy as np

from llma_rag.compiled import Floats, compiled

OCTAVE = 0.06
"""How far off, as a share, the time of a pass may be by each doubling of its width."""

NOISE, DRIFT = 0.1, 0.02
"""Shares by which passes of one width differ, and by which their time moves from pass to pass."""

MEMORY = 400
"""Passes after which what was learned counts by a third."""

OUTLIER = 2.5
"""Standard deviations beyond which a time is taken for one at that distance."""

UNKNOWN = 10.0
"""Standard deviation of the logarithm of a time of which nothing is known."""

LEVELS = 8
"""Requests that are told apart: as many as are decoded in turns."""


class PassTimes:
    """Estimates by how much relative times of passes are off; a Kalman filter of their logarithms.

    Its state is what a pass of one token takes in each of the latest requests, since their contexts
    differ, which moves as other programs come and go, and what the relative time of each width is
    off by. That is taken for a Brownian motion over the doublings of the width: nothing at width 1,
    much the same at widths that are close. Without passes it goes back to nothing.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        """Take the widths, ascending from 1, at which times were measured."""
        self._widths = np.array(widths, float)
        doublings = np.log2(self._widths)
        self._prior = OCTAVE**2 * np.minimum.outer(doublings, doublings)
        size = LEVELS + len(widths)
        self._mean = np.zeros(size)
        self._covariance = np.zeros((size, size))
        self._covariance[LEVELS:, LEVELS:] = self._prior
        self._requests = [object()] * LEVELS
        self._order = list(range(LEVELS))

    @property
    def deviations(self) -> Floats:
        """[widths] logarithms of the factors by which relative times are off."""
        return self._mean[LEVELS:]

    def observe(self, width: int, time: float, request: object) -> None:
        """Learn from one pass.

        Args:
            width: Its tokens.
            time: Its seconds over the relative time that was measured for its width.
            request: Whose pass it is; kept until eight others came.
        """
        level = self._level(request)
        _learn(self._mean, self._covariance, self._prior, self._widths, level, width, time)

    def _level(self, request: object) -> int:
        """Return where the state holds what a request's passes of one token take."""
        level = next((one for one in self._order if self._requests[one] is request), self._order[0])
        if self._requests[level] is not request:
            self._requests[level] = request
            self._covariance[level] = self._covariance[:, level] = 0.0
            self._covariance[level, level] = UNKNOWN**2
        self._order.remove(level)
        self._order.append(level)
        return level


@compiled
def _learn(
    mean: Floats,
    covariance: Floats,
    prior: Floats,
    widths: Floats,
    level: int,
    width: int,
    time: float,
) -> None:
    """Move the state towards what a pass took; compiled.

    Args:
        mean: [levels + widths] the state.
        covariance: [levels + widths, levels + widths] how uncertain it is.
        prior: [widths, widths] covariance of the deviations where no pass was seen.
        widths: [widths] where times were measured.
        level: Whose pass it is.
        width: Tokens of the pass.
        time: As of `observe`.
    """
    kept = 1 - 1 / MEMORY
    size = len(mean)
    for row in range(LEVELS, size):
        mean[row] *= kept
        for column in range(LEVELS):
            covariance[row, column] *= kept
            covariance[column, row] *= kept
        for column in range(LEVELS, size):
            added = (1 - kept**2) * prior[row - LEVELS, column - LEVELS]
            covariance[row, column] = kept**2 * covariance[row, column] + added
    covariance[level, level] += DRIFT**2

    right = 0
    while right < len(widths) - 1 and widths[right] < width:
        right += 1
    left = max(right - 1, 0)
    share = min(1.0, (width - widths[left]) / max(widths[right] - widths[left], 1.0))
    left += LEVELS
    right += LEVELS
    gain = covariance[:, level] + (1 - share) * covariance[:, left] + share * covariance[:, right]
    expected = mean[level] + (1 - share) * mean[left] + share * mean[right]
    variance = gain[level] + (1 - share) * gain[left] + share * gain[right] + NOISE**2

    most = OUTLIER * np.sqrt(variance)
    surprise = min(max(np.log(time) - expected, -most), most)
    for row in range(size):
        mean[row] += gain[row] * surprise / variance
        for column in range(size):
            covariance[row, column] -= gain[row] * gain[column] / variance
