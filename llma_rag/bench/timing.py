"""Time arms against each other: interleaved, ratio by ratio, with intervals over prompts."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llma_rag.bench.arms import Timed
from llma_rag.bench.traces import TraceTokens

RESAMPLES = 2_000

Run = Callable[[str, TraceTokens], Timed]

REFERENCE = {"hf-prompt-lookup": "hf-greedy", "hf-static-compiled": "hf-greedy"}
"""Whose answers an arm must repeat; our own arms must repeat `plain`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One arm over all prompts; times are medians over repeats, then over prompts.

    Attributes:
        arm: Its name.
        ms_per_token: Time of an answer over its tokens, milliseconds.
        ttft_ms: Time to the first token, milliseconds.
        tpot_ms: Time per token after the first, milliseconds.
        tokens_per_forward: Tokens over forward passes, all prompts together.
        identical: Share of answers equal to those of the reference arm; None without that arm.
        ratio: By other arm, its time per answer over this one's: above 1 this arm is quicker.
            Median over prompts with a 95 % bootstrap interval, and each prompt's ratio.
    """

    arm: str
    ms_per_token: float
    ttft_ms: float
    tpot_ms: float
    tokens_per_forward: float
    identical: float | None
    ratio: dict[str, dict[str, object]] = field(default_factory=dict)


def interleave(
    run: Run,
    arms: Sequence[str],
    traces: Sequence[TraceTokens],
    repeats: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, list[list[Timed]]]:
    """Run all arms on all prompts, in random order within each round; the first round warms up.

    Returns:
        For each arm and prompt its repeats.
    """
    order = random.Random(0)
    found: dict[str, list[list[Timed]]] = {arm: [[] for _ in traces] for arm in arms}
    for number, trace in enumerate(traces):
        for round_ in range(repeats + (number == 0)):
            for arm in order.sample(list(arms), len(arms)):
                timed = run(arm, trace)
                if round_ or number:
                    found[arm][number].append(timed)
                progress()
    return found


def rows_of(found: Mapping[str, Sequence[Sequence[Timed]]]) -> list[ArmRow]:
    """Return one row per arm."""
    return [_row(arm, found) for arm in found]


def _row(arm: str, found: Mapping[str, Sequence[Sequence[Timed]]]) -> ArmRow:
    mine = found[arm]
    last = [runs[-1] for runs in mine]
    tokens = np.array([len(one.token_ids) for one in last])
    reference = REFERENCE.get(arm, arm if arm.startswith("hf-") else "plain")
    same = None
    if reference in found:
        theirs = [runs[-1].token_ids for runs in found[reference]]
        same = float(np.mean([a.token_ids == b for a, b in zip(last, theirs, strict=True)]))
    seconds = per_prompt(mine)
    return ArmRow(
        arm=arm,
        ms_per_token=float(np.median(seconds / tokens)) * 1e3,
        ttft_ms=float(np.median([np.median([t.first_token for t in runs]) for runs in mine])) * 1e3,
        tpot_ms=float(np.median([np.median([t.per_token for t in runs]) for runs in mine])) * 1e3,
        tokens_per_forward=float(tokens.sum() / max(sum(one.forwards for one in last), 1)),
        identical=same,
        ratio={
            other: ratio_of(per_prompt(found[other]) / seconds) for other in found if other != arm
        },
    )


def per_prompt(runs: Sequence[Sequence[Timed]]) -> np.ndarray:
    """Return the median seconds of an answer for each prompt."""
    return np.array([np.median([one.seconds for one in repeats]) for repeats in runs])


def ratio_of(ratios: np.ndarray) -> dict[str, object]:
    """Return median and 95 % bootstrap interval over prompts, and the ratios themselves."""
    source = np.random.default_rng(0)
    drawn = source.choice(ratios, size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {
        "median": round(float(np.median(ratios)), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "prompts": [round(float(one), 3) for one in ratios],
    }
