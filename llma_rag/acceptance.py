"""Estimate how likely a drafted token is to be accepted; learns from verified drafts."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llma_rag.compiled import Floats, compiled
from llma_rag.matching import MAX_MATCH_LENGTH

Evidence = tuple[int, ...]
"""Indices of the weights that add up to the log-odds of one drafted token."""

REFERENCE, PROMPT, ANSWER, EARLIER, REPEAT = range(5)
"""What a copied token was copied from; `REPEAT` is an earlier answer to the same question."""

FAR = 128
"""Tokens behind the last accepted copy from which on a place counts as far."""

RECYCLED_RANKS = 8
"""Ranks of a recycled successor that are told apart; a copy that is none has the rank after."""

FIRMEST = 200.0
"""Highest precision of a weight while it learns, so that it keeps following the requests."""

NO_SUCCESSORS = -1
"""Rank of a copied token where no recycled successors are known."""


def _steps(borders: Sequence[int], size: int) -> NDArray[np.int64]:
    """Return, for 0..size-1, how many of the ascending `borders` are at most that number."""
    return np.searchsorted(borders, np.arange(size), side="right").astype(np.int64)


DEEPEST = 64
"""Depth from which on depths are not told apart."""

_LENGTH = _steps([1, 2, 3, 4, 5, 6, 8, 12, 20, 32], MAX_MATCH_LENGTH + 1)
_SHORT = _steps([2, 3], MAX_MATCH_LENGTH + 1)
_NEAR = _steps([2, 8, 32, FAR], FAR + 1)
_DEPTH = _steps([1, 2, 4, 8], DEEPEST + 1)
_LEAD = _steps([1, 2, 3], MAX_MATCH_LENGTH + 1)
_MANY = _steps([2, 4], 65)
_SHARE = _steps([10, 25, 50, 100], 101)

GROUPS: dict[str, int] = {
    "length": 11,
    "share": 4 + 3,
    "share_of_all": 5 * 3,
    "lead": 4,
    "near": 5 * 3,
    "depth": 5,
    "source": 5,
    "agrees": (RECYCLED_RANKS + 2),
    "rank": RECYCLED_RANKS * 3,
}
"""Groups of weights and their sizes; of each group at most one weight counts for a token."""

_START = {name: sum(list(GROUPS.values())[:place]) for place, name in enumerate(GROUPS)}
_SIZE = sum(GROUPS.values())
_LENGTH_AT, _SHARE_AT, _ALL_AT, _LEAD_AT, _NEAR_AT, _DEPTH_AT, _SOURCE_AT, _AGREES_AT, _RANK_AT = (
    _START.values()
)


@compiled
def copy_evidence(
    length: int,
    distance: int,
    depth: int,
    source: int,
    votes: int = 1,
    voters: int = 1,
    all_votes: int = 1,
    all_voters: int = 1,
    lead: int = 0,
    rank: int = NO_SUCCESSORS,
) -> Evidence:
    """Describe a copied token for `AcceptanceModel`.

    Args:
        length: Tokens before it that equal the context, drafted ones included.
        distance: Tokens from the end of the last accepted copy, at most `FAR`.
        depth: Drafted tokens above it.
        source: One of `REFERENCE`, `PROMPT`, `ANSWER`, `EARLIER`, `REPEAT`.
        votes: Places with a match of `length` that are followed by this token.
        voters: Places with a match of `length`.
        all_votes: Places with a match of any length that are followed by this token.
        all_voters: Places with a match of any length.
        lead: By how many tokens the longest match of all places is longer than `length`.
        rank: Its rank among the recycled successors, `RECYCLED_RANKS` for none of them,
            `NO_SUCCESSORS` where no successors are known.
    """
    short = _SHORT[length]
    share = _SHARE[100 * votes // voters]
    all_share = _SHARE[100 * all_votes // all_voters]
    if share == 4:
        share += _MANY[min(votes, 64)]
    return (
        _LENGTH_AT + _LENGTH[length],
        _SHARE_AT + share,
        _ALL_AT + 3 * all_share + short,
        _LEAD_AT + _LEAD[lead],
        _NEAR_AT + 3 * _NEAR[distance] + short,
        _DEPTH_AT + _DEPTH[min(depth, DEEPEST)],
        _SOURCE_AT + source,
        _AGREES_AT + 1 + rank,
    )


@compiled
def recycled_evidence(rank: int, depth: int, longest: int) -> Evidence:
    """Describe a recycled successor that no text offers.

    Args:
        rank: Its rank among the successors, below `RECYCLED_RANKS`.
        depth: Drafted tokens above it.
        longest: Longest match that offers other tokens; 0 where nothing is copied.
    """
    return (_RANK_AT + 3 * rank + _copied(longest), _DEPTH_AT + _DEPTH[min(depth, DEEPEST)])


@compiled
def _copied(longest: int) -> int:
    """Return the class of the longest match that offers other tokens: none, short, long."""
    return 0 if longest == 0 else 1 if longest < 3 else 2


class Lean:
    """How much more, or less, one request's answer copies than the model of acceptance expects.

    Attributes:
        state: [2] what is added to the log-odds of every token of the request, and the inverse
            variance of it.
    """

    def __init__(self) -> None:
        self.state = np.array([0.0, 8.0])


@compiled
def probability(weights: Floats, lean: Floats, evidence: Evidence) -> float:
    """Return the estimated probability that a token is accepted if its parent is."""
    log_odds = lean[0]
    for place in evidence:
        log_odds += weights[place]
    if log_odds < -30.0:
        return 0.0
    return 1.0 / (1.0 + math.exp(-log_odds))


@compiled
def observe(
    weights: Floats, precisions: Floats, lean: Floats, evidence: Evidence, accepted: bool
) -> None:
    """Learn from one token whose parent was accepted."""
    expected = probability(weights, lean, evidence)
    error, information = accepted - expected, expected * (1.0 - expected)
    lean[1] += information
    lean[0] += error / lean[1]
    for place in evidence:
        precisions[place] = min(FIRMEST, precisions[place] + information)
        weights[place] += error / precisions[place]


class AcceptanceModel:
    """Logistic regression over what is known of a drafted token, learned online.

    Every weight is a normal distribution, its mean and precision updated one observation at a time
    (extended Kalman filter with a diagonal covariance). One instance belongs to one model; it
    holds weights only, no tokens. Not locked: the decoder's worker thread alone uses it.

    Attributes:
        weights: Mean of each weight, the groups of `GROUPS` one after the other.
        precisions: Inverse variance of each weight.
    """

    def __init__(
        self, weights: Sequence[float] | Floats, precisions: Sequence[float] | Floats
    ) -> None:
        if len(weights) != _SIZE or len(precisions) != _SIZE:
            raise ValueError(
                f"`weights` and `precisions` must have {_SIZE} entries, "
                f"got {len(weights)} and {len(precisions)}."
            )
        self.weights: Floats = np.array(weights, float)
        self.precisions: Floats = np.array(precisions, float)
        if not np.isfinite(self.weights).all() or not (self.precisions > 0).all():
            raise ValueError("`weights` must be finite and `precisions` positive.")

    @classmethod
    def shipped(cls) -> "AcceptanceModel":
        """Return a new copy of the prior that comes with the package."""
        return cls.from_json(_shipped_prior())

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "AcceptanceModel":
        """Restore what `to_json` gave.

        Raises:
            ValueError: If a group is missing or has another size than here.
        """
        parts: dict[str, list[float]] = {"weights": [], "precisions": []}
        for kind, flat in parts.items():
            for name, size in GROUPS.items():
                values = saved.get(kind, {}).get(name)
                if not isinstance(values, list) or len(values) != size:
                    raise ValueError(f"`{kind}.{name}` must be a list of {size} numbers.")
                flat += values
        return cls(parts["weights"], parts["precisions"])

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """Return the weights as plain JSON values, by group."""
        return {
            kind: {
                name: flat[_START[name] : _START[name] + size].round(4).tolist()
                for name, size in GROUPS.items()
            }
            for kind, flat in (("weights", self.weights), ("precisions", self.precisions))
        }

    def save(self, file: Path) -> None:
        """Write the weights to a JSON file."""
        file.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


@lru_cache(maxsize=1)
def _shipped_prior() -> dict[str, Any]:
    text = resources.files("llma_rag").joinpath("acceptance_prior.json").read_text("utf-8")
    saved: dict[str, Any] = json.loads(text)
    return saved
