"""Sum forced runs up per drafter and set, with intervals over groups."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llma_rag.bench.forced import ForcedRun

RESAMPLES = 1_000
ALL_SETS = "all"

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRow:
    """One drafter on one set.

    Attributes:
        drafter: Name of the drafter.
        set: Name of the set; `all` for all sets together, counts pooled.
        nodes: Most nodes of a draft.
        rows: Answers replayed.
        tokens: Tokens of the answers.
        forwards: Forward passes, one prefill per answer included.
        drafted: Drafted tokens.
        accepted: Drafted tokens that were right.
        tokens_per_forward: Tokens over forward passes.
        nodes_per_forward: Drafted tokens over forward passes.
        acceptance: Accepted over drafted tokens.
        s: By cost c of a verified token, as share of a forward: tokens / sum(1 + c * drafted).
        s_mean: The same averaged over sets; only where `set` is `all`.
        step_us_p50: Median time of a drafting step, microseconds.
        step_us_p99: 99th percentile of it.
        build_ms: Mean time to index one request, milliseconds.
        tokens_per_forward_interval: 95 % bootstrap interval over groups.
        s_intervals: The same for each cost.
    """

    drafter: str
    set: str
    nodes: int
    rows: int
    tokens: int
    forwards: int
    drafted: int
    accepted: int
    tokens_per_forward: float
    nodes_per_forward: float
    acceptance: float
    s: dict[str, float]
    s_mean: dict[str, float] | None
    step_us_p50: float
    step_us_p99: float
    build_ms: float
    tokens_per_forward_interval: Interval
    s_intervals: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values, rounded to what the measurement carries."""
        return {name: _rounded(value) for name, value in asdict(self).items() if value is not None}


def summarise(
    drafter: str,
    nodes: int,
    runs: Sequence[ForcedRun],
    runs_by_cost: Mapping[float, Sequence[ForcedRun]],
) -> list[ReplayRow]:
    """Return one row per set and, where there are several, one for all of them.

    Args:
        drafter: Name for the rows.
        nodes: Budget of a draft.
        runs: Runs from which everything but `s` is taken; not empty.
        runs_by_cost: For each cost the runs of the drafter when told that cost.
    """
    sets = list(dict.fromkeys(run.set for run in runs))
    rows = [_row(drafter, nodes, name, runs, runs_by_cost) for name in sets]
    if len(sets) > 1:
        rows.append(_row(drafter, nodes, ALL_SETS, runs, runs_by_cost, parts=rows))
    return rows


def _row(
    drafter: str,
    nodes: int,
    name: str,
    runs: Sequence[ForcedRun],
    runs_by_cost: Mapping[float, Sequence[ForcedRun]],
    parts: Sequence[ReplayRow] = (),
) -> ReplayRow:
    mine = _of_set(runs, name)
    by_cost = {f"{cost:g}": (cost, _of_set(some, name)) for cost, some in runs_by_cost.items()}
    steps = np.array([second for run in mine for second in run.step_seconds] or [0.0]) * 1e6
    tokens, forwards = sum(run.tokens for run in mine), sum(run.forwards for run in mine)
    drafted, accepted = sum(run.drafted for run in mine), sum(run.accepted for run in mine)
    return ReplayRow(
        drafter=drafter,
        set=name,
        nodes=nodes,
        rows=len(mine),
        tokens=tokens,
        forwards=forwards,
        drafted=drafted,
        accepted=accepted,
        tokens_per_forward=tokens / forwards,
        nodes_per_forward=drafted / forwards,
        acceptance=accepted / drafted if drafted else 0.0,
        s={key: speed_up(some, cost) for key, (cost, some) in by_cost.items()},
        s_mean={key: float(np.mean([row.s[key] for row in parts])) for key in by_cost}
        if parts
        else None,
        step_us_p50=float(np.quantile(steps, 0.5)),
        step_us_p99=float(np.quantile(steps, 0.99)),
        build_ms=float(np.mean([run.build_seconds for run in mine])) * 1e3,
        tokens_per_forward_interval=interval(mine, 0.0),
        s_intervals={key: interval(some, cost) for key, (cost, some) in by_cost.items()},
    )


def _of_set(runs: Sequence[ForcedRun], name: str) -> list[ForcedRun]:
    return [run for run in runs if name in (ALL_SETS, run.set)]


def speed_up(runs: Sequence[ForcedRun], cost: float) -> float:
    """Return tokens / sum(1 + cost * drafted): the speed-up if only forward passes take time."""
    spent = sum(run.forwards + cost * run.drafted for run in runs)
    return sum(run.tokens for run in runs) / spent


def interval(runs: Sequence[ForcedRun], cost: float) -> Interval:
    """Return the 95 % bootstrap interval of `speed_up`, groups drawn with replacement."""
    groups = {name: number for number, name in enumerate(dict.fromkeys(r.group for r in runs))}
    totals: NDArray[np.float64] = np.zeros((len(groups), 2))
    for run in runs:
        totals[groups[run.group]] += run.tokens, run.forwards + cost * run.drafted
    random = np.random.default_rng(0)
    drawn = totals[random.integers(len(groups), size=(RESAMPLES, len(groups)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_rounded(entry) for entry in value]
    return value
