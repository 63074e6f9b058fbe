"""Fit the shipped prior of acceptance to recorded answers.

Run `python -m llma_rag.bench.fit --traces FILE ... --out llma_rag/acceptance_prior.json`.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from llma_rag.acceptance import EARLIER, GROUPS, REPEAT, AcceptanceModel
from llma_rag.bench.forced import MakeDrafter, Recycling, force
from llma_rag.bench.replay import tokenised
from llma_rag.bench.traces import TraceTokens
from llma_rag.costs import CostCurve
from llma_rag.drafting import Drafter, ReferenceDrafter
from llma_rag.recycling import Recycler

ROWS, NODES = 100, 64
PASSES = 3
COSTS = (None, 0.005, 0.02, 0.05, 0.15)
"""Drafts are made at one of these costs by chance, so that rare and probable nodes are seen."""

FIRM, LOOSE = 150.0, 5.0
"""Highest precision of a weight that is shipped, and that of weights no recorded answer tells."""

UNSEEN_SOURCES = {EARLIER: 0.4, REPEAT: 2.5}
"""Weights of earlier answers, which recorded answers lack: set by hand to copy readily."""


def fit(traces: Sequence[TraceTokens], seed: int = 0) -> AcceptanceModel:
    """Learn online from several passes over the answers in random order, from nothing on."""
    chance = random.Random(seed)
    size = sum(GROUPS.values())
    model = AcceptanceModel([0.0] * size, [4.0] * size)
    recycler = Recycler()
    for _ in range(PASSES):
        for trace in chance.sample(list(traces), len(traces)):
            recycled = recycler if chance.random() < 0.5 else None
            force(trace, _maker(model, chance.choice(COSTS), recycled), NODES)
        model = _capped(model)
    return model


def _maker(model: AcceptanceModel, cost: float | None, recycler: Recycler | None) -> MakeDrafter:
    def make(trace: TraceTokens) -> Drafter:
        drafter = ReferenceDrafter(
            trace.references,
            trace.prompt,
            max_draft_tokens=NODES,
            branching=True,
            banned_tokens=trace.special_tokens,
            costs=None if cost is None else CostCurve.linear(cost),
            acceptance=model,
            recycler=recycler,
        )
        return drafter if recycler is None else Recycling(drafter, recycler, len(trace.prompt))

    return make


def _capped(model: AcceptanceModel) -> AcceptanceModel:
    """Keep every weight soft enough to be learned on."""
    precisions = [min(FIRM, max(precision, LOOSE)) for precision in model.precisions]
    saved = AcceptanceModel(model.weights, precisions).to_json()
    for source, weight in UNSEEN_SOURCES.items():
        saved["weights"]["source"][source] = weight
        saved["precisions"]["source"][source] = LOOSE
    return AcceptanceModel.from_json(saved)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    fit(tokenised(given.traces, rows=ROWS)).save(given.out)


if __name__ == "__main__":
    main()
